#pragma once

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "../core/error.hpp"

namespace shardwise::inline v0_1 {

/// A value that a host keeps beside its tensors: a truth, a whole number, a real one, a text or
/// bytes (the state of a random generator). It comes back with the same bits.
class CheckpointValue {
 public:
  using Bytes = std::vector<std::byte>;
  using Held = std::variant<bool, std::int64_t, std::uint64_t, double, std::string, Bytes>;

  CheckpointValue() = default;
  template <std::integral T>
  CheckpointValue(T value) {
    if constexpr (std::same_as<T, bool>) {
      held_ = value;
    } else if (std::in_range<std::int64_t>(value)) {
      held_ = static_cast<std::int64_t>(value);
    } else {
      held_ = static_cast<std::uint64_t>(value);
    }
  }
  template <std::floating_point T>
  CheckpointValue(T value) : held_(static_cast<double>(value)) {}
  CheckpointValue(std::string text) : held_(std::move(text)) {}
  CheckpointValue(std::string_view text) : held_(std::string(text)) {}
  CheckpointValue(const char* text) : held_(std::string(text)) {}
  CheckpointValue(Bytes bytes) : held_(std::move(bytes)) {}

  /// A whole number is held as std::int64_t where it fits.
  [[nodiscard]] const Held& held() const noexcept { return held_; }

  /// The value as T: bool, std::int64_t, std::uint64_t, double, std::string or Bytes. UsageError
  /// where it is another, or a whole number that does not fit.
  template <class T>
  [[nodiscard]] T as() const {
    if (const T* const value = std::get_if<T>(&held_)) return *value;
    if constexpr (std::same_as<T, std::uint64_t>) {
      const auto* const value = std::get_if<std::int64_t>(&held_);
      if (value != nullptr && *value >= 0) return static_cast<T>(*value);
    }
    raise("a value of a checkpoint is {}, which was asked for as another type", kind());
  }

  /// "a truth", "a whole number", ...
  [[nodiscard]] const char* kind() const noexcept {
    constexpr const char* kinds[] = {"a truth",       "a whole number", "a whole number",
                                     "a real number", "a text",         "bytes"};
    return kinds[held_.index()];
  }

  /// Equal types and bits; two NaNs are not equal.
  [[nodiscard]] bool operator==(const CheckpointValue&) const = default;

 private:
  Held held_ = false;
};

/// By name.
using CheckpointValues = std::map<std::string, CheckpointValue, std::less<>>;

}  // namespace shardwise::inline v0_1
