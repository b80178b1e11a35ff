#pragma once

#include <cuda_runtime_api.h>

#include <array>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <optional>

#include "../device/cuda_error.hpp"
#include "../device/cuda_guard.hpp"
#include "../device/cuda_memory.hpp"
#include "fingerprint.hpp"
#include "nccl_handle.hpp"

namespace shardwise::inline v0_1::detail::nccl {

/// Memory that a call needs besides its operands, and the weights that travel with it; used again
/// when the call has ended. A little is there from the beginning, so that steps allocate nothing;
/// more comes on demand.
class CallMemory {
 public:
  static constexpr std::size_t device_bytes = 2048;  // the weights of 256 pairs of item and rank
  static constexpr std::size_t pinned_bytes = 256;

  void prepare(void* device, void* pinned) noexcept {
    device_ = device;
    pinned_ = pinned;
  }
  /// The same memory until more is asked for.
  [[nodiscard]] void* device(std::size_t bytes) {
    return bytes <= device_bytes ? device_ : more_device_.reserve(bytes);
  }
  [[nodiscard]] void* pinned(std::size_t bytes) {
    return bytes <= pinned_bytes ? pinned_ : more_pinned_.reserve(bytes);
  }

 private:
  void* device_ = nullptr;
  void* pinned_ = nullptr;
  CudaScratch<CudaMemory> more_device_;
  CudaScratch<CudaPinnedMemory> more_pinned_;
};

/// The calls of one ncclComm_t that are under way: which, since when, until when.
///
/// The host thread opens and closes calls, the watchdog looks on. In peaceful times nothing goes
/// from the watchdog to the host (no lock, no atomic that the host reads): a race detector would
/// take it for an order between the stream's work, which the watchdog has asked for, and the host.
class Tracker {
 public:
  using Clock = std::chrono::steady_clock;
  static constexpr std::uint64_t most = 64;  ///< calls under way; the host waits for the oldest

  /// The oldest call under way, as the watchdog sees it.
  struct Oldest {
    std::uint64_t sequence = 0;          ///< Fingerprint::sequence
    Clock::duration waiting{};           ///< since its turn in the stream; 0: that has not come
    std::chrono::nanoseconds timeout{};  ///< how long it may wait
  };

  explicit Tracker(int device) {
    const CudaDeviceGuard guard(device);
    auto* in_device = static_cast<std::byte*>(device_.reserve(most * CallMemory::device_bytes));
    auto* in_pinned = static_cast<std::byte*>(pinned_.reserve(most * CallMemory::pinned_bytes));
    for (Slot& slot : slots_) {
      slot.memory.prepare(in_device, in_pinned);
      in_device += CallMemory::device_bytes;
      in_pinned += CallMemory::pinned_bytes;
      for (cudaEvent_t* const event : {&slot.begin, &slot.end}) {
        cuda_check(cudaEventCreateWithFlags(event, cudaEventDisableTiming),
                   "cudaEventCreateWithFlags");
      }
    }
  }
  Tracker(const Tracker&) = delete;
  Tracker& operator=(const Tracker&) = delete;

  /// A call begins: `stream` has come so far. Waits where too many are under way.
  template <class Patience>
  [[nodiscard]] CallMemory& open(const Fingerprint& call, std::chrono::nanoseconds timeout,
                                 cudaStream_t stream, const Patience& patience) {
    Slot& slot = slots_[opened_ % most];
    if (opened_ >= most) wait(slot, patience);
    slot.number.store(0);
    {
      const std::lock_guard lock(mutex_);
      slot.call = call;
      opened_call_ = ++opened_;
    }
    slot.sequence.store(call.sequence, std::memory_order_relaxed);
    slot.timeout.store(timeout.count(), std::memory_order_relaxed);
    cuda_check(cudaEventRecord(slot.begin, stream), "cudaEventRecord");
    return slot.memory;
  }

  /// All that the call does has been enqueued, or will ever be.
  void close(cudaStream_t stream) {
    Slot& slot = slots_[(opened_ - 1) % most];
    if (slot.number.load(std::memory_order_relaxed) == opened_) return;
    const cudaError_t refused = cudaEventRecord(slot.end, stream);
    // What has been enqueued uses memory all the same: its end has to be known.
    if (refused == cudaSuccess || cudaEventRecord(slot.end, stream) == cudaSuccess) {
      slot.number.store(opened_);
      closed_.store(opened_);
    } else {
      has_unknown_end_ = true;
    }
    cuda_check(refused, "cudaEventRecord");
  }

  /// The host waits until the last call that was closed has ended.
  template <class Patience>
  void wait_for_last(const Patience& patience) {
    const std::uint64_t last = closed_.load(std::memory_order_relaxed);
    if (last > 0) wait(slots_[(last - 1) % most], patience);
  }
  /// The same for all calls: after a failure they end in no order.
  template <class Patience>
  void wait_for_all(const Patience& patience) {
    const std::uint64_t last = closed_.load(std::memory_order_relaxed);
    for (std::uint64_t i = last < most ? 0 : last - most; i < last; ++i) {
      wait(slots_[i % most], patience);
    }
  }

  /// False where CUDA refused to mark what a call had enqueued: nobody can wait for it.
  [[nodiscard]] bool knows_all_ends() const noexcept { return !has_unknown_end_; }

  /// The watchdog's: the oldest call that was closed and has not ended.
  [[nodiscard]] std::optional<Oldest> oldest(Clock::time_point now) {
    const std::uint64_t closed = closed_.load();
    for (; ended_ < closed; ++ended_, turn_ = {}) {
      Slot& slot = slots_[ended_ % most];
      if (slot.number.load() != ended_ + 1) continue;  // its slot serves a later call: it has ended
      if (cudaEventQuery(slot.end) != cudaErrorNotReady) continue;
      if (turn_ == Clock::time_point{} && cudaEventQuery(slot.begin) != cudaErrorNotReady) {
        turn_ = now;
      }
      Oldest result;
      result.timeout = std::chrono::nanoseconds(slot.timeout.load(std::memory_order_relaxed));
      result.sequence = slot.sequence.load(std::memory_order_relaxed);
      if (turn_ != Clock::time_point{}) result.waiting = now - turn_;
      if (slot.number.load() == ended_ + 1) return result;
    }
    return std::nullopt;
  }

  /// The watchdog's, after a failure: the call that this rank is in; one that is being enqueued,
  /// where all others have ended. Nothing where there is none.
  [[nodiscard]] std::optional<Fingerprint> current() {
    static_cast<void>(oldest(Clock::now()));
    const std::lock_guard lock(mutex_);
    if (ended_ >= opened_call_) return std::nullopt;
    return slots_[ended_ % most].call;
  }
  /// The last call that this rank made, if any.
  [[nodiscard]] std::optional<Fingerprint> last() {
    const std::lock_guard lock(mutex_);
    if (opened_call_ == 0) return std::nullopt;
    return slots_[(opened_call_ - 1) % most].call;
  }

 private:
  struct Slot {
    Slot() = default;
    Slot(const Slot&) = delete;
    Slot& operator=(const Slot&) = delete;
    ~Slot() {
      for (auto* const event : {begin, end}) {
        if (event != nullptr) cuda::forget(cudaEventDestroy(event));
      }
    }

    std::atomic<std::uint64_t> number{0};  // of the call, from 1; 0: being changed
    std::atomic<std::uint64_t> sequence{0};
    std::atomic<std::int64_t> timeout{0};  // ns
    cudaEvent_t begin = nullptr;
    cudaEvent_t end = nullptr;
    Fingerprint call;
    CallMemory memory;
  };

  template <class Patience>
  static void wait(const Slot& slot, const Patience& patience) {
    Backoff pause;
    for (;;) {
      const cudaError_t status = cudaEventQuery(slot.end);
      if (status == cudaSuccess) return;
      if (status != cudaErrorNotReady) cuda_check(status, "cudaEventQuery");
      cuda::forget(status);  // no error that the host should find
      patience();
      pause();
    }
  }

  CudaScratch<CudaMemory> device_;  // of all slots' calls
  CudaScratch<CudaPinnedMemory> pinned_;
  std::array<Slot, most> slots_;
  std::uint64_t opened_ = 0;              // the host's
  bool has_unknown_end_ = false;          // the host's
  std::atomic<std::uint64_t> closed_{0};  // the host writes, the watchdog reads
  std::mutex mutex_;  // of `call` and opened_call_; the watchdog takes it after failures alone
  std::uint64_t opened_call_ = 0;
  std::uint64_t ended_ = 0;   // the watchdog's
  Clock::time_point turn_{};  // the watchdog's: when the oldest call's turn came
};

}  // namespace shardwise::inline v0_1::detail::nccl
