#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "../kernels/copy.hpp"
#include "../kernels/reduce.hpp"
#include "communicator.hpp"
#include "mpi_landing.hpp"
#include "mpi_shared_memory.hpp"

namespace shardwise::inline v0_1::detail::mpi {

/// Collectives whose buffers are in memory that all ranks have mapped: every rank writes into, or
/// sums from, the others' buffers, and no byte is copied in between. `wait` makes the caller wait
/// until a function is true, or throws.
class SharedTransfer {
 public:
  SharedTransfer(const SharedMemory& memory, std::size_t rank, std::size_t size)
      : memory_(memory), rank_(rank), size_(size), inputs_(size), weights_(size) {}

  /// Each rank writes its part into all receive buffers. False, on all ranks and before a byte has
  /// moved, where a rank's buffers are elsewhere.
  template <class Wait>
  [[nodiscard]] bool all_gather(std::span<const GatherItem> items, const Wait& wait) {
    const auto bytes = [&](const GatherItem& item) {
      return item.count * size_of(item.dtype) * size_;
    };
    if (!agree(
            items, bytes, [](const GatherItem& item) { return item.recv; }, wait))
      return false;
    std::size_t written = 0;
    for (const GatherItem& item : items) written += bytes(item);
    const bool streaming = written > cache_bytes / size_;
    for_ranks([&](std::size_t to) {
      for (std::size_t i = 0; i < items.size(); ++i) {
        const std::size_t part = items[i].count * size_of(items[i].dtype);
        copy_bytes(buffer_of(to, i) + rank_ * part, items[i].send, part, streaming);
      }
    });
    finish(wait);
    return true;
  }

  /// Each rank sums its part from all send buffers.
  template <class Wait>
  [[nodiscard]] bool reduce(std::span<const ReduceItem> items, bool scatter, const Wait& wait) {
    const auto bytes = [&](const ReduceItem& item) {
      return item.count * size_of(item.dtype) * (scatter ? size_ : 1);
    };
    if (!agree(
            items, bytes, [](const ReduceItem& item) { return item.send; }, wait))
      return false;
    for (std::size_t i = 0; i < items.size(); ++i) {
      const ReduceItem& item = items[i];
      const Part part = Cut(item, scatter, size_, 0).part(rank_);
      for (std::size_t r = 0; r < size_; ++r) {
        inputs_[r] = buffer_of(r, i) + part.begin * size_of(item.dtype);
        weights_[r] = memory_.call_of(r, number_).weights[i];
      }
      auto* const out = static_cast<std::byte*>(item.recv) +
                        (scatter ? 0 : part.begin * size_of(item.spec.output));
      canonical_reduce(inputs_, weights_, item.dtype, part.count(), out, item.spec);
    }
    finish(wait);
    return true;
  }

 private:
  // Smaller calls travel as quickly as ranks can agree.
  static constexpr std::size_t least_bytes = 4096;
  static constexpr std::size_t cache_bytes = std::size_t{16} << 20;

  [[nodiscard]] static double weight_of(const ReduceItem& item) noexcept {
    return item.spec.weighted ? item.spec.weight : 1;
  }
  [[nodiscard]] static double weight_of(const GatherItem&) noexcept { return 1; }

  // What all ranks know decides whether they look; then all look at what each alone knows.
  template <class Item, class Bytes, class Buffer, class Wait>
  [[nodiscard]] bool agree(std::span<const Item> items, const Bytes& bytes, const Buffer& buffer,
                           const Wait& wait) {
    if (items.size() > SharedCall::most_items) return false;
    std::size_t all = 0;
    for (const Item& item : items) {
      if (!item.pieces.empty()) return false;
      all += bytes(item);
    }
    if (all < least_bytes) return false;
    ++number_;
    SharedCall& mine = memory_.call_of(rank_, number_);
    mine.usable = true;
    for (std::size_t i = 0; i < items.size(); ++i) {
      const auto* const data = static_cast<const std::byte*>(buffer(items[i]));
      mine.usable = mine.usable && memory_.holds(data, bytes(items[i]));
      mine.offsets[i] =
          reinterpret_cast<std::uintptr_t>(data) - reinterpret_cast<std::uintptr_t>(memory_.data());
      mine.weights[i] = weight_of(items[i]);
    }
    mine.arrived.store(number_, std::memory_order_release);
    meet(&SharedCall::arrived, wait);
    for (std::size_t r = 0; r < size_; ++r) {
      if (!memory_.call_of(r, number_).usable) return false;
    }
    return true;
  }

  // The buffers of all ranks are in use until all have finished.
  template <class Wait>
  void finish(const Wait& wait) {
    memory_.call_of(rank_, number_).done.store(number_, std::memory_order_release);
    meet(&SharedCall::done, wait);
  }

  template <class Wait>
  void meet(std::atomic<std::uint64_t> SharedCall::*flag, const Wait& wait) {
    std::size_t next = 0;  // all below have come
    wait([&] {
      while (next < size_ &&
             (memory_.call_of(next, number_).*flag).load(std::memory_order_acquire) >= number_) {
        ++next;
      }
      return next == size_;
    });
  }

  // Starts at this rank itself, so that not all write to the same one.
  template <class Body>
  void for_ranks(const Body& body) const {
    for (std::size_t step = 0; step < size_; ++step) {
      const std::size_t rank = rank_ + step;
      body(rank < size_ ? rank : rank - size_);
    }
  }

  [[nodiscard]] std::byte* buffer_of(std::size_t rank, std::size_t item) const noexcept {
    return memory_.data_of(rank) + memory_.call_of(rank, number_).offsets[item];
  }

  const SharedMemory& memory_;
  std::size_t rank_;
  std::size_t size_;
  std::uint64_t number_ = 0;  // of calls that ranks looked at together
  std::vector<const void*> inputs_;
  std::vector<double> weights_;
};

}  // namespace shardwise::inline v0_1::detail::mpi
