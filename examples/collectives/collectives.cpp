// Collectives on their own, without the sharded types: four ranks average a vector, collect their
// parts, and agree on a few numbers.

#include <cstdio>
#include <shardwise/comm/collectives.hpp>
#include <shardwise/comm/thread.hpp>
#include <vector>

int main() {
  shardwise::run_ranks(4, [](shardwise::Communicator& comm) {
    const auto rank = static_cast<std::size_t>(comm.rank());
    const auto ranks = static_cast<std::size_t>(comm.size());

    std::vector<float> gradient(1000, static_cast<float>(rank));
    shardwise::all_reduce(comm, gradient, shardwise::Reduce::mean, {.name = "gradient"});

    std::vector<int> part(3, static_cast<int>(rank));
    std::vector<int> whole(part.size() * ranks);
    shardwise::all_gather(comm, part, whole);

    // Uneven batches: each rank's mean counts as much as it has samples.
    const double loss = shardwise::weighted_mean(comm, 1.0 + static_cast<double>(rank),
                                                 8.0 - static_cast<double>(rank), {.name = "loss"});
    const double norm = shardwise::norm(comm, part);
    const bool overflow = shardwise::any(comm, rank == 2 && gradient[0] > 1e6f);
    if (rank == 0) {
      std::printf("gradient %g, last part %d, loss %g, norm %g, overflow %s\n", gradient[0],
                  whole.back(), loss, norm, overflow ? "yes" : "no");
    }
  });
}
