#include "checkpointing.hpp"

#include <fmt/core.h>

#include <cstdint>
#include <shardwise/checkpoint.hpp>
#include <stdexcept>
#include <string>

namespace train_gpt {

// The library's component and JSON are in this unit alone.
struct Checkpointing::Parts {
  Parts(const Options& options, shardwise::Context<>& context)
      : training(context), folder(options.checkpoint, {.keep = options.keep}) {}

  shardwise::TrainingState<> training;
  shardwise::CheckpointFolder folder;
  shardwise::SaveHandle saving;
};

namespace {

// The order of the text depends on these: another one would be another training.
shardwise::CheckpointValues values_of(const Options& options) {
  return {{"seed", options.seed},
          {"batch", options.batch},
          {"sequence", options.sequence},
          {"heads", options.heads}};
}

}  // namespace

Checkpointing::Checkpointing(const Options& options, shardwise::Context<>& context)
    : options_(options) {
  if (!options.checkpoint.empty()) parts_ = std::make_unique<Parts>(options, context);
}

Checkpointing::~Checkpointing() = default;

void Checkpointing::add(std::vector<shardwise::ShardedParameter<float>>& parameters,
                        std::vector<shardwise::ShardedOptimizerState<shardwise::AdamW>>& states) {
  if (parts_ == nullptr) return;
  for (auto& parameter : parameters) parts_->training.add(parameter);
  for (auto& state : states) parts_->training.add(state);
}

std::size_t Checkpointing::resume() {
  if (!options_.resume) return 0;
  const bool speaks = parts_->training.context().rank() == 0;
  // Settings of the optimizer are the command line's.
  const auto loaded = parts_->folder.load(parts_->training, {.hyperparameters = false});
  if (!loaded) {
    if (speaks) fmt::print("{} has no save: starting anew\n", options_.checkpoint);
    return 0;
  }
  for (const std::string& reason : loaded->passed_over) {
    if (speaks) fmt::print(stderr, "passed over: {}\n", reason);
  }
  for (const auto& [name, value] : values_of(options_)) {
    const auto saved = loaded->values.find(name);
    if (saved != loaded->values.end() && saved->second == value) continue;
    throw std::invalid_argument(fmt::format(
        "{} was saved by a training with another --{}: give it as it was, or another --checkpoint",
        loaded->directory, name));
  }
  if (loaded->step > options_.steps) {
    throw std::invalid_argument(
        fmt::format("{} has {} steps already, and --steps {} counts all of them: give more",
                    loaded->directory, loaded->step, options_.steps));
  }
  if (speaks) {
    fmt::print("resumed from {}: step {}, saved by {} ranks\n", loaded->directory, loaded->step,
               loaded->world);
  }
  return static_cast<std::size_t>(loaded->step);
}

void Checkpointing::after_step(std::size_t steps) {
  if (parts_ == nullptr) return;
  const bool due = options_.save_every > 0 && steps % options_.save_every == 0;
  if (!due && steps != options_.steps) return;
  parts_->saving.finish();
  parts_->saving = parts_->folder.save_async(parts_->training, steps, values_of(options_));
}

void Checkpointing::finish() {
  if (parts_ != nullptr) parts_->saving.finish();
}

}  // namespace train_gpt
