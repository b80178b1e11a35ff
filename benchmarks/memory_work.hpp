#pragma once

#include <cstddef>
#include <cstring>
#include <span>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

// The widest vectors that the processor has, chosen when the program starts.
#if defined(__x86_64__) && defined(__gnu_linux__)
#define BENCHMARKS_WIDEST __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define BENCHMARKS_WIDEST
#endif

/// What memory allows at best: loops that read and write and do nothing else, through the caches or
/// past them (streaming). They are written apart from the library's, which they judge.
namespace benchmarks {

namespace detail {

using Wide [[gnu::vector_size(64)]] = unsigned;
using Narrow [[gnu::vector_size(16)]] = unsigned;

/// Adds what lies at any address.
template <class Vector>
[[gnu::always_inline]] inline void add(Vector& sum, const std::byte* from) {
  Vector value;
  std::memcpy(&value, from, sizeof(value));
  sum += value;
}

/// The sum of `sources` inputs (0: of as many as there are, with up to half the speed, as the
/// compiler cannot unroll), vector by vector.
template <std::size_t sources, class Vector, class Store>
[[gnu::always_inline]] inline void sum_of(std::span<std::byte* const> to,
                                          std::span<const std::byte* const> from, std::size_t bytes,
                                          const Store& store) {
  const std::byte* inputs[sources + 1];  // for the compiler, nobody else writes here
  for (std::size_t i = 0; i < sources; ++i) inputs[i] = from[i];
  std::byte* const first = to[0];
  const std::size_t end = bytes / sizeof(Vector) * sizeof(Vector);
#pragma GCC unroll 4
  for (std::size_t at = 0; at < end; at += sizeof(Vector)) {
    Vector value;
    std::memcpy(&value, (sources == 0 ? from[0] : inputs[0]) + at, sizeof(value));
    if constexpr (sources == 0) {
      for (const std::byte* input : from.subspan(1)) add(value, input + at);
    } else {
#pragma GCC unroll 8
      for (std::size_t i = 1; i < sources; ++i) add(value, inputs[i] + at);
    }
    store(first + at, value);
    for (std::size_t i = 1; i < to.size(); ++i) store(to[i] + at, value);
  }
}

template <class Vector, class Store>
[[gnu::always_inline]] inline void sum(std::span<std::byte* const> to,
                                       std::span<const std::byte* const> from, std::size_t bytes,
                                       const Store& store) {
  switch (from.size()) {
    case 1:
      return sum_of<1, Vector>(to, from, bytes, store);
    case 2:
      return sum_of<2, Vector>(to, from, bytes, store);
    case 3:
      return sum_of<3, Vector>(to, from, bytes, store);
    case 4:
      return sum_of<4, Vector>(to, from, bytes, store);
    case 8:
      return sum_of<8, Vector>(to, from, bytes, store);
    default:
      return sum_of<0, Vector>(to, from, bytes, store);
  }
}

}  // namespace detail

/// Reads `bytes` of each of `from` and writes their sums to each of `to`. What is less than a
/// vector at the end is left out.
BENCHMARKS_WIDEST inline void sum_cached(std::span<std::byte* const> to,
                                         std::span<const std::byte* const> from,
                                         std::size_t bytes) {
  using detail::Wide;
  detail::sum<Wide>(to, from, bytes, [](std::byte* target, const Wide& value) {
    std::memcpy(target, &value, sizeof(value));
  });
}

#if defined(__SSE2__)
/// Likewise, past the caches; targets begin at multiples of 16.
inline void sum_streaming(std::span<std::byte* const> to, std::span<const std::byte* const> from,
                          std::size_t bytes) {
  using detail::Narrow;
  detail::sum<Narrow>(to, from, bytes, [](std::byte* target, const Narrow& value) {
    __m128i bits;
    std::memcpy(&bits, &value, sizeof(bits));
    _mm_stream_si128(reinterpret_cast<__m128i*>(target), bits);
  });
  _mm_sfence();
}
#else
inline void sum_streaming(std::span<std::byte* const> to, std::span<const std::byte* const> from,
                          std::size_t bytes) {
  sum_cached(to, from, bytes);
}
#endif

/// a = b + factor * c: two reads and a write. What is less than a vector at the end is left out.
BENCHMARKS_WIDEST inline void triad_cached(float* a, const float* b, const float* c, float factor,
                                           std::size_t count) {
  using Vector [[gnu::vector_size(64)]] = float;
  constexpr std::size_t width = sizeof(Vector) / sizeof(float);
  for (std::size_t at = 0; at + width <= count; at += width) {
    Vector x;
    Vector y;
    std::memcpy(&x, b + at, sizeof(x));
    std::memcpy(&y, c + at, sizeof(y));
    x += factor * y;
    std::memcpy(a + at, &x, sizeof(x));
  }
}

#if defined(__SSE2__)
/// Likewise, past the caches; `a` begins at a multiple of 16 bytes.
inline void triad_streaming(float* a, const float* b, const float* c, float factor,
                            std::size_t count) {
  const __m128 factors = _mm_set1_ps(factor);
#pragma GCC unroll 4
  for (std::size_t at = 0; at < count / 4 * 4; at += 4) {
    _mm_stream_ps(a + at,
                  _mm_add_ps(_mm_loadu_ps(b + at), _mm_mul_ps(factors, _mm_loadu_ps(c + at))));
  }
  _mm_sfence();
}
#else
inline void triad_streaming(float* a, const float* b, const float* c, float factor,
                            std::size_t count) {
  triad_cached(a, b, c, factor, count);
}
#endif

inline void copy_cached(std::byte* to, const std::byte* from, std::size_t bytes) {
  std::memcpy(to, from, bytes);
}

inline void copy_streaming(std::byte* to, const std::byte* from, std::size_t bytes) {
  sum_streaming({&to, 1}, {&from, 1}, bytes);
}

}  // namespace benchmarks
