#include <fmt/core.h>

#include <algorithm>
#include <cstdio>
#include <exception>
#include <string>

#include "backend.hpp"
#include "options.hpp"
#include "report.hpp"
#include "train.hpp"

namespace {

// Single bytes of the model's may be no text for a terminal.
std::string printable(std::string text) {
  std::replace_if(
      text.begin(), text.end(), [](char c) { return c != '\n' && (c < ' ' || c > '~'); }, '?');
  return text;
}

}  // namespace

int main(int count, char** arguments) try {
  using namespace train_gpt;
  const Options options = parse_options(count, arguments);
  const bool speaks = options.process == 0;
  if (speaks && !options.effective.empty() && !options.quiet) {
    fmt::print("{}\n", options.effective);
  }
  const Report report = options.world_of_one_reference ? plain::train(options)
                        : options.backend == "mpi"     ? train_over_mpi(options)
                                                       : sharded::train(options);
  if (!speaks) return 0;
  if (options.sample > 0) fmt::print("sample: {}\n\n", printable(report.sample));
  fmt::print("{}", summary(report));
  if (!options.json.empty()) write_json(report, options.json);
  return 0;
} catch (const train_gpt::OptionsExit& exit) {
  fmt::print(exit.code() == 0 ? stdout : stderr, "{}", exit.what());
  return exit.code();
} catch (const std::exception& error) {
  fmt::print(stderr, "train_gpt: {}\n", error.what());
  return 1;
}
