#pragma once

#include <cstddef>
#include <string>

#include "../train_gpt/options.hpp"

namespace cuda_gpt {

/// What `cuda_gpt` can be told: what train_gpt can (leases are fp32 or bf16), and more.
struct Options : train_gpt::Options {
  bool fast_reductions = false;  ///< sums over ranks as NCCL takes them: no longer the same bits
  bool in_place = false;         ///< weights and gradients lie in one flat allocation each
  /// Where processes meet before NCCL connects them: "mpi", "files", or "auto", which is MPI under
  /// mpirun if this program was built with it.
  std::string rendezvous = "auto";
};

/// Reads a command line and validates it; throws train_gpt::OptionsExit. `processes`: how many of
/// this program a launcher has started, which is how many ranks there are; 0: none did, and ranks
/// are threads.
[[nodiscard]] Options parse_options(int count, const char* const* arguments, std::size_t processes);

}  // namespace cuda_gpt
