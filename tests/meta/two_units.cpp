// Links both units: what is not inline is defined twice, and what differs between them shows.
#include <cstdio>

double train_in_first_unit();
double train_in_second_unit();

int main() {
  const double first = train_in_first_unit();
  const double second = train_in_second_unit();
  std::printf("%.17g and %.17g\n", first, second);
  return first > 0 && first == second ? 0 : 1;
}
