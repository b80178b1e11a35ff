// The raw MPI side of bench_peers, built once with every MPI that is found: a call of each size,
// out of place, from warm buffers, as often as fills a sample. Prints `op bytes microseconds`, a
// line a sample.
//   peer_mpi OPS MIN MAX SAMPLES SECONDS

#include <mpi.h>

#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "mpi_call.hpp"

namespace {

struct Buffers {
  std::vector<float> send;
  std::vector<float> recv;
};

/// Seconds that `calls` calls take, from a barrier to a barrier; of the first rank.
double seconds_of(benchmarks::Op op, Buffers& b, int part, int ranks, long calls) {
  MPI_Barrier(MPI_COMM_WORLD);
  const double begin = MPI_Wtime();
  for (long i = 0; i < calls; ++i) {
    raw_mpi::call(op, MPI_FLOAT, b.send.data(), b.recv.data(), part, ranks);
  }
  MPI_Barrier(MPI_COMM_WORLD);
  double took = MPI_Wtime() - begin;
  MPI_Bcast(&took, 1, MPI_DOUBLE, 0, MPI_COMM_WORLD);
  return took;
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 6) return EXIT_FAILURE;
  MPI_Init(&count, &arguments);
  int ranks = 1;
  int rank = 0;
  MPI_Comm_size(MPI_COMM_WORLD, &ranks);
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  const std::size_t min = std::strtoull(arguments[2], nullptr, 10);
  const std::size_t max = std::strtoull(arguments[3], nullptr, 10);
  const int samples = std::atoi(arguments[4]);
  const double seconds = std::atof(arguments[5]);
  Buffers buffers{std::vector<float>(max / 4, 1.0f), std::vector<float>(max / 4, 1.0f)};
  for (std::string ops = arguments[1]; !ops.empty();) {
    const std::string op = ops.substr(0, ops.find(','));
    ops.erase(0, op.size() + 1);
    const benchmarks::Op which = benchmarks::op_named(op);
    for (std::size_t bytes = min; bytes <= max; bytes *= 2) {
      const int part = static_cast<int>(bytes / 4) / ranks;
      seconds_of(which, buffers, part, ranks, 1);
      long calls = 1;
      for (double took; (took = seconds_of(which, buffers, part, ranks, calls)) < seconds / 2;) {
        calls = 1 + static_cast<long>(static_cast<double>(calls) *
                                      (took < seconds / 10 ? 10 : seconds / took));
      }
      for (int i = 0; i < samples; ++i) {
        const double took = seconds_of(which, buffers, part, ranks, calls);
        if (rank == 0) {
          std::printf("%s %zu %.6f\n", op.c_str(),
                      static_cast<std::size_t>(part) * 4 * static_cast<std::size_t>(ranks),
                      took / static_cast<double>(calls) * 1e6);
        }
      }
    }
  }
  MPI_Finalize();
}
