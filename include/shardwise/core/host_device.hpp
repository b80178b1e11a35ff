#pragma once

/// SHARDWISE_HOST_DEVICE marks what runs on the host and in CUDA kernels alike. It is the library's
/// only macro of this kind; without nvcc it is empty.
#if defined(__CUDACC__)
#define SHARDWISE_HOST_DEVICE __host__ __device__
#else
#define SHARDWISE_HOST_DEVICE
#endif
