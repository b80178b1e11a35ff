#include "heap.hpp"

#include <malloc.h>

#include <cstdlib>
#include <new>

namespace shardwise::test {

constinit Heap heap;

namespace {

template <class T>
void raise_to(std::atomic<T>& most, T value) noexcept {
  T before = most;
  while (value > before && !most.compare_exchange_weak(before, value)) {
  }
}

void* take(std::size_t bytes, std::size_t alignment) {
  void* const memory =
      alignment > alignof(std::max_align_t)
          ? std::aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment)
          : std::malloc(bytes == 0 ? 1 : bytes);
  if (memory == nullptr) throw std::bad_alloc();
  ++heap.allocations;
  raise_to(heap.largest, bytes);
  const auto held = static_cast<std::int64_t>(malloc_usable_size(memory));
  raise_to(heap.peak, heap.live += held);
  return memory;
}
void give(void* memory) noexcept {
  if (memory == nullptr) return;
  heap.live -= static_cast<std::int64_t>(malloc_usable_size(memory));
  std::free(memory);
}

}  // namespace
}  // namespace shardwise::test

using shardwise::test::give;
using shardwise::test::take;

void* operator new(std::size_t bytes) { return take(bytes, 0); }
void* operator new[](std::size_t bytes) { return take(bytes, 0); }
void* operator new(std::size_t bytes, std::align_val_t alignment) {
  return take(bytes, static_cast<std::size_t>(alignment));
}
void* operator new[](std::size_t bytes, std::align_val_t alignment) {
  return take(bytes, static_cast<std::size_t>(alignment));
}
// A sanitizer's own would not come to ours.
void* operator new(std::size_t bytes, const std::nothrow_t&) noexcept {
  try {
    return take(bytes, 0);
  } catch (const std::bad_alloc&) {
    return nullptr;
  }
}
void* operator new[](std::size_t bytes, const std::nothrow_t& nothrow) noexcept {
  return operator new(bytes, nothrow);
}
void operator delete(void* memory) noexcept { give(memory); }
void operator delete[](void* memory) noexcept { give(memory); }
void operator delete(void* memory, std::size_t) noexcept { give(memory); }
void operator delete[](void* memory, std::size_t) noexcept { give(memory); }
void operator delete(void* memory, std::align_val_t) noexcept { give(memory); }
void operator delete[](void* memory, std::align_val_t) noexcept { give(memory); }
void operator delete(void* memory, std::size_t, std::align_val_t) noexcept { give(memory); }
void operator delete[](void* memory, std::size_t, std::align_val_t) noexcept { give(memory); }
