#pragma once

#include <cstddef>
#include <exception>
#include <mutex>
#include <vector>

namespace shardwise::inline v0_1::detail {

/// The exceptions of ranks that are threads of one process: which one is the original.
class RankFailures {
 public:
  explicit RankFailures(int size) : failures_(static_cast<std::size_t>(size)) {}

  /// On the rank's thread, in a catch block: keeps the exception, then tell(message) tells the
  /// peers.
  template <class Tell>
  void add(int rank, const Tell& tell) noexcept {
    const std::exception_ptr failure = std::current_exception();
    {
      const std::lock_guard lock(mutex_);
      failures_[static_cast<std::size_t>(rank)] = failure;
      if (!earliest_) earliest_ = failure;
    }
    try {
      throw;
    } catch (const std::exception& error) {
      tell(error.what());
    } catch (...) {
      tell("an exception that is not a std::exception");
    }
  }

  /// Rethrows, if there is any: `first` is the rank whose failure the peers were told, or -1.
  void rethrow(int first) const {
    if (first >= 0 && failures_[static_cast<std::size_t>(first)]) {
      std::rethrow_exception(failures_[static_cast<std::size_t>(first)]);
    }
    if (earliest_) std::rethrow_exception(earliest_);
  }

 private:
  std::mutex mutex_;
  std::vector<std::exception_ptr> failures_;
  std::exception_ptr earliest_;
};

}  // namespace shardwise::inline v0_1::detail
