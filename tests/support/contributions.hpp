#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <shardwise/core/dtype.hpp>
#include <shardwise/core/reduce_spec.hpp>
#include <type_traits>
#include <vector>

namespace shardwise::test {

using Bytes = std::vector<std::byte>;

inline constexpr DType all_dtypes[] = {DType::f64, DType::f32, DType::bf16, DType::f16,
                                       DType::i64, DType::i32, DType::i8,   DType::u8};

/// Numbers that depend on (rank, seed, index) alone; sums of floats round, integers wrap.
template <class T>
T number(std::size_t rank, std::size_t seed, std::size_t index) {
  std::uint64_t x = (rank * 1000003 + seed) * 998244353 + index * 2654435761u + 12345;
  x = (x ^ (x >> 31)) * 0x9e3779b97f4a7c15u;
  x ^= x >> 29;
  if constexpr (std::is_integral_v<T>) {
    return static_cast<T>(x);
  } else {
    const double unit = static_cast<double>(static_cast<std::int64_t>(x)) * 0x1p-63;
    return static_cast<T>(static_cast<float>(unit * std::exp2(static_cast<int>(x % 7))));
  }
}

inline Bytes contribution(DType dtype, std::size_t rank, std::size_t seed, std::size_t count) {
  Bytes bytes(count * size_of(dtype));
  dispatch(dtype, [&]<class T>() {
    for (std::size_t i = 0; i < count; ++i) {
      const T value = number<T>(rank, seed, i);
      std::memcpy(bytes.data() + i * sizeof(T), &value, sizeof(T));
    }
  });
  return bytes;
}

template <class T>
T element(const Bytes& bytes, std::size_t index) {
  T value;
  std::memcpy(&value, bytes.data() + index * sizeof(T), sizeof(T));
  return value;
}

/// The canonical order, spelled out: values[0, n) split at the largest power of two below n.
template <class Sum>
Sum tree_sum(const Sum* values, std::size_t n) {
  if (n == 1) return values[0];
  std::size_t split = 1;
  while (split * 2 < n) split *= 2;
  const Sum left = tree_sum(values, split);
  const Sum right = tree_sum(values + split, n - split);
  if constexpr (std::is_integral_v<Sum>) {
    return static_cast<Sum>(static_cast<std::uint64_t>(left) + static_cast<std::uint64_t>(right));
  } else {
    return left + right;
  }
}

/// What a reduction of elements [begin, begin + count) must give, one element after the other.
inline Bytes reduced(const std::vector<Bytes>& inputs, const std::vector<double>& weights,
                     DType dtype, std::size_t begin, std::size_t count, const Bytes& old,
                     const ReduceSpec& spec) {
  Bytes result(count * size_of(spec.output));
  dispatch(dtype, [&]<class In>() {
    using Sum = Accumulator<In>;
    dispatch(spec.output, [&]<class Out>() {
      for (std::size_t i = 0; i < count; ++i) {
        std::vector<Sum> values;
        for (std::size_t r = 0; r < inputs.size(); ++r) {
          Sum value = static_cast<Sum>(element<In>(inputs[r], begin + i));
          if (weights[r] != 1) value = static_cast<Sum>(value * static_cast<Sum>(weights[r]));
          values.push_back(value);
        }
        const Sum sum = tree_sum(values.data(), values.size());
        Out out{};
        if constexpr (std::is_integral_v<In>) {
          if constexpr (std::is_same_v<In, Out>) {
            const std::uint64_t before =
                spec.accumulate ? static_cast<std::uint64_t>(element<Out>(old, i)) : 0;
            out = static_cast<Out>(before + static_cast<std::uint64_t>(sum));
          }
        } else if constexpr (!std::is_integral_v<Out>) {
          using Wide = std::common_type_t<Sum, Accumulator<Out>>;
          const Wide before = spec.accumulate ? static_cast<Wide>(element<Out>(old, i)) : Wide{0};
          const Sum scaled = static_cast<Sum>(static_cast<Sum>(spec.scale) * sum);
          const Wide total = before + static_cast<Wide>(scaled);
          if constexpr (sizeof(Out) == 2 && sizeof(Wide) == 8) {
            // Of the float next to it on either side, the 16-bit value that is nearest.
            const auto middle = static_cast<float>(total);
            double best = std::numeric_limits<double>::infinity();
            for (const float candidate :
                 {std::nextafter(middle, -INFINITY), middle, std::nextafter(middle, INFINITY)}) {
              const Out rounded(candidate);
              const double distance = std::abs(static_cast<double>(static_cast<float>(rounded)) -
                                               static_cast<double>(total));
              if (distance < best) {
                best = distance;
                out = rounded;
              }
            }
          } else {
            out = static_cast<Out>(total);
          }
        }
        std::memcpy(result.data() + i * sizeof(Out), &out, sizeof(Out));
      }
    });
  });
  return result;
}

}  // namespace shardwise::test
