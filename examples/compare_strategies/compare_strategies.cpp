// Trains one small GPT with every strategy, on the text and the sizes that it is given, and shows
// what each costs: memory, traffic, time, next to what the planner says. Takes train_gpt's options;
// --strategy is what it varies. Ranks are threads, or the processes that mpirun started.
#include <fmt/core.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <exception>
#include <stdexcept>
#include <string>
#include <vector>

#include "../plan/calibration.hpp"
#include "../plan/hardware_file.hpp"
#include "../plan/report.hpp"
#include "../train_gpt/backend.hpp"
#include "../train_gpt/options.hpp"
#include "comparison.hpp"
#include "output.hpp"

namespace {

struct Own {
  std::string hardware;
  std::size_t rounds = 1;
  bool tune = false;
  std::string json;
  std::string html;
  std::string write_config;
};

// Options of this program's; the rest is train_gpt's.
train_gpt::Options parse(int count, char** arguments, Own& own) {
  CLI::App app("Trains with every strategy and compares them.", "compare_strategies");
  app.allow_extras();
  app.set_help_flag();
  app.add_option("--hardware", own.hardware, "File of `calibrate`; else this machine is measured")
      ->check(CLI::ExistingFile);
  app.add_option("--rounds", own.rounds, "How often each strategy trains, in turns")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_flag("--tune", own.tune, "Try settings on the strategy that is chosen");
  app.add_option("--json", own.json, "File for the comparison");
  app.add_option("--html", own.html, "File for a report to look at");
  app.add_option("--write-config", own.write_config, "File for the configuration to take");
  std::vector<const char*> rest{"compare_strategies"};
  std::vector<std::string> remaining;
  try {
    app.parse(count, arguments);
    remaining = app.remaining();
  } catch (const CLI::ParseError& error) {
    throw train_gpt::OptionsExit(fmt::format("{}\n", error.what()), 106);
  }
  for (const std::string& word : remaining) rest.push_back(word.c_str());
  try {
    return train_gpt::parse_options(static_cast<int>(rest.size()), rest.data());
  } catch (const train_gpt::OptionsExit& exit) {
    if (exit.code() != 0) throw;
    throw train_gpt::OptionsExit(
        app.help() + "\nand what train_gpt takes, less --strategy:\n\n" + exit.what(), 0);
  }
}

// On every rank that is a process; the first one speaks. The program's exit status.
int compare(const train_gpt::Options& options, const Own& own) {
  const bool speaks = options.process == 0;
  if (own.hardware.empty() && speaks) fmt::print(stderr, "measuring this machine ...\n");
  const shardwise::Hardware hardware =
      own.hardware.empty() ? plan::calibrate(options, 0.02) : plan::read_hardware(own.hardware);
  plan::require_ranks(hardware, options.ranks);
  compare_strategies::Comparison comparison =
      compare_strategies::compare(options, hardware, own.rounds);
  if (own.tune) compare_strategies::tune(comparison, own.rounds);
  const int status = comparison.same_bits() && comparison.planned_right() ? 0 : 1;
  if (!speaks) return status;
  fmt::print("{}", compare_strategies::table(comparison));
  if (!own.json.empty()) plan::write_file(own.json, compare_strategies::to_json(comparison));
  if (!own.html.empty()) plan::write_file(own.html, compare_strategies::to_html(comparison));
  if (!own.write_config.empty()) {
    plan::write_file(own.write_config, compare_strategies::config_of(comparison));
  }
  return status;
}

}  // namespace

int main(int count, char** arguments) try {
  Own own;
  const train_gpt::Options options = parse(count, arguments, own);
  if (options.sample > 0 || options.world_of_one_reference || !options.monitor.empty() ||
      !options.checkpoint.empty() || options.strategy != train_gpt::Options().strategy) {
    throw train_gpt::OptionsExit(
        "compare_strategies trains with every strategy and prints a table: --strategy, --sample, "
        "--monitor, --checkpoint and --world-of-one-reference are train_gpt's\n",
        2);
  }
  int status = 0;
  const auto run = [&](const train_gpt::Options& own_options) {
    status = compare(own_options, own);
  };
  if (options.backend == "mpi") {
    train_gpt::over_mpi(options, run);
  } else {
    run(options);
  }
  return status;
} catch (const train_gpt::OptionsExit& exit) {
  fmt::print(exit.code() == 0 ? stdout : stderr, "{}", exit.what());
  return exit.code();
} catch (const std::exception& error) {
  fmt::print(stderr, "compare_strategies: {}\n", error.what());
  return 1;
}
