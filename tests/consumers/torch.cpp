// A consumer's program: a tensor of libtorch is gathered from its shards.
#include <torch/torch.h>

#if __has_include(<shardwise/adapters/torch.hpp>)
#include <shardwise/adapters/torch.hpp>
#endif
#include <cstdio>
#include <shardwise/comm/thread.hpp>
#include <shardwise/shardwise.hpp>

int main() {
  shardwise::run_ranks(2, [](shardwise::Communicator& comm) {
    shardwise::Context context(comm);
    shardwise::ShardedParameter<float> parameter(context, {{"weight", {3, 5}}});
    parameter.initialize(
        [](const auto&, std::size_t element) { return static_cast<float>(element); });
    const auto lease = parameter.gather();
    const auto weight = torch::from_blob(const_cast<float*>(lease["weight"].data()), {3, 5});
    if (comm.rank() == 0) std::printf("sum %g\n", weight.sum().item<double>());
  });
}
