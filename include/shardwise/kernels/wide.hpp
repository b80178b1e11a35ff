#pragma once

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "../core/dtype.hpp"
#include "cast.hpp"
#include "vectors.hpp"

/// @file
/// Loops over memory for processors with wider vectors than the compiler's options promise: copies,
/// conversions and sums of float, bf16 and f16, bit by bit what octets and cast_element give. Which
/// of them run is found out when they are called; elsewhere than on x86 there are none.
namespace shardwise::inline v0_1::detail {

/// What the wide loops take.
template <class T>
concept WideElement = std::same_as<T, float> || std::same_as<T, bf16> || std::same_as<T, f16>;

/// All kinds have a number of lanes that divides this.
inline constexpr std::size_t most_lanes = 16;

/// What up to four ranks contribute; null where there are fewer.
template <class T>
struct Inputs {
  const T* a;
  const T* b = nullptr;
  const T* c = nullptr;
  const T* d = nullptr;

  /// From element `first` on.
  [[nodiscard]] Inputs from(std::size_t first) const noexcept {
    const auto at = [&](const T* input) { return input == nullptr ? nullptr : input + first; };
    return {at(a), at(b), at(c), at(d)};
  }
};

/// `Count` elements in one register.
template <class T, std::size_t Count>
using Register [[gnu::vector_size(Count * sizeof(T))]] = T;

#if defined(__x86_64__) && !defined(__CUDA_ARCH__)

// Conversions are by name where g++ 12 would convert halves.
//
// One text, compiled for each kind of vectors: g++ takes wide operators apart in functions that are
// not for their processor, before it puts these into others.
#ifdef __CUDACC__  // does not know the pragma
#define SHARDWISE_WIDE_UNROLL
#else
#define SHARDWISE_WIDE_UNROLL _Pragma("GCC unroll 4")
#endif
#define SHARDWISE_WIDE [[gnu::target("avx2,f16c"), gnu::always_inline]] static inline
#define SHARDWISE_WIDE_LOOP [[gnu::target("avx2,f16c")]] static inline
struct Avx2 {
  static constexpr std::size_t lanes = 8;
  using Floats = Register<float, lanes>;
  using Words = Register<std::uint32_t, lanes>;
  using Shorts = Register<std::uint16_t, lanes>;

  SHARDWISE_WIDE bool any_unordered(const Floats& x, const Floats& y) noexcept {
    constexpr int unordered = 3;
    return __builtin_ia32_movmskps256(__builtin_ia32_cmpps256(x, y, unordered)) != 0;
  }
  SHARDWISE_WIDE Floats from_f16(const Shorts& x) noexcept {
    return __builtin_ia32_vcvtph2ps256(reinterpret_cast<Register<short, lanes>>(x));
  }
  SHARDWISE_WIDE Shorts to_f16(const Floats& x) noexcept {
    return reinterpret_cast<Shorts>(__builtin_ia32_vcvtps2ph256(x, 0));
  }
  SHARDWISE_WIDE Shorts narrowed(const Words& x) noexcept {
    return __builtin_convertvector(x, Shorts);
  }
#if defined(__clang__)
  SHARDWISE_WIDE Words widened(const Shorts& x) noexcept {
    return __builtin_convertvector(x, Words);
  }
#else
  SHARDWISE_WIDE Words widened(const Shorts& x) noexcept {
    return reinterpret_cast<Words>(
        __builtin_ia32_pmovzxwd256(reinterpret_cast<Register<short, lanes>>(x)));
  }
  SHARDWISE_WIDE void stream(void* to, const Floats& x) noexcept {
    __builtin_ia32_movntps256(static_cast<float*>(to), x);
  }
  SHARDWISE_WIDE void stream(void* to, const Words& x) noexcept {
    stream(to, reinterpret_cast<Floats>(x));
  }
  SHARDWISE_WIDE void stream(void* to, const Shorts& x) noexcept {
    __builtin_ia32_movntps(static_cast<float*>(to), reinterpret_cast<Register<float, 4>>(x));
  }
#endif
#include "wide.inc"

  static constexpr bool finds_minus_zero = false;
  template <class T, bool /*onto_zero*/>
  SHARDWISE_WIDE bool is_usual(const Two& two) noexcept {
    return !any_unordered(two.x, two.y);
  }
#include "wide_rounding.inc"
};
#undef SHARDWISE_WIDE
#undef SHARDWISE_WIDE_LOOP

#define SHARDWISE_WIDE \
  [[gnu::target("avx512f,avx512bw,avx512dq"), gnu::always_inline]] static inline
#define SHARDWISE_WIDE_LOOP [[gnu::target("avx512f,avx512bw,avx512dq")]] static inline
struct Avx512 {
  static constexpr std::size_t lanes = 16;
  using Floats = Register<float, lanes>;
  using Words = Register<std::uint32_t, lanes>;
  using Shorts = Register<std::uint16_t, lanes>;
  struct AllLanes {  // a mask, which compilers take as one or the other
    constexpr operator short() const noexcept { return -1; }
    constexpr operator unsigned short() const noexcept { return 0xffff; }
  };
  static constexpr AllLanes all{};

  static constexpr int as_set = 4;  // the processor's rounding

  static constexpr int nan = 0x81;
  static constexpr int minus_zero = 0x04;
  static constexpr int subnormal = 0x20;
  template <int classes>
  SHARDWISE_WIDE unsigned short lanes_of(const Floats& x) noexcept {
    return static_cast<unsigned short>(__builtin_ia32_fpclassps512_mask(x, classes, all));
  }
  template <int classes>
  SHARDWISE_WIDE bool any_of(const Floats& x, const Floats& y) noexcept {
    return __builtin_ia32_kortestzhi(lanes_of<classes>(x), lanes_of<classes>(y)) == 0;
  }
  SHARDWISE_WIDE Floats from_f16(const Shorts& x) noexcept {
    return __builtin_ia32_vcvtph2ps512_mask(reinterpret_cast<Register<short, lanes>>(x), Floats{},
                                            all, as_set);
  }
  SHARDWISE_WIDE Shorts to_f16(const Floats& x) noexcept {
    return reinterpret_cast<Shorts>(
        __builtin_ia32_vcvtps2ph512_mask(x, 0, Register<short, lanes>{}, all));
  }
#if defined(__clang__)
  SHARDWISE_WIDE Words widened(const Shorts& x) noexcept {
    return __builtin_convertvector(x, Words);
  }
  SHARDWISE_WIDE Shorts narrowed(const Words& x) noexcept {
    return __builtin_convertvector(x, Shorts);
  }
#else
  SHARDWISE_WIDE Words widened(const Shorts& x) noexcept {
    return reinterpret_cast<Words>(__builtin_ia32_pmovzxwd512_mask(
        reinterpret_cast<Register<short, lanes>>(x), Register<int, lanes>{}, all));
  }
  SHARDWISE_WIDE Shorts narrowed(const Words& x) noexcept {
    return reinterpret_cast<Shorts>(__builtin_ia32_pmovdw512_mask(
        reinterpret_cast<Register<int, lanes>>(x), Register<short, lanes>{}, all));
  }
  SHARDWISE_WIDE void stream(void* to, const Floats& x) noexcept {
    __builtin_ia32_movntps512(static_cast<float*>(to), x);
  }
  SHARDWISE_WIDE void stream(void* to, const Words& x) noexcept {
    stream(to, reinterpret_cast<Floats>(x));
  }
  SHARDWISE_WIDE void stream(void* to, const Shorts& x) noexcept {
    __builtin_ia32_movntps256(static_cast<float*>(to), reinterpret_cast<Register<float, 8>>(x));
  }
#endif
#include "wide.inc"

  static constexpr bool finds_minus_zero = true;
  template <class T, bool onto_zero>
  SHARDWISE_WIDE bool is_usual(const Two& two) noexcept {
    return !any_of<nan | (onto_zero ? minus_zero : 0)>(two.x, two.y);
  }
#include "wide_rounding.inc"
};

// Rounds to bf16 by instructions of the processor's, which take subnormals for zero.
struct Avx512Bf16 : Avx512 {
  template <class T, bool onto_zero>
  SHARDWISE_WIDE bool is_usual(const Two& two) noexcept {
    if constexpr (!std::same_as<T, bf16>) {
      return Avx512::is_usual<T, onto_zero>(two);
    } else {
      return !any_of<subnormal | (onto_zero ? minus_zero : 0)>(two.x, two.y);
    }
  }
  template <bool streaming, bool paired, class T>
  SHARDWISE_WIDE void store_usual(T* to, const Two& two) noexcept {
    if constexpr (!std::same_as<T, bf16>) {
      Avx512::store_usual<streaming, paired>(to, two);
    } else {
      // By name, as compilers do not agree on one for the function.
      Words rounded;
      asm("vcvtne2ps2bf16 {%1, %2, %0|%0, %2, %1}" : "=v"(rounded) : "v"(two.x), "v"(two.y));
      if constexpr (paired) rounded = alternating(rounded);
      write<streaming>(to, rounded);
    }
  }
  // The shorts of the lower half at even places, those of the upper one at odd places.
  SHARDWISE_WIDE Words alternating(const Words& x) noexcept {
    using AllShorts = Register<short, 2 * lanes>;
    constexpr AllShorts order = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    const auto shorts = reinterpret_cast<AllShorts>(x);
#if defined(__clang__)
    return reinterpret_cast<Words>(__builtin_ia32_permvarhi512(shorts, order));
#else
    return reinterpret_cast<Words>(
        __builtin_ia32_permvarhi512_mask(shorts, order, shorts, 0xffffffffu));
#endif
  }
#include "wide_rounding.inc"
};
#undef SHARDWISE_WIDE
#undef SHARDWISE_WIDE_LOOP
#undef SHARDWISE_WIDE_UNROLL

#endif

/// Calls loops.operator()<Wide>(n) with the loops for `vectors`, n: elements in whole vectors at
/// the beginning of `count`. Returns n, 0 where there are no such loops. To: what results are
/// rounded to; bf16 has loops of its own.
template <class To, class Loops>
inline std::size_t run_wide([[maybe_unused]] Vectors vectors, [[maybe_unused]] std::size_t count,
                            [[maybe_unused]] const Loops& loops) {
#if defined(__x86_64__) && !defined(__CUDA_ARCH__)
  const auto run = [&]<class Wide>(Wide) {
    const std::size_t whole = count / Wide::lanes * Wide::lanes;
    if (whole > 0) loops.template operator()<Wide>(whole);
    return whole;
  };
  if constexpr (std::same_as<To, bf16>) {
    if (vectors == Vectors::avx512_bf16) return run(Avx512Bf16());
  }
  if (vectors >= Vectors::avx512) return run(Avx512());
  if (vectors == Vectors::avx2) return run(Avx2());
#endif
  return 0;
}

/// Converts whole vectors at the beginning of `count` elements, in place too; how many elements.
template <class From, class To>
inline std::size_t convert_wide(const From* from, To* to, std::size_t count,
                                Vectors vectors) noexcept {
  if constexpr (WideElement<From> && WideElement<To>) {
    return run_wide<To>(vectors, count,
                        [&]<class Wide>(std::size_t whole) { Wide::convert(from, to, whole); });
  } else {
    return 0;
  }
}

/// Casts `count` elements, a multiple of most_lanes, between buffers that are apart.
template <class From, class To>
inline void cast_whole(const From* from, To* to, std::size_t count, Vectors vectors) noexcept {
  if constexpr (std::same_as<From, To>) {
    std::memcpy(to, from, count * sizeof(To));
  } else {
    std::size_t done = convert_wide(from, to, count, vectors);
    for (; done < count; ++done) to[done] = cast_element<To>(from[done]);
  }
}

}  // namespace shardwise::inline v0_1::detail
