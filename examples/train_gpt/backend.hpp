#pragma once

#include <functional>
#include <shardwise/comm/launch.hpp>

#include "options.hpp"
#include "report.hpp"

namespace train_gpt {

/// Settles `backend`, `ranks` and `process` by what the launcher's variables say: under an MPI
/// launcher the default is mpi, and the ranks are its processes. std::invalid_argument where the
/// options contradict it, shardwise::ConfigError where launchers contradict one another.
void settle_backend(
    Options& options, bool backend_given, bool ranks_given,
    const shardwise::EnvironmentLookup& lookup = shardwise::detail::environment_variable);

/// Calls `body` as this process's rank of an MPI job, with options that have its communicator and
/// its memory for slots. std::runtime_error where the program was built without MPI.
void over_mpi(Options options, const std::function<void(const Options&)>& body);

/// Trains this process's rank of an MPI job.
[[nodiscard]] Report train_over_mpi(const Options& options);

}  // namespace train_gpt
