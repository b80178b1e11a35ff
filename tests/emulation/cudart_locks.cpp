#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <climits>
#include <ctime>

#include "internal.hpp"

// Of the sanitizers' runtimes, where the program has one: one build of the emulation serves plain
// programs and those under a sanitizer.
extern "C" {
__attribute__((weak)) void AnnotateIgnoreReadsBegin(const char* file, int line);
__attribute__((weak)) void AnnotateIgnoreReadsEnd(const char* file, int line);
__attribute__((weak)) void AnnotateIgnoreWritesBegin(const char* file, int line);
__attribute__((weak)) void AnnotateIgnoreWritesEnd(const char* file, int line);
__attribute__((weak)) void AnnotateIgnoreSyncBegin(const char* file, int line);
__attribute__((weak)) void AnnotateIgnoreSyncEnd(const char* file, int line);
__attribute__((weak)) void __tsan_acquire(void* edge);
__attribute__((weak)) void __tsan_release(void* edge);
__attribute__((weak)) void __tsan_write_range(void* begin, std::size_t bytes);
__attribute__((weak)) void __asan_poison_memory_region(const volatile void* begin, std::size_t);
__attribute__((weak)) void __asan_unpoison_memory_region(const volatile void* begin, std::size_t);
}

namespace emulation {
namespace {

thread_local int quiet_depth = 0;

/// An edge stated while synchronisation is ignored would be dropped: steps out for it.
void state_edge(void (*function)(void*), void* edge) {
  if (function == nullptr) return;
  for (int i = 0; i < quiet_depth; ++i) AnnotateIgnoreSyncEnd(__FILE__, __LINE__);
  function(edge);
  for (int i = 0; i < quiet_depth; ++i) AnnotateIgnoreSyncBegin(__FILE__, __LINE__);
}

long futex(std::atomic<std::uint32_t>& word, int operation, std::uint32_t value,
           const timespec* timeout = nullptr) {
  return syscall(SYS_futex, reinterpret_cast<std::uint32_t*>(&word), operation, value, timeout,
                 nullptr, 0);
}

}  // namespace

bool under_thread_sanitizer() { return __tsan_acquire != nullptr; }
bool under_address_sanitizer() { return __asan_poison_memory_region != nullptr; }
void hb_release(void* edge) { state_edge(__tsan_release, edge); }
void hb_acquire(void* edge) { state_edge(__tsan_acquire, edge); }
void hb_write(std::uintptr_t begin, std::size_t bytes) {
  if (__tsan_write_range != nullptr) __tsan_write_range(reinterpret_cast<void*>(begin), bytes);
}

void asan_poison(std::uintptr_t begin, std::size_t bytes) {
  if (under_address_sanitizer()) {
    __asan_poison_memory_region(reinterpret_cast<const void*>(begin), bytes);
  }
}

void asan_unpoison(std::uintptr_t begin, std::size_t bytes) {
  if (under_address_sanitizer()) {
    __asan_unpoison_memory_region(reinterpret_cast<const void*>(begin), bytes);
  }
}

void quiet_begin() {
  if (AnnotateIgnoreReadsBegin == nullptr) return;
  AnnotateIgnoreReadsBegin(__FILE__, __LINE__);
  AnnotateIgnoreWritesBegin(__FILE__, __LINE__);
  AnnotateIgnoreSyncBegin(__FILE__, __LINE__);
  ++quiet_depth;
}

void quiet_end() {
  if (AnnotateIgnoreReadsBegin == nullptr) return;
  --quiet_depth;
  AnnotateIgnoreSyncEnd(__FILE__, __LINE__);
  AnnotateIgnoreWritesEnd(__FILE__, __LINE__);
  AnnotateIgnoreReadsEnd(__FILE__, __LINE__);
}

// Ulrich Drepper, "Futexes Are Tricky", section 6: the second mutex.
void Lock::lock() {
  quiet_begin();
  std::uint32_t found = free;
  if (state_.compare_exchange_strong(found, held)) return;
  if (found != contended) found = state_.exchange(contended);
  while (found != free) {
    futex(state_, FUTEX_WAIT_PRIVATE, contended);
    found = state_.exchange(contended);
  }
}

bool Lock::try_lock() {
  quiet_begin();
  std::uint32_t found = free;
  if (state_.compare_exchange_strong(found, held)) return true;
  quiet_end();
  return false;
}

void Lock::unlock() {
  if (state_.exchange(free) == contended) futex(state_, FUTEX_WAKE_PRIVATE, 1);
  quiet_end();
}

bool Condition::wait(Lock& lock, int milliseconds) {
  const std::uint32_t seen = epoch_.load();
  waiters_.fetch_add(1);
  lock.unlock();
  const timespec timeout{milliseconds / 1000, (milliseconds % 1000) * 1'000'000L};
  const bool ran_out =
      futex(epoch_, FUTEX_WAIT_PRIVATE, seen, &timeout) == -1 && errno == ETIMEDOUT;
  lock.lock();
  waiters_.fetch_sub(1);
  return !ran_out;
}

void Condition::notify() {
  epoch_.fetch_add(1);
  if (waiters_.load() > 0) futex(epoch_, FUTEX_WAKE_PRIVATE, INT_MAX);
}

}  // namespace emulation
