#pragma once

#include <cuda_runtime_api.h>
#include <dlfcn.h>

#include <algorithm>
#include <cstddef>
#include <cstdio>
#include <shardwise/device/cuda.hpp>
#include <string>
#include <vector>

/// What the benchmarks on devices share. They exit with `skipped` where there is none.
namespace bench {

inline constexpr int skipped = 77;
inline constexpr const char* emulated_note = ", EMULATED: times are of a model, not of any device";

/// Whether the stand-in for the CUDA runtime runs.
inline bool emulated() { return dlsym(RTLD_DEFAULT, "shardwise_emulation_errors") != nullptr; }

/// What a table is headed by.
inline std::string device_name() {
  if (emulated()) return "EMULATED: times are of a model, not of any device";
  cudaDeviceProp properties;
  shardwise::cuda_check(cudaGetDeviceProperties(&properties, 0), "cudaGetDeviceProperties");
  return properties.name;
}

/// 0, after a line that says so, where there is no device.
inline int devices_or_skip() {
  int devices = 0;
  const cudaError_t status = cudaGetDeviceCount(&devices);
  if (status == cudaSuccess && devices > 0) return devices;
  std::printf("skipped: no CUDA device (%s)\n", cudaGetErrorString(status));
  return 0;
}

/// Bytes of the current device.
struct Memory {
  explicit Memory(std::size_t bytes) : size(bytes), data(shardwise::CudaDevice::allocate(bytes)) {}
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  ~Memory() { shardwise::CudaDevice::deallocate(data, size); }

  template <class T>
  [[nodiscard]] T* as() const {
    return static_cast<T*>(data);
  }

  std::size_t size;
  void* data;
};

struct Event {
  Event() { shardwise::cuda_check(cudaEventCreate(&event), "cudaEventCreate"); }
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;
  ~Event() { static_cast<void>(cudaEventDestroy(event)); }

  void record(const shardwise::CudaStream& stream) const {
    shardwise::cuda_check(cudaEventRecord(event, stream.native()), "cudaEventRecord");
  }

  cudaEvent_t event = nullptr;
};

/// Microseconds of one of `calls` calls in a row on `stream`, the median of the samples. `before`
/// and `after` surround each sample, outside of the time.
template <class Call, class Before, class After>
double median_time(int samples, int calls, shardwise::CudaStream& stream, const Call& call,
                   const Before& before, const After& after) {
  const Event begin;
  const Event end;
  std::vector<double> times;
  for (int sample = 0; sample < samples; ++sample) {
    before();
    begin.record(stream);
    for (int i = 0; i < calls; ++i) call();
    end.record(stream);
    stream.synchronize();
    after();
    float milliseconds = 0;
    shardwise::cuda_check(cudaEventElapsedTime(&milliseconds, begin.event, end.event),
                          "cudaEventElapsedTime");
    times.push_back(1e3 * static_cast<double>(milliseconds) / calls);
  }
  std::sort(times.begin(), times.end());
  return times[times.size() / 2];
}

}  // namespace bench
