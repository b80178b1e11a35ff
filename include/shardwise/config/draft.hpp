#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "../core/format.hpp"
#include "configuration.hpp"
#include "field.hpp"
#include "reading.hpp"
#include "write.hpp"

namespace shardwise::inline v0_1::detail {

/// What comes out of a file while a form's rules are applied to it.
struct ConfigDraft {
  ConfigReading& reading;
  const Hints& hints;
  Configuration configuration = {};
  ConfigSources sources = {};

  /// Sets a field to a text of its domain; false, and a problem, where it is out of it.
  bool set(ConfigField field, std::string_view text, const ConfigValue& value,
           std::string_view derived = {}) {
    if (!info_of(field).scan(text, configuration)) {
      reading.problem(value, format("{} = {} is out of range", name_of(field), text));
      return false;
    }
    std::string& source = sources[static_cast<std::size_t>(field)];
    source = reading.source(value);
    if (!derived.empty()) source += format(" ({})", derived);
    reading.applied(value, format("{} = {}", name_of(field), text_of(configuration, field)));
    return true;
  }
  bool set(ConfigField field, std::uint64_t number, const ConfigValue& value,
           std::string_view derived = {}) {
    return set(field, std::string_view(std::to_string(number)), value, derived);
  }
  void set(ConfigField field, const ConfigValue& value) {
    set(field, std::string_view(value.flag ? "true" : "false"), value);
  }
  /// The placements, shard_group and reshard_after_forward of a named strategy.
  void set_strategy(std::string_view name, const ConfigValue& value) {
    const Strategy named = Strategy::parse(name);
    Strategy& strategy = configuration.strategy;
    strategy.parameters = named.parameters;
    strategy.gradients = named.gradients;
    strategy.optimizer_state = named.optimizer_state;
    strategy.shard_group = named.shard_group;
    strategy.reshard_group = named.reshard_group;
    strategy.reshard_after_forward = named.reshard_after_forward;
    for (std::size_t i = 0; i <= static_cast<std::size_t>(ConfigField::reshard_after_forward);
         ++i) {
      sources[i] = reading.source(value);
    }
    reading.applied(value, format("strategy = {}", strategy.name()));
  }

  /// Ranks that share the batch, where the file or a hint says so.
  [[nodiscard]] std::optional<std::size_t> ranks() const {
    return configuration.ranks ? configuration.ranks : hints.world;
  }
  /// A problem at `value`, which has set reshard_group, where they are no part of those that shard.
  void check_secondary(const ConfigValue& value) {
    const int secondary = configuration.strategy.reshard_group;
    const auto group = static_cast<std::size_t>(configuration.strategy.shard_group);
    const std::optional<std::size_t> all = group > 0 ? group : ranks();
    if (secondary > 1 && all && *all % static_cast<std::size_t>(secondary) != 0) {
      reading.problem(
          value, format("{} ranks do not divide the {} that shard parameters", secondary, *all));
    }
  }
  /// A problem at `value`, which has set shard_group, where groups cannot be so.
  void check_group(const ConfigValue& value) {
    const Strategy& strategy = configuration.strategy;
    const int group = strategy.shard_group;
    if (group > 1 && strategy.optimizer_state == Placement::replicated) {
      reading.problem(value, "nothing is sharded, so there are no groups that shard it");
    }
    const std::optional<std::size_t> all = ranks();
    if (group > 1 && all && *all % static_cast<std::size_t>(group) != 0) {
      reading.problem(value, format("groups of {} ranks do not divide {} ranks", group, *all));
    }
  }

  /// A hint for an "auto"; a problem that names it where there is none.
  template <class T>
  [[nodiscard]] const T* need(const std::optional<T>& hint, std::string_view name,
                              const ConfigValue& value) {
    if (hint) return &*hint;
    reading.problem(value, format("\"auto\" needs the hint {} (Hints::{}), and there is none; give "
                                  "it, or write a value",
                                  name, name));
    return nullptr;
  }
};

}  // namespace shardwise::inline v0_1::detail
