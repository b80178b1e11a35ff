#include <fmt/core.h>

#include <cstdlib>
#include <stdexcept>

#include "trainer.hpp"

#ifdef CUDA_GPT_WITH_MPI
#include <memory>
#include <shardwise/comm/mpi.hpp>
#endif

namespace cuda_gpt {

#ifdef CUDA_GPT_WITH_MPI

Report train_over_mpi(const Options& options, const shardwise::Launch& launch) {
  Report report;
  shardwise::run_mpi([&](shardwise::MpiCommunicator& processes) {
    if (processes.size() != launch.size || processes.rank() != launch.rank) {
      throw std::runtime_error(fmt::format(
          "{} says that this is process {} of {}, MPI says {} of {}: start cuda_gpt by the mpirun "
          "of the MPI that it was built with, or let it meet in a directory (--rendezvous files)",
          launch.source, launch.rank, launch.size, processes.rank(), processes.size()));
    }
    report =
        train_as_process(options, launch, std::make_shared<shardwise::MpiRendezvous>(processes));
  });
  return report;
}

bool meets_over_mpi(const Options& options, const shardwise::Launch& launch) {
  if (options.rendezvous != "auto") return options.rendezvous == "mpi";
  // A directory that somebody has named is meant to be used.
  if (std::getenv("SHARDWISE_RENDEZVOUS") != nullptr) return false;
  return launch.source == "Open MPI" || launch.source == "PMI";
}

#else

Report train_over_mpi(const Options&, const shardwise::Launch&) {
  throw std::runtime_error(
      "--rendezvous mpi: this cuda_gpt was built without MPI; install Open MPI or MPICH, configure "
      "and build again, or use --rendezvous files");
}

bool meets_over_mpi(const Options& options, const shardwise::Launch&) {
  return options.rendezvous == "mpi";
}

#endif

}  // namespace cuda_gpt
