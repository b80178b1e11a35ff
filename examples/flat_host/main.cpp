#include <cinttypes>
#include <cstdio>
#include <cstring>
#include <exception>

#include "gpt.hpp"
#include "options.hpp"
#include "train.hpp"

int main(int count, char** arguments) try {
  using namespace flat_host;
  if (count == 2 && std::strcmp(arguments[1], "--help") == 0) return std::fputs(help, stdout) < 0;
  Options options;
  if (const char* wrong = parse_options(&options, count, arguments)) {
    std::fprintf(stderr, "flat_host: %s\n\n%s", wrong, help);
    return 2;
  }
  const Result result = plain::train(options);
  std::printf(
      "%zu parameters, %.2f MiB of them, of gradients and of moments on a rank at rest\n",
      result.parameters.size(),
      static_cast<double>(result.parameter_bytes + result.gradient_bytes + result.optimizer_bytes) /
          (1 << 20));
  std::printf("loss %.6f -> %.6f, parameters %016" PRIx64 "\n", result.loss.front(),
              result.loss.back(), hash_of(result.parameters.data(), result.parameters.size()));
  return 0;
} catch (const std::exception& error) {
  std::fprintf(stderr, "flat_host: %s\n", error.what());
  return 1;
}
