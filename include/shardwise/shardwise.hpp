#pragma once

/// @file
/// Everything of shardwise that runs on the host. Communicators are included by the host that wants
/// them: shardwise/comm/thread.hpp, shardwise/comm/self.hpp.

#include "comm/collectives.hpp"
#include "comm/communicator.hpp"
#include "context.hpp"
#include "core/checked.hpp"
#include "core/dtype.hpp"
#include "core/error.hpp"
#include "core/observer.hpp"
#include "core/tensor_view.hpp"
#include "device/host.hpp"
#include "fwd.hpp"
#include "gradient_norm.hpp"
#include "layout.hpp"
#include "lease.hpp"
#include "loss_scaler.hpp"
#include "memory.hpp"
#include "memory_plan.hpp"
#include "optim/adam.hpp"
#include "optim/adamw.hpp"
#include "optim/lion.hpp"
#include "optim/sgd.hpp"
#include "sharded_gradient.hpp"
#include "sharded_optimizer_state.hpp"
#include "sharded_parameter.hpp"
#include "sharded_sequence.hpp"
#include "statistics.hpp"
#include "strategy.hpp"
#include "version.hpp"
