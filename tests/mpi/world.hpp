#pragma once

#include <shardwise/comm/mpi.hpp>

namespace shardwise::test {

/// This process's MPI; main() makes it.
[[nodiscard]] MpiSession& session();

/// A new communicator of all ranks.
[[nodiscard]] inline MpiCommunicator world(const MpiOptions& options = {}) {
  return MpiCommunicator(session(), options);
}

}  // namespace shardwise::test
