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
#include "key.hpp"
#include "number.hpp"

namespace shardwise::inline v0_1 {

/// The members of a Configuration, by the names that shardwise's own files have for them.
enum class ConfigField : std::uint8_t {
  parameters,
  gradients,
  optimizer_state,
  shard_group,
  reshard_group,
  reshard_after_forward,
  persistence_threshold,
  prefetch,
  bucket_bytes,
  max_live_bytes,
  keep_resident_bytes,
  residency,
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

enum class ConfigUnit : std::uint8_t { none, bytes, at_least_one, positive };

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
[[nodiscard]] inline std::string print_setting(Residency value) {
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
inline bool scan_setting(std::string_view text, Residency& value, ConfigUnit) {
  value = text == "shared" ? Residency::shared : Residency::slots;
  return text == "shared" || text == "slots";
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
  ConfigKind kind;
  std::string_view range;  ///< as ConfigKey::domain
  std::string_view meaning;
  std::string (*print)(const Configuration&);
  /// False, and the member is not to be used, where the text is out of the domain.
  bool (*scan)(std::string_view, Configuration&);
};

template <auto Member, ConfigUnit Unit = ConfigUnit::none>
[[nodiscard]] constexpr ConfigFieldInfo describe_field(std::string_view name, ConfigKind kind,
                                                       std::string_view range,
                                                       std::string_view meaning) noexcept {
  if constexpr (requires(Configuration & c) { c.*Member; }) {
    return {name,
            kind,
            range,
            meaning,
            [](const Configuration& c) { return print_setting(c.*Member); },
            [](std::string_view text, Configuration& c) {
              return scan_setting(text, c.*Member, Unit);
            }};
  } else {
    return {name,
            kind,
            range,
            meaning,
            [](const Configuration& c) { return print_setting(c.strategy.*Member); },
            [](std::string_view text, Configuration& c) {
              return scan_setting(text, c.strategy.*Member, Unit);
            }};
  }
}

inline constexpr std::string_view placement_domain = "sharded|replicated";
inline constexpr std::string_view type_domain =
    "f32|bf16|f16|f64|default|fp32|fp16|fp64|float32|bfloat16|float16|float64";

/// In the order of ConfigField.
inline constexpr std::array<ConfigFieldInfo, config_field_count> config_fields{{
    describe_field<&Strategy::parameters>("parameters", ConfigKind::word, placement_domain,
                                          "how parameters are held at rest"),
    describe_field<&Strategy::gradients>("gradients", ConfigKind::word, placement_domain,
                                         "how gradients are held at rest"),
    describe_field<&Strategy::optimizer_state>(
        "optimizer_state", ConfigKind::word, placement_domain, "how the optimizer's state is held"),
    describe_field<&Strategy::shard_group>(
        "shard_group", ConfigKind::integer, "0..2147483647",
        "ranks of a group that shards what is sharded (hybrid); 0: all"),
    describe_field<&Strategy::reshard_group>(
        "reshard_group", ConfigKind::integer, "0..2147483647",
        "ranks among which parameters are gathered again (hpZ); 0: those of the first gather"),
    describe_field<&Strategy::reshard_after_forward>(
        "reshard_after_forward", ConfigKind::boolean, "",
        "sharded parameters: false keeps them gathered from forward to backward"),
    describe_field<&Strategy::persistence_threshold>(
        "persistence_threshold", ConfigKind::integer, "0..",
        "a parameter with fewer elements stays replicated; 0: none"),
    describe_field<&Strategy::prefetch>(
        "prefetch", ConfigKind::integer, "0..2147483647",
        "parameters that are gathered ahead of use, where gathers run "
        "beside compute"),
    describe_field<&Strategy::bucket_bytes, ConfigUnit::bytes>(
        "bucket_bytes", ConfigKind::bytes, "0..",
        "consecutive parameters share one collective up to so many bytes; 0: none do"),
    describe_field<&Strategy::max_live_bytes, ConfigUnit::bytes>(
        "max_live_bytes", ConfigKind::bytes, "0..",
        "cap on the bytes of gathered parameters; 0: none"),
    describe_field<&Strategy::keep_resident_bytes, ConfigUnit::bytes>(
        "keep_resident_bytes", ConfigKind::bytes, "0..",
        "residency in_place: small parameters keep their memory up to so many bytes"),
    describe_field<&Strategy::residency>(
        "residency", ConfigKind::word, "slots|shared",
        "where gathered parameters live; shared: one copy for all ranks of a machine"),
    describe_field<&Strategy::lease>("lease", ConfigKind::word, type_domain,
                                     "what the compute sees; default: the storage type"),
    describe_field<&Strategy::gradient_lease>(
        "gradient_lease", ConfigKind::word, type_domain,
        "what the compute writes gradients in; default: the lease type"),
    describe_field<&Strategy::wire>("wire", ConfigKind::word, type_domain,
                                    "what reductions carry; default: the gradient lease type"),
    describe_field<&Strategy::overlap>("overlap", ConfigKind::boolean, "",
                                       "communication runs beside compute"),
    describe_field<&Strategy::accumulation>(
        "accumulation", ConfigKind::word, "reduce|hold",
        "micro-batches: each is reduced, or the gradient is held and reduced once"),
    describe_field<&Configuration::gradient_storage>(
        "gradient_storage", ConfigKind::word, type_domain,
        "type of the stored gradient; default: the host's"),
    describe_field<&Configuration::ranks, ConfigUnit::at_least_one>(
        "ranks", ConfigKind::integer, "1..", "ranks that share the batch"),
    describe_field<&Configuration::global_batch, ConfigUnit::at_least_one>(
        "global_batch", ConfigKind::integer, "1..",
        "samples of a step: ranks x micro_batch x micro_batches"),
    describe_field<&Configuration::micro_batch, ConfigUnit::at_least_one>(
        "micro_batch", ConfigKind::integer, "1..", "samples that one rank computes at once"),
    describe_field<&Configuration::micro_batches, ConfigUnit::at_least_one>(
        "micro_batches", ConfigKind::integer, "1..", "micro-batches of one rank in one step"),
    describe_field<&Configuration::clip>("clip", ConfigKind::number, "0..",
                                         "largest norm of the gradient; 0: not clipped"),
    describe_field<&Configuration::loss_scale, ConfigUnit::positive>(
        "loss_scale", ConfigKind::number, "0<..", "LossScaler: initial_scale"),
    describe_field<&Configuration::loss_scale_growth, ConfigUnit::at_least_one>(
        "loss_scale_growth", ConfigKind::number, "1..",
        "LossScaler: growth_factor; 1 keeps the scale"),
    describe_field<&Configuration::loss_scale_window, ConfigUnit::at_least_one>(
        "loss_scale_window", ConfigKind::integer, "1..", "LossScaler: growth_interval, in steps"),
    describe_field<&Configuration::loss_scale_minimum, ConfigUnit::positive>(
        "loss_scale_minimum", ConfigKind::number, "0<..", "LossScaler: minimum_scale"),
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
