#pragma once

#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <functional>
#include <new>
#include <string>
#include <thread>
#include <vector>

#include "../support/sanitized.hpp"

namespace shardwise::test {

/// How one forked rank ended.
struct ProcessEnd {
  int status = 0;             // as waitpid gives it
  std::string text;           // what it said
  std::int64_t ended_at = 0;  // nanoseconds of the steady clock
  bool hung = false;          // it was killed by the test in the end

  [[nodiscard]] bool returned() const { return WIFEXITED(status) && WEXITSTATUS(status) == 0; }
};

/// Ranks that are forked children of the test, and what they share with it. Fork before the test
/// has threads.
class Processes {
 public:
  static constexpr std::size_t most_ranks = 48;

  explicit Processes(int size) : size_(size) {
    void* const memory =
        ::mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) std::abort();
    shared_ = new (memory) Shared;
  }
  Processes(const Processes&) = delete;
  Processes& operator=(const Processes&) = delete;
  ~Processes() { ::munmap(shared_, sizeof(Shared)); }

  [[nodiscard]] static std::int64_t now() {
    return std::chrono::steady_clock::now().time_since_epoch().count();
  }

  /// For a rank: gathers one text of each.
  [[nodiscard]] std::vector<std::string> exchange(int rank, const std::string& mine) {
    Rank& own = shared_->ranks[static_cast<std::size_t>(rank)];
    if (mine.size() >= sizeof own.card) std::abort();
    std::memcpy(own.card, mine.c_str(), mine.size() + 1);
    meet();
    std::vector<std::string> all;
    for (int r = 0; r < size_; ++r) {
      all.emplace_back(shared_->ranks[static_cast<std::size_t>(r)].card);
    }
    meet();
    return all;
  }

  /// For ranks: waits for all.
  void meet() {
    const int target = (shared_->met.fetch_add(1) / size_ + 1) * size_;
    wait_until([&] { return shared_->met.load() >= target; });
  }

  /// For a rank: what it wants to say; read after its end, also if that is sudden.
  void say(int rank, const std::string& text) {
    Rank& own = shared_->ranks[static_cast<std::size_t>(rank)];
    std::snprintf(own.text, sizeof own.text, "%s", text.c_str());
    own.ended_at.store(now());
  }

  /// Whether all ranks but one have said something, or a time has passed in which they should.
  [[nodiscard]] bool have_ended(int but) {
    if (patience_ == 0) patience_ = now() + std::int64_t{10'000'000'000};
    for (int r = 0; r < size_; ++r) {
      if (r != but && shared_->ranks[r].ended_at.load() == 0) return now() > patience_;
    }
    return true;
  }

  /// A flag that ranks and the test see.
  std::atomic<int>& flag(std::size_t index = 0) { return shared_->flags[index]; }

  template <class Ready>
  static void wait_until(const Ready& ready) {
    while (!ready()) std::this_thread::sleep_for(std::chrono::microseconds(200));
  }

  [[nodiscard]] pid_t pid(int rank) const { return pids_[static_cast<std::size_t>(rank)]; }

  /// Stops a rank, and waits until all its threads have.
  void stop(int rank) const {
    ::kill(pid(rank), SIGSTOP);
    siginfo_t info{};
    ::waitid(P_PID, static_cast<id_t>(pid(rank)), &info, WSTOPPED | WNOWAIT);
  }

  /// Forks the ranks, which run body(rank); calls `meanwhile` in the test, then waits for them.
  void run(const std::function<void(int rank)>& body, const std::function<void()>& meanwhile = {}) {
    std::fflush(nullptr);
    for (int r = 0; r < size_; ++r) {
      const pid_t child = ::fork();
      if (child < 0) std::abort();
      if (child == 0) {
        try {
          body(r);
        } catch (const std::exception& error) {
          say(r, std::string("threw: ") + error.what());
          ::_exit(1);
        }
        ::_exit(0);
      }
      pids_.push_back(child);
    }
    if (meanwhile) meanwhile();
    wait();
  }

  /// After run().
  [[nodiscard]] const std::vector<ProcessEnd>& ends() const { return ends_; }

 private:
  struct Rank {
    char card[1024] = {};
    char text[4096] = {};
    std::atomic<std::int64_t> ended_at{0};
  };
  struct Shared {
    Rank ranks[most_ranks];
    std::atomic<int> met{0};
    std::atomic<int> flags[8] = {};
  };

  void wait() {
    const auto deadline =
        std::chrono::steady_clock::now() + std::chrono::seconds(sanitized ? 60 : 20);
    ends_.resize(pids_.size());
    std::vector<bool> done(pids_.size());
    for (std::size_t left = pids_.size(); left > 0;) {
      const bool late = std::chrono::steady_clock::now() > deadline;
      for (std::size_t r = 0; r < pids_.size(); ++r) {
        if (done[r]) continue;
        if (late) {
          ends_[r].hung = true;
          ::kill(pids_[r], SIGKILL);
        }
        if (::waitpid(pids_[r], &ends_[r].status, late ? 0 : WNOHANG) == pids_[r]) {
          done[r] = true;
          --left;
        }
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    for (std::size_t r = 0; r < pids_.size(); ++r) {
      ends_[r].text = shared_->ranks[r].text;
      ends_[r].ended_at = shared_->ranks[r].ended_at.load();
    }
  }

  int size_;
  std::int64_t patience_ = 0;
  Shared* shared_;
  std::vector<pid_t> pids_;
  std::vector<ProcessEnd> ends_;
};

}  // namespace shardwise::test
