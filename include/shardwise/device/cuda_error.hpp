#pragma once

#include <cuda_runtime_api.h>

#include <string>

#include "../core/error.hpp"

namespace shardwise::inline v0_1 {

namespace detail::cuda {

/// What whoever reads the message can do about it.
[[nodiscard]] inline const char* advice_on(cudaError_t status) noexcept {
  switch (status) {
    case cudaErrorInsufficientDriver:
      return "install a driver that is new enough for this CUDA runtime";
    case cudaErrorNoDevice:
      return "run on a machine with a GPU, or look at CUDA_VISIBLE_DEVICES";
    case cudaErrorInvalidDevice:
      return "start one rank for each visible GPU, or look at CUDA_VISIBLE_DEVICES";
    case cudaErrorMemoryAllocation:
      return "shard over more ranks, hold fewer leases open, or look at Context::plan()";
    case cudaErrorNoKernelImageForDevice:
      return "compile device/cuda_kernels.cu for this GPU's architecture";
    case cudaErrorInvalidResourceHandle:
      return "streams and events belong to one device and must outlive their users";
    case cudaErrorInvalidDeviceFunction:
      return "link device/cuda_kernels.cu into the program, compiled for this GPU's architecture";
    default:
      return "a kernel or copy enqueued earlier may be the cause: run under compute-sanitizer, or "
             "with CUDA_LAUNCH_BLOCKING=1 to see which";
  }
}

/// Clears what a failed call left for cudaGetLastError, so that nobody reports it twice; errors
/// that broke the device stay.
inline void forget(cudaError_t status) noexcept {
  if (status != cudaSuccess && cudaPeekAtLastError() == status) {
    static_cast<void>(cudaGetLastError());
  }
}

[[noreturn]] inline void raise_status(cudaError_t status, const char* call,
                                      const std::string& where) {
  forget(status);
  raise<BackendError>("{}{}{}: {} ({}): {}; {}", call, where.empty() ? "" : " ", where,
                      cudaGetErrorName(status), static_cast<int>(status),
                      cudaGetErrorString(status), advice_on(status));
}

/// BackendError that names the call, CUDA's status and what to do, unless `status` is success.
inline void check(cudaError_t status, const char* call) {
  if (status != cudaSuccess) raise_status(status, call, {});
}

}  // namespace detail::cuda

/// BackendError that names `call`, CUDA's status and what to do, unless `status` is cudaSuccess.
inline void cuda_check(cudaError_t status, const char* call) { detail::cuda::check(status, call); }

}  // namespace shardwise::inline v0_1
