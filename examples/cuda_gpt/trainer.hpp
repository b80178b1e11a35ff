#pragma once

#include <memory>
#include <shardwise/comm/communicator.hpp>
#include <shardwise/comm/launch.hpp>
#include <shardwise/comm/rendezvous.hpp>
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

/// Trains as the process that `launch` says this one is, one of `options.ranks`; they meet at
/// `rendezvous`.
[[nodiscard]] Report train_as_process(const Options& options, shardwise::Launch launch,
                                      const std::shared_ptr<shardwise::Rendezvous>& rendezvous);

/// The same; they meet in a directory that all see.
[[nodiscard]] Report train_over_files(const Options& options, const shardwise::Launch& launch);

/// The same; MPI carries NCCL's identifier, and one rank's failure to all. An error where this
/// program was built without MPI, or with another one than the launcher's.
[[nodiscard]] Report train_over_mpi(const Options& options, const shardwise::Launch& launch);

/// Whether processes meet over MPI.
[[nodiscard]] bool meets_over_mpi(const Options& options, const shardwise::Launch& launch);

/// How many devices this process sees; 0 also where there is no driver.
[[nodiscard]] int count_devices();

/// What this program runs on, for a person: the device's name, or that there is none and the CUDA
/// runtime is an emulation.
[[nodiscard]] std::string describe_device();

}  // namespace cuda_gpt
