#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <memory>

#include "../core/stream_ref.hpp"
#include "cuda_error.hpp"
#include "cuda_event.hpp"
#include "cuda_guard.hpp"
#include "cuda_memory.hpp"

namespace shardwise::inline v0_1 {

/// A stream of one CUDA device: its own, which never waits for the default stream, or one that the
/// host lends. One host thread at a time; the thread's current device may be any.
class CudaStream {
 public:
  /// high: of two streams with work that is ready, the device starts this one's first.
  enum class Priority : std::uint8_t { normal, high };

  /// A new stream of the host thread's current device.
  explicit CudaStream(Priority priority = Priority::normal) : device_(current_cuda_device()) {
    int least = 0;
    int greatest = 0;
    cuda_check(cudaDeviceGetStreamPriorityRange(&least, &greatest),
               "cudaDeviceGetStreamPriorityRange");
    cuda_check(cudaStreamCreateWithPriority(&stream_, cudaStreamNonBlocking,
                                            priority == Priority::high ? greatest : least),
               "cudaStreamCreateWithPriority");
    is_own_ = true;
  }
  /// Adopts a stream of the host thread's current device, which must outlive this object. The
  /// host's default stream is adopted by its name, cudaStreamLegacy or cudaStreamPerThread; null is
  /// a UsageError, for it would be meant as "none" elsewhere.
  explicit CudaStream(cudaStream_t adopted) : CudaStream(adopted, current_cuda_device()) {}
  CudaStream(cudaStream_t adopted, int device) : device_(device), stream_(adopted) {
    if (adopted == nullptr) {
      raise(
          "CudaStream: the stream to adopt is null; pass cudaStreamLegacy or cudaStreamPerThread "
          "for a default stream, or make a CudaStream of its own");
    }
  }
  CudaStream(const CudaStream&) = delete;
  CudaStream& operator=(const CudaStream&) = delete;
  /// Waits for what was enqueued, where this object holds memory that it uses. Events recorded here
  /// stay valid.
  ~CudaStream() {
    if (scratch_.size() > 0 || pinned_.size() > 0) drain();
    if (is_own_) detail::cuda::forget(cudaStreamDestroy(stream_));
  }

  [[nodiscard]] static constexpr bool is_inline() noexcept { return false; }
  [[nodiscard]] StreamRef ref() const noexcept { return {MemoryKind::cuda, stream_}; }
  [[nodiscard]] cudaStream_t native() const noexcept { return stream_; }
  [[nodiscard]] int device() const noexcept { return device_; }

  /// Everything enqueued so far. Where CUDA refuses, the event counts as reached, and this stream's
  /// next wait() or synchronize(), and every wait for the event, throws what CUDA said.
  [[nodiscard]] CudaEvent record() noexcept { return CudaEvent(events_->record(stream_)); }

  /// Later work of this stream runs after `event`, which may be of any stream and device. The host
  /// does not wait. BackendError where CUDA refuses.
  void wait(const CudaEvent& event) {
    check();
    const auto* const record = event.record_;
    if (record == nullptr) return;
    if (record->failure != cudaSuccess) check(record->failure);
    if (record->reached || record->pool == events_.get()) return;
    const CudaDeviceGuard guard(device_);
    cuda_check(cudaStreamWaitEvent(stream_, record->event, 0), "cudaStreamWaitEvent");
  }

  /// True when `event` was reached; never waits. On a device that failed everything is.
  [[nodiscard]] static bool reached(const CudaEvent& event) noexcept {
    auto* const record = event.record_;
    if (record == nullptr || record->reached) return true;
    const cudaError_t status = cudaEventQuery(record->event);
    detail::cuda::forget(status);
    record->reached = status != cudaErrorNotReady;
    return record->reached;
  }

  /// The host waits until `event` is reached. BackendError where what it stands for failed.
  static void await(const CudaEvent& event) {
    auto* const record = event.record_;
    if (record == nullptr) return;
    if (record->failure != cudaSuccess) check(record->failure);
    if (record->reached) return;
    cuda_check(cudaEventSynchronize(record->event), "cudaEventSynchronize");
    record->reached = true;
  }

  /// The host waits until everything enqueued so far has run. BackendError where some of it, or an
  /// earlier record(), failed. A collective that a communicator aborts ends, too, and is not an
  /// error here: ask the communicator.
  void synchronize() {
    check();
    cuda_check(cudaStreamSynchronize(stream_), "cudaStreamSynchronize");
  }

  /// True when nothing is queued or running.
  [[nodiscard]] bool idle() const noexcept {
    const cudaError_t status = cudaStreamQuery(stream_);
    detail::cuda::forget(status);
    return status != cudaErrorNotReady;
  }

  /// Waits as synchronize() does; swallows failures.
  void drain() noexcept { detail::cuda::forget(cudaStreamSynchronize(stream_)); }

  /// Device memory for what is enqueued on this stream next, and page-locked memory of the host
  /// beside it. Each call may hand out the same memory again; the host waits for the stream where
  /// it must grow, and allocates then alone.
  [[nodiscard]] void* scratch(std::size_t bytes) {
    if (bytes > scratch_.size()) {
      const CudaDeviceGuard guard(device_);
      synchronize();
      scratch_.reserve(bytes);
    }
    return scratch_.data();
  }
  [[nodiscard]] void* pinned_scratch(std::size_t bytes) {
    if (bytes > pinned_.size()) {
      const CudaDeviceGuard guard(device_);
      synchronize();
      pinned_.reserve(bytes);
    }
    return pinned_.data();
  }

 private:
  struct Orphan {
    void operator()(detail::cuda::EventPool* events) const noexcept { events->orphan(); }
  };

  void check() const { check(events_->failure()); }
  static void check(cudaError_t failure) { cuda_check(failure, "cudaEventRecord"); }

  int device_;
  std::unique_ptr<detail::cuda::EventPool, Orphan> events_{new detail::cuda::EventPool(device_)};
  cudaStream_t stream_ = nullptr;
  bool is_own_ = false;
  CudaScratch<CudaMemory> scratch_;
  CudaScratch<CudaPinnedMemory> pinned_;
};

}  // namespace shardwise::inline v0_1
