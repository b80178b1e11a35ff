#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <shardwise/checkpoint.hpp>
#include <shardwise/comm/self.hpp>
#include <shardwise/comm/thread.hpp>
#include <string>
#include <vector>

#include "saved_model.hpp"

namespace shardwise::test {

/// `version` of the small model, as step `version`, by `world` ranks. Throws what the ranks threw
/// first.
inline void save_version(int world, std::uint64_t version, const CheckpointOptions& options,
                         const std::string& folder = "run") {
  run_ranks(world, [&](Communicator& comm) {
    SavedModel<float> model(comm, Strategy::zero3(), small_layers());
    model.fill(version);
    CheckpointFolder saves(folder, options);
    saves.save(model.training, version);
  });
}

/// What a load by one rank gives.
struct Loaded {
  std::optional<LoadedCheckpoint> checkpoint;
  std::size_t differences = 0;  ///< from the version that it says it is
  std::string error;
};

inline Loaded load_alone(SavedModel<float>& model, FileSystem& files,
                         const LoadOptions& options = {}, const std::string& folder = "run") {
  Loaded result;
  try {
    CheckpointFolder saves(folder, {.files = &files});
    result.checkpoint = saves.load(model.training, options);
    if (result.checkpoint) result.differences = model.differences(result.checkpoint->step);
  } catch (const std::exception& error) {
    result.error = error.what();
  }
  return result;
}

}  // namespace shardwise::test
