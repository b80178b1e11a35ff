// A consumer's program: parameters sharded over two ranks, gathered once.
#include <cstdio>
#include <shardwise/comm/thread.hpp>
#include <shardwise/shardwise.hpp>

int main() {
  shardwise::run_ranks(2, [](shardwise::Communicator& comm) {
    shardwise::Context context(comm);
    shardwise::ShardedParameter<float> parameter(context, {{"weight", {3, 5}}});
    parameter.initialize(
        [](const auto&, std::size_t element) { return static_cast<float>(element); });
    auto lease = parameter.gather();
    double sum = 0;
    for (const float value : lease["weight"]) sum += value;
    const int standard = __cplusplus > 202002L ? 23 : 20;
    if (comm.rank() == 0) std::printf("sum %g, C++%d\n", sum, standard);
  });
}
