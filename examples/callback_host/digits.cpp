#include "digits.hpp"

#include <array>
#include <cmath>
#include <string_view>

namespace callback_host {
namespace {

constexpr int rows = 7, columns = 5;
constexpr std::array<std::string_view, digits::classes> glyphs = {
    " ### #   ##  ### # ###  ##   # ### ",  // 0
    "  #   ##    #    #    #    #   ### ",  // 1
    " ### #   #    #   #   #   #   #####",  // 2
    " ### #   #    #  ##     ##   # ### ",  // 3
    "   #   ##  # # #  # #####   #    # ",  // 4
    "######    ####     #    ##   # ### ",  // 5
    "  ##  #   #    #### #   ##   # ### ",  // 6
    "#####    #   #   #   #    #    #   ",  // 7
    " ### #   ##   # ### #   ##   # ### ",  // 8
    " ### #   ##   # ####    #   #  ##  ",  // 9
};

/// The output function of SplitMix64 (Steele, Lea, Flood, 2014), counted up from a key.
class Random {
 public:
  Random(std::uint64_t seed, std::uint64_t index) : state_(mix(mix(seed) ^ index)) {}

  std::uint64_t bits() { return mix(state_++); }
  /// In [low, high).
  float uniform(float low, float high) {
    return low + (high - low) * (static_cast<float>(bits() >> 40) * 0x1p-24f);
  }

 private:
  static std::uint64_t mix(std::uint64_t value) {
    value += 0x9e3779b97f4a7c15u;
    value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9u;
    value = (value ^ (value >> 27)) * 0x94d049bb133111ebu;
    return value ^ (value >> 31);
  }

  std::uint64_t state_;
};

}  // namespace

unsigned long digits::draw(std::uint64_t seed, std::uint64_t index,
                           std::span<float, pixels> image) {
  Random random(seed, index);
  const auto label = static_cast<unsigned long>(random.bits() % classes);
  const std::string_view glyph = glyphs[label];
  const float width = random.uniform(1.7f, 2.7f), height = random.uniform(1.7f, 2.5f);
  const float slant = random.uniform(-0.25f, 0.25f);
  constexpr float middle = static_cast<float>(side) / 2;
  const float x0 = middle + random.uniform(-2.5f, 2.5f), y0 = middle + random.uniform(-1.5f, 1.5f);
  const float ink = random.uniform(0.6f, 1.0f);
  for (long row = 0; row < side; ++row) {
    for (long column = 0; column < side; ++column) {
      const float y = static_cast<float>(row) + 0.5f - y0;
      const float x = static_cast<float>(column) + 0.5f - x0 + slant * y;
      const float down = std::floor(y / height + rows / 2.0f);
      const float right = std::floor(x / width + columns / 2.0f);
      const bool inside = down >= 0 && down < rows && right >= 0 && right < columns;
      const bool dark = inside && glyph[static_cast<std::size_t>(down * columns + right)] == '#';
      image[static_cast<std::size_t>(row * side + column)] =
          (dark ? ink : 0.0f) + random.uniform(-0.3f, 0.3f);
    }
  }
  return label;
}

}  // namespace callback_host
