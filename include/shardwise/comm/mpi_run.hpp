#pragma once

#include <concepts>
#include <exception>
#include <type_traits>

#include "mpi_communicator.hpp"
#include "mpi_options.hpp"
#include "mpi_session.hpp"

namespace shardwise::inline v0_1 {

/// Runs f(communicator), of an MpiCommunicator&, on this process's rank of MPI_COMM_WORLD; every
/// process of the job calls it. A rank that throws tells the others its message: their waits end
/// with PeerFailed, and run_mpi rethrows on each of them. The job ends by MPI_Abort when such a
/// process ends.
template <class F>
requires std::invocable<F&, MpiCommunicator&>
void run_mpi(F&& f, const MpiOptions& options = {}) {
  static_assert(std::same_as<std::invoke_result_t<F&, MpiCommunicator&>, void>,
                "run_mpi: the function must return void; hand results out through captures");
  MpiSession session;
  MpiCommunicator world(session, options);
  try {
    f(world);
  } catch (const std::exception& error) {
    world.abort(error.what());
    throw;
  } catch (...) {
    world.abort("an exception that is not a std::exception");
    throw;
  }
}

}  // namespace shardwise::inline v0_1
