#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "../core/error.hpp"
#include "communicator.hpp"
#include "fingerprint.hpp"
#include "shared_block.hpp"

namespace shardwise::inline v0_1 {

/// How often a CheckedCommunicator compares.
struct CheckedOptions {
  /// Calls 1, 1 + every, ... are compared. Calls between are part of the next comparison: that they
  /// differed is known then, but not before their bytes have moved. Splits are always compared.
  std::uint64_t every = 1;
};

/// Another communicator whose calls are compared between the ranks, for backends that do not do it
/// themselves (MPI, NCCL) and a program that hangs, or computes nonsense, because ranks call
/// different collectives. A CollectiveMismatch on all ranks names each side, before any byte moves.
/// It is final: later calls are refused on all ranks with the same words.
///
/// The ranks compare in a call of a communicator of its own, one all_gather of a Fingerprint (some
/// 180 bytes) on the null stream. The comparison takes place in the call, and not in stream order:
/// it does not wait for earlier collectives in streams, so they still overlap with the caller's
/// work, but every call now waits until all ranks have made it. A rank that never makes it is a
/// TimedOut or PeerFailed of the comparison, which names the call.
class CheckedCommunicator final : public Communicator {
 public:
  /// Checks `inner`, which must outlive this. All ranks make theirs together: the ranks compare
  /// through a split of `inner`.
  explicit CheckedCommunicator(Communicator& inner, CheckedOptions options = {})
      : CheckedCommunicator(nullptr, inner, split_of(inner), options) {}
  explicit CheckedCommunicator(std::unique_ptr<Communicator> inner, CheckedOptions options = {})
      : CheckedCommunicator(std::move(inner), nullptr, options) {}

  /// The ranks compare through `comparing`: the same ranks in the same order, on host memory. Null:
  /// through a split of `inner`.
  CheckedCommunicator(std::unique_ptr<Communicator> inner, std::unique_ptr<Communicator> comparing,
                      CheckedOptions options = {})
      : CheckedCommunicator(nullptr, checked(inner),
                            comparing != nullptr ? std::move(comparing) : split_of(checked(inner)),
                            options) {
    owned_ = std::move(inner);
  }

  [[nodiscard]] int rank() const noexcept override { return inner_->rank(); }
  [[nodiscard]] int size() const noexcept override { return inner_->size(); }
  [[nodiscard]] std::string_view backend() const noexcept override { return inner_->backend(); }
  [[nodiscard]] bool accepts(MemoryKind memory) const noexcept override {
    return inner_->accepts(memory);
  }
  [[nodiscard]] bool shares_addresses() const noexcept override {
    return inner_->shares_addresses();
  }
  [[nodiscard]] std::size_t landing_bytes(const ReduceItem& item,
                                          bool scatter) const noexcept override {
    return inner_->landing_bytes(item, scatter);
  }
  [[nodiscard]] std::size_t landing_bytes_among(int ranks, const ReduceItem& item,
                                                bool scatter) const noexcept override {
    return inner_->landing_bytes_among(ranks, item, scatter);
  }

  void all_gather(std::span<const GatherItem> items, const CallInfo& info,
                  StreamRef stream) override {
    compare(Operation::all_gather, items, info);
    inner_->all_gather(items, info, stream);
  }
  void reduce_scatter(std::span<const ReduceItem> items, const CallInfo& info,
                      StreamRef stream) override {
    compare(Operation::reduce_scatter, items, info);
    inner_->reduce_scatter(items, info, stream);
  }
  void all_reduce(std::span<const ReduceItem> items, const CallInfo& info,
                  StreamRef stream) override {
    compare(Operation::all_reduce, items, info);
    inner_->all_reduce(items, info, stream);
  }
  void broadcast(std::span<const BroadcastItem> items, int root, const CallInfo& info,
                 StreamRef stream) override {
    compare(Operation::broadcast, items, info, root);
    inner_->broadcast(items, root, info, stream);
  }
  void all_to_all(std::span<const ExchangeItem> items, const CallInfo& info,
                  StreamRef stream) override {
    compare(Operation::all_to_all, items, info);
    inner_->all_to_all(items, info, stream);
  }
  void barrier(const CallInfo& info, StreamRef stream) override {
    compare(Operation::barrier, std::span<const BroadcastItem>(), info);
    inner_->barrier(info, stream);
  }

  [[nodiscard]] std::unique_ptr<SharedBlock> share_block(std::size_t bytes,
                                                         const CallInfo& info) override {
    compare(Operation::split, std::span<const BroadcastItem>(), info);
    return inner_->share_block(bytes, info);
  }

  /// The parts are checked, too.
  [[nodiscard]] std::unique_ptr<Communicator> split(int color, int key,
                                                    const CallInfo& info) override {
    compare(Operation::split, std::span<const BroadcastItem>(), info);
    std::unique_ptr<Communicator> part = inner_->split(color, key, info);
    std::unique_ptr<Communicator> comparing =
        comparing_->split(color, key, {.name = fingerprints, .timeout = info.timeout});
    return std::make_unique<CheckedCommunicator>(std::move(part), std::move(comparing), options_);
  }

  void abort(std::string_view message, bool provisional = false) noexcept override {
    inner_->abort(message, provisional);
    comparing_->abort(message, provisional);
  }
  void check() override { inner_->check(); }

 private:
  static constexpr std::string_view fingerprints = "comparison of calls";

  /// What ranks compare: the call, and a hash of all calls since the last comparison.
  struct Shown {
    Fingerprint call;
    std::uint64_t history = 0;
  };
  static_assert(std::is_trivially_copyable_v<Shown>);

  CheckedCommunicator(std::nullptr_t, Communicator& inner, std::unique_ptr<Communicator> comparing,
                      CheckedOptions options)
      : inner_(&inner), comparing_(std::move(comparing)), options_(options) {
    if (options.every == 0) raise("a checked communicator compares every k-th call: k is not 0");
    if (comparing_->size() != inner.size() || comparing_->rank() != inner.rank()) {
      raise(
          "a checked communicator of rank {} of {} compares its calls through one of the same "
          "ranks, but found rank {} of {}",
          inner.rank(), inner.size(), comparing_->rank(), comparing_->size());
    }
    all_.resize(static_cast<std::size_t>(inner.size()));
    calls_.resize(all_.size());
  }

  [[nodiscard]] static Communicator& checked(const std::unique_ptr<Communicator>& inner) {
    if (inner == nullptr) raise("there is no communicator to check: found a null pointer");
    return *inner;
  }

  [[nodiscard]] static std::unique_ptr<Communicator> split_of(Communicator& inner) {
    return inner.split(0, inner.rank(), {.name = fingerprints});
  }

  template <class Item>
  void compare(Operation operation, std::span<const Item> items, const CallInfo& info,
               int root = -1) {
    if (mismatch_) throw CollectiveMismatch(*mismatch_);
    Shown mine{detail::fingerprint_of(operation, items, info, root, ++sequence_), history_};
    history_ = hash(history_, mine.call);
    if (operation != Operation::split && (sequence_ - 1) % options_.every != 0) return;
    history_ = 0;
    gather(mine, info);
    for (std::size_t r = 0; r < all_.size(); ++r) calls_[r] = all_[r].call;
    bool agreed = true;
    bool same_history = true;
    for (std::size_t r = 1; r < all_.size(); ++r) {
      agreed = agreed && calls_[r].agrees_with(calls_[0]);
      same_history = same_history && all_[r].history == all_[0].history;
    }
    if (!agreed) {
      show_differing_items(items);
      refuse(describe_mismatch(calls_, [](std::size_t r) { return r; }), info);
    }
    if (!same_history) {
      refuse(detail::format("ranks called different collectives before {}, since the last "
                            "comparison. Compare every call (CheckedOptions::every = 1) to see "
                            "which.",
                            describe(mine.call)),
             info);
    }
  }

  [[nodiscard]] static std::uint64_t hash(std::uint64_t history, const Fingerprint& call) noexcept {
    using detail::mix;
    history = mix(mix(history, call.sequence), static_cast<std::uint64_t>(call.operation));
    history = mix(mix(history, call.items_hash), call.item_count);
    history = mix(mix(history, call.name_hash), call.detail);
    return mix(history, static_cast<std::uint64_t>(static_cast<std::int64_t>(call.root)));
  }

  void gather(const Shown& mine, const CallInfo& info) {
    const GatherItem item{&mine, all_.data(), sizeof mine, DType::u8};
    const auto say_where = [&](const char* what) {
      return detail::format(
          "{}\nwhile the ranks compared their calls: rank {} was about to call {}", what, rank(),
          describe(mine.call));
    };
    try {
      comparing_->all_gather({&item, 1}, {.name = fingerprints, .timeout = info.timeout}, {});
    } catch (const PeerFailed& error) {
      throw PeerFailed(say_where(error.what()), error.rank(), error.peer_message());
    } catch (const TimedOut& error) {
      throw TimedOut(say_where(error.what()));
    }
  }

  /// Where calls of equally many items differ in one of them, the mismatch shows that one.
  template <class Item>
  void show_differing_items(std::span<const Item> items) {
    for (const Fingerprint& call : calls_) {
      if (call.item_count != items.size() || call.operation != calls_[0].operation) return;
    }
    std::vector<ItemPrint> own;
    for (const Item& item : items) own.push_back(print_of(item));
    std::vector<std::byte> bytes(own.size() * sizeof(ItemPrint) * all_.size());
    static_assert(std::is_trivially_copyable_v<ItemPrint>);
    if (own.empty()) return;
    const GatherItem item{own.data(), bytes.data(), own.size() * sizeof(ItemPrint), DType::u8};
    try {
      comparing_->all_gather({&item, 1}, {.name = fingerprints}, {});
    } catch (const Error&) {
      return;  // the mismatch is known, and shows the first items
    }
    const auto print = [&](std::size_t r, std::size_t i) {
      ItemPrint result;
      std::memcpy(&result, bytes.data() + (r * own.size() + i) * sizeof result, sizeof result);
      return result;
    };
    for (std::size_t i = 0; i < own.size(); ++i) {
      for (std::size_t r = 1; r < all_.size(); ++r) {
        if (print(r, i) == print(0, i)) continue;
        for (std::size_t q = 0; q < all_.size(); ++q) {
          calls_[q].shown = i;
          calls_[q].item = print(q, i);
        }
        return;
      }
    }
  }

  /// A rank that throws may end its peers' waits at once, so all meet when they know the mismatch.
  [[noreturn]] void refuse(const std::string& message, const CallInfo& info) {
    mismatch_ = message;
    try {
      comparing_->barrier({.name = fingerprints, .timeout = info.timeout}, {});
    } catch (const Error&) {  // a rank that has left the barrier was sooner
      throw CollectiveMismatch(message);
    }
    throw CollectiveMismatch(message);
  }

  std::unique_ptr<Communicator> owned_;
  Communicator* inner_;
  std::unique_ptr<Communicator> comparing_;
  CheckedOptions options_;
  std::vector<Shown> all_;  // of all ranks; as a member so that a call does not allocate
  std::vector<Fingerprint> calls_;
  std::uint64_t sequence_ = 0;
  std::uint64_t history_ = 0;
  std::optional<std::string> mismatch_;
};

static_assert(CommunicatorBackend<CheckedCommunicator>);

}  // namespace shardwise::inline v0_1
