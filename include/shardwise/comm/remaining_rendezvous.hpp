#pragma once

#include <algorithm>
#include <cstddef>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "../core/error.hpp"
#include "../core/format.hpp"
#include "rendezvous.hpp"

namespace shardwise::inline v0_1 {

/// Where the ranks that are left meet when a run has failed: the same place as before, without the
/// lost ranks, and with a failure of its own. Ranks are numbered anew, in their order. What told of
/// a process' death before tells of no other one: who dies now is found by a time-out or by NCCL.
class RemainingRendezvous final : public Rendezvous {
 public:
  /// On each rank of `whole` that is left, with the same `lost`, ranks of `whole`, and the same
  /// `name`, which is used once: letters, digits, '.', '_' and '-', short. UsageError where the
  /// list makes no sense.
  RemainingRendezvous(std::shared_ptr<Rendezvous> whole, const std::vector<int>& lost,
                      std::string name)
      : whole_(std::move(whole)), name_(std::move(name)) {
    const auto is_lost = [&](int r) {
      return std::find(lost.begin(), lost.end(), r) != lost.end();
    };
    int left = 0;
    for (int r = 0; r < whole_->size(); ++r) {
      if (is_lost(r)) continue;
      if (r == whole_->rank()) rank_ = left;
      ++left;
    }
    size_ = left;
    if (rank_ >= 0 && left + static_cast<int>(lost.size()) == whole_->size() && !lost.empty()) {
      return;
    }
    raise(
        "the ranks that are lost must be different ones of 0 to {}, at least one, and not this "
        "rank ({})",
        whole_->size() - 1, whole_->rank());
  }

  [[nodiscard]] int rank() const noexcept override { return rank_; }
  [[nodiscard]] int size() const noexcept override { return size_; }

  void put(std::string_view key, std::string_view value) override {
    whole_->put(inner(key), value);
  }
  [[nodiscard]] std::optional<std::string> try_get(std::string_view key) override {
    return whole_->try_get(inner(key));
  }

  void fail(const RankFailure& failure) noexcept override {
    try {
      const char* const kind = failure.provisional ? "provisional"
                               : failure.mismatch  ? "mismatch"
                                                   : "final";
      const std::string text = detail::format("{} {}\n{}", failure.rank, kind, failure.message);
      if (put_once(failed_key, text) || failure.provisional) return;
      const auto first = read(failed_key);
      if (!first || first->rank != failure.rank || !first->provisional) return;
      static_cast<void>(put_once(final_key, text));
    } catch (...) {
      return;  // the place is gone: peers find out by their time-out
    }
  }

  [[nodiscard]] std::optional<RankFailure> failure() noexcept override {
    try {
      auto first = read(failed_key);
      if (!first || !first->provisional) return first;
      auto final = read(final_key);
      return final ? final : first;
    } catch (...) {
      return RankFailure{rank_, "the rendezvous cannot be read any more"};
    }
  }

 private:
  static constexpr const char* failed_key = "failed";
  static constexpr const char* final_key = "failed.final";

  [[nodiscard]] std::string inner(std::string_view key) const {
    return detail::format("{}.{}", name_, key);
  }

  // False where it was there before.
  [[nodiscard]] bool put_once(const char* key, const std::string& text) {
    try {
      put(key, text);
      return true;
    } catch (const UsageError&) {
      return false;
    }
  }

  // "rank kind", a line; then the message.
  [[nodiscard]] std::optional<RankFailure> read(const char* key) {
    const auto text = try_get(key);
    if (!text) return std::nullopt;
    const std::size_t space = text->find(' ');
    const std::size_t line = text->find('\n');
    RankFailure found;
    found.rank = std::stoi(text->substr(0, space));
    const std::string kind = text->substr(space + 1, line - space - 1);
    found.provisional = kind == "provisional";
    found.mismatch = kind == "mismatch";
    found.message = text->substr(line + 1);
    return found;
  }

  std::shared_ptr<Rendezvous> whole_;
  std::string name_;
  int rank_ = -1;
  int size_ = 0;
};

}  // namespace shardwise::inline v0_1
