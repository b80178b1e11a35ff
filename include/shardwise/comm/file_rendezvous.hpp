#pragma once

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <charconv>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <random>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "../core/error.hpp"
#include "../core/format.hpp"
#include "launch.hpp"
#include "private_directory.hpp"
#include "rendezvous.hpp"

namespace shardwise::inline v0_1 {

/// The rendezvous of processes that see one directory: of one machine, or on a file system that
/// several machines share. The directory belongs to the user alone and to one run at a time.
///
/// Rank 0 opens a session in it; what an earlier run left is known by the locks that nobody holds
/// any more, is never read, and is removed. Each process holds a lock as long as it lives and
/// watches its neighbour's: one that ends without leaving, however it ends, is a failure that names
/// it. The last one that leaves removes everything.
class FileRendezvous final : public Rendezvous {
 public:
  /// Joins the session of this run. ConfigError where another run uses the directory, where two
  /// processes come as the same rank, or ranks differ about the size; TimedOut.
  FileRendezvous(const std::string& path, int rank, int size,
                 std::chrono::nanoseconds timeout = std::chrono::minutes(2))
      : rank_(rank), size_(size), left_(rank) {
    if (size < 1 || rank < 0 || rank >= size) {
      raise("a rendezvous of {} ranks has no rank {}", size, rank);
    }
    const auto deadline = Clock::now() + timeout;
    if (rank == 0) {
      open_session(path, deadline);
    } else {
      join_session(path, deadline);
    }
  }

  ~FileRendezvous() override {
    try {
      put(left_file(rank_), "");
    } catch (...) {
      return;  // peers take this process for one that ended; nothing is removed
    }
    alive_ = {};
    owner_ = {};
    for (int r = 0; r < size_; ++r) {
      if (!session_.has(left_file(r))) return;
    }
    clean_up();
  }

  [[nodiscard]] int rank() const noexcept override { return rank_; }
  [[nodiscard]] int size() const noexcept override { return size_; }

  void put(std::string_view key, std::string_view value) override {
    check_key(key);
    if (!session_.write(std::string(key), value, scratch(), Existing::keep)) {
      raise("rank {}: the rendezvous in {} has \"{}\" already", rank_, session_.path(), key);
    }
  }

  [[nodiscard]] std::optional<std::string> try_get(std::string_view key) override {
    check_key(key);
    return session_.read(std::string(key));
  }

  void fail(const RankFailure& failure) noexcept override {
    try {
      const std::string text = detail::format("{} {}\n{}", failure.rank,
                                              failure.provisional ? "provisional"
                                              : failure.mismatch  ? "mismatch"
                                                                  : "final",
                                              failure.message);
      if (session_.write(failed_file, text, scratch(), Existing::keep)) return;
      const std::optional<RankFailure> first = read_failure();
      if (!first || first->rank != failure.rank || !first->provisional || failure.provisional) {
        return;
      }
      static_cast<void>(session_.write(failed_file, text, scratch(), Existing::replace));
    } catch (...) {
      return;  // the directory is gone: peers find out by the lock, or by their time-out
    }
  }

  [[nodiscard]] std::optional<RankFailure> failure() noexcept override {
    try {
      if (auto found = read_failure()) return found;
      const int dead = dead_neighbour();
      if (dead < 0) return std::nullopt;
      fail({dead, "its process has ended without leaving the group"});
      return read_failure();
    } catch (...) {
      return RankFailure{rank_, "the directory of the rendezvous cannot be read any more"};
    }
  }

  /// Where the processes of `launch` meet: SHARDWISE_RENDEZVOUS, or a directory of this machine
  /// that is named after the launcher's job, or else after the process that started this one.
  [[nodiscard]] static std::string default_path(const Launch& launch) {
    if (auto path = detail::environment_variable("SHARDWISE_RENDEZVOUS")) return *path;
    std::string job = launch.job.empty() ? detail::format("parent{}", getppid()) : launch.job;
    for (char& c : job) {
      const bool plain = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9');
      if (!plain && c != '-') c = '_';
    }
    const auto base = detail::environment_variable("XDG_RUNTIME_DIR");
    return detail::format("{}/shardwise-{}-{:.100}", base ? *base : "/tmp", geteuid(), job);
  }

 private:
  using Existing = detail::PrivateDirectory::Existing;

  [[nodiscard]] static std::string alive_file(int rank) { return detail::format("alive.{}", rank); }
  [[nodiscard]] static std::string left_file(int rank) { return detail::format("left.{}", rank); }

  [[nodiscard]] std::string scratch() {
    return detail::format("scratch.{}.{}", rank_, scratches_.fetch_add(1));
  }

  static void pause() { std::this_thread::sleep_for(std::chrono::milliseconds(2)); }

  void open_session(const std::string& path, Clock::time_point deadline) {
    for (;; pause()) {
      directory_ = detail::PrivateDirectory::open(path);
      owner_ = directory_.make_file(owner_file);
      if (owner_ && owner_.try_lock() && directory_.holds(owner_file, owner_) && !in_use()) break;
      if (Clock::now() >= deadline) {
        raise<ConfigError>(
            "another run uses {}: give each run a directory of its own (SHARDWISE_RENDEZVOUS)",
            path);
      }
    }
    directory_.clear(owner_file);
    std::random_device random;
    name_ = detail::format("session-{:08x}{:08x}", random(), random());
    session_ = directory_.make_child(name_);
    if (!come_alive()) detail::PrivateDirectory::refuse("cannot write in", session_.path());
    static_cast<void>(directory_.write(current_file, detail::format("{} {}", name_, size_),
                                       scratch(), Existing::replace));
  }

  void join_session(const std::string& path, Clock::time_point deadline) {
    while (!try_join(path)) {
      if (Clock::now() >= deadline) {
        if (alive_) {
          raise<ConfigError>("there are two processes that are rank {} of the session in {}", rank_,
                             path);
        }
        raise<TimedOut>(
            "rank {} of {} waited in vain for rank 0 to open a session in {}; is it the same "
            "directory for all, and did rank 0 start?",
            rank_, size_, path);
      }
      pause();
    }
  }

  // False where there is no session of living processes (yet).
  [[nodiscard]] bool try_join(const std::string& path) {
    auto directory = detail::PrivateDirectory::open_existing(path);
    const auto current = directory ? directory->read(current_file) : std::nullopt;
    if (!current) return false;
    name_ = current->substr(0, current->find(' '));
    auto session = detail::PrivateDirectory::open_existing(path + "/" + name_);
    if (!session) return false;
    const detail::FileHandle opener = session->open_file(alive_file(0));
    if (!opener || !opener.locked()) return false;
    if (*current != detail::format("{} {}", name_, size_)) {
      raise<ConfigError>("rank {} expects {} ranks, but the session in {} has {}", rank_, size_,
                         path, current->substr(current->find(' ') + 1));
    }
    directory_ = std::move(*directory);
    session_ = std::move(*session);
    if (session_.has(left_file(rank_))) return false;  // an earlier run's, that is about to end
    return come_alive();
  }

  // Whether processes of an earlier session have not left it and live.
  [[nodiscard]] bool in_use() const {
    bool found = false;
    directory_.for_each([&](const std::string& name) {
      const auto session =
          name.starts_with("session-")
              ? detail::PrivateDirectory::open_existing(directory_.path() + "/" + name)
              : std::nullopt;
      if (!session) return;
      session->for_each([&](const std::string& file) {
        found = found || (file.starts_with("alive.") && session->open_file(file).locked());
      });
    });
    return found;
  }

  // The lock comes before the name by which others look at it.
  [[nodiscard]] bool come_alive() {
    const std::string name = scratch();
    alive_ = session_.make_file(name);
    return alive_ && alive_.try_lock() && session_.show(alive_file(rank_), name, Existing::keep);
  }

  // The lock keeps the next run's rank 0 out meanwhile; where that has it already, it cleans up.
  void clean_up() noexcept {
    owner_ = directory_.open_file(owner_file);
    if (!owner_ || !owner_.try_lock() || !directory_.holds(owner_file, owner_)) return;
    directory_.clear(owner_file);
    directory_.remove_file(owner_file);
    directory_.remove();
  }

  [[nodiscard]] std::optional<RankFailure> read_failure() const {
    const std::optional<std::string> text = session_.read(failed_file);
    if (!text) return std::nullopt;
    RankFailure result;
    const std::size_t line = text->find('\n');
    std::from_chars(text->data(), text->data() + text->size(), result.rank);
    const std::string_view kind = std::string_view(*text).substr(0, line);
    result.provisional = kind.ends_with("provisional");
    result.mismatch = kind.ends_with("mismatch");
    if (line != std::string::npos) result.message = text->substr(line + 1);
    return result;
  }

  // The next rank that has not left, where its process has ended; -1 otherwise.
  [[nodiscard]] int dead_neighbour() {
    const std::lock_guard lock(mutex_);
    for (;;) {
      const int next = (left_ + 1) % size_;
      if (next == rank_) return -1;
      if (!neighbour_) neighbour_ = session_.open_file(alive_file(next));
      if (!neighbour_ || neighbour_.locked()) return -1;
      if (!session_.has(left_file(next))) return next;
      left_ = next;
      neighbour_ = {};
    }
  }

  static constexpr const char* owner_file = "owner";
  static constexpr const char* current_file = "current";
  static constexpr const char* failed_file = "failed";

  int rank_;
  int size_;
  std::string name_;  // of the session
  detail::PrivateDirectory directory_;
  detail::PrivateDirectory session_;
  detail::FileHandle owner_;  // rank 0's, as long as it lives
  detail::FileHandle alive_;
  std::atomic<std::uint64_t> scratches_{0};
  std::mutex mutex_;
  detail::FileHandle neighbour_;
  int left_;  // the last rank before the neighbour, all of which have left; at first this one
};

/// The rendezvous of the processes of `launch`; see FileRendezvous::default_path.
[[nodiscard]] inline std::shared_ptr<Rendezvous> make_rendezvous(
    const Launch& launch, std::chrono::nanoseconds timeout = std::chrono::minutes(2)) {
  if (launch.size == 1) return LocalRendezvous::make(1).front();
  return std::make_shared<FileRendezvous>(FileRendezvous::default_path(launch), launch.rank,
                                          launch.size, timeout);
}

/// Fills in local_rank and local_size where the launcher does not say them, by the machines' names.
/// All ranks call it, once.
inline void find_local_place(Launch& launch, Rendezvous& rendezvous,
                             std::chrono::nanoseconds timeout = std::chrono::minutes(2)) {
  const std::string own = machine_name();
  const std::vector<std::string> machines = rendezvous.exchange("machine", own, timeout);
  const auto begin = machines.begin();
  if (launch.local_rank < 0) {
    launch.local_rank = static_cast<int>(std::count(begin, begin + launch.rank, own));
  }
  if (launch.local_size < 0) {
    launch.local_size = static_cast<int>(std::count(begin, machines.end(), own));
  }
}

}  // namespace shardwise::inline v0_1
