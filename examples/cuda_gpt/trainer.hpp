#pragma once

#include <shardwise/comm/communicator.hpp>
#include <shardwise/comm/launch.hpp>
#include <string>

#include "../train_gpt/report.hpp"
#include "options.hpp"

namespace cuda_gpt {

using train_gpt::Report;

/// Trains as one rank of `communicator`, on the host thread's current device.
[[nodiscard]] Report train(const Options& options, shardwise::Communicator& communicator);

/// Trains on `options.ranks` threads, rank r on device r; rank 0's report, with the bytes of the
/// largest rank.
[[nodiscard]] Report train_in_threads(const Options& options);

/// Trains as the process that `launch` says this one is, one of `options.ranks`.
[[nodiscard]] Report train_in_processes(const Options& options, const shardwise::Launch& launch);

/// How many devices this process sees; 0 also where there is no driver.
[[nodiscard]] int count_devices();

/// What this program runs on, for a person: the device's name, or that there is none and the CUDA
/// runtime is an emulation.
[[nodiscard]] std::string describe_device();

}  // namespace cuda_gpt
