#pragma once

#include <shardwise/plan/hardware.hpp>

#include "../train_gpt/options.hpp"

namespace plan {

/// How fast this machine is at what a training run of these sizes does, on as many threads as it
/// has ranks (or on the processes of its communicator, which all call this), by microbenchmarks
/// alone: collectives between the ranks at several sizes, matrix
/// products of the model's shapes, loops over elements, the library's own update, norm, cast and
/// copy. No step, and no pass of the model, is run. Rates are those of the slowest rank while all
/// of them work. `effort`: about so many seconds for each measurement.
[[nodiscard]] shardwise::Hardware calibrate(const train_gpt::Options& options,
                                            double effort = 0.05);

}  // namespace plan
