#pragma once

#include <atomic>
#include <cstddef>
#include <memory>
#include <string>
#include <system_error>
#include <thread>
#include <utility>

#include "../comm/collectives.hpp"
#include "agreement.hpp"
#include "save.hpp"

namespace shardwise::inline v0_1 {

/// A save whose files a thread of its own is writing. It becomes a save in finish(), which all
/// ranks call in the same place of their programs. A handle that goes before, while an exception
/// unwinds for one, waits for the thread and communicates nothing: what was written is left over,
/// and the next save removes it.
class [[nodiscard]] SaveHandle {
 public:
  SaveHandle() = default;
  SaveHandle(SaveHandle&&) noexcept = default;
  SaveHandle& operator=(SaveHandle&& other) noexcept {
    job_ = std::move(other.job_);
    return *this;
  }

  /// Whether there is a save that is not finished.
  [[nodiscard]] bool pending() const noexcept { return job_ != nullptr; }
  /// Whether this rank's file is written, or has failed: finish() does not wait for it. Local.
  [[nodiscard]] bool written() const noexcept { return job_ == nullptr || job_->written; }

  /// Collective: waits for the files, then commits. FileError on all ranks where one has failed.
  /// Nothing where it has finished before.
  void finish() {
    const std::shared_ptr<Job> job = std::exchange(job_, nullptr);
    if (job == nullptr) return;
    if (job->thread.joinable()) job->thread.join();
    job->save.commit();
  }

  /// Collective: finishes where all ranks' files are written; true where there is nothing pending
  /// any more.
  bool try_finish() {
    if (job_ == nullptr) return true;
    if (!all(job_->group.comm, job_->written, job_->group.info("save: written"))) return false;
    finish();
    return true;
  }

  /// The library's own side; not for hosts.
  struct Job {
    Job(const detail::CheckpointGroup& of, detail::SaveRequest request)
        : group(of), save(of, std::move(request)) {}
    ~Job() {
      if (thread.joinable()) thread.join();
    }
    void start() {
      const auto write = [this] {
        save.write({});
        written = true;
      };
      try {
        thread = std::thread(write);
      } catch (const std::system_error&) {  // no thread to be had: the peers are not to learn of it
        write();
      }
    }

    detail::CheckpointGroup group;
    detail::Save save;
    std::shared_ptr<detail::SnapshotMemory> snapshot;
    std::atomic<bool> written{false};
    std::thread thread;
  };
  explicit SaveHandle(std::shared_ptr<Job> job) noexcept : job_(std::move(job)) {}

 private:
  std::shared_ptr<Job> job_;
};

}  // namespace shardwise::inline v0_1
