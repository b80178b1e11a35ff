#include "backend.hpp"

#include <fmt/core.h>

#include <stdexcept>

namespace train_gpt {

void settle_backend(Options& options, bool backend_given, bool ranks_given,
                    const shardwise::EnvironmentLookup& lookup) {
  const shardwise::Launch launch = shardwise::detect_launch(lookup);
  const bool several = launch.size > 1;
  const bool launched = launch.source != "nothing";  // a shell may have been, too
  if (!backend_given && (several || (launched && !ranks_given))) options.backend = "mpi";
  if (options.backend != "mpi") {
    if (!several) return;
    throw std::invalid_argument(fmt::format(
        "--backend {} trains in one process, but {} says that this is process {} of {}: leave "
        "--backend out, or start the program without a launcher",
        options.backend, launch.source, launch.rank, launch.size));
  }
  if (ranks_given && options.ranks != static_cast<std::size_t>(launch.size)) {
    throw std::invalid_argument(
        launch.source == "nothing"
            ? fmt::format("--backend mpi --ranks {}: no launcher has started this process, so that "
                          "it is one rank: start it by mpirun -n {}",
                          options.ranks, options.ranks)
            : fmt::format("--ranks {}, but {} says that this is process {} of {}: leave --ranks "
                          "out, or start {} processes",
                          options.ranks, launch.source, launch.rank, launch.size, options.ranks));
  }
  if (several && options.world_of_one_reference) {
    throw std::invalid_argument(
        fmt::format("--world-of-one-reference is one process, but {} says that this is process {} "
                    "of {}",
                    launch.source, launch.rank, launch.size));
  }
  options.ranks = static_cast<std::size_t>(launch.size);
  options.process = launch.rank;
}

}  // namespace train_gpt
