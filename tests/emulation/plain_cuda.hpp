#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <utility>

/// Owners for the tests of the emulation: nothing of the library, so that what they show is what
/// the runtime does.
namespace plain {

inline void expect(cudaError_t status, const char* call) {
  if (status == cudaSuccess) return;
  std::fprintf(stderr, "%s: %s (%s)\n", call, cudaGetErrorName(status), cudaGetErrorString(status));
  std::exit(3);
}
#define PLAIN_CUDA(call) plain::expect(call, #call)

struct Stream {
  cudaStream_t handle = nullptr;
  explicit Stream(unsigned flags = cudaStreamNonBlocking) {
    PLAIN_CUDA(cudaStreamCreateWithFlags(&handle, flags));
  }
  ~Stream() { PLAIN_CUDA(cudaStreamDestroy(handle)); }
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;
  operator cudaStream_t() const { return handle; }
  void synchronize() const { PLAIN_CUDA(cudaStreamSynchronize(handle)); }
};

struct Event {
  cudaEvent_t handle = nullptr;
  explicit Event(unsigned flags = cudaEventDisableTiming) {
    PLAIN_CUDA(cudaEventCreateWithFlags(&handle, flags));
  }
  ~Event() { PLAIN_CUDA(cudaEventDestroy(handle)); }
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;
  operator cudaEvent_t() const { return handle; }
};

/// Device memory of cudaMalloc, or pinned host memory.
template <class T, bool Host>
struct Array {
  T* data = nullptr;
  std::size_t count;
  explicit Array(std::size_t size) : count(size) {
    void* memory = nullptr;
    if (Host) {
      PLAIN_CUDA(cudaMallocHost(&memory, count * sizeof(T)));
    } else {
      PLAIN_CUDA(cudaMalloc(&memory, count * sizeof(T)));
    }
    data = static_cast<T*>(memory);
  }
  Array(Array&& from) noexcept : data(std::exchange(from.data, nullptr)), count(from.count) {}
  ~Array() { PLAIN_CUDA(Host ? cudaFreeHost(data) : cudaFree(data)); }
  Array& operator=(Array&&) = delete;
  [[nodiscard]] std::size_t bytes() const { return count * sizeof(T); }
  T& operator[](std::size_t i) const { return data[i]; }
};
template <class T>
using DeviceArray = Array<T, false>;
template <class T>
using PinnedArray = Array<T, true>;

inline int device_count() {
  int count = 0;
  PLAIN_CUDA(cudaGetDeviceCount(&count));
  return count;
}

}  // namespace plain
