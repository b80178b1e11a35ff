// What training a model takes, bytes and time, with every strategy, before a byte is allocated; and
// which strategy to take. `plan --help` has the options, `plan --list` the models and devices.
#include <fmt/core.h>

#include <cstdio>
#include <exception>

#include "../train_gpt/options.hpp"
#include "options.hpp"
#include "report.hpp"

int main(int count, char** arguments) try {
  const plan::Options options = plan::parse_options(count, arguments);
  if (options.list) {
    fmt::print("{}", plan::list_presets());
    return 0;
  }
  const shardwise::PlannedModel model = plan::model_of(options);
  const shardwise::Hardware hardware = plan::hardware_of(options);
  const shardwise::Plan result = plan::make_plan(model, hardware, plan::request_of(options));
  fmt::print("{}", plan::table(options, model, hardware, result));
  if (!options.json.empty()) {
    plan::write_file(options.json, plan::to_json(options, model, hardware, result));
  }
  if (!options.write_config.empty()) {
    plan::write_file(options.write_config, plan::config_of(options, result));
  }
  return 0;
} catch (const train_gpt::OptionsExit& exit) {
  fmt::print(exit.code() == 0 ? stdout : stderr, "{}", exit.what());
  return exit.code();
} catch (const std::exception& error) {
  fmt::print(stderr, "plan: {}\n", error.what());
  return 1;
}
