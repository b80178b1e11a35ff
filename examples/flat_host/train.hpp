#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "options.hpp"

namespace flat_host {

struct Result {
  std::vector<double> loss;         // of each step: mean over the batch, before the update
  std::vector<float> parameters;    // at the end, in the trainer's own order
  std::size_t parameter_bytes = 0;  // at rest, of the largest rank
  std::size_t gradient_bytes = 0;
  std::size_t optimizer_bytes = 0;
};

namespace plain {
// Trains in one rank, without the library: the trainer as it was. The options are good.
Result train(const Options& options);
}  // namespace plain

}  // namespace flat_host
