#include "options.hpp"

#include <fmt/core.h>

#include "../train_gpt/command_line.hpp"

namespace cuda_gpt {

Options parse_options(int count, const char* const* arguments, std::size_t processes) {
  Options o;
  o.ranks = 1;
  CLI::App app(
      "Trains a byte-level GPT on CUDA devices; its state is sharded over them by shardwise.\n"
      "Ranks are threads (--ranks), or processes where torchrun, mpirun or srun starts several.",
      "cuda_gpt");
  app.option_defaults()->always_capture_default();

  CLI::Option* const ranks =
      train_gpt::add_count(app, "--ranks", o.ranks, "Ranks, as threads with a device each")
          ->group("Ranks");
  app.add_option("--strategy", o.strategy, "ddp, zero1, zero2, zero3, zero3-no-reshard")
      ->group("Ranks");
  app.add_option("--lease", o.lease, "Type of the weights and gradients that the compute sees")
      ->check(CLI::IsMember({"fp32", "bf16"}))
      ->group("Ranks");
  train_gpt::add_count(app, "--prefetch", o.prefetch, "Parameters gathered ahead of use")
      ->group("Ranks");
  app.add_flag("--fast-reductions", o.fast_reductions,
               "Sums over ranks in NCCL's order instead of the same one everywhere")
      ->group("Ranks");

  app.add_flag("--in-place", o.in_place,
               "Weights and gradients in one flat allocation each, at addresses that stay")
      ->group("Ranks");
  app.add_option("--rendezvous", o.rendezvous,
                 "Where processes meet before NCCL connects them; auto: by MPI under mpirun, else "
                 "in a directory (SHARDWISE_RENDEZVOUS)")
      ->check(CLI::IsMember({"auto", "mpi", "files"}))
      ->group("Ranks");

  train_gpt::add_training_options(app, o);

  train_gpt::parse(app, count, arguments, [&] {
    if (processes > 0) {
      if (ranks->count() > 0 && o.ranks != processes) {
        throw std::invalid_argument(
            fmt::format("--ranks {}, but a launcher has started {} processes, which are the ranks: "
                        "leave --ranks out",
                        o.ranks, processes));
      }
      o.ranks = processes;
    }
    train_gpt::validate(o);
  });
  return o;
}

}  // namespace cuda_gpt
