#include <shardwise/device/cuda_launch.cuh>
#include <shardwise/optim/sgd.hpp>

#include "../support/toy_kernels.hpp"
#include "test_instantiations.inc"
