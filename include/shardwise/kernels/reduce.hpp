#pragma once

#include <algorithm>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <type_traits>

#include "../core/dtype.hpp"
#include "../core/host_device.hpp"
#include "../core/reduce_spec.hpp"
#include "canonical_sum.hpp"
#include "cast.hpp"

namespace shardwise::inline v0_1 {

namespace detail {

inline constexpr std::size_t reduce_chunk = 512;  // accumulators on the stack per tree level

/// Calls body.operator()<Width>(first) so that [0, count) is covered in ascending order. Constant
/// trip counts over pointers that do not alias are what g++ vectorises at a plain -O2.
template <class Body>
inline void for_blocks(std::size_t count, const Body& body) {
  std::size_t first = 0;
  for (; first + reduce_chunk <= count; first += reduce_chunk) {
    body.template operator()<reduce_chunk>(first);
  }
  for (; first + 16 <= count; first += 16) body.template operator()<16>(first);
  for (; first < count; ++first) body.template operator()<1>(first);
}

/// a + b; integers wrap around.
template <class T>
[[nodiscard]] SHARDWISE_HOST_DEVICE constexpr T add(T a, T b) noexcept {
  if constexpr (std::integral<T>) {
    using Unsigned = std::make_unsigned_t<T>;
    return static_cast<T>(
        static_cast<Unsigned>(static_cast<Unsigned>(a) + static_cast<Unsigned>(b)));
  } else {
    return a + b;
  }
}

template <std::size_t Width, class In, class Sum>
inline void load(const In* __restrict in, Sum* __restrict sums) noexcept {
  for (std::size_t k = 0; k < Width; ++k) sums[k] = static_cast<Sum>(in[k]);
}

template <std::size_t Width, class In, class Sum>
inline void load_weighted(const In* __restrict in, Sum* __restrict sums, Sum weight) noexcept {
  for (std::size_t k = 0; k < Width; ++k) sums[k] = static_cast<Sum>(in[k]) * weight;
}

template <std::size_t Width, class In, class Sum>
inline void add_pair(const In* __restrict a, const In* __restrict b,
                     Sum* __restrict sums) noexcept {
  for (std::size_t k = 0; k < Width; ++k) {
    sums[k] = add(static_cast<Sum>(a[k]), static_cast<Sum>(b[k]));
  }
}

template <std::size_t Width, class Sum>
inline void add_to(Sum* __restrict sums, const Sum* __restrict other) noexcept {
  for (std::size_t k = 0; k < Width; ++k) sums[k] = add(sums[k], other[k]);
}

/// The contributions of all ranks to one result.
template <class In>
struct Contributions {
  using Sum = Accumulator<In>;
  const void* const* inputs;
  const double* weights;  // null: all 1
  std::size_t ranks;

  // sums[0, count) = the canonical tree's sum over ranks [begin, begin + n) of elements
  // [first, first + count).
  void tree(std::size_t begin, std::size_t n, std::size_t first, std::size_t count,
            Sum* sums) const noexcept {
    const In* in = static_cast<const In*>(inputs[begin]) + first;
    if (n == 1) {
      leaf(in, begin, count, sums);
    } else if (n == 2 && weights == nullptr) {
      const In* second = static_cast<const In*>(inputs[begin + 1]) + first;
      for_blocks(count, [=]<std::size_t Width>(std::size_t i) {
        add_pair<Width>(in + i, second + i, sums + i);
      });
    } else {
      const std::size_t split = canonical_split(n);
      Sum other[reduce_chunk];
      tree(begin, split, first, count, sums);
      tree(begin + split, n - split, first, count, other);
      for_blocks(count,
                 [&]<std::size_t Width>(std::size_t i) { add_to<Width>(sums + i, other + i); });
    }
  }

  void leaf(const In* in, std::size_t rank, std::size_t count, Sum* sums) const noexcept {
    if constexpr (std::floating_point<Sum>) {
      if (weights != nullptr) {
        const auto weight = static_cast<Sum>(weights[rank]);
        for_blocks(count, [=]<std::size_t Width>(std::size_t i) {
          load_weighted<Width>(in + i, sums + i, weight);
        });
        return;
      }
    }
    for_blocks(count, [=]<std::size_t Width>(std::size_t i) { load<Width>(in + i, sums + i); });
  }
};

template <std::size_t Width, bool Accumulate, class Sum, class Out>
inline void finish_block(const Sum* __restrict sums, Out* __restrict out,
                         [[maybe_unused]] Sum scale) noexcept {
  if constexpr (std::integral<Sum>) {
    for (std::size_t k = 0; k < Width; ++k) out[k] = Accumulate ? add(out[k], sums[k]) : sums[k];
  } else {
    using Wide = std::common_type_t<Sum, Accumulator<Out>>;
    for (std::size_t k = 0; k < Width; ++k) {
      Wide old = 0;  // adding it turns -0 into +0, as accumulation onto zeroed storage does
      if constexpr (Accumulate) old = static_cast<Wide>(out[k]);
      const Sum scaled = scale * sums[k];  // by 1 changes no bit
      out[k] = cast_element<Out>(old + static_cast<Wide>(scaled));
    }
  }
}

/// out = round(old + scale * sum) over one chunk.
template <class Sum, class Out>
inline void finish_sums(const Sum* sums, Out* out, std::size_t count,
                        const ReduceSpec& spec) noexcept {
  const auto scale = static_cast<Sum>(spec.scale);
  if (spec.accumulate) {
    for_blocks(count, [=]<std::size_t Width>(std::size_t i) {
      finish_block<Width, true>(sums + i, out + i, scale);
    });
  } else {
    for_blocks(count, [=]<std::size_t Width>(std::size_t i) {
      finish_block<Width, false>(sums + i, out + i, scale);
    });
  }
}

template <class In>
inline void reduce_as(std::span<const void* const> inputs, const double* weights, std::size_t count,
                      void* out, const ReduceSpec& spec) noexcept {
  using Sum = Accumulator<In>;
  const Contributions<In> contributions{inputs.data(), weights, inputs.size()};
  Sum sums[reduce_chunk];
  for (std::size_t first = 0; first < count; first += reduce_chunk) {
    const std::size_t chunk = std::min(reduce_chunk, count - first);
    contributions.tree(0, inputs.size(), first, chunk, sums);
    if constexpr (std::floating_point<Sum>) {
      dispatch_floating(spec.output, [&]<class Out>() {
        finish_sums(sums, static_cast<Out*>(out) + first, chunk, spec);
      });
    } else {
      finish_sums(sums, static_cast<In*>(out) + first, chunk, spec);
    }
  }
}

}  // namespace detail

/// One rank's part of a reduction, on the host, in one pass: inputs[r] is rank r's contribution
/// (`count` elements of `dtype`), `out` gets `count` elements of spec.output by the formula of
/// ReduceSpec. Contributions are added in the canonical order, so the result depends on nothing but
/// the inputs. `weights` holds one number per rank, or is empty where all are 1 (spec.weight is not
/// looked at). `out` may be one of the inputs where the types are equal, and overlaps none
/// otherwise. At least one input. Integers: spec.output is `dtype`, scale and weights are 1. Does
/// not allocate.
inline void canonical_reduce(std::span<const void* const> inputs, std::span<const double> weights,
                             DType dtype, std::size_t count, void* out,
                             const ReduceSpec& spec) noexcept {
  const double* scales = nullptr;
  for (const double weight : weights) {
    if (weight != 1) scales = weights.data();
  }
  dispatch(dtype, [&]<class In>() { detail::reduce_as<In>(inputs, scales, count, out, spec); });
}

}  // namespace shardwise::inline v0_1
