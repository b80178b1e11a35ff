#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

namespace shardwise::test {

/// What goes through operator new and delete, by any thread, of a program whose sources include
/// support/heap.cpp. Tests set back what they watch.
struct Heap {
  std::atomic<std::uint64_t> allocations{0};  ///< calls of any operator new
  std::atomic<std::int64_t> live{0};          ///< bytes that the allocator holds for them
  std::atomic<std::int64_t> peak{0};          ///< the most that `live` was
  std::atomic<std::size_t> largest{0};        ///< bytes asked for at once
};

extern Heap heap;

}  // namespace shardwise::test
