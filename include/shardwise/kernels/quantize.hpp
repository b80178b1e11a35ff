#pragma once

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "../core/dtype.hpp"
#include "../core/host_device.hpp"
#include "cast.hpp"
#include "e4m3.hpp"
#include "elements.hpp"
#include "pack.hpp"
#include "tiles.hpp"

namespace shardwise::inline v0_1 {

/// Types that travel in place of wider ones, with one factor for each block of elements.
enum class Quantized : std::uint8_t {
  int8,  ///< -127..127
  int4,  ///< -7..7; two in a byte, the first in the low half
  e4m3   ///< see e4m3.hpp
};

/// Elements that have one factor.
inline constexpr std::size_t quantized_block = 256;

/// "int8", "int4", "e4m3".
[[nodiscard]] constexpr std::string_view name_of(Quantized type) noexcept {
  constexpr std::string_view names[] = {"int8", "int4", "e4m3"};
  return names[static_cast<std::size_t>(type)];
}
/// Bytes of `count` elements, without their factors.
[[nodiscard]] SHARDWISE_HOST_DEVICE constexpr std::size_t quantized_bytes(
    Quantized type, std::size_t count) noexcept {
  return type == Quantized::int4 ? count / 2 + count % 2 : count;
}
/// Factors of `count` elements, one float each.
[[nodiscard]] constexpr std::size_t quantized_factors(std::size_t count) noexcept {
  return count / quantized_block + (count % quantized_block != 0 ? 1 : 0);
}

namespace detail {

/// Elements of one lane's work, in the form that they are stored in.
template <Quantized Type>
struct QuantizedLane {
  static constexpr std::size_t width = 8;
  static constexpr std::size_t bytes = Type == Quantized::int4 ? width / 2 : width;
  static constexpr float largest = Type == Quantized::int8   ? 127.0f
                                   : Type == Quantized::int4 ? 7.0f
                                                             : e4m3::largest;
  using Bytes = Block<std::uint8_t, bytes>;

  /// To nearest, ties to even; |scaled| is at most about `largest`.
  SHARDWISE_HOST_DEVICE static Bytes pack(const float (&scaled)[width]) noexcept {
    Bytes out;
    if constexpr (Type == Quantized::e4m3) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 890
      for (std::size_t i = 0; i < width; i += 2) {
        std::uint16_t pair;
        asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;"
            : "=h"(pair)
            : "f"(scaled[i + 1]), "f"(scaled[i]));
        out.values[i] = static_cast<std::uint8_t>(pair & 0xffu);
        out.values[i + 1] = static_cast<std::uint8_t>(pair >> 8);
      }
#else
      for (std::size_t i = 0; i < width; ++i) out.values[i] = e4m3(scaled[i]).bits;
#endif
    } else if constexpr (Type == Quantized::int8) {
      for (std::size_t i = 0; i < width; ++i) {
        out.values[i] = static_cast<std::uint8_t>(rounded(scaled[i]) & 0xffu);
      }
    } else {
      for (std::size_t i = 0; i < width; i += 2) {
        out.values[i / 2] = static_cast<std::uint8_t>((rounded(scaled[i]) & 0xfu) |
                                                      (rounded(scaled[i + 1]) & 0xfu) << 4);
      }
    }
    return out;
  }

  SHARDWISE_HOST_DEVICE static float unpack(const std::uint8_t* bytes_of_elements,
                                            std::size_t index) noexcept {
    if constexpr (Type == Quantized::e4m3) {
      e4m3 value;
      value.bits = bytes_of_elements[index];
      return value;
    } else if constexpr (Type == Quantized::int8) {
      return static_cast<float>(static_cast<std::int8_t>(bytes_of_elements[index]));
    } else {
      const unsigned byte = bytes_of_elements[index / 2];
      const unsigned half = index % 2 == 0 ? byte & 0xfu : byte >> 4;
      return static_cast<float>(static_cast<int>(half ^ 8u) - 8);
    }
  }

 private:
  // The integer nearest to a small value, in two's complement: 1.5 * 2^23 has no bits below 1.
  SHARDWISE_HOST_DEVICE static std::uint32_t rounded(float value) noexcept {
    constexpr float shift = 12582912;
    return __builtin_bit_cast(std::uint32_t, value + shift) -
           __builtin_bit_cast(std::uint32_t, shift);
  }
};

/// A functor for launch_tiles: quantises blocks of elements.
template <FloatingElement In, Quantized Type>
struct Quantize {
  using Lane = QuantizedLane<Type>;
  static constexpr unsigned lanes = 32;
  static constexpr std::size_t width = Lane::width;
  static_assert(lanes * width == quantized_block);
  struct State {
    float values[width];
  };
  using Partial = std::uint32_t;  // bits of a magnitude: their order is that of numbers, NaN on top

  const In* in;
  std::uint8_t* out;
  float* factors;
  std::size_t count;
  std::size_t is_aligned;  ///< 0 or 1: whole lanes may be read and written

  [[nodiscard]] static Quantize of(const In* in, std::uint8_t* out, float* factors,
                                   std::size_t count) noexcept {
    const bool aligned = is_aligned_for<width>(in) && is_aligned_for<Lane::bytes>(out);
    return {in, out, factors, count, aligned ? 1u : 0u};
  }

  SHARDWISE_HOST_DEVICE std::uint32_t load(std::size_t tile, unsigned lane, State& state) const {
    const std::size_t first = tile * quantized_block + lane * width;
    if (is_aligned != 0 && first + width <= count) {
      Block<In, width> block;
      block.load(in + first);
      for (std::size_t i = 0; i < width; ++i) {
        state.values[i] = cast_element<float>(block.values[i]);
      }
    } else {
      for (std::size_t i = 0; i < width; ++i) {
        state.values[i] = first + i < count ? cast_element<float>(in[first + i]) : 0.0f;
      }
    }
    std::uint32_t largest = 0;
    for (std::size_t i = 0; i < width; ++i) {
      const float value = state.values[i];
      largest = combine(largest, __builtin_bit_cast(std::uint32_t, value) & 0x7fffffffu);
    }
    return largest;
  }
  SHARDWISE_HOST_DEVICE static std::uint32_t combine(std::uint32_t a, std::uint32_t b) {
    return a < b ? b : a;
  }
  SHARDWISE_HOST_DEVICE void store(std::size_t tile, unsigned lane, const State& state,
                                   std::uint32_t largest) const {
    const auto magnitude = __builtin_bit_cast(float, largest);
    const bool is_finite = largest < 0x7f800000u;
    // Below it the inverse would not be finite.
    const bool is_zero = magnitude < 0x1p-118f;
    const float inverse = is_finite && !is_zero ? Lane::largest / magnitude : 0.0f;
    if (lane == 0) {
      const float factor = is_zero ? 0.0f : magnitude / Lane::largest;
      factors[tile] = is_finite ? factor : __builtin_bit_cast(float, 0x7fc00000u);
    }
    float scaled[width];
    for (std::size_t i = 0; i < width; ++i) {
      scaled[i] = is_finite ? state.values[i] * inverse : 0.0f;
    }
    const auto packed = Lane::pack(scaled);
    const std::size_t first = tile * quantized_block + lane * width;
    if (first >= count) return;
    std::uint8_t* const to = out + quantized_bytes(Type, first);
    if (is_aligned != 0 && first + width <= count) {
      packed.store(to);
    } else {
      const std::size_t rest = count - first < width ? count - first : width;
      const std::size_t bytes = quantized_bytes(Type, rest);
      for (std::size_t i = 0; i < Lane::bytes; ++i) {
        if (i < bytes) to[i] = packed.values[i];
      }
    }
  }
};

/// A functor for launch: out[i] = element i times its block's factor, rounded to Out.
template <Quantized Type, FloatingElement Out>
struct Dequantize {
  using Lane = QuantizedLane<Type>;

  const std::uint8_t* in;
  const float* factors;
  Out* out;

  static constexpr std::size_t block_width = Lane::width;
  template <std::size_t Width>
  [[nodiscard]] bool aligned(std::size_t first) const noexcept {
    // From 0 on alone: lanes have bytes and a factor of their own.
    return first == 0 && is_aligned_for<Lane::bytes>(in) && is_aligned_for<Width>(out);
  }
  template <std::size_t Width>
  SHARDWISE_HOST_DEVICE void run_block(std::size_t first) const {
    const float factor = factors[first / quantized_block];
    if constexpr (Width == Lane::width) {
      typename Lane::Bytes bytes;
      Block<Out, Width> result;
      bytes.load(in + quantized_bytes(Type, first));
      for (std::size_t i = 0; i < Width; ++i) {
        result.values[i] = cast_element<Out>(Lane::unpack(bytes.values, i) * factor);
      }
      result.store(out + first);
    } else {
      static_assert(Width == 1);
      out[first] = cast_element<Out>(Lane::unpack(in, first) * factor);
    }
  }
  template <std::size_t Width>
  SHARDWISE_HOST_DEVICE void run(std::size_t first) const {
    for (std::size_t i = 0; i < Width; ++i) run_block<1>(first + i);
  }
};

/// f.operator()<Type>() for the type that `type` names.
template <class F>
constexpr decltype(auto) dispatch_quantized(Quantized type, F&& f) {
  switch (type) {
    case Quantized::int4:
      return f.template operator()<Quantized::int4>();
    case Quantized::e4m3:
      return f.template operator()<Quantized::e4m3>();
    case Quantized::int8:
      break;
  }
  return f.template operator()<Quantized::int8>();
}

}  // namespace detail

/// Quantises `count` elements of a floating type on the host, block by block: with m the largest
/// magnitude of a block, its factor is m / largest and an element becomes x * (largest / m),
/// rounded to nearest, ties to even. Values of doubles are rounded to float first. A block whose
/// largest magnitude is below 2^-118 becomes 0; one that holds an infinity or NaN becomes NaN as a
/// whole: its factor is NaN. `out` has quantized_bytes, `factors` quantized_factors elements; what
/// pads the last byte is 0.
inline void quantize(const void* values, DType type, std::size_t count, Quantized to, void* out,
                     float* factors) noexcept {
  dispatch_floating(type, [&]<class In>() {
    detail::dispatch_quantized(to, [&]<Quantized Type>() {
      const auto tiles = detail::Quantize<In, Type>::of(
          static_cast<const In*>(values), static_cast<std::uint8_t*>(out), factors, count);
      detail::run_tiles(quantized_factors(count), tiles);
    });
  });
}

/// The elements again, on the host, each times its block's factor, rounded once to `to`.
inline void dequantize(const void* quantized, Quantized from, const float* factors,
                       std::size_t count, void* out, DType to) noexcept {
  dispatch_floating(to, [&]<class Out>() {
    detail::dispatch_quantized(from, [&]<Quantized Type>() {
      const detail::Dequantize<Type, Out> functor{static_cast<const std::uint8_t*>(quantized),
                                                  factors, static_cast<Out*>(out)};
      detail::run_elements(count, detail::plan_elements(count, functor), functor);
    });
  });
}

}  // namespace shardwise::inline v0_1
