// A consumer's program: processes connected by MPI, or one alone.
#include <cstdio>
#include <shardwise/comm/mpi.hpp>
#include <shardwise/shardwise.hpp>

int main() {
  shardwise::run_mpi([](shardwise::Communicator& comm) {
    shardwise::Context context(comm, shardwise::Strategy::zero3());
    shardwise::ShardedParameter<float> parameter(context, {{"weight", {3, 5}}});
    parameter.initialize([](const auto&, std::size_t element) { return float(element); });
    float sum = 0;
    {
      const auto lease = parameter.gather();
      for (const float value : lease["weight"]) sum += value;
    }
    std::printf("rank %d of %d: sum %g\n", comm.rank(), comm.size(), static_cast<double>(sum));
  });
}
