#include "quantity.hpp"

#include <fmt/format.h>

#include <cmath>
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <utility>

namespace plan {
namespace {

double prefix_of(std::string_view& unit) {
  constexpr std::pair<char, int> prefixes[] = {{'k', 1}, {'K', 1}, {'M', 2},
                                               {'G', 3}, {'T', 4}, {'P', 5}};
  for (const auto& [letter, power] : prefixes) {
    if (!unit.starts_with(letter)) continue;
    unit.remove_prefix(1);
    const bool binary = unit.starts_with('i');
    if (binary) unit.remove_prefix(1);
    return std::pow(binary ? 1024.0 : 1000.0, power);
  }
  return 1;
}

}  // namespace

double quantity(std::string_view text) {
  const std::string copy(text);
  char* end = nullptr;
  const double number = std::strtod(copy.c_str(), &end);
  std::string_view unit(end);
  const auto fail = [&](std::string_view why) -> double {
    throw std::invalid_argument(fmt::format(
        "'{}' {}: expected a number with a unit, as 80GiB, 450GB/s, 7e9 or 5us", text, why));
  };
  if (end == copy.c_str()) return fail("is no number");
  if (!std::isfinite(number) || number < 0) return fail("is negative or not finite");
  while (unit.starts_with(' ')) unit.remove_prefix(1);
  if (unit == "s") return number;
  if (unit == "ms") return number * 1e-3;
  if (unit == "us") return number * 1e-6;
  if (unit == "B") return number < 1000 ? number * 1e9 : number;
  double factor = prefix_of(unit);
  if (unit.ends_with("/s")) unit.remove_suffix(2);
  if (unit == "b" || unit == "bit") {
    factor /= 8;
  } else if (!unit.empty() && unit != "B" && unit != "FLOP" && unit != "FLOPS") {
    return fail(fmt::format("has the unknown unit '{}'", end));
  }
  return number * factor;
}

}  // namespace plan
