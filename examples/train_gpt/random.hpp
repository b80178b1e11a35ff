#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

namespace train_gpt {

/// A bijection of 64 bits that leaves no visible order: the output function of SplitMix64 (Steele,
/// Lea, Flood: "Fast Splittable Pseudorandom Number Generators", 2014).
[[nodiscard]] constexpr std::uint64_t scramble(std::uint64_t value) noexcept {
  value += 0x9e3779b97f4a7c15u;
  value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9u;
  value = (value ^ (value >> 27)) * 0x94d049bb133111ebu;
  return value ^ (value >> 31);
}

/// A random number that depends on the key and the three counters alone, in no order of drawing:
/// what any rank draws for itself is what a single process would have drawn.
[[nodiscard]] constexpr std::uint64_t random_bits(std::uint64_t key, std::uint64_t a,
                                                  std::uint64_t b = 0,
                                                  std::uint64_t c = 0) noexcept {
  return scramble(scramble(scramble(scramble(key) ^ a) ^ b) ^ c);
}

/// Uniform in (0, 1).
[[nodiscard]] constexpr double to_unit_interval(std::uint64_t bits) noexcept {
  return (static_cast<double>(bits >> 11) + 0.5) * 0x1p-53;
}

/// A key made from a name (FNV-1a).
[[nodiscard]] constexpr std::uint64_t key_of(std::string_view name) noexcept {
  std::uint64_t key = 0xcbf29ce484222325u;
  for (const char letter : name) {
    key = (key ^ static_cast<unsigned char>(letter)) * 0x100000001b3u;
  }
  return key;
}

}  // namespace train_gpt
