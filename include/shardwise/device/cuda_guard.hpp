#pragma once

#include <cuda_runtime_api.h>

#include "cuda_error.hpp"

namespace shardwise::inline v0_1 {

/// The host thread's current device.
[[nodiscard]] inline int current_cuda_device() {
  int device = 0;
  cuda_check(cudaGetDevice(&device), "cudaGetDevice");
  return device;
}

/// Makes `device` the host thread's current device as long as it lives.
class CudaDeviceGuard {
 public:
  explicit CudaDeviceGuard(int device) : before_(current_cuda_device()), device_(device) {
    if (device != before_) cuda_check(cudaSetDevice(device), "cudaSetDevice");
  }
  CudaDeviceGuard(const CudaDeviceGuard&) = delete;
  CudaDeviceGuard& operator=(const CudaDeviceGuard&) = delete;
  ~CudaDeviceGuard() {
    if (device_ != before_) static_cast<void>(cudaSetDevice(before_));
  }

 private:
  int before_;
  int device_;
};

}  // namespace shardwise::inline v0_1
