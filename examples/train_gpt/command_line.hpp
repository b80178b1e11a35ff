#pragma once

#include <fmt/core.h>

#include <CLI/CLI.hpp>
#include <shardwise/core/error.hpp>
#include <sstream>
#include <stdexcept>
#include <string>

#include "options.hpp"

namespace train_gpt {

// CLI11 would read -1 as the largest count.
template <class Count>
CLI::Option* add_count(CLI::App& app, const std::string& name, Count& count,
                       const std::string& description) {
  const auto refuse_negative = [](const std::string& value) {
    return value.starts_with('-') ? fmt::format("{} is negative", value) : std::string();
  };
  return app.add_option(name, count, description)->type_name("COUNT")->check(refuse_negative);
}

/// What every trainer of this model can be told, however its ranks compute.
inline void add_training_options(CLI::App& app, Options& o) {
  app.add_option("--learning-rate", o.learning_rate, "Learning rate, constant")
      ->check(CLI::PositiveNumber)
      ->group("Training");
  app.add_option("--clip", o.clip, "Largest norm of the gradient; 0: any")
      ->check(CLI::NonNegativeNumber)
      ->group("Training");
  add_count(app, "--steps", o.steps, "Optimizer steps in all")->group("Training");
  add_count(app, "--batch", o.batch, "Sequences per step, over all ranks")->group("Training");
  add_count(app, "--micro-batches", o.micro_batches, "Parts in which a rank computes its share")
      ->group("Training");
  const auto set_accumulate = [&o](const std::string& word) {
    o.accumulate = word == "hold" ? Accumulate::hold : Accumulate::reduce;
  };
  app.add_option_function<std::string>(
         "--accumulate", set_accumulate,
         "Micro-batches: reduce each, or hold the gradient and reduce once")
      ->default_str("reduce")
      ->check(CLI::IsMember({"reduce", "hold"}))
      ->group("Training");
  add_count(app, "--seed", o.seed, "Seed of the initial values and of the order of the text")
      ->group("Training");
  app.add_option("--text", o.text, "Text to learn; by default Debian's licence texts")
      ->check(CLI::ExistingFile)
      ->group("Training");

  add_count(app, "--layers", o.layers, "Transformer blocks")->group("Model");
  add_count(app, "--width", o.width, "Size of the residual stream")->group("Model");
  add_count(app, "--heads", o.heads, "Attention heads of each block")->group("Model");
  add_count(app, "--sequence", o.sequence, "Bytes that the model sees at once")->group("Model");

  add_count(app, "--sample", o.sample, "Bytes of text to write after training")->group("Output");
  app.add_option("--json", o.json, "File for the report")->group("Output");
  app.add_flag("--quiet", o.quiet, "No progress line")->group("Output");
}

/// Reads the command line, then calls finish(), which may throw std::invalid_argument. OptionsExit
/// where the program ends here.
template <class Finish>
void parse(CLI::App& app, int count, const char* const* arguments, const Finish& finish) {
  try {
    app.parse(count, arguments);
    finish();
  } catch (const CLI::ParseError& error) {
    std::ostringstream out;
    std::ostringstream errors;
    const int code = app.exit(error, out, errors);
    throw OptionsExit(out.str() + errors.str(), code);
  } catch (const shardwise::ConfigError& error) {
    throw OptionsExit(fmt::format("{}\n", error.what()), 2);
  } catch (const std::invalid_argument& error) {
    throw OptionsExit(fmt::format("{}\n", error.what()), 2);
  }
}

}  // namespace train_gpt
