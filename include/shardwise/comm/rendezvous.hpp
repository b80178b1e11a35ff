#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "../core/error.hpp"
#include "../core/format.hpp"

namespace shardwise::inline v0_1 {

/// Why a run cannot go on.
struct RankFailure {
  int rank = -1;
  std::string message = {};
  bool provisional = false;  ///< the real message follows
  bool mismatch = false;     ///< ranks called different collectives: every rank is told so
};

/// Where the ranks of a run meet before they have a communicator, and where one tells the others
/// that it failed: texts under keys, and one failure. All functions may be called from any thread.
class Rendezvous {
 public:
  using Clock = std::chrono::steady_clock;

  virtual ~Rendezvous() = default;
  Rendezvous(const Rendezvous&) = delete;
  Rendezvous& operator=(const Rendezvous&) = delete;

  [[nodiscard]] virtual int rank() const noexcept = 0;
  [[nodiscard]] virtual int size() const noexcept = 0;

  /// Shows `value` to all ranks under `key`: 1 to 200 letters, digits, '.', '_' and '-'. A key is
  /// set once; UsageError otherwise.
  virtual void put(std::string_view key, std::string_view value) = 0;
  /// What was put there, if anything was.
  [[nodiscard]] virtual std::optional<std::string> try_get(std::string_view key) = 0;

  /// The run has failed. The first call's failure stays, but a provisional one gives way to the
  /// same rank's final one.
  virtual void fail(const RankFailure& failure) noexcept = 0;
  /// The run's failure, if there is one; cheap enough to be asked every few milliseconds.
  [[nodiscard]] virtual std::optional<RankFailure> failure() noexcept = 0;

  /// Waits for `key`. PeerFailed where the run fails meanwhile, TimedOut.
  [[nodiscard]] std::string get(std::string_view key, std::chrono::nanoseconds timeout) {
    std::optional<std::string> value;
    if (!wait([&] { return (value = try_get(key)).has_value(); }, timeout, key)) {
      raise<TimedOut>("rank {} waited in vain for \"{}\" of another rank", rank(), key);
    }
    return *value;
  }

  /// All ranks call it with the same `name`, which is used once: what each gave, by rank.
  /// PeerFailed, or TimedOut that names the ranks that are missing.
  [[nodiscard]] std::vector<std::string> exchange(std::string_view name, std::string_view value,
                                                  std::chrono::nanoseconds timeout) {
    const auto key = [&](int r) { return detail::format("{}.{}", name, r); };
    put(key(rank()), value);
    std::vector<std::optional<std::string>> values(static_cast<std::size_t>(size()));
    int next = 0;  // all below are there
    const auto all_there = [&] {
      for (; next < size(); ++next) {
        auto& found = values[static_cast<std::size_t>(next)];
        if (!(found = try_get(key(next)))) return false;
      }
      return true;
    };
    if (!wait(all_there, timeout, name)) {
      std::string missing;
      for (int r = next; r < size(); ++r) {
        if (r != next && try_get(key(r))) continue;
        missing += detail::format("{}{}", missing.empty() ? "" : ", ", r);
      }
      const std::string message =
          detail::format("rank {} of {} waited in vain in \"{}\"; missing ranks: {}", rank(),
                         size(), name, missing);
      fail({rank(), message});
      throw TimedOut(message);
    }
    std::vector<std::string> result;
    result.reserve(values.size());
    for (auto& found : values) result.push_back(std::move(*found));
    return result;
  }

  /// The run's failure, after a moment for the real message where it is provisional.
  [[nodiscard]] RankFailure settled_failure(std::chrono::milliseconds moment) {
    std::optional<RankFailure> found = failure();
    const auto deadline = Clock::now() + moment;
    while (!found || (found->provisional && found->rank != rank())) {
      if (Clock::now() >= deadline) break;
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
      found = failure();
    }
    return found.value_or(RankFailure{});
  }

 protected:
  Rendezvous() = default;

  static void check_key(std::string_view key) {
    const auto good = [](char c) {
      return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
             c == '.' || c == '_' || c == '-';
    };
    if (!key.empty() && key.size() <= 200 && key[0] != '.' &&
        std::all_of(key.begin(), key.end(), good)) {
      return;
    }
    raise(
        "\"{}\" cannot be a key of a rendezvous: 1 to 200 letters, digits, '.', '_' and '-', no "
        "'.' first",
        key);
  }

 private:
  template <class Ready>
  [[nodiscard]] bool wait(const Ready& ready, std::chrono::nanoseconds timeout,
                          std::string_view what) {
    const auto begin = Clock::now();
    auto pause = std::chrono::microseconds(20);
    while (!ready()) {
      if (const auto failed = failure()) {
        if (ready()) return true;  // what a rank gave before it ended, it gave
        const RankFailure why = settled_failure(std::chrono::milliseconds(50));
        throw PeerFailed(detail::format("rank {} failed: {}\nwhile rank {} waited in \"{}\"",
                                        why.rank, why.message, rank(), what),
                         why.rank, why.message);
      }
      if (Clock::now() - begin >= timeout) return ready();
      std::this_thread::sleep_for(pause);
      pause = std::min(2 * pause, std::chrono::microseconds(2000));
    }
    return true;
  }
};

/// The rendezvous of ranks that are threads of one process.
class LocalRendezvous final : public Rendezvous {
 public:
  /// One for each rank, in order.
  [[nodiscard]] static std::vector<std::shared_ptr<Rendezvous>> make(int size) {
    if (size < 1) raise("a group needs at least one rank, found {}", size);
    const auto shared = std::make_shared<Shared>();
    std::vector<std::shared_ptr<Rendezvous>> result;
    result.reserve(static_cast<std::size_t>(size));
    for (int r = 0; r < size; ++r) {
      result.push_back(std::shared_ptr<Rendezvous>(new LocalRendezvous(shared, r, size)));
    }
    return result;
  }

  [[nodiscard]] int rank() const noexcept override { return rank_; }
  [[nodiscard]] int size() const noexcept override { return size_; }

  void put(std::string_view key, std::string_view value) override {
    check_key(key);
    const std::lock_guard lock(shared_->mutex);
    if (!shared_->values.emplace(key, value).second) {
      raise("rank {}: the rendezvous has \"{}\" already", rank_, key);
    }
  }

  [[nodiscard]] std::optional<std::string> try_get(std::string_view key) override {
    check_key(key);
    const std::lock_guard lock(shared_->mutex);
    const auto found = shared_->values.find(key);
    if (found == shared_->values.end()) return std::nullopt;
    return found->second;
  }

  void fail(const RankFailure& failure) noexcept override {
    const std::lock_guard lock(shared_->mutex);
    RankFailure& first = shared_->failure;
    const bool final = first.rank == failure.rank && first.provisional && !failure.provisional;
    if (shared_->failed.load() && !final) return;
    first.rank = failure.rank;
    first.provisional = failure.provisional;
    first.mismatch = failure.mismatch;
    try {
      first.message = failure.message;
    } catch (...) {
      first.message.clear();  // no memory: the rank alone must do
    }
    shared_->failed.store(true);
  }

  [[nodiscard]] std::optional<RankFailure> failure() noexcept override {
    if (!shared_->failed.load()) return std::nullopt;
    const std::lock_guard lock(shared_->mutex);
    try {
      return shared_->failure;
    } catch (...) {
      return RankFailure{shared_->failure.rank};
    }
  }

 private:
  struct Shared {
    std::mutex mutex;
    std::map<std::string, std::string, std::less<>> values;
    RankFailure failure;
    std::atomic<bool> failed{false};
  };

  LocalRendezvous(std::shared_ptr<Shared> shared, int rank, int size)
      : shared_(std::move(shared)), rank_(rank), size_(size) {}

  std::shared_ptr<Shared> shared_;
  int rank_;
  int size_;
};

}  // namespace shardwise::inline v0_1
