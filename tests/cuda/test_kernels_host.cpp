#include <shardwise/optim/sgd.hpp>

#include "../emulation/kernels.hpp"
#include "../support/toy_kernels.hpp"
#include "test_instantiations.inc"
