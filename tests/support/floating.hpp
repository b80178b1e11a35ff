#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <random>
#include <shardwise/core/dtype.hpp>
#include <vector>

namespace shardwise::test {

/// True where both vectors hold the same bytes.
template <class T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() &&
         (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0);
}

/// Normally distributed numbers.
template <class T>
std::vector<T> normal_values(std::size_t count, unsigned seed, double scale = 1) {
  std::mt19937 random(seed);
  std::normal_distribution<double> normal(0, scale);
  std::vector<T> values;
  values.reserve(count);
  for (std::size_t i = 0; i < count; ++i) {
    values.push_back(static_cast<T>(static_cast<Accumulator<T>>(normal(random))));
  }
  return values;
}

}  // namespace shardwise::test
