// Measures this machine by microbenchmarks and writes what `plan --hardware FILE` and
// `compare_strategies --hardware FILE` read. Sizes are those of the run that is to be planned.
#include <fmt/core.h>

#include <cstdio>
#include <exception>

#include "../train_gpt/command_line.hpp"
#include "calibration.hpp"
#include "hardware_file.hpp"

int main(int count, char** arguments) try {
  train_gpt::Options options;
  std::string output = "hardware.json";
  double effort = 0.05;
  CLI::App app("Measures this machine's links and compute by microbenchmarks.", "calibrate");
  app.option_defaults()->always_capture_default();
  train_gpt::add_count(app, "--ranks", options.ranks, "Threads that share the work");
  train_gpt::add_count(app, "--batch", options.batch, "Sequences per step, over all ranks");
  train_gpt::add_count(app, "--micro-batches", options.micro_batches, "Parts of a rank's share");
  train_gpt::add_count(app, "--layers", options.layers, "Transformer blocks");
  train_gpt::add_count(app, "--width", options.width, "Size of the residual stream");
  train_gpt::add_count(app, "--heads", options.heads, "Attention heads of each block");
  train_gpt::add_count(app, "--sequence", options.sequence, "Bytes that the model sees at once");
  app.add_option("--effort", effort, "Seconds for each measurement")->check(CLI::PositiveNumber);
  app.add_option("--output", output, "File to write");
  train_gpt::parse(app, count, arguments, [&] { train_gpt::validate(options); });
  const shardwise::Hardware hardware = plan::calibrate(options, effort);
  plan::write_hardware(hardware, output);
  fmt::print(
      "{}: products {:.2f} GFLOPS, within attention {:.2f}; exponentials {:.0f} M/s; loops over "
      "elements {:.2f} GB/s\nupdate {:.2f} GB/s, norm {:.2f}, cast {:.2f}, zeros {:.2f}\n",
      hardware.name, hardware.flops / 1e9, hardware.attention_flops / 1e9,
      hardware.exponentials / 1e6, hardware.element_bandwidth / 1e9,
      hardware.processor.update_bandwidth / 1e9, hardware.processor.norm_bandwidth / 1e9,
      hardware.processor.cast_bandwidth / 1e9, hardware.processor.memory_bandwidth / 1e9);
  if (const auto& measured = hardware.topology.measured) {
    const auto line = [](const char* name, const shardwise::Link& link) {
      fmt::print("{:<15}{:>8.1f} us + bytes / {:.2f} GB/s\n", name, link.latency * 1e6,
                 link.bandwidth / 1e9);
    };
    line("all-gather", measured->all_gather);
    line("reduce-scatter", measured->reduce_scatter);
    line("all-reduce", measured->all_reduce);
    fmt::print("a scalar       {:>8.1f} us; a collective takes {:.2f} of the compute beside it\n",
               measured->scalar * 1e6, hardware.processor.communication_share);
  }
  fmt::print("written to {}\n", output);
  return 0;
} catch (const train_gpt::OptionsExit& exit) {
  fmt::print(exit.code() == 0 ? stdout : stderr, "{}", exit.what());
  return exit.code();
} catch (const std::exception& error) {
  fmt::print(stderr, "calibrate: {}\n", error.what());
  return 1;
}
