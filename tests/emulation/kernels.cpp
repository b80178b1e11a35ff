// What device/cuda_kernels.cu is, compiled by the host's compiler for the emulation.

// clang-format off: the launchers come first, what is instantiated from all of it last
#include "kernels.hpp"
#include <shardwise/device/cuda_operations.hpp>
#include <shardwise/device/cuda_instantiations.inc>
