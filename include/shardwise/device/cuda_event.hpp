#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <new>
#include <utility>

#include "cuda_error.hpp"
#include "cuda_guard.hpp"

namespace shardwise::inline v0_1 {

class CudaStream;
class CudaEvent;

namespace detail::cuda {

class EventPool;

/// A recorded cudaEvent_t and how many CudaEvents stand for it.
struct EventRecord {
  EventPool* pool = nullptr;
  cudaEvent_t event = nullptr;
  EventRecord* next = nullptr;  ///< of those that are free
  std::size_t users = 0;
  cudaError_t failure = cudaSuccess;  ///< of the recording
  bool reached = false;               ///< somebody has seen it
};

/// The events of one stream, used again and again. Events may outlive their stream: the pool lives
/// until the last of them is gone. Not thread-safe, counts included: the stream, its events and
/// their copies belong to one host thread at a time.
class EventPool {
 public:
  explicit EventPool(int device) noexcept : device_(device) { unusable_.pool = this; }
  EventPool(const EventPool&) = delete;
  EventPool& operator=(const EventPool&) = delete;

  /// Records `stream`, never throws: a record with `failure` where CUDA or memory refuses.
  [[nodiscard]] EventRecord* record(cudaStream_t stream) noexcept {
    EventRecord* record = take();
    if (record == nullptr) return refuse();
    const cudaError_t status = cudaEventRecord(record->event, stream);
    if (status == cudaSuccess) return record;
    forget(status);
    give_back(record);
    failure_ = status;
    return refuse();
  }

  void give_back(EventRecord* record) noexcept {
    --in_use_;
    if (record != &unusable_) {
      record->next = free_;
      free_ = record;
    }
    if (is_orphan_) destroy_free();
  }

  /// The stream is gone.
  void orphan() noexcept {
    is_orphan_ = true;
    destroy_free();
  }

  /// What the last refused recording met; cudaSuccess where all went well.
  [[nodiscard]] cudaError_t failure() const noexcept { return failure_; }

 private:
  ~EventPool() = default;

  [[nodiscard]] EventRecord* take() noexcept {
    EventRecord* record = free_;
    if (record != nullptr) {
      free_ = record->next;
    } else {
      record = new (std::nothrow) EventRecord;
      if (record == nullptr) {
        failure_ = cudaErrorMemoryAllocation;
        return nullptr;
      }
      const cudaError_t status = create(record->event);
      if (status != cudaSuccess) {
        forget(status);
        delete record;
        failure_ = status;
        return nullptr;
      }
    }
    ++in_use_;
    record->pool = this;
    record->reached = false;
    return record;
  }

  // An event belongs to the device that is current when it is made.
  [[nodiscard]] cudaError_t create(cudaEvent_t& event) const noexcept {
    try {
      const CudaDeviceGuard guard(device_);
      return cudaEventCreateWithFlags(&event, cudaEventDisableTiming);
    } catch (const BackendError&) {
      return cudaErrorInvalidDevice;
    }
  }

  [[nodiscard]] EventRecord* refuse() noexcept {
    if (unusable_.users == 0) ++in_use_;
    unusable_.failure = failure_;
    unusable_.reached = true;
    return &unusable_;
  }

  void destroy_free() noexcept {
    while (free_ != nullptr) {
      EventRecord* const record = std::exchange(free_, free_->next);
      static_cast<void>(cudaEventDestroy(record->event));
      delete record;
    }
    if (in_use_ == 0) delete this;
  }

  int device_;
  std::size_t in_use_ = 0;
  EventRecord* free_ = nullptr;
  bool is_orphan_ = false;
  cudaError_t failure_ = cudaSuccess;
  EventRecord unusable_;  // what record() returns where it cannot record
};

}  // namespace detail::cuda

/// A point in a CudaStream: everything enqueued before it was recorded. A default-made event is
/// always reached. Copies are cheap and stand for the same point; they may outlive the stream. Of
/// one host thread at a time, as its stream is.
class CudaEvent {
 public:
  CudaEvent() = default;
  CudaEvent(const CudaEvent& other) noexcept : record_(other.record_) {
    if (record_ != nullptr) ++record_->users;
  }
  CudaEvent(CudaEvent&& other) noexcept : record_(std::exchange(other.record_, nullptr)) {}
  CudaEvent& operator=(CudaEvent other) noexcept {
    std::swap(record_, other.record_);
    return *this;
  }
  ~CudaEvent() {
    if (record_ != nullptr && --record_->users == 0) record_->pool->give_back(record_);
  }

 private:
  friend class CudaStream;
  explicit CudaEvent(detail::cuda::EventRecord* record) noexcept : record_(record) {
    ++record_->users;
  }

  detail::cuda::EventRecord* record_ = nullptr;
};

}  // namespace shardwise::inline v0_1
