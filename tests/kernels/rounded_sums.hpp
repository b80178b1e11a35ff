#pragma once

#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <random>
#include <shardwise/kernels/reduce.hpp>
#include <vector>

namespace shardwise::test {

/// Which elements ranks contribute.
enum class Kind {
  ordinary,  ///< around 1, so that many sums are ties of bf16 and f16: no special case among them
  rare,      ///< the same, but for one element of about 50, which is any
  any,       ///< all exponents alike: NaNs of all payloads, infinities, subnormals, zeros
};

/// The value of these bits, or of their upper half.
template <class T>
T from_bits(std::uint32_t bits) {
  if constexpr (sizeof(T) == 2) {
    T value;
    value.bits = static_cast<std::uint16_t>(bits >> 16);
    return value;
  } else {
    return std::bit_cast<T>(bits);
  }
}

/// A number of sign, exponent and fraction such that sums are exact, are ties, and round both ways.
template <class T>
T ordinary(std::mt19937& random) {
  const float fraction = 1.0f + static_cast<float>(random() % 128) / 128.0f;
  const float value = std::ldexp(fraction, static_cast<int>(random() % 12) - 6);
  return cast_element<T>(random() % 2 == 0 ? value : -value);
}

/// Fractions of few bits and of many; the largest and the smallest exponents more often.
template <class T>
T any(std::mt19937& random) {
  constexpr int exponent_bits = std::is_same_v<T, f16> ? 5 : 8;
  constexpr int fraction_bits = 31 - exponent_bits;
  constexpr std::uint32_t exponents = 1u << exponent_bits;
  constexpr std::uint32_t edges[] = {0, 0, 1, 2, exponents - 2, exponents - 1};
  const std::uint32_t exponent =
      random() % 2 == 0 ? edges[random() % 6] : static_cast<std::uint32_t>(random() % exponents);
  const std::uint32_t all = (1u << fraction_bits) - 1;
  const std::uint32_t highest = 1u << (fraction_bits - 1);
  const auto bits = [&] { return static_cast<std::uint32_t>(random()); };
  const std::uint32_t fractions[] = {0,
                                     highest,
                                     1u << (sizeof(T) == 2 ? 16 : 0),
                                     all,
                                     all - highest,
                                     bits() & all,
                                     bits() & all,
                                     ~0u << 17 & all};
  const std::uint32_t sign = random() % 2 == 0 ? 0 : 1u << 31;
  return from_bits<T>(sign | exponent << fraction_bits | fractions[random() % 8]);
}

template <class T>
std::vector<T> contribution_of(Kind kind, std::size_t count, unsigned seed) {
  std::mt19937 random(seed);
  std::vector<T> values(count);
  for (T& value : values) {
    const bool special = kind == Kind::any || (kind == Kind::rare && random() % 50 == 0);
    value = special ? any<T>(random) : ordinary<T>(random);
  }
  return values;
}

/// What is computed from two NaNs may have the payload of either.
struct Formula {
  bool ambiguous = false;

  float sum(float a, float b) {
    ambiguous = ambiguous || (std::isnan(a) && std::isnan(b));
    return a + b;
  }
  float product(float a, float b) {
    ambiguous = ambiguous || (std::isnan(a) && std::isnan(b));
    return a * b;
  }
};

/// Results of `vectors` that are not round(old + scale * sum of the contributions).
template <class In, class Out>
std::size_t differences(const std::vector<std::vector<In>>& inputs, const std::vector<Out>& old,
                        const ReduceSpec& spec, detail::Vectors vectors, bool streaming) {
  std::vector<const void*> pointers;
  for (const auto& input : inputs) pointers.push_back(input.data());
  std::vector<Out> got = old;
  canonical_reduce(pointers, {}, dtype_of<In>, old.size(), got.data(), spec, streaming, vectors);
  std::size_t wrong = 0;
  for (std::size_t i = 0; i < old.size(); ++i) {
    Formula formula;
    float sums[4] = {};
    for (std::size_t r = 0; r < inputs.size(); ++r) sums[r] = cast_element<float>(inputs[r][i]);
    float sum = sums[0];
    if (inputs.size() > 1) sum = formula.sum(sum, sums[1]);
    if (inputs.size() == 3) sum = formula.sum(sum, sums[2]);
    if (inputs.size() == 4) sum = formula.sum(sum, formula.sum(sums[2], sums[3]));
    sum = formula.product(static_cast<float>(spec.scale), sum);
    sum = formula.sum(spec.accumulate ? cast_element<float>(old[i]) : 0.0f, sum);
    const Out expected = cast_element<Out>(sum);
    const bool equal = std::memcmp(&expected, &got[i], sizeof(Out)) == 0;
    const bool nan = std::isnan(cast_element<float>(got[i]));
    wrong += (formula.ambiguous ? nan : equal) ? 0u : 1u;
  }
  return wrong;
}

}  // namespace shardwise::test
