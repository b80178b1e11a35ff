#pragma once

#include <shardwise/core/dtype.hpp>

#include "options.hpp"
#include "report.hpp"

namespace train_gpt {

namespace plain {
/// Trains in one rank, without the library: the reference.
[[nodiscard]] Report train(const Options& options);
}  // namespace plain

namespace sharded {
/// Trains over `options.ranks` ranks, with the state sharded by shardwise.
[[nodiscard]] Report train(const Options& options);
}  // namespace sharded

/// Calls f.template operator()<W, S>() with the types that the options name: W of the weights and
/// gradients that the compute sees, S of the stored gradient.
template <class F>
decltype(auto) with_types(const Options& options, F&& f) {
  const auto with_gradient = [&]<class W>() -> decltype(auto) {
    if (options.gradient == "bf16") return f.template operator()<W, shardwise::bf16>();
    return f.template operator()<W, float>();
  };
  if (options.lease == "bf16") return with_gradient.template operator()<shardwise::bf16>();
  if (options.lease == "f16") return with_gradient.template operator()<shardwise::f16>();
  return with_gradient.template operator()<float>();
}

}  // namespace train_gpt
