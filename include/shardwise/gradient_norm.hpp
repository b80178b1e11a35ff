#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <span>
#include <vector>

#include "context.hpp"
#include "core/math.hpp"
#include "sharded_gradient.hpp"

namespace shardwise::inline v0_1 {

namespace detail {

/// f(begin in the layout, its first stored element) for each of the layout's shards of a stored
/// gradient that this rank speaks for: one where the ranks share them out, or all of them.
template <class Device, class F>
void for_each_held_shard(const Engine<Device>& engine, const FlatGradient<Device>& gradient,
                         F&& f) {
  const Layout& layout = gradient.parameter.layout;
  if (gradient.parameter.updates_shard()) {
    const std::size_t begin = layout.shard_begin(gradient.parameter.layout_shard_of(engine.rank()));
    const std::size_t at = begin - gradient.parameter.shard_begin;
    f(begin, gradient.owned() + at * size_of(gradient.stored));
    return;
  }
  for (int shard = 0; shard < engine.world(); ++shard) {
    const std::size_t begin = layout.shard_begin(shard);
    f(begin, gradient.value.data() + begin * size_of(gradient.stored));
  }
}

/// The sums of squares of the shards that this rank holds, gradient by gradient and shard by shard:
/// in each the tensors in order, without padding. Valid until the next call.
template <class Device>
[[nodiscard]] std::span<const double> sums_of_held_shards(
    Engine<Device>& engine, std::span<FlatGradient<Device>* const> gradients) {
  std::vector<NormRange>& ranges = engine.norm_ranges;
  std::vector<double>& sums = engine.norm_sums;  // of the ranges, then of the shards
  const auto for_each = [&](auto&& shard_f, auto&& segment_f) {
    for (const FlatGradient<Device>* gradient : gradients) {
      const Layout& layout = gradient->parameter.layout;
      for_each_held_shard(engine, *gradient, [&](std::size_t begin, const std::byte* stored) {
        layout.for_each_segment(
            begin, begin + layout.shard_size(), [&](const Layout::Segment& segment) {
              segment_f(*gradient, stored + (segment.offset - begin) * size_of(gradient->stored),
                        segment.count);
            });
        shard_f(*gradient);
      });
    }
  };
  using Gradient = FlatGradient<Device>;
  std::size_t shards = 0;
  ranges.clear();
  for_each([&](const Gradient&) { ++shards; },
           [&](const Gradient& gradient, const std::byte* stored, std::size_t count) {
             ranges.push_back({stored, gradient.stored, count});
           });
  sums.resize(ranges.size() + shards);
  // All at once: a device other than the host has one wait then.
  Device::sums_of_squares(engine.compute, ranges, sums.data());
  engine.check_peers();
  const double* next = sums.data();
  double* out = sums.data() + ranges.size();
  double sum = 0;
  for_each(
      [&](const Gradient& gradient) {
        const double coefficient = gradient.coefficient;
        *out++ = coefficient == 1 ? sum : sum * coefficient * coefficient;
        sum = 0;
      },
      [&](const Gradient&, const std::byte*, std::size_t) { sum += *next++; });
  return std::span<const double>(sums).subspan(ranges.size());
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
  const auto own = store.gradients();
  const bool names_all = gradients.data() == own.data();
  for (FlatGradient<Device>* gradient : gradients) {
    if (!names_all && std::find(own.begin(), own.end(), gradient) == own.end()) {
      raise("gradient_norm: the gradient of '{}' is of another context",
            gradient->parameter.name());
    }
    store.settle(*gradient, "gradient_norm");
  }
  const auto world = static_cast<std::size_t>(engine.world());
  const auto is_scattered = [](const FlatGradient<Device>* gradient) {
    return gradient->parameter.updates_shard();
  };
  const std::span<const double> held = sums_of_held_shards(engine, gradients);
  const auto scattered =
      static_cast<std::size_t>(std::count_if(gradients.begin(), gradients.end(), is_scattered));
  std::span<const double> all;
  if (scattered > 0) {
    const auto mine = engine.local_scalars(scattered);
    std::size_t next = 0;
    std::size_t index = 0;
    for (const FlatGradient<Device>* gradient : gradients) {
      if (is_scattered(gradient)) mine[index++] = held[next];
      next += is_scattered(gradient) ? 1 : world;
    }
    all = engine.exchange(mine, "gradient_norm");
  }
  double total = 0;
  std::size_t next = 0;
  std::size_t index = 0;
  for (const FlatGradient<Device>* gradient : gradients) {
    if (is_scattered(gradient)) {
      for (int shard = 0; shard < engine.world(); ++shard) {
        const int rank = gradient->parameter.rank_of_layout_shard(shard);
        total += all[static_cast<std::size_t>(rank) * scattered + index];
      }
      ++index;
      ++next;
    } else {
      for (std::size_t shard = 0; shard < world; ++shard) total += held[next++];
    }
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
