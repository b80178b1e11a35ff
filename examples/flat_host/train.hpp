#pragma once

#include <shardwise/memory.hpp>
#include <vector>

#include "options.hpp"

namespace flat_host {

using shardwise::Bytes;

struct Result {
  std::vector<double> loss;       // of each step: mean over the batch, before the update
  std::vector<float> parameters;  // at the end, in the trainer's own order
  Bytes bytes;                    // that a rank holds at the end, activations apart
  Bytes planned;                  // the same by the planner; not without the library
};

namespace plain {
// Trains in one rank, without the library: the trainer as it was. The options are good.
Result train(const Options& options);
}  // namespace plain

namespace sharded {
// Trains over options.ranks ranks, each a thread.
Result train(const Options& options);
}  // namespace sharded

}  // namespace flat_host
