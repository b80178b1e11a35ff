// Apart from what check_edges.py changes, and compiled once.
#include "edges_reference.hpp"

#include "support/device.hpp"

namespace shardwise::test {
namespace {

template <FloatingElement L>
ToyResult train(int world, const ToyRun& run) {
  return on_threads(world, [&](Communicator& communicator) {
    return train_toy<L, L, float, AdamW, HostDevice>(communicator, run);
  })[0];
}

}  // namespace

ToyResult toy_on_the_host(int world, const ToyRun& run, DType lease) {
  return lease == DType::bf16 ? train<bf16>(world, run) : train<float>(world, run);
}

}  // namespace shardwise::test
