#include "options.hpp"

#include <fmt/core.h>

#include <utility>

#include "backend.hpp"
#include "command_line.hpp"
#include "configuration.hpp"

namespace train_gpt {
namespace {

void require_positive(std::string_view name, std::size_t value) {
  if (value > 0) return;
  throw std::invalid_argument(fmt::format("--{} 0: it must be at least 1", name));
}

void add_checkpoint_options(CLI::App& app, Options& o) {
  app.add_option("--checkpoint", o.checkpoint, "Folder of saves; the last step is saved, too")
      ->group("Checkpoints");
  add_count(app, "--save-every", o.save_every, "Steps between saves; 0: the last step alone")
      ->group("Checkpoints");
  add_count(app, "--keep", o.keep, "Saves that stay; 0: all of them")->group("Checkpoints");
  app.add_flag("--resume", o.resume,
               "Go on from the newest save, whatever the ranks and the strategy that wrote it; "
               "--steps counts the steps before it, too")
      ->group("Checkpoints");
}

}  // namespace

Options parse_options(int count, const char* const* arguments) {
  Options o;
  CLI::App app("Trains a byte-level GPT; its state is sharded over ranks by shardwise.",
               "train_gpt");
  app.option_defaults()->always_capture_default();

  app.add_option(
         "--config", o.config,
         "File: shardwise's own form, DeepSpeed's JSON, accelerate's FSDP YAML; other options "
         "override it")
      ->check(CLI::ExistingFile)
      ->group("Ranks");
  app.add_flag("--allow-unsupported", o.allow_unsupported,
               "Leave out what the file asks for and is not built, instead of refusing it")
      ->group("Ranks");
  add_count(app, "--ranks", o.ranks, "Ranks that share the work")->group("Ranks");
  app.add_option("--backend", o.backend, "How ranks talk; mpi is the default under mpirun")
      ->check(CLI::IsMember({"threads", "mpi", "self"}))
      ->group("Ranks");
  app.add_option("--strategy", o.strategy, "ddp, zero1, zero2, zero3, zero3-no-reshard, hybrid")
      ->group("Ranks");
  add_count(app, "--shard-group", o.shard_group,
            "Consecutive ranks that shard what is sharded, replicated across such groups; 0: all")
      ->group("Ranks");
  app.add_option("--lease", o.lease, "Type of the weights that the compute sees")
      ->check(CLI::IsMember({"fp32", "bf16", "f16"}))
      ->group("Ranks");
  app.add_option("--gradient", o.gradient, "Type of the stored gradient")
      ->check(CLI::IsMember({"fp32", "bf16"}))
      ->group("Ranks");
  app.add_option(
         "--residency", o.residency,
         "Where gathered parameters live; shared: in one copy for all ranks, which are threads")
      ->check(CLI::IsMember({"slots", "shared"}))
      ->group("Ranks");
  add_count(app, "--prefetch", o.prefetch, "Parameters gathered ahead of use")->group("Ranks");
  app.add_option(
         "--overlap-from", o.overlap_from,
         "Collectives of so many bytes run beside compute, smaller ones do not (0: all do); "
         "without it, what suits the machine")
      ->transform(CLI::AsSizeValue(false))
      ->group("Ranks");
  app.add_flag("--world-of-one-reference", o.world_of_one_reference,
               "Train without the library, in one rank")
      ->group("Ranks");

  app.add_option("--monitor", o.monitor,
                 "Folder for report.html, trace.json, steps.jsonl and summary.json")
      ->group("Output");

  add_checkpoint_options(app, o);
  app.add_option("--optimizer", o.optimizer, "Optimizer")
      ->check(CLI::IsMember({"adamw"}))
      ->group("Training");
  add_training_options(app, o);

  parse(app, count, arguments, [&] {
    const auto given = [&](std::string_view option) {
      return app.get_option(std::string(option))->count() > 0;
    };
    settle_backend(o, given("--backend"), given("--ranks"));
    if (!o.config.empty()) {
      apply_configuration(o, [&](std::string_view option) {
        return given(option) || (option == "--ranks" && o.backend == "mpi");
      });
    }
    if (o.world_of_one_reference) o.ranks = 1;
    validate(o);
  });
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
  if (o.strategy == "hybrid" && o.shard_group == 0) {
    throw std::invalid_argument(
        "--strategy hybrid shards within groups of ranks: say how large one is by --shard-group");
  }
  if (o.shard_group > 0 && o.ranks % o.shard_group != 0) {
    throw std::invalid_argument(
        fmt::format("--ranks {} does not divide into groups of --shard-group {}: the next number "
                    "of ranks that does is {}",
                    o.ranks, o.shard_group, (o.ranks / o.shard_group + 1) * o.shard_group));
  }
  if (o.backend == "self" && o.ranks != 1) {
    throw std::invalid_argument(
        fmt::format("--backend self is a world of one, but --ranks is {}: give --ranks 1 or "
                    "--backend threads",
                    o.ranks));
  }
  if (o.world_of_one_reference && !o.monitor.empty()) {
    throw std::invalid_argument(
        "--monitor watches the library, which --world-of-one-reference does without");
  }
  if (o.checkpoint.empty() && (o.resume || o.save_every > 0)) {
    throw std::invalid_argument(fmt::format("{} needs the folder of saves: add --checkpoint DIR",
                                            o.resume ? "--resume" : "--save-every"));
  }
  if (!o.checkpoint.empty() && o.world_of_one_reference) {
    throw std::invalid_argument(
        "--checkpoint saves what the library holds, which --world-of-one-reference does without");
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
