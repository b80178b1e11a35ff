#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <utility>

#include "mpi_session.hpp"

namespace shardwise::inline v0_1::detail::mpi {

/// Why a communicator cannot go on.
struct Failure {
  int rank = -1;  ///< of the first communicator, before any split
  std::string message;
  bool provisional = false;  ///< the real message follows
  bool left = false;         ///< the rank destroyed its communicator
};

/// What a communicator and all that were split from it share: they fail together.
class Family {
 public:
  explicit Family(std::shared_ptr<Library> library) : library_(std::move(library)) {}

  [[nodiscard]] bool has_failed() const noexcept { return failed_.load(std::memory_order_acquire); }

  /// The first call's reason stays, but a provisional one gives way to the same rank's final one.
  void fail(int rank, std::string_view message, bool provisional) noexcept {
    library_->fail();
    const std::lock_guard lock(mutex_);
    const bool first = failure_.rank < 0;
    const bool final = failure_.rank == rank && failure_.provisional && !provisional;
    if (!first && !final) return;
    failure_.rank = rank;
    failure_.provisional = provisional;
    try {
      failure_.message = message;
    } catch (...) {
      failure_.message.clear();  // no memory: the rank alone must do
    }
    failed_.store(true, std::memory_order_release);
  }

  /// After has_failed().
  [[nodiscard]] Failure reason(int /*rank*/) {
    const std::lock_guard lock(mutex_);
    return failure_;
  }

  [[nodiscard]] const std::shared_ptr<Library>& library() const noexcept { return library_; }

 private:
  std::shared_ptr<Library> library_;
  std::mutex mutex_;
  std::atomic<bool> failed_{false};
  Failure failure_;
};

}  // namespace shardwise::inline v0_1::detail::mpi
