// What device/cuda_kernels.cu is, compiled by the host's compiler for the emulation.

// The launchers come first, what is instantiated from all of it last.
// clang-format off
#include "kernels.hpp"
#include <shardwise/device/cuda_operations.hpp>
#include <shardwise/device/cuda_instantiations.inc>
// clang-format on
