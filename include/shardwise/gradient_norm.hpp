#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <span>

#include "context.hpp"
#include "core/math.hpp"
#include "sharded_gradient.hpp"

namespace shardwise::inline v0_1 {

namespace detail {

/// Sum of the squares of one world-shard's part of a stored gradient, tensor by tensor; padding
/// does not enter. `stored` points to the shard's first element.
template <class Device>
[[nodiscard]] double shard_sum_of_squares(Engine<Device>& engine,
                                          const FlatGradient<Device>& gradient, int shard,
                                          const std::byte* stored) {
  const Layout& layout = gradient.parameter.layout;
  const std::size_t begin = layout.shard_begin(shard);
  double sum = 0;
  layout.for_each_segment(begin, begin + layout.shard_size(), [&](const Layout::Segment& segment) {
    sum += Device::sum_of_squares(engine.compute,
                                  stored + (segment.offset - begin) * size_of(gradient.stored),
                                  gradient.stored, segment.count);
  });
  const double coefficient = gradient.coefficient;
  return coefficient == 1 ? sum : sum * coefficient * coefficient;
}

/// The global 2-norm of the final gradients, the same bits on all ranks and for every strategy: per
/// parameter and world-shard a double sum of squares, added over shards 0..N-1 within each
/// parameter, over parameters in order. Shards that other ranks hold come in one collective; there
/// is none where every rank holds everything.
template <class Device>
[[nodiscard]] double norm_of(Context<Device>& context,
                             std::span<FlatGradient<Device>* const> gradients) {
  auto& engine = context.engine();
  auto& store = context.gradient_store();
  for (FlatGradient<Device>* gradient : gradients) {
    const auto own = store.gradients();
    if (std::find(own.begin(), own.end(), gradient) == own.end()) {
      raise("gradient_norm: the gradient of '{}' is of another context", gradient->parameter.name);
    }
    store.settle(*gradient, "gradient_norm");
  }

  std::size_t sharded = 0;
  for (const FlatGradient<Device>* gradient : gradients) {
    if (gradient->parameter.updates_shard()) ++sharded;
  }
  std::span<const double> all;
  if (sharded > 0) {
    const auto mine = engine.local_scalars(sharded);
    std::size_t next = 0;
    for (const FlatGradient<Device>* gradient : gradients) {
      if (!gradient->parameter.updates_shard()) continue;
      mine[next++] = shard_sum_of_squares(engine, *gradient, engine.rank(), gradient->owned());
    }
    all = engine.exchange(mine, "gradient_norm");
  }

  double total = 0;
  std::size_t index = 0;
  for (const FlatGradient<Device>* gradient : gradients) {
    const bool scattered = gradient->parameter.updates_shard();
    const std::size_t shard_bytes =
        gradient->parameter.layout.shard_size() * size_of(gradient->stored);
    for (int shard = 0; shard < engine.world(); ++shard) {
      const auto at = static_cast<std::size_t>(shard);
      total += scattered ? all[at * sharded + index]
                         : shard_sum_of_squares(engine, *gradient, shard,
                                                gradient->value.data() + at * shard_bytes);
    }
    if (scattered) ++index;
  }
  return square_root(total);
}

template <class Device>
double clip(Context<Device>& context, double max_norm,
            std::span<FlatGradient<Device>* const> gradients) {
  if (!(max_norm > 0)) raise("clip_gradient_norm: max_norm must be above 0, found {}", max_norm);
  const double norm = norm_of(context, gradients);
  const double ratio = max_norm / (norm + 1e-6);
  if (is_finite(norm) && ratio < 1) {
    const auto coefficient = static_cast<float>(ratio);
    for (FlatGradient<Device>* gradient : gradients) gradient->coefficient *= coefficient;
  }
  return norm;
}

}  // namespace detail

/// The global 2-norm of these gradients' final values (or of all that the context has, in the order
/// in which they were made, where none is named). The host waits. NaN or infinity on one rank is
/// seen by all.
template <class Device, FloatingElement... G>
[[nodiscard]] double gradient_norm(Context<Device>& context,
                                   const ShardedGradient<G, Device>&... gradients) {
  if constexpr (sizeof...(G) == 0) {
    return detail::norm_of<Device>(context, context.gradient_store().gradients());
  } else {
    const std::array<detail::FlatGradient<Device>*, sizeof...(G)> list = {&gradients.flat()...};
    return detail::norm_of<Device>(context, list);
  }
}

/// Scales gradients down to a global norm of at most `max_norm`: sets the coefficient
/// float(max_norm / (norm + 1e-6)), where that is below 1, and the next step applies it. Returns
/// the norm before clipping. A norm that is not finite changes nothing. UsageError where max_norm
/// is not above 0.
template <class Device, FloatingElement... G>
double clip_gradient_norm(Context<Device>& context, double max_norm,
                          const ShardedGradient<G, Device>&... gradients) {
  if constexpr (sizeof...(G) == 0) {
    return detail::clip<Device>(context, max_norm, context.gradient_store().gradients());
  } else {
    const std::array<detail::FlatGradient<Device>*, sizeof...(G)> list = {&gradients.flat()...};
    return detail::clip<Device>(context, max_norm, list);
  }
}

}  // namespace shardwise::inline v0_1
