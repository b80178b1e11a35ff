#include "options.hpp"

#include <fmt/core.h>

#include <CLI/CLI.hpp>
#include <sstream>
#include <utility>

namespace train_gpt {
namespace {

void require_positive(std::string_view name, std::size_t value) {
  if (value > 0) return;
  throw std::invalid_argument(fmt::format("--{} 0: it must be at least 1", name));
}

// CLI11 would read -1 as the largest count.
template <class Count>
CLI::Option* add_count(CLI::App& app, const std::string& name, Count& count,
                       const std::string& description) {
  const auto refuse_negative = [](const std::string& value) {
    return value.starts_with('-') ? fmt::format("{} is negative", value) : std::string();
  };
  return app.add_option(name, count, description)->type_name("COUNT")->check(refuse_negative);
}

}  // namespace

Options parse_options(int count, const char* const* arguments) {
  Options o;
  CLI::App app("Trains a byte-level GPT; its state is sharded over ranks by shardwise.",
               "train_gpt");
  app.option_defaults()->always_capture_default();

  add_count(app, "--ranks", o.ranks, "Ranks that share the work")->group("Ranks");
  app.add_option("--backend", o.backend, "How ranks talk")
      ->check(CLI::IsMember({"threads", "self"}))
      ->group("Ranks");
  app.add_option("--strategy", o.strategy, "ddp, zero1, zero2, zero3, zero3-no-reshard")
      ->group("Ranks");
  app.add_option("--lease", o.lease, "Type of the weights that the compute sees")
      ->check(CLI::IsMember({"fp32", "bf16", "f16"}))
      ->group("Ranks");
  app.add_option("--gradient", o.gradient, "Type of the stored gradient")
      ->check(CLI::IsMember({"fp32", "bf16"}))
      ->group("Ranks");
  app.add_option("--residency", o.residency, "Where gathered parameters live")
      ->check(CLI::IsMember({"slots"}))
      ->group("Ranks");
  add_count(app, "--prefetch", o.prefetch, "Parameters gathered ahead of use")->group("Ranks");
  app.add_flag("--world-of-one-reference", o.world_of_one_reference,
               "Train without the library, in one rank")
      ->group("Ranks");

  app.add_option("--optimizer", o.optimizer, "Optimizer")
      ->check(CLI::IsMember({"adamw"}))
      ->group("Training");
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
  std::string accumulate = "reduce";
  app.add_option("--accumulate", accumulate,
                 "Micro-batches: reduce each, or hold the gradient and reduce once")
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

  try {
    app.parse(count, arguments);
    o.accumulate = accumulate == "hold" ? Accumulate::hold : Accumulate::reduce;
    if (o.world_of_one_reference) o.ranks = 1;
    validate(o);
  } catch (const CLI::ParseError& error) {
    std::ostringstream out;
    std::ostringstream errors;
    const int code = app.exit(error, out, errors);
    throw OptionsExit(out.str() + errors.str(), code);
  } catch (const std::invalid_argument& error) {
    throw OptionsExit(fmt::format("{}\n", error.what()), 2);
  }
  return o;
}

void validate(const Options& o) {
  for (const auto& [name, value] : {std::pair<std::string_view, std::size_t>{"ranks", o.ranks},
                                    {"steps", o.steps},
                                    {"layers", o.layers},
                                    {"width", o.width},
                                    {"heads", o.heads},
                                    {"sequence", o.sequence},
                                    {"batch", o.batch},
                                    {"micro-batches", o.micro_batches}}) {
    require_positive(name, value);
  }
  if (o.width % o.heads != 0) {
    throw std::invalid_argument(
        fmt::format("--width {} does not divide into --heads {}: the next width that does is {}",
                    o.width, o.heads, (o.width / o.heads + 1) * o.heads));
  }
  if (o.backend == "self" && o.ranks != 1) {
    throw std::invalid_argument(
        fmt::format("--backend self is a world of one, but --ranks is {}: give --ranks 1 or "
                    "--backend threads",
                    o.ranks));
  }
  const std::size_t parts = o.ranks * o.micro_batches;
  if (o.batch % parts != 0) {
    throw std::invalid_argument(fmt::format(
        "--batch {} does not divide into {} ranks x {} micro-batches: the next batch that does "
        "is {}",
        o.batch, o.ranks, o.micro_batches, (o.batch / parts + 1) * parts));
  }
}

}  // namespace train_gpt
