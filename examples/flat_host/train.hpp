#pragma once

#include <cstddef>
#include <vector>

#include "options.hpp"

namespace flat_host {

// What a rank holds at the end, activations apart.
struct Bytes {
  std::size_t parameters = 0;
  std::size_t gradients = 0;
  std::size_t optimizer_state = 0;
  std::size_t other = 0;  // the library's: pages to gather into, crumbs, scalars
};

struct Result {
  std::vector<double> loss;       // of each step: mean over the batch, before the update
  std::vector<float> parameters;  // at the end, in the trainer's own order
  Bytes bytes;
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
