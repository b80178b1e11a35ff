#pragma once

#include "dtype.hpp"

namespace shardwise::inline v0_1 {

/// How a reduction turns contributions into results, in one pass:
/// `out = round(old + scale * sum over ranks of weight_r * in_r)`, where old is 0 unless
/// accumulate. Sums are taken in Accumulator<dtype> in the canonical order: a binary tree over
/// ranks, split at the largest power of two below the number of ranks. `scale` and `weight` are
/// rounded to the accumulator's type; 1 costs nothing. The one rounding is to `output`.
struct ReduceSpec {
  DType output = DType::f32;
  double scale = 1;   ///< the same on all ranks
  double weight = 1;  ///< this rank's own; may differ between ranks where `weighted` is set
  bool accumulate = false;
  bool weighted = false;  ///< weights are looked at, and travel; the same on all ranks
  /// A hint, each rank's own: the caches will have lost the results before anybody reads them.
  bool cold = false;
};

}  // namespace shardwise::inline v0_1
