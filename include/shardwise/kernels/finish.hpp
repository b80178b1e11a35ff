#pragma once

#include <algorithm>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "../core/dtype.hpp"
#include "../core/reduce_spec.hpp"
#include "cast.hpp"
#include "copy.hpp"
#include "octet.hpp"
#include "vectors.hpp"
#include "wide.hpp"

/// @file
/// The last addition of a reduction on the host, with the scaling, the accumulation and the
/// rounding of its result, in one pass.
namespace shardwise::inline v0_1::detail {

/// How results are stored: as they are, added to what is there, or past the caches.
enum class Store : std::uint8_t { plain, accumulate, streaming };

/// out = round(old + scale * sum), element by element.
template <Store mode, class Sum, class Out>
struct Finish {
  using Wide = std::common_type_t<Sum, Accumulator<Out>>;
  Sum scale;  // by 1 changes no bit

  void element(Sum sum, Out* out) const noexcept {
    Wide old = 0;  // adding it turns -0 into +0, as accumulation onto zeroed storage does
    if constexpr (mode == Store::accumulate) old = static_cast<Wide>(*out);
    const Sum scaled = scale * sum;
    *out = cast_element<Out>(old + static_cast<Wide>(scaled));
  }
  void elements(const Octet<Sum>& sums, Out* out) const noexcept {
    constexpr bool streaming = mode == Store::streaming;
    Octet<Wide> old{};
    if constexpr (mode == Store::accumulate) old = load_octet<Wide>(out);
    if constexpr (std::same_as<Wide, Sum>) {
      store_octet<streaming>(out, old + sums * scale);
    } else {
      store_octet<streaming>(out, old + widened(sums * scale));
    }
  }
};

/// Finishes sums, or a + b where there is a b. `out` may be one of them.
template <Store mode, class Sum, class In, class Out>
inline void finish_as(const In* a, const In* b, Out* out, std::size_t count, Sum scale) noexcept {
  const Finish<mode, Sum, Out> finish{scale};
  std::size_t k = 0;
  const auto one = [&](std::size_t i) {
    const Sum sum = static_cast<Sum>(a[i]);
    finish.element(b == nullptr ? sum : sum + static_cast<Sum>(b[i]), out + i);
  };
  if constexpr (mode == Store::streaming) {
    for (; k < count && reinterpret_cast<std::uintptr_t>(out + k) % cache_line != 0; ++k) one(k);
  }
  if (b == nullptr) {
    for (; k + octet <= count; k += octet) finish.elements(load_octet<Sum>(a + k), out + k);
  } else {
    for (; k + octet <= count; k += octet) {
      finish.elements(load_octet<Sum>(a + k) + load_octet<Sum>(b + k), out + k);
    }
  }
  for (; k < count; ++k) one(k);
}

template <class Sum, class In, class Out>
inline void finish_octets(const In* a, const In* b, Out* out, std::size_t count,
                          const ReduceSpec& spec, bool streaming) noexcept {
  const auto scale = static_cast<Sum>(spec.scale);
  if (spec.accumulate) {
    finish_as<Store::accumulate>(a, b, out, count, scale);
  } else if (streaming) {
    finish_as<Store::streaming>(a, b, out, count, scale);
  } else {
    finish_as<Store::plain>(a, b, out, count, scale);
  }
}

/// Elements up to the first that begins a line, at most `count`.
template <class T>
[[nodiscard]] inline std::size_t before_line(const T* at, std::size_t count) noexcept {
  const std::size_t bytes = (0 - reinterpret_cast<std::uintptr_t>(at)) % cache_line;
  return std::min(count, bytes % sizeof(T) == 0 ? bytes / sizeof(T) : count);
}

/// Whole vectors alone; how many elements. Streamed results begin a line.
template <class In, class Out>
[[nodiscard]] inline std::size_t finish_wide(const Inputs<In>& in, Out* out, std::size_t count,
                                             const ReduceSpec& spec, bool streaming,
                                             Vectors vectors) noexcept {
  const auto scale = static_cast<float>(spec.scale);
  return run_wide<Out>(vectors, count, [&]<class Wide>(std::size_t whole) {
    if (streaming && !spec.accumulate) {
      Wide::template finish<true>(in, out, whole, scale, false);
    } else {
      Wide::template finish<false>(in, out, whole, scale, spec.accumulate);
    }
  });
}

/// By `vectors` as far as whole ones go, which begin lines.
template <class Sum, class In, class Out>
inline void finish(const In* a, const In* b, Out* out, std::size_t count, const ReduceSpec& spec,
                   bool streaming, Vectors vectors) noexcept {
  std::size_t done = 0;
  if constexpr (WideElement<In> && WideElement<Out>) {
    if (vectors != Vectors::baseline) {
      done = before_line(out, count);
      finish_octets<Sum>(a, b, out, done, spec, false);
      done += finish_wide(Inputs<In>{a, b}.from(done), out + done, count - done, spec, streaming,
                          vectors);
    }
  }
  const In* const other = b == nullptr ? nullptr : b + done;
  finish_octets<Sum>(a + done, other, out + done, count - done, spec, streaming);
}

}  // namespace shardwise::inline v0_1::detail
