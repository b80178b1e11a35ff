#pragma once

// The library's headers first, as the host's compiler sees them; then the one that is for nvcc
// alone.
#include <shardwise/device/cuda_error.hpp>
#include <shardwise/device/cuda_seam.hpp>
#include <shardwise/kernels/elements.hpp>
#include <shardwise/kernels/segments.hpp>
#include <shardwise/kernels/tiles.hpp>

#include "fiber.hpp"

#if !__has_builtin(__builtin_clear_padding)
#define __builtin_clear_padding(address) static_cast<void>(address)
#endif

/// Launches run at once, by fibers. The launchers name what they launch `kernel`: its type is what
/// cudaLaunchKernel is not told.
#define cudaLaunchKernel(address, ...) ::emulation_fiber::launch(kernel, __VA_ARGS__)
#define __CUDA_RUNTIME_H__  // <cuda_runtime.h> has nothing that is not here
#define __CUDACC__
#include <shardwise/device/cuda_launch.cuh>
#undef __CUDACC__
#undef cudaLaunchKernel
