#pragma once

/// @file
/// The backend of CUDA devices: ranks are threads or processes with one device each, connected by
/// NCCL. Plain C++; needs the headers of the CUDA runtime and of NCCL 2.22 or later.
#include "nccl_arena.hpp"
#include "nccl_communicator.hpp"
#include "run_cuda_ranks.hpp"
