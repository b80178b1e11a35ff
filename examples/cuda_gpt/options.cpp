#include "options.hpp"

#include <fmt/core.h>

#include <CLI/CLI.hpp>
#include <sstream>

namespace cuda_gpt {
namespace {

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

Options parse_options(int count, const char* const* arguments, std::size_t processes) {
  Options o;
  o.ranks = 1;
  CLI::App app(
      "Trains a byte-level GPT on CUDA devices; its state is sharded over them by shardwise.\n"
      "Ranks are threads (--ranks), or processes where torchrun, mpirun or srun starts several.",
      "cuda_gpt");
  app.option_defaults()->always_capture_default();

  CLI::Option* const ranks =
      add_count(app, "--ranks", o.ranks, "Ranks, as threads with a device each")->group("Ranks");
  app.add_option("--strategy", o.strategy, "ddp, zero1, zero2, zero3, zero3-no-reshard")
      ->group("Ranks");
  app.add_option("--lease", o.lease, "Type of the weights and gradients that the compute sees")
      ->check(CLI::IsMember({"fp32", "bf16"}))
      ->group("Ranks");
  add_count(app, "--prefetch", o.prefetch, "Parameters gathered ahead of use")->group("Ranks");
  app.add_flag("--fast-reductions", o.fast_reductions,
               "Sums over ranks in NCCL's order instead of the same one everywhere")
      ->group("Ranks");

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
    o.accumulate =
        accumulate == "hold" ? train_gpt::Accumulate::hold : train_gpt::Accumulate::reduce;
    if (processes > 0) {
      if (ranks->count() > 0 && o.ranks != processes) {
        throw std::invalid_argument(
            fmt::format("--ranks {}, but a launcher has started {} processes, which are the ranks: "
                        "leave --ranks out",
                        o.ranks, processes));
      }
      o.ranks = processes;
    }
    train_gpt::validate(o);
  } catch (const CLI::ParseError& error) {
    std::ostringstream out;
    std::ostringstream errors;
    const int code = app.exit(error, out, errors);
    throw train_gpt::OptionsExit(out.str() + errors.str(), code);
  } catch (const std::invalid_argument& error) {
    throw train_gpt::OptionsExit(fmt::format("{}\n", error.what()), 2);
  }
  return o;
}

}  // namespace cuda_gpt
