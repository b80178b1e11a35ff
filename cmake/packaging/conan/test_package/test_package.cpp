// Two ranks agree on a number.
#include <shardwise/comm/thread.hpp>
#include <shardwise/shardwise.hpp>

int main() {
  double sum = 0;
  shardwise::run_ranks(2, [&](shardwise::Communicator& comm) {
    shardwise::Context context(comm);
    const double agreed = context.sum(comm.rank() + 1);
    if (comm.rank() == 0) sum = agreed;
  });
  return sum == 3 ? 0 : 1;
}
