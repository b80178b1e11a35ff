#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace callback_host {

/// Digits drawn by a rule, in as many variants as anyone asks for: seven by five dots, shifted,
/// stretched, slanted and buried in noise.
namespace digits {

inline constexpr long side = 20;  ///< pixels
inline constexpr std::size_t pixels = std::size_t{side * side};
inline constexpr unsigned long classes = 10;

/// Draws sample `index` of the endless row that belongs to a seed, and says which digit it is.
/// Depends on its arguments alone, so that any rank can draw any part of a batch.
unsigned long draw(std::uint64_t seed, std::uint64_t index, std::span<float, pixels> image);

}  // namespace digits
}  // namespace callback_host
