#pragma once

/// @file
/// CUDA as a device, for hosts that want it: plain C++ that needs the CUDA runtime's headers alone.
/// `Context<CudaDevice>` is made with a communicator for CUDA memory (comm/nccl.hpp). The program
/// compiles device/cuda_kernels.cu once, with nvcc.

#include "cuda_device.hpp"
#include "cuda_error.hpp"
#include "cuda_event.hpp"
#include "cuda_guard.hpp"
#include "cuda_memory.hpp"
#include "cuda_stream.hpp"
#include "cuda_virtual_memory.hpp"
