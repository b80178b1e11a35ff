#pragma once

#include <cstddef>
#include <memory>
#include <shardwise/shardwise.hpp>
#include <vector>

#include "options.hpp"

namespace train_gpt {

/// What `--checkpoint`, `--save-every`, `--keep` and `--resume` ask for; nothing without a folder.
/// Every rank has one and calls it at the same places.
class Checkpointing {
 public:
  Checkpointing(const Options& options, shardwise::Context<>& context);
  ~Checkpointing();

  /// What is saved. They stay where they are, and outlive this object.
  void add(std::vector<shardwise::ShardedParameter<float>>& parameters,
           std::vector<shardwise::ShardedOptimizerState<shardwise::AdamW>>& states);

  /// The number of steps that are done already. Throws shardwise::FileError where all saves are
  /// damaged, std::invalid_argument where they are of another training.
  [[nodiscard]] std::size_t resume();

  /// Saves where it is time to. The files are written while the next steps run.
  void after_step(std::size_t steps);

  /// The last save is on the disk when it returns.
  void finish();

 private:
  struct Parts;

  const Options& options_;
  std::unique_ptr<Parts> parts_;
};

}  // namespace train_gpt
