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
        gathers_(group.size()),
        reductions_(group.size()),
        weights_(group.size()),
        prints_(group.size()),
        colors_(group.size()) {}

  void move(Operation, int, std::span<const GatherItem> items) noexcept {
    // What is gathered, and every rank's copy of it.
    const std::size_t touched = choose_stores(items, group_.size() * (group_.size() + 1));
    const bool gives = touched / group_.size() > group_.options().core_cache_bytes;
    for (std::size_t i = 0; i < items.size(); ++i) {
      note_items(gathers_, i);
      if (gives) {
        give_part(items[i]);
      } else {
        take_parts(items[i]);
      }
    }
    end_copies();
  }

  void move(Operation operation, int, std::span<const ReduceItem> items) noexcept {
    const bool is_scatter = operation == Operation::reduce_scatter;
    choose_stores(items, group_.size() * (is_scatter ? group_.size() + 1 : 2));
    for (std::size_t i = 0; i < items.size(); ++i) {
      note_items(reductions_, i);
      for (std::size_t r = 0; r < group_.size(); ++r) weights_[r] = reductions_[r].spec.weight;
      if (is_scatter) {
        const std::size_t begin = rank_ * items[i].count;
        sum(items[i], begin, begin + items[i].count, items[i].recv,
            streaming_ || items[i].spec.cold);
      } else {
        sum_for_all(items[i]);
      }
    }
    end_copies();
  }

  void move(Operation, int root, std::span<const BroadcastItem> items) noexcept {
    if (root < 0) return;
    choose_stores(items, group_.size());
    const auto owner = static_cast<std::size_t>(root);
    for (std::size_t i = 0; i < items.size(); ++i) {
      const std::size_t bytes = items[i].count * size_of(items[i].dtype);
      if (bytes >= shared_work) {
        hand_out(owner, i, bytes);
      } else if (rank_ != owner) {
        copy(items[i].buffer, peer_item<BroadcastItem>(owner, i).buffer, bytes);
      }
    }
    end_copies();
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
    end_copies();
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
  // What is written several times stays in the second cache meanwhile, of a gather in the first:
  // shorter blocks cost more calls, and some neighbourhoods of buffers half the speed.
  static constexpr std::size_t near_bytes = std::size_t{1} << 14;
  static constexpr std::size_t near_gathered = std::size_t{1} << 11;
  // Where the bytes of a broadcast are worth being copied by all ranks.
  static constexpr std::size_t shared_work = std::size_t{1} << 16;

  template <class Item>
  [[nodiscard]] const Item& peer_item(std::size_t rank, std::size_t index) const noexcept {
    return static_cast<const Item*>(group_.slot(rank).items)[index];
  }

  [[nodiscard]] ItemPrint item_print(std::size_t rank, std::size_t index) const noexcept {
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

  // Items lie on their ranks' stacks, beside what those write all the time: to look there again for
  // each block would cost more than the block.
  template <class Item>
  void note_items(std::vector<Item>& items, std::size_t index) const noexcept {
    for (std::size_t r = 0; r < group_.size(); ++r) items[r] = peer_item<Item>(r, index);
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
    if (bytes == 0 || to == from) return;
    if (streaming_) {
      detail::stream_bytes(static_cast<std::byte*>(to), static_cast<const std::byte*>(from), bytes);
    } else {
      copy_bytes(to, from, bytes);
    }
  }
  [[nodiscard]] auto copier() const noexcept {
    return [this](void* to, const void* from, std::size_t bytes) { copy(to, from, bytes); };
  }
  void end_copies() const noexcept {
    if (streaming_) detail::end_streaming();
  }

  // Within a core's own cache each rank copies what it will read: it lands there.
  void take_parts(const GatherItem& item) const noexcept {
    for_peers([&](std::size_t peer) {
      detail::fill_part(item, gathers_[peer], peer * item.count, copier());
    });
  }

  // What such a cache does not hold each rank reads once, its own part, and writes into all
  // buffers.
  void give_part(const GatherItem& item) const noexcept {
    detail::for_each_stretch(
        item, rank_ * item.count, [&](const std::byte* from, std::size_t bytes, const auto& place) {
          for_ranges(0, bytes, near_gathered, [&](std::size_t first, std::size_t count) {
            std::byte* waiting = nullptr;  // for another one
            for_peers([&](std::size_t peer) {
              std::byte* const to = place(gathers_[peer]) + first;
              if (streaming_ || to == from + first) {
                copy(to, from + first, count);
              } else if (waiting == nullptr) {
                waiting = to;
              } else {
                detail::copy_twice(std::exchange(waiting, nullptr), to, from + first, count);
              }
            });
            if (waiting != nullptr) copy(waiting, from + first, count);
          });
        });
  }

  // out = what all ranks contribute to elements [begin, end) of an item.
  void sum(const ReduceItem& item, std::size_t begin, std::size_t end, void* out,
           bool streaming) noexcept {
    auto* const results = static_cast<std::byte*>(out);
    detail::for_each_stretch(
        item, begin, end, results, [&](std::size_t first, std::size_t elements, const auto& input) {
          for (std::size_t r = 0; r < group_.size(); ++r) {
            inputs_[r] = input(reductions_[r]);
          }
          canonical_reduce(inputs_, weights_, item.dtype, elements,
                           results + (first - begin) * size_of(item.spec.output), item.spec,
                           streaming);
        });
  }

  // An all_reduce: each rank sums its part and writes it into all buffers. Old values that are
  // added to are equal on all ranks.
  void sum_for_all(const ReduceItem& item) noexcept {
    alignas(detail::cache_line) std::byte staged[near_bytes];
    const std::size_t size = size_of(item.spec.output);
    const bool stages = streaming_ && !item.spec.accumulate;
    for_ranges(part_begin(item, rank_), part_begin(item, rank_ + 1),
               near_bytes / std::max(size, size_of(item.dtype)),
               [&](std::size_t first, std::size_t count) {
                 std::byte* const own = static_cast<std::byte*>(item.recv) + first * size;
                 std::byte* const results = stages ? staged : own;
                 sum(item, first, first + count, results, false);
                 for_peers([&](std::size_t peer) {
                   auto* const theirs = static_cast<std::byte*>(reductions_[peer].recv);
                   copy(theirs + first * size, results, count * size);
                 });
               });
  }

  // A broadcast of many bytes: each rank, the root too, writes a part of them into all buffers.
  void hand_out(std::size_t root, std::size_t index, std::size_t bytes) const noexcept {
    const std::size_t lines = bytes / detail::cache_line + 1;
    const auto begin_of = [&](std::size_t rank) {
      return std::min(bytes, lines * rank / group_.size() * detail::cache_line);
    };
    const auto* const from =
        static_cast<const std::byte*>(peer_item<BroadcastItem>(root, index).buffer);
    for_ranges(begin_of(rank_), rank_ + 1 == group_.size() ? bytes : begin_of(rank_ + 1),
               near_bytes, [&](std::size_t first, std::size_t count) {
                 for_peers([&](std::size_t peer) {
                   auto* const to =
                       static_cast<std::byte*>(peer_item<BroadcastItem>(peer, index).buffer);
                   if (peer != root) copy(to + first, from + first, count);
                 });
               });
  }

  // body(first, count) for ranges of at most `length` that cover [begin, end), in order.
  template <class Body>
  static void for_ranges(std::size_t begin, std::size_t end, std::size_t length,
                         const Body& body) noexcept {
    for (; begin < end; begin += std::min(length, end - begin)) {
      body(begin, std::min(length, end - begin));
    }
  }

  // Past the caches where these would not hold what all ranks together read and write, `counts`
  // times each item's count. Returns how many bytes that is.
  template <class Item>
  std::size_t choose_stores(std::span<const Item> items, std::size_t counts) noexcept {
    std::size_t touched = 0;
    for (const Item& item : items) touched += item.count * size_of(item.dtype) * counts;
    streaming_ = touched > group_.options().cache_bytes;
    return touched;
  }

  // Where rank's part of an all_reduce begins: parts of whole cache lines.
  [[nodiscard]] std::size_t part_begin(const ReduceItem& item, std::size_t rank) const noexcept {
    constexpr std::size_t line = 64;
    const std::size_t lines = item.count / line + 1;
    return std::min(item.count,
                    (lines / group_.size() * rank + std::min(rank, lines % group_.size())) * line);
  }

  ThreadGroup& group_;
  std::size_t rank_;
  std::vector<const void*> inputs_;
  std::vector<GatherItem> gathers_;     // of all ranks, of one index
  std::vector<ReduceItem> reductions_;  // likewise
  std::vector<double> weights_;
  std::vector<Fingerprint> prints_;
  std::vector<SplitItem> colors_;
  std::shared_ptr<ThreadGroup> handed_over_;
  bool streaming_ = false;
};

}  // namespace shardwise::inline v0_1
