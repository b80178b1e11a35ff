#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "agreement.hpp"
#include "file_system.hpp"
#include "load.hpp"
#include "loader.hpp"
#include "posix_file_system.hpp"
#include "save.hpp"
#include "save_handle.hpp"
#include "training_state.hpp"

namespace shardwise::inline v0_1 {

/// How a CheckpointFolder saves. Equal on all ranks.
struct CheckpointOptions {
  /// So many saves stay, the newest ones of the run; 0: all of them. Those that it has gone back
  /// on, by loading an older one, go when it has saved a later step.
  std::size_t keep = 0;
  /// What one checksum covers, and a load reads at once: 1 KiB to 16 MiB.
  std::uint64_t chunk_bytes = std::uint64_t{4} << 20;
  /// How long ranks wait for the slowest one's files.
  std::chrono::nanoseconds timeout = std::chrono::hours(1);
  /// The memory of an asynchronous save's copy, as much as this rank writes, stays for the next
  /// one: a copy to fresh memory takes several times as long. False: it goes with each save.
  bool keep_snapshot = true;
  /// Another file system than the machine's; must outlive the folder.
  FileSystem* files = nullptr;
  /// The id of the next save: 32 hexadecimal digits; empty: drawn at random.
  std::string save_id = {};
};

/// A folder of saves of one training, on a file system that all ranks see. Every rank makes one;
/// save and load are collective. One training at a time writes into a folder.
class CheckpointFolder {
 public:
  /// Nothing is touched yet. UsageError where an option makes no sense.
  explicit CheckpointFolder(std::string path, const CheckpointOptions& options = {})
      : path_(std::move(path)), options_(options) {
    if (path_.empty()) raise("a checkpoint folder has no path");
    if (options_.chunk_bytes < Manifest::smallest_chunk ||
        options_.chunk_bytes > Manifest::largest_chunk) {
      raise("CheckpointOptions::chunk_bytes is {}, but must be {} to {}", options_.chunk_bytes,
            Manifest::smallest_chunk, Manifest::largest_chunk);
    }
    if (!options_.save_id.empty() &&
        (options_.save_id.size() != 32 || !detail::bytes_of_hex(options_.save_id))) {
      raise("CheckpointOptions::save_id must be 32 hexadecimal digits, found '{}'",
            options_.save_id);
    }
  }

  CheckpointFolder(const CheckpointFolder&) = delete;
  CheckpointFolder& operator=(const CheckpointFolder&) = delete;

  [[nodiscard]] const std::string& path() const noexcept { return path_; }

  /// Saves everything in `state` as step `step`, and `values` of rank 0 beside it. When it returns
  /// the save is there for good, also where the power fails next. Each element is written by one
  /// rank. FileError on all ranks where one of them could not write: the saves before are as they
  /// were then.
  template <class Device>
  void save(TrainingState<Device>& state, std::uint64_t step, CheckpointValues values = {}) {
    auto job = begin(state, step, std::move(values));
    job->save.write(download_of(state));
    job->save.commit();
  }

  /// The same bytes, written while the training goes on: it waits for a copy of what this rank
  /// writes, and again in the handle's finish(). One at a time. The folder outlives the handle.
  template <class Device>
  SaveHandle save_async(TrainingState<Device>& state, std::uint64_t step,
                        CheckpointValues values = {}) {
    auto job = begin(state, step, std::move(values));
    if (snapshot_ == nullptr) snapshot_ = std::make_shared<detail::SnapshotMemory>();
    job->snapshot = options_.keep_snapshot ? snapshot_ : std::exchange(snapshot_, nullptr);
    job->save.snapshot(*job->snapshot, download_of(state));
    job->start();
    in_flight_ = job;
    return SaveHandle(std::move(job));
  }

  /// Fills `state` from the newest save that is whole, whatever world and strategy wrote it; none
  /// where the folder has no save. Each rank reads the chunks that hold what it needs, and uses
  /// nothing of a chunk whose checksum does not fit: then all ranks take the save before, and the
  /// result says why. FileError where none is left, UsageError, by name, where a save does not fit
  /// the state; the state's values are undefined after an error.
  template <class Device>
  std::optional<LoadedCheckpoint> load(TrainingState<Device>& state,
                                       const LoadOptions& options = {}) {
    require_idle("load");
    auto& context = state.context();
    context.engine().check();
    const detail::LoadTarget target{
        state.tensors(),
        state.optimizers(),
        state.loss_scaler() == nullptr
            ? std::function<void(const LossScalerState&)>()
            : [&](const LossScalerState& saved) { state.loss_scaler()->restore(saved); },
        [&](std::byte* to, const std::byte* from, std::size_t bytes) {
          Device::upload(context.engine().compute, to, from, bytes);
        },
        [&] {
          for (auto* parameter : state.parameters()) {
            context.parameter_store().begin_write(*parameter, "load");
          }
        },
        [&] {
          for (auto* parameter : state.parameters()) {
            context.parameter_store().end_write(*parameter, parameter->storage_is_whole());
          }
        }};
    detail::Loader loader(group_of(state), files(), path_, options);
    auto loaded = loader.load(target);
    if (loaded) {
      loaded_into_ = &state;
      loaded_ =
          std::make_shared<std::string>(loaded->directory.substr(detail::join(path_, "").size()));
    }
    return loaded;
  }

 private:
  template <class Device>
  [[nodiscard]] detail::CheckpointGroup group_of(TrainingState<Device>& state) const {
    return {state.context().communicator(), options_.timeout};
  }
  [[nodiscard]] FileSystem& files() noexcept {
    return options_.files == nullptr ? own_files_ : *options_.files;
  }

  void require_idle(const char* what) const {
    if (in_flight_.expired()) return;
    raise("{} in {} while an asynchronous save is not finished: call its finish() before", what,
          path_);
  }

  template <class Device>
  [[nodiscard]] std::shared_ptr<SaveHandle::Job> begin(TrainingState<Device>& state,
                                                       std::uint64_t step,
                                                       CheckpointValues values) {
    require_idle("save");
    state.context().engine().check();
    detail::SaveRequest request{&files(),
                                path_,
                                step,
                                options_.keep,
                                options_.chunk_bytes,
                                std::exchange(options_.save_id, {}),
                                loaded_into_ == &state ? loaded_ : nullptr,
                                std::move(values),
                                state.tensors(),
                                {},
                                {}};
    for (const detail::StateOptimizer& optimizer : state.optimizers()) {
      request.optimizers.push_back(
          {optimizer.kind, optimizer.steps(), optimizer.hyperparameters()});
    }
    if (state.loss_scaler() != nullptr) request.loss_scaler = state.loss_scaler()->state();
    return std::make_shared<SaveHandle::Job>(group_of(state), std::move(request));
  }

  template <class Device>
  [[nodiscard]] static detail::Download download_of(TrainingState<Device>& state) {
    return [&context = state.context()](std::byte* to, const std::byte* from, std::size_t bytes) {
      Device::download(context.engine().compute, to, from, bytes);
    };
  }

  std::string path_;
  CheckpointOptions options_;
  PosixFileSystem own_files_;
  std::weak_ptr<SaveHandle::Job> in_flight_;
  const void* loaded_into_ = nullptr;    // the state, and
  std::shared_ptr<std::string> loaded_;  // as SaveRequest has it
  std::shared_ptr<detail::SnapshotMemory> snapshot_;
};

}  // namespace shardwise::inline v0_1
