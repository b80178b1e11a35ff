#pragma once

#include <cstddef>
#include <cstring>
#include <type_traits>

#include "../core/host_device.hpp"
#include "elements.hpp"

namespace shardwise::inline v0_1::detail {

/// A functor over elements [0, count), one of several that are launched together.
template <class Functor>
struct ElementSegment {
  Functor functor;
  std::size_t count;
};

/// Functors over elements that run in one launch, and where each one's blocks of threads begin; a
/// kernel's argument, by value. No pointer is in it that is not a functor's.
template <class Functor>
struct SegmentTable {
  static_assert(std::is_trivially_copyable_v<Functor>);

  /// What every chip and runtime takes as arguments, less a little.
  static constexpr std::size_t most_bytes = 4000;
  static constexpr unsigned capacity = static_cast<unsigned>(
      most_bytes / (sizeof(Functor) + sizeof(ElementPlan) + sizeof(std::size_t) + sizeof(unsigned) +
                    alignof(Functor)));
  static_assert(capacity > 0, "the functor is too large for a kernel's arguments");

  Functor functors[capacity];
  ElementPlan plans[capacity];
  std::size_t pieces[capacity];
  unsigned begin[capacity + 1];  ///< blocks of threads of the segments before
  unsigned segments;

  void clear() noexcept { std::memset(static_cast<void*>(this), 0, sizeof(*this)); }
  [[nodiscard]] bool is_full() const noexcept { return segments == capacity; }
  [[nodiscard]] unsigned blocks() const noexcept { return begin[segments]; }

  void add(std::size_t count, const Functor& functor, unsigned block_threads) noexcept {
    const ElementPlan plan = plan_elements(count, functor);
    functors[segments] = functor;
    plans[segments] = plan;
    pieces[segments] = plan.pieces<Functor>(count);
    const std::size_t blocks = (pieces[segments] + block_threads - 1) / block_threads;
    begin[segments + 1] = begin[segments] + static_cast<unsigned>(blocks);
    ++segments;
  }

  /// The segment that a block of threads works on.
  [[nodiscard]] SHARDWISE_HOST_DEVICE unsigned segment_of(unsigned block) const noexcept {
    unsigned low = 0;
    unsigned high = segments;
    while (high - low > 1) {
      const unsigned middle = (low + high) / 2;
      (begin[middle] <= block ? low : high) = middle;
    }
    return low;
  }

  /// What thread `thread` of block `block` does.
  SHARDWISE_HOST_DEVICE void run(unsigned block, unsigned thread, unsigned block_threads) const {
    const unsigned segment = segment_of(block);
    const std::size_t index =
        static_cast<std::size_t>(block - begin[segment]) * block_threads + thread;
    if (index < pieces[segment]) run_piece(plans[segment], index, functors[segment]);
  }
};

/// The device's launch on the host: the same blocks and threads, scattered as elements are.
template <class Functor>
void run_segments(const SegmentTable<Functor>& table, unsigned block_threads) {
  for_each_scattered(std::size_t{table.blocks()} * block_threads, [&](std::size_t index) {
    table.run(static_cast<unsigned>(index / block_threads),
              static_cast<unsigned>(index % block_threads), block_threads);
  });
}

}  // namespace shardwise::inline v0_1::detail
