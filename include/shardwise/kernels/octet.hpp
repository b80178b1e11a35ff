#pragma once

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "../core/dtype.hpp"
#include "cast.hpp"
#include "lanes.hpp"

#if defined(__SSE2__) && !defined(__CUDA_ARCH__)
#include <emmintrin.h>
#elif defined(__aarch64__) && !defined(__CUDA_ARCH__)
#include <arm_neon.h>
#endif

/// @file
/// Eight elements of any floating type as lanes of the type that computes with them, bit by bit
/// what cast_element gives. A plain -O2 turns the scalar conversions of 16-bit types into scalar
/// code. Host only.
namespace shardwise::inline v0_1::detail {

using WordLanes [[gnu::vector_size(16)]] = std::uint32_t;
using SignedLanes [[gnu::vector_size(16)]] = std::int32_t;
using ShortLanes [[gnu::vector_size(16)]] = std::uint16_t;

/// Elements in all lanes of an Octet.
inline constexpr std::size_t octet = 8;

/// Eight values as lanes of float or double.
template <std::floating_point Real>
struct Octet;
template <>
struct Octet<float> {
  FloatLanes a, b;
};
template <>
struct Octet<double> {
  DoubleLanes a, b, c, d;
};

[[nodiscard]] inline Octet<float> operator+(const Octet<float>& x, const Octet<float>& y) noexcept {
  return {x.a + y.a, x.b + y.b};
}
[[nodiscard]] inline Octet<double> operator+(const Octet<double>& x,
                                             const Octet<double>& y) noexcept {
  return {x.a + y.a, x.b + y.b, x.c + y.c, x.d + y.d};
}
[[nodiscard]] inline Octet<float> operator*(const Octet<float>& x, float factor) noexcept {
  return {x.a * factor, x.b * factor};
}
[[nodiscard]] inline Octet<double> operator*(const Octet<double>& x, double factor) noexcept {
  return {x.a * factor, x.b * factor, x.c * factor, x.d * factor};
}

template <class Real, std::size_t Count>
using NarrowLanes [[gnu::vector_size(Count * sizeof(Real))]] = Real;

[[nodiscard]] inline Octet<double> widened(const Octet<float>& x) noexcept {
#if defined(__aarch64__) && !defined(__CUDA_ARCH__)
  const auto low = [](FloatLanes lanes) {
    return reinterpret_cast<DoubleLanes>(
        vcvt_f64_f32(vget_low_f32(reinterpret_cast<float32x4_t>(lanes))));
  };
  const auto high = [](FloatLanes lanes) {
    return reinterpret_cast<DoubleLanes>(vcvt_high_f64_f32(reinterpret_cast<float32x4_t>(lanes)));
  };
  return {low(x.a), high(x.a), low(x.b), high(x.b)};
#else
  using Half = NarrowLanes<float, 2>;
  return {__builtin_convertvector((Half{x.a[0], x.a[1]}), DoubleLanes),
          __builtin_convertvector((Half{x.a[2], x.a[3]}), DoubleLanes),
          __builtin_convertvector((Half{x.b[0], x.b[1]}), DoubleLanes),
          __builtin_convertvector((Half{x.b[2], x.b[3]}), DoubleLanes)};
#endif
}
// g++ 12 takes two vector conversions, to float and back, for none: intrinsics and memory are not
// seen through.
[[nodiscard]] inline Octet<float> narrowed(const Octet<double>& x) noexcept {
#if defined(__SSE2__) && !defined(__CUDA_ARCH__)
  return {_mm_movelh_ps(_mm_cvtpd_ps(x.a), _mm_cvtpd_ps(x.b)),
          _mm_movelh_ps(_mm_cvtpd_ps(x.c), _mm_cvtpd_ps(x.d))};
#elif defined(__aarch64__) && !defined(__CUDA_ARCH__)
  const auto joined = [](DoubleLanes low, DoubleLanes high) {
    return reinterpret_cast<FloatLanes>(vcvt_high_f32_f64(
        vcvt_f32_f64(reinterpret_cast<float64x2_t>(low)), reinterpret_cast<float64x2_t>(high)));
  };
  return {joined(x.a, x.b), joined(x.c, x.d)};
#else
  const double values[octet] = {x.a[0], x.a[1], x.b[0], x.b[1], x.c[0], x.c[1], x.d[0], x.d[1]};
  volatile float narrow[octet];
  for (std::size_t i = 0; i < octet; ++i) narrow[i] = static_cast<float>(values[i]);
  return {FloatLanes{narrow[0], narrow[1], narrow[2], narrow[3]},
          FloatLanes{narrow[4], narrow[5], narrow[6], narrow[7]}};
#endif
}

/// yes ? a : b; `yes` has all bits of a lane set, or none.
[[nodiscard]] inline WordLanes choose(WordLanes yes, WordLanes a, WordLanes b) noexcept {
  return (a & yes) | (b & ~yes);
}
// Values below 2^31, for which machines without unsigned comparisons have an instruction.
[[nodiscard]] inline WordLanes greater(WordLanes a, std::int32_t b) noexcept {
  return reinterpret_cast<WordLanes>(reinterpret_cast<SignedLanes>(a) > b);
}

/// The words of a float's conversion to bf16, in the upper halves; see bf16's constructor.
[[nodiscard]] inline WordLanes bf16_words(FloatLanes x) noexcept {
  const auto word = reinterpret_cast<WordLanes>(x);
  const WordLanes is_nan = greater(word & 0x7fffffffu, 0x7f800000);
  const WordLanes rounding = ((word >> 16) & 1u) + 0x7fffu;
  // A NaN gets no carry, but the bit that makes it quiet.
  return (word + (rounding & ~is_nan)) | (is_nan & 0x400000u);
}

/// The same where there is no NaN.
[[nodiscard]] inline WordLanes bf16_words_of_numbers(FloatLanes x) noexcept {
  const auto word = reinterpret_cast<WordLanes>(x);
  return word + ((word >> 16) & 1u) + 0x7fffu;
}

/// The words of its conversion to f16, in the lower halves; see f16's constructor.
[[nodiscard]] inline WordLanes f16_words(FloatLanes x) noexcept {
  const auto word = reinterpret_cast<WordLanes>(x);
  const WordLanes magnitude = word & 0x7fffffffu;
  const WordLanes nan_or_infinity =
      choose(greater(magnitude, 0x7f800000), WordLanes{} + 0x7e00u, WordLanes{} + 0x7c00u);
  const FloatLanes shifted = reinterpret_cast<FloatLanes>(magnitude) + 0.5f;
  const WordLanes subnormal = reinterpret_cast<WordLanes>(shifted) - 0x3f000000u;
  const WordLanes normal = (magnitude - (112u << 23) + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  WordLanes result = choose(greater(magnitude, 0x387fffff), normal, subnormal);
  result = choose(greater(magnitude, 0x477fffff), nan_or_infinity, result);
  return ((word >> 16) & 0x8000u) | result;
}

/// The float of an f16 whose bits are in the lower half; see f16's operator float.
[[nodiscard]] inline FloatLanes f16_values(WordLanes half) noexcept {
  const WordLanes magnitude = (half & 0x7fffu) << 13;
  const WordLanes exponent = magnitude & (0x1fu << 23);
  const FloatLanes offset = reinterpret_cast<FloatLanes>(WordLanes{} + (113u << 23));
  const FloatLanes subnormal = reinterpret_cast<FloatLanes>(magnitude + (113u << 23)) - offset;
  WordLanes result = choose(greater(exponent, 0), magnitude + (112u << 23),
                            reinterpret_cast<WordLanes>(subnormal));
  result = choose(greater(exponent, (0x1f << 23) - 1), magnitude + (224u << 23), result);
  return reinterpret_cast<FloatLanes>(((half & 0x8000u) << 16) | result);
}

struct WordPair {
  WordLanes low, high;
};

/// Shorts to words: to their lower halves, and to their upper ones.
[[nodiscard]] inline WordPair to_lower_halves(ShortLanes x) noexcept {
#if defined(__SSE2__) && !defined(__CUDA_ARCH__)
  const auto shorts = reinterpret_cast<__m128i>(x);
  return {reinterpret_cast<WordLanes>(_mm_unpacklo_epi16(shorts, _mm_setzero_si128())),
          reinterpret_cast<WordLanes>(_mm_unpackhi_epi16(shorts, _mm_setzero_si128()))};
#elif defined(__aarch64__) && !defined(__CUDA_ARCH__)
  const auto shorts = reinterpret_cast<uint16x8_t>(x);
  return {reinterpret_cast<WordLanes>(vmovl_u16(vget_low_u16(shorts))),
          reinterpret_cast<WordLanes>(vmovl_high_u16(shorts))};
#else
  using Half = NarrowLanes<std::uint16_t, 4>;
  return {__builtin_convertvector((Half{x[0], x[1], x[2], x[3]}), WordLanes),
          __builtin_convertvector((Half{x[4], x[5], x[6], x[7]}), WordLanes)};
#endif
}
[[nodiscard]] inline WordPair to_upper_halves(ShortLanes x) noexcept {
#if defined(__SSE2__) && !defined(__CUDA_ARCH__)
  const auto shorts = reinterpret_cast<__m128i>(x);
  return {reinterpret_cast<WordLanes>(_mm_unpacklo_epi16(_mm_setzero_si128(), shorts)),
          reinterpret_cast<WordLanes>(_mm_unpackhi_epi16(_mm_setzero_si128(), shorts))};
#else
  const WordPair words = to_lower_halves(x);
  return {words.low << 16, words.high << 16};
#endif
}

/// The upper halves of words.
[[nodiscard]] inline ShortLanes upper_halves(WordLanes low, WordLanes high) noexcept {
#if defined(__SSE2__) && !defined(__CUDA_ARCH__)
  // What is packed with saturation is in range after an arithmetic shift.
  return reinterpret_cast<ShortLanes>(
      _mm_packs_epi32(_mm_srai_epi32(reinterpret_cast<__m128i>(low), 16),
                      _mm_srai_epi32(reinterpret_cast<__m128i>(high), 16)));
#elif defined(__aarch64__) && !defined(__CUDA_ARCH__)
  return reinterpret_cast<ShortLanes>(
      vuzp2q_u16(reinterpret_cast<uint16x8_t>(low), reinterpret_cast<uint16x8_t>(high)));
#else
  using Half = NarrowLanes<std::uint16_t, 4>;
  const Half first = __builtin_convertvector(low >> 16, Half);
  const Half second = __builtin_convertvector(high >> 16, Half);
  return ShortLanes{first[0],  first[1],  first[2],  first[3],
                    second[0], second[1], second[2], second[3]};
#endif
}

template <class Lane>
[[nodiscard]] inline Lane read_lanes(const void* from) noexcept {
  Lane lanes;
  std::memcpy(&lanes, from, sizeof(lanes));
  return lanes;
}
/// `streaming`: past the caches where the machine can; `to` begins 16 bytes then.
template <bool streaming, class Lane>
inline void write_lanes(void* to, Lane lanes) noexcept {
#if defined(__SSE2__) && !defined(__CUDA_ARCH__)
  if constexpr (streaming) {
    __m128i bits;
    std::memcpy(&bits, &lanes, sizeof(bits));
    return _mm_stream_si128(static_cast<__m128i*>(to), bits);
  }
#endif
  std::memcpy(to, &lanes, sizeof(lanes));
}

/// Eight elements from any address.
template <std::floating_point Real, FloatingElement T>
[[nodiscard]] inline Octet<Real> load_octet(const T* from) noexcept {
  if constexpr (std::same_as<T, double>) {
    const Octet<double> wide{read_lanes<DoubleLanes>(from), read_lanes<DoubleLanes>(from + 2),
                             read_lanes<DoubleLanes>(from + 4), read_lanes<DoubleLanes>(from + 6)};
    if constexpr (std::same_as<Real, float>) {
      return narrowed(wide);
    } else {
      return wide;
    }
  } else {
    Octet<float> values;
    if constexpr (std::same_as<T, float>) {
      values = {read_lanes<FloatLanes>(from), read_lanes<FloatLanes>(from + 4)};
    } else if constexpr (std::same_as<T, bf16>) {
      const WordPair words = to_upper_halves(read_lanes<ShortLanes>(from));
      values = {reinterpret_cast<FloatLanes>(words.low), reinterpret_cast<FloatLanes>(words.high)};
    } else {
      const WordPair words = to_lower_halves(read_lanes<ShortLanes>(from));
      values = {f16_values(words.low), f16_values(words.high)};
    }
    if constexpr (std::same_as<Real, double>) {
      return widened(values);
    } else {
      return values;
    }
  }
}

/// Rounded to bf16.
[[nodiscard]] inline ShortLanes bf16_octet(const Octet<float>& x) noexcept {
#if defined(__SSE2__) && !defined(__CUDA_ARCH__)
  // One comparison finds that there is no NaN, which is nearly always so.
  if (__builtin_expect(_mm_movemask_ps(_mm_cmpunord_ps(x.a, x.b)) == 0, 1)) {
    return upper_halves(bf16_words_of_numbers(x.a), bf16_words_of_numbers(x.b));
  }
#endif
  return upper_halves(bf16_words(x.a), bf16_words(x.b));
}

/// Eight elements, rounded once, to any address, or past the caches (see write_lanes).
template <bool streaming = false, FloatingElement T>
inline void store_octet(T* to, const Octet<float>& x) noexcept {
  if constexpr (std::same_as<T, float>) {
    write_lanes<streaming>(to, x.a);
    write_lanes<streaming>(to + 4, x.b);
  } else if constexpr (std::same_as<T, bf16>) {
    write_lanes<streaming>(to, bf16_octet(x));
  } else if constexpr (std::same_as<T, f16>) {
    write_lanes<streaming>(to, upper_halves(f16_words(x.a) << 16, f16_words(x.b) << 16));
  } else {
    const Octet<double> wide = widened(x);
    write_lanes<streaming>(to, wide.a);
    write_lanes<streaming>(to + 2, wide.b);
    write_lanes<streaming>(to + 4, wide.c);
    write_lanes<streaming>(to + 6, wide.d);
  }
}
template <bool streaming = false, FloatingElement T>
inline void store_octet(T* to, const Octet<double>& x) noexcept {
  if constexpr (std::same_as<T, double>) {
    write_lanes<streaming>(to, x.a);
    write_lanes<streaming>(to + 2, x.b);
    write_lanes<streaming>(to + 4, x.c);
    write_lanes<streaming>(to + 6, x.d);
  } else if constexpr (std::same_as<T, float>) {
    store_octet<streaming>(to, narrowed(x));
  } else {
    const double values[octet] = {x.a[0], x.a[1], x.b[0], x.b[1], x.c[0], x.c[1], x.d[0], x.d[1]};
    for (std::size_t i = 0; i < octet; ++i) to[i] = cast_element<T>(values[i]);
  }
}

/// Width elements, converted by way of Real.
template <std::floating_point Real, std::size_t Width, FloatingElement From, FloatingElement To>
inline void convert_octets(const From* from, To* to) noexcept {
  for (std::size_t i = 0; i < Width; i += octet) store_octet(to + i, load_octet<Real>(from + i));
}

}  // namespace shardwise::inline v0_1::detail
