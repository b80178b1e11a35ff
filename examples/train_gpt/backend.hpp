#pragma once

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

/// Trains this process's rank of an MPI job. std::runtime_error where the program was built without
/// MPI.
[[nodiscard]] Report train_over_mpi(Options options);

}  // namespace train_gpt
