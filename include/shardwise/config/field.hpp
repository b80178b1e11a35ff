#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>

#include "../core/dtype.hpp"
#include "../strategy.hpp"
#include "configuration.hpp"
#include "number.hpp"

namespace shardwise::inline v0_1 {

/// The members of a Configuration, by the names that shardwise's own files have for them.
enum class ConfigField : std::uint8_t {
  parameters,
  gradients,
  optimizer_state,
  reshard_after_forward,
  persistence_threshold,
  prefetch,
  bucket_bytes,
  max_live_bytes,
  keep_resident_bytes,
  lease,
  gradient_lease,
  wire,
  overlap,
  accumulation,
  gradient_storage,
  ranks,
  global_batch,
  micro_batch,
  micro_batches,
  clip,
  loss_scale,
  loss_scale_growth,
  loss_scale_window,
  loss_scale_minimum
};

inline constexpr std::size_t config_field_count =
    static_cast<std::size_t>(ConfigField::loss_scale_minimum) + 1;

namespace detail {

enum class ConfigUnit : std::uint8_t { none, bytes, at_least_one, not_negative, positive };

template <class T>
struct IsOptional : std::false_type {};
template <class T>
struct IsOptional<std::optional<T>> : std::true_type {};

[[nodiscard]] inline std::optional<DType> floating_named(std::string_view name) noexcept {
  if (name == "f32" || name == "fp32" || name == "float32") return DType::f32;
  if (name == "bf16" || name == "bfloat16") return DType::bf16;
  if (name == "f16" || name == "fp16" || name == "float16") return DType::f16;
  if (name == "f64" || name == "fp64" || name == "float64") return DType::f64;
  return std::nullopt;
}

[[nodiscard]] inline std::string print_setting(Placement value) {
  return std::string(name_of(value));
}
[[nodiscard]] inline std::string print_setting(Accumulation value) {
  return std::string(name_of(value));
}
[[nodiscard]] inline std::string print_setting(DType value) { return std::string(name_of(value)); }
[[nodiscard]] inline std::string print_setting(bool value) { return value ? "true" : "false"; }
[[nodiscard]] inline std::string print_setting(double value) { return print_number(value); }
[[nodiscard]] inline std::string print_setting(std::size_t value) { return std::to_string(value); }
[[nodiscard]] inline std::string print_setting(int value) { return std::to_string(value); }

inline bool scan_setting(std::string_view text, Placement& value, ConfigUnit) {
  value = text == "sharded" ? Placement::sharded : Placement::replicated;
  return text == "sharded" || text == "replicated";
}
inline bool scan_setting(std::string_view text, Accumulation& value, ConfigUnit) {
  value = text == "hold" ? Accumulation::hold : Accumulation::reduce;
  return text == "hold" || text == "reduce";
}
inline bool scan_setting(std::string_view text, bool& value, ConfigUnit) {
  value = text == "true";
  return text == "true" || text == "false";
}
inline bool scan_setting(std::string_view text, DType& value, ConfigUnit) {
  const std::optional<DType> type = floating_named(text);
  value = type.value_or(DType::f32);
  return type.has_value();
}
inline bool scan_setting(std::string_view text, double& value, ConfigUnit unit) {
  const std::optional<double> number = parse_number(text);
  value = number.value_or(0);
  return number && (unit == ConfigUnit::positive       ? value > 0
                    : unit == ConfigUnit::at_least_one ? value >= 1
                                                       : value >= 0);
}
inline bool scan_setting(std::string_view text, std::size_t& value, ConfigUnit unit) {
  const std::optional<std::uint64_t> count =
      unit == ConfigUnit::bytes ? parse_bytes(text) : parse_count(text);
  constexpr auto largest = static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max());
  if (!count || *count > largest) return false;
  value = static_cast<std::size_t>(*count);
  return unit != ConfigUnit::at_least_one || value >= 1;
}
inline bool scan_setting(std::string_view text, int& value, ConfigUnit) {
  const std::optional<std::uint64_t> count = parse_count(text);
  if (!count || *count > static_cast<std::uint64_t>(std::numeric_limits<int>::max())) return false;
  value = static_cast<int>(*count);
  return true;
}

/// A type that is not set is "default"; anything else that is not set has no text.
template <class T>
[[nodiscard]] std::string print_setting(const std::optional<T>& value) {
  if (value) return print_setting(*value);
  return std::is_same_v<T, DType> ? "default" : "";
}
template <class T>
bool scan_setting(std::string_view text, std::optional<T>& value, ConfigUnit unit) {
  value.reset();
  if (std::is_same_v<T, DType> && text == "default") return true;
  T found{};
  if (!scan_setting(text, found, unit)) return false;
  value = found;
  return true;
}

/// One member of a Configuration as text.
struct ConfigFieldInfo {
  std::string_view name;
  std::string_view domain;
  std::string_view meaning;
  std::string (*print)(const Configuration&);
  /// False, and the member is not to be used, where the text is out of the domain.
  bool (*scan)(std::string_view, Configuration&);
};

template <auto Member, ConfigUnit Unit = ConfigUnit::none>
[[nodiscard]] constexpr ConfigFieldInfo describe_field(std::string_view name,
                                                       std::string_view domain,
                                                       std::string_view meaning) noexcept {
  if constexpr (requires(Configuration & c) { c.*Member; }) {
    return {name, domain, meaning, [](const Configuration& c) { return print_setting(c.*Member); },
            [](std::string_view text, Configuration& c) {
              return scan_setting(text, c.*Member, Unit);
            }};
  } else {
    return {name, domain, meaning,
            [](const Configuration& c) { return print_setting(c.strategy.*Member); },
            [](std::string_view text, Configuration& c) {
              return scan_setting(text, c.strategy.*Member, Unit);
            }};
  }
}

inline constexpr std::string_view placement_domain = "sharded, replicated";
inline constexpr std::string_view type_domain = "f32, bf16, f16, f64, default";

/// In the order of ConfigField.
inline constexpr std::array<ConfigFieldInfo, config_field_count> config_fields{{
    describe_field<&Strategy::parameters>("parameters", placement_domain,
                                          "how parameters are held at rest"),
    describe_field<&Strategy::gradients>("gradients", placement_domain,
                                         "how gradients are held at rest"),
    describe_field<&Strategy::optimizer_state>("optimizer_state", placement_domain,
                                               "how the optimizer's state is held"),
    describe_field<&Strategy::reshard_after_forward>(
        "reshard_after_forward", "true, false",
        "sharded parameters: false keeps them gathered from forward to backward"),
    describe_field<&Strategy::persistence_threshold>(
        "persistence_threshold", "elements, 0 or more",
        "a parameter with fewer elements stays replicated"),
    describe_field<&Strategy::prefetch>("prefetch", "0 or more",
                                        "parameters that are gathered ahead of use"),
    describe_field<&Strategy::bucket_bytes, ConfigUnit::bytes>(
        "bucket_bytes", "bytes, also as 25MiB; 0: none",
        "consecutive parameters share one collective up to so many bytes"),
    describe_field<&Strategy::max_live_bytes, ConfigUnit::bytes>(
        "max_live_bytes", "bytes, also as 2GiB; 0: none",
        "cap on the bytes of gathered parameters"),
    describe_field<&Strategy::keep_resident_bytes, ConfigUnit::bytes>(
        "keep_resident_bytes", "bytes, also as 64MiB; 0: none",
        "residency in_place: small parameters keep their memory up to so many bytes"),
    describe_field<&Strategy::lease>("lease", type_domain,
                                     "what the compute sees; default: the storage type"),
    describe_field<&Strategy::gradient_lease>(
        "gradient_lease", type_domain,
        "what the compute writes gradients in; default: the lease type"),
    describe_field<&Strategy::wire>("wire", type_domain,
                                    "what reductions carry; default: the gradient lease type"),
    describe_field<&Strategy::overlap>("overlap", "true, false",
                                       "communication runs beside compute"),
    describe_field<&Strategy::accumulation>(
        "accumulation", "reduce, hold",
        "micro-batches: each is reduced, or the gradient is held and reduced once"),
    describe_field<&Configuration::gradient_storage>(
        "gradient_storage", type_domain, "type of the stored gradient; default: the host's"),
    describe_field<&Configuration::ranks, ConfigUnit::at_least_one>("ranks", "1 or more",
                                                                    "ranks that share the batch"),
    describe_field<&Configuration::global_batch, ConfigUnit::at_least_one>(
        "global_batch", "1 or more", "samples of a step: ranks x micro_batch x micro_batches"),
    describe_field<&Configuration::micro_batch, ConfigUnit::at_least_one>(
        "micro_batch", "1 or more", "samples that one rank computes at once"),
    describe_field<&Configuration::micro_batches, ConfigUnit::at_least_one>(
        "micro_batches", "1 or more", "micro-batches of one rank in one step"),
    describe_field<&Configuration::clip>("clip", "0 or more; 0: none",
                                         "largest norm of the gradient"),
    describe_field<&Configuration::loss_scale, ConfigUnit::positive>("loss_scale", "above 0",
                                                                     "LossScaler: initial_scale"),
    describe_field<&Configuration::loss_scale_growth, ConfigUnit::at_least_one>(
        "loss_scale_growth", "1 or more", "LossScaler: growth_factor; 1 keeps the scale"),
    describe_field<&Configuration::loss_scale_window, ConfigUnit::at_least_one>(
        "loss_scale_window", "1 or more", "LossScaler: growth_interval, in steps"),
    describe_field<&Configuration::loss_scale_minimum, ConfigUnit::positive>(
        "loss_scale_minimum", "above 0", "LossScaler: minimum_scale"),
}};

[[nodiscard]] constexpr const ConfigFieldInfo& info_of(ConfigField field) noexcept {
  return config_fields[static_cast<std::size_t>(field)];
}

}  // namespace detail

/// The name of a field in shardwise's own files: "bucket_bytes".
[[nodiscard]] constexpr std::string_view name_of(ConfigField field) noexcept {
  return detail::info_of(field).name;
}

/// Its value as it stands in such a file; empty where the configuration leaves it to the host.
[[nodiscard]] inline std::string text_of(const Configuration& configuration, ConfigField field) {
  return detail::info_of(field).print(configuration);
}

}  // namespace shardwise::inline v0_1
