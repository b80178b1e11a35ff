#include <fmt/core.h>

#include <cstddef>
#include <stdexcept>

#include "backend.hpp"
#include "model.hpp"
#include "train.hpp"

#ifdef TRAIN_GPT_WITH_MPI
#include <shardwise/comm/mpi.hpp>
#endif

namespace train_gpt {

#ifdef TRAIN_GPT_WITH_MPI

void over_mpi(Options options, const std::function<void(const Options&)>& body) {
  shardwise::run_mpi([&](shardwise::MpiCommunicator& comm) {
    if (static_cast<std::size_t>(comm.size()) != options.ranks || comm.rank() != options.process) {
      throw std::runtime_error(fmt::format(
          "the launcher says that this is process {} of {}, MPI says {} of {}: was this program "
          "built with another MPI than this mpirun's?",
          options.process, options.ranks, comm.rank(), comm.size()));
    }
    // More than the slots can take: only what is touched counts.
    const GptShape shape{options.layers, options.width, options.heads, options.sequence};
    shardwise::MpiArena arena(comm, 32 * shape.parameters() + (std::size_t{64} << 20));
    options.communicator = &comm;
    options.slot_memory = &arena;
    body(options);
  });
}

#else

void over_mpi(Options, const std::function<void(const Options&)>&) {
  throw std::runtime_error(
      "--backend mpi: this program was built without MPI; install Open MPI or MPICH, configure "
      "and build again, or use --backend threads");
}

#endif

Report train_over_mpi(const Options& options) {
  Report report;
  over_mpi(options, [&](const Options& own) { report = sharded::train(own); });
  return report;
}

}  // namespace train_gpt
