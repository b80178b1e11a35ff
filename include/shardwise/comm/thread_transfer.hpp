#pragma once

#include <algorithm>
#include <cstddef>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "../kernels/copy.hpp"
#include "../kernels/reduce.hpp"
#include "communicator.hpp"
#include "fingerprint.hpp"
#include "pieces.hpp"
#include "split.hpp"
#include "thread_group.hpp"

namespace shardwise::inline v0_1 {

/// A split's second collective: the part that a leader has made.
struct HandoverItem {
  const std::shared_ptr<ThreadGroup>* group;  ///< null but on leaders
  std::size_t leader;                         ///< of this rank's part
};

[[nodiscard]] inline ItemPrint print_of(const SplitItem&) noexcept { return {}; }
[[nodiscard]] inline ItemPrint print_of(const HandoverItem&) noexcept { return {}; }

/// How one rank moves bytes once a collective is committed: it reads its peers' buffers through
/// their slots. Nothing here allocates or throws after construction, but members_of and noted's
/// caller, which run outside.
class ThreadTransfer {
 public:
  ThreadTransfer(ThreadGroup& group, std::size_t rank)
      : group_(group),
        rank_(rank),
        inputs_(group.size()),
        weights_(group.size()),
        prints_(group.size()),
        colors_(group.size()) {}

  void move(Operation, int, std::span<const GatherItem> items) noexcept {
    // What is gathered, and every rank's copy of it.
    choose_stores(items, group_.size() * (group_.size() + 1));
    for (std::size_t i = 0; i < items.size(); ++i) {
      for_peers([&](std::size_t peer) {
        detail::fill_part(
            items[i], peer_item<GatherItem>(peer, i), peer * items[i].count,
            [&](void* to, const void* from, std::size_t bytes) { copy(to, from, bytes); });
      });
    }
  }

  void move(Operation operation, int, std::span<const ReduceItem> items) noexcept {
    const bool is_scatter = operation == Operation::reduce_scatter;
    choose_stores(items, group_.size() * (is_scatter ? group_.size() + 1 : 2));
    for (std::size_t i = 0; i < items.size(); ++i) {
      const std::size_t begin = is_scatter ? rank_ * items[i].count : part_begin(items[i], rank_);
      const std::size_t count =
          is_scatter ? items[i].count : part_begin(items[i], rank_ + 1) - begin;
      if (count == 0) continue;
      for (std::size_t r = 0; r < group_.size(); ++r) {
        weights_[r] = peer_item<ReduceItem>(r, i).spec.weight;
      }
      auto* out = static_cast<std::byte*>(items[i].recv) +
                  (is_scatter ? 0 : begin * size_of(items[i].spec.output));
      detail::for_each_stretch(items[i], begin, begin + count, out,
                               [&](std::size_t first, std::size_t elements, const auto& input) {
                                 for (std::size_t r = 0; r < group_.size(); ++r) {
                                   inputs_[r] = input(peer_item<ReduceItem>(r, i));
                                 }
                                 canonical_reduce(
                                     inputs_, weights_, items[i].dtype, elements,
                                     out + (first - begin) * size_of(items[i].spec.output),
                                     items[i].spec, streaming_);
                               });
    }
    if (operation == Operation::all_reduce) spread(items);
  }

  void move(Operation, int root, std::span<const BroadcastItem> items) noexcept {
    if (root < 0 || rank_ == static_cast<std::size_t>(root)) return;
    choose_stores(items, group_.size());
    for (std::size_t i = 0; i < items.size(); ++i) {
      copy(items[i].buffer, peer_item<BroadcastItem>(static_cast<std::size_t>(root), i).buffer,
           items[i].count * size_of(items[i].dtype));
    }
  }

  void move(Operation, int, std::span<const ExchangeItem> items) noexcept {
    choose_stores(items, 2 * group_.size() * group_.size());
    for (std::size_t i = 0; i < items.size(); ++i) {
      const std::size_t part = items[i].count * size_of(items[i].dtype);
      for_peers([&](std::size_t peer) {
        copy(static_cast<std::byte*>(items[i].recv) + peer * part,
             static_cast<const std::byte*>(peer_item<ExchangeItem>(peer, i).send) + rank_ * part,
             part);
      });
    }
  }

  void move(Operation, int, std::span<const SplitItem>) noexcept {
    for (std::size_t r = 0; r < group_.size(); ++r) colors_[r] = peer_item<SplitItem>(r, 0);
  }

  void move(Operation, int, std::span<const HandoverItem> items) noexcept {
    handed_over_ = *peer_item<HandoverItem>(items.front().leader, 0).group;
  }

  /// After the split's first collective: the ranks of `color`, ordered by (key, rank).
  [[nodiscard]] std::vector<std::size_t> members_of(int color) const {
    return detail::members_of(color, colors_);
  }

  /// After the split's second collective: this rank's part.
  [[nodiscard]] std::shared_ptr<ThreadGroup> take_handed_over() noexcept {
    return std::exchange(handed_over_, nullptr);
  }

  /// Keeps all ranks' calls, each with the first item that differs, for the message.
  void note_mismatch() noexcept {
    const Fingerprint& first = group_.committed(rank_, 0);
    std::size_t shown = 0;
    for (std::size_t r = 1; r < group_.size() && shown == 0; ++r) {
      const Fingerprint& print = group_.committed(rank_, r);
      const std::size_t common = std::min(print.item_count, first.item_count);
      while (shown < common && item_print(r, shown) == item_print(0, shown)) ++shown;
      if (shown == common) shown = 0;
    }
    for (std::size_t r = 0; r < group_.size(); ++r) {
      prints_[r] = group_.committed(rank_, r);
      if (shown >= prints_[r].item_count) continue;
      prints_[r].shown = shown;
      prints_[r].item = item_print(r, shown);
    }
  }
  [[nodiscard]] std::span<const Fingerprint> noted() const noexcept { return prints_; }

 private:
  template <class Item>
  [[nodiscard]] const Item& peer_item(std::size_t rank, std::size_t index) noexcept {
    return static_cast<const Item*>(group_.slot(rank).items)[index];
  }

  [[nodiscard]] ItemPrint item_print(std::size_t rank, std::size_t index) noexcept {
    switch (group_.committed(rank_, rank).operation) {
      case Operation::all_gather:
        return print_of(peer_item<GatherItem>(rank, index));
      case Operation::reduce_scatter:
      case Operation::all_reduce:
        return print_of(peer_item<ReduceItem>(rank, index));
      case Operation::broadcast:
        return print_of(peer_item<BroadcastItem>(rank, index));
      case Operation::all_to_all:
        return print_of(peer_item<ExchangeItem>(rank, index));
      default:
        return {};
    }
  }

  // Starts at this rank's own part, so that ranks do not all read from the same peer.
  template <class Body>
  void for_peers(const Body& body) const noexcept {
    for (std::size_t step = 0; step < group_.size(); ++step) {
      const std::size_t peer = rank_ + step;
      body(peer < group_.size() ? peer : peer - group_.size());
    }
  }

  void copy(void* to, const void* from, std::size_t bytes) const noexcept {
    copy_bytes(to, from, bytes, streaming_);
  }

  // Past the caches where these would not hold what all ranks together read and write: `counts`
  // times each item's count.
  template <class Item>
  void choose_stores(std::span<const Item> items, std::size_t counts) noexcept {
    std::size_t touched = 0;
    for (const Item& item : items) touched += item.count * size_of(item.dtype) * counts;
    streaming_ = touched > group_.options().cache_bytes;
  }

  // Where rank's part of an all_reduce begins: parts of whole cache lines.
  [[nodiscard]] std::size_t part_begin(const ReduceItem& item, std::size_t rank) const noexcept {
    constexpr std::size_t line = 64;
    const std::size_t lines = item.count / line + 1;
    return std::min(item.count,
                    (lines / group_.size() * rank + std::min(rank, lines % group_.size())) * line);
  }

  // An all_reduce's second half: every part is where its rank has summed it.
  void spread(std::span<const ReduceItem> items) noexcept {
    group_.meet(rank_);
    for (std::size_t i = 0; i < items.size(); ++i) {
      const std::size_t bytes = size_of(items[i].spec.output);
      for_peers([&](std::size_t peer) {
        if (peer == rank_) return;
        const std::size_t begin = part_begin(items[i], peer);
        copy(static_cast<std::byte*>(items[i].recv) + begin * bytes,
             static_cast<const std::byte*>(peer_item<ReduceItem>(peer, i).recv) + begin * bytes,
             (part_begin(items[i], peer + 1) - begin) * bytes);
      });
    }
  }

  ThreadGroup& group_;
  std::size_t rank_;
  std::vector<const void*> inputs_;
  std::vector<double> weights_;
  std::vector<Fingerprint> prints_;
  std::vector<SplitItem> colors_;
  std::shared_ptr<ThreadGroup> handed_over_;
  bool streaming_ = false;
};

}  // namespace shardwise::inline v0_1
