#pragma once

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

namespace shardwise::inline v0_1 {

/// Why a group of thread ranks cannot go on.
struct ThreadFailure {
  int rank = -1;  ///< in the first group, before any split; -1: none
  std::string message;
  bool provisional = false;  ///< the real message follows
  bool left = false;         ///< the rank destroyed its communicator

  [[nodiscard]] explicit operator bool() const noexcept { return rank >= 0; }
};

/// What a group and all groups split from it share: they fail together, for one reason. All
/// functions may be called from any thread.
class ThreadFamily {
 public:
  /// A group, as its family knows it.
  class Member {
   public:
    virtual ~Member() = default;
    /// Ends the group's uncommitted collective and all later ones.
    virtual void poison() noexcept = 0;

   private:
    friend class ThreadFamily;
    ThreadFailure failure_;  // guarded by the family's mutex
  };

  void add(Member& member) {
    const std::lock_guard lock(mutex_);
    members_.push_back(&member);
    if (first_) {
      member.failure_ = first_;
      member.poison();
    }
  }

  void remove(Member& member) noexcept {
    const std::lock_guard lock(mutex_);
    std::erase(members_, &member);
  }

  /// Poisons all groups; the first call's reason stays, but a provisional one gives way to the same
  /// rank's final one.
  void fail(int rank, std::string_view message, bool provisional) noexcept {
    const std::lock_guard lock(mutex_);
    if (!first_) {
      set(first_, rank, message, provisional);
      for (Member* member : members_) {
        if (!member->failure_) set(member->failure_, rank, message, provisional);
        member->poison();
      }
    } else if (first_.rank == rank && first_.provisional && !provisional) {
      set(first_, rank, message, false);
      for (Member* member : members_) {
        if (member->failure_.provisional) set(member->failure_, rank, message, false);
      }
    }
    changed_.notify_all();
  }

  /// `rank` has left one group, which poisons this group alone.
  void leave(Member& member, int rank) noexcept {
    const std::lock_guard lock(mutex_);
    if (!member.failure_) {
      member.failure_.rank = rank;
      member.failure_.left = true;
    }
    member.poison();
    changed_.notify_all();
  }

  /// Why `member` was poisoned, as `rank` learns it; gives a peer's message that is on its way 50
  /// ms.
  [[nodiscard]] ThreadFailure reason(const Member& member, int rank) {
    std::unique_lock lock(mutex_);
    // A rank whose time is up poisons first and says why at once.
    changed_.wait(lock, [&] { return static_cast<bool>(member.failure_); });
    const ThreadFailure& failure = member.failure_;
    changed_.wait_for(lock, std::chrono::milliseconds(50),
                      [&] { return !failure.provisional || failure.rank == rank; });
    return failure;
  }

  /// The family's first failure, if any.
  [[nodiscard]] ThreadFailure first() {
    const std::lock_guard lock(mutex_);
    return first_;
  }

 private:
  static void set(ThreadFailure& failure, int rank, std::string_view message,
                  bool provisional) noexcept {
    failure.rank = rank;
    failure.provisional = provisional;
    try {
      failure.message = message;
    } catch (...) {
      failure.message.clear();  // no memory: the rank alone must do
    }
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  ThreadFailure first_;
  std::vector<Member*> members_;
};

}  // namespace shardwise::inline v0_1
