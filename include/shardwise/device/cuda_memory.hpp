#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <utility>

#include "../core/format.hpp"
#include "cuda_error.hpp"

namespace shardwise::inline v0_1 {

/// Memory of the host thread's current device. For Buffer, as a device is.
struct CudaMemory {
  /// Uninitialised. BackendError that says how much was asked for and how much is free.
  [[nodiscard]] static void* allocate(std::size_t bytes) {
    void* pointer = nullptr;
    const cudaError_t status = cudaMalloc(&pointer, bytes);
    if (status == cudaSuccess) return pointer;
    std::size_t available = 0;
    std::size_t total = 0;
    if (cudaMemGetInfo(&available, &total) != cudaSuccess) available = total = 0;
    detail::cuda::raise_status(status, "cudaMalloc",
                               detail::format("of {} bytes on a device with {} of {} bytes free",
                                              bytes, available, total));
  }
  /// The device may be another one than the current; work that uses the memory has run.
  static void deallocate(void* pointer, std::size_t /*bytes*/) noexcept {
    detail::cuda::forget(cudaFree(pointer));
  }
};

/// Page-locked memory of the host, which every device copies from and to without staging and which
/// the host reads and writes. For Buffer, as a device is.
struct CudaPinnedMemory {
  /// Uninitialised. BackendError where the system does not lock so many pages.
  [[nodiscard]] static void* allocate(std::size_t bytes) {
    void* pointer = nullptr;
    const cudaError_t status = cudaHostAlloc(&pointer, bytes, cudaHostAllocPortable);
    if (status == cudaSuccess) return pointer;
    detail::cuda::raise_status(status, "cudaHostAlloc",
                               detail::format("of {} bytes of page-locked memory", bytes));
  }
  /// Work that uses the memory has run.
  static void deallocate(void* pointer, std::size_t /*bytes*/) noexcept {
    detail::cuda::forget(cudaFreeHost(pointer));
  }
};

/// Memory that grows where more is asked for and is kept until the end: what an operation needs
/// besides its operands. Nobody may still use it when it grows or goes.
template <class Memory>
class CudaScratch {
 public:
  CudaScratch() = default;
  CudaScratch(const CudaScratch&) = delete;
  CudaScratch& operator=(const CudaScratch&) = delete;
  ~CudaScratch() { release(); }

  [[nodiscard]] std::size_t size() const noexcept { return bytes_; }
  [[nodiscard]] void* data() const noexcept { return data_; }

  /// At least `bytes`; what was there is gone where it grows.
  void* reserve(std::size_t bytes) {
    if (bytes > bytes_) {
      release();
      data_ = Memory::allocate(bytes);
      bytes_ = bytes;
    }
    return data_;
  }

 private:
  void release() noexcept {
    if (data_ != nullptr) Memory::deallocate(data_, bytes_);
    data_ = nullptr;
    bytes_ = 0;
  }

  void* data_ = nullptr;
  std::size_t bytes_ = 0;
};

}  // namespace shardwise::inline v0_1
