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
  const Result result = options.plain ? plain::train(options) : sharded::train(options);
  const Bytes& bytes = result.bytes;
  std::printf(
      "%zu parameters; each rank holds %zu B of parameters, %zu of gradients, %zu of moments, "
      "%zu beside%s\n",
      result.parameters.size(), bytes.parameters, bytes.gradients, bytes.optimizer_state,
      bytes.slots + bytes.crumbs,
      options.plain             ? ""
      : bytes == result.planned ? ", as planned"
                                : ", which was NOT planned");
  std::printf("loss %.6f -> %.6f, parameters %016" PRIx64 "\n", result.loss.front(),
              result.loss.back(), hash_of(result.parameters.data(), result.parameters.size()));
  return 0;
} catch (const std::exception& error) {
  std::fprintf(stderr, "flat_host: %s\n", error.what());
  return 1;
}
