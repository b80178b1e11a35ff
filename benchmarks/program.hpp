#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <string>
#include <vector>

#include "results.hpp"
#include "sampling.hpp"

namespace benchmarks {

/// What every program here has: options, a table, a file, and errors that are said. `options` is
/// for those of the program's own.
class Program {
 public:
  CLI::App options;
  Sampling sampling;
  Results results;

  Program(std::string name, const std::string& what) : options(what, std::move(name)) {
    options.option_defaults()->always_capture_default();
    options.add_option("--samples", sampling.samples, "runs of each case; the median counts")
        ->check(CLI::PositiveNumber);
    options.add_option("--seconds", sampling.seconds, "a sample repeats its call for so long")
        ->check(CLI::PositiveNumber);
    options.add_option("--json", json_, "file for the results");
  }

  /// An option of bytes, as 65536, 64KiB or 1GiB.
  void add_bytes(const std::string& name, std::size_t& bytes, const std::string& what) {
    options.add_option(name, bytes, what)->transform(CLI::AsSizeValue(false));
  }

  /// `measure` fills the results and says whether every bound was kept.
  template <class F>
  [[nodiscard]] int run(int count, char** arguments, const F& measure) try {
    CLI11_PARSE(options, count, arguments);
    const bool good = measure();
    results.write(json_);
    return good ? EXIT_SUCCESS : EXIT_FAILURE;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s: %s\n", options.get_name().c_str(), error.what());
    return EXIT_FAILURE;
  }

 private:
  std::string json_;
};

/// Powers of two from `least` to `most`.
[[nodiscard]] inline std::vector<std::size_t> sizes_between(std::size_t least, std::size_t most) {
  std::vector<std::size_t> result;
  for (std::size_t size = 1; size <= most && size != 0; size *= 2) {
    if (size >= least) result.push_back(size);
  }
  return result;
}

}  // namespace benchmarks
