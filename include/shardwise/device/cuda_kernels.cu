// The library's device code. A program adds this file to its sources, compiled by nvcc with
// -fmad=false for the architectures that it runs on.

// The launchers come first, what is instantiated from all of it last.
// clang-format off
#include "cuda_launch.cuh"
#include "cuda_operations.hpp"
#include "cuda_instantiations.inc"
