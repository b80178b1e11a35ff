#include <fmt/core.h>

#include <algorithm>
#include <cstdio>
#include <exception>
#include <shardwise/comm/launch.hpp>
#include <string>

#include "options.hpp"
#include "trainer.hpp"

namespace {

constexpr int skipped = 77;  // what CTest takes for "not run"

// Single bytes of the model's may be no text for a terminal.
std::string printable(std::string text) {
  std::replace_if(
      text.begin(), text.end(), [](char c) { return c != '\n' && (c < ' ' || c > '~'); }, '?');
  return text;
}

}  // namespace

int main(int count, char** arguments) try {
  using namespace cuda_gpt;
  const shardwise::Launch launch = shardwise::detect_launch();
  const bool in_processes = launch.size > 1;
  const Options options =
      parse_options(count, arguments, in_processes ? static_cast<std::size_t>(launch.size) : 0);
  if (count_devices() == 0) {
    fmt::print("skipped: no CUDA device\n");
    return skipped;
  }
  if (launch.rank == 0) fmt::print("runs on {}\n", describe_device());
  const Report report = !in_processes                     ? train_in_threads(options)
                        : meets_over_mpi(options, launch) ? train_over_mpi(options, launch)
                                                          : train_over_files(options, launch);
  if (launch.rank != 0) return 0;
  if (options.sample > 0) fmt::print("sample: {}\n\n", printable(report.sample));
  fmt::print("{}", summary(report));
  if (!options.json.empty()) write_json(report, options.json);
  return 0;
} catch (const train_gpt::OptionsExit& exit) {
  fmt::print(exit.code() == 0 ? stdout : stderr, "{}", exit.what());
  return exit.code();
} catch (const std::exception& error) {
  fmt::print(stderr, "cuda_gpt: {}\n", error.what());
  return 1;
}
