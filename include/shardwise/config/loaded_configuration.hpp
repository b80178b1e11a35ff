#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "../core/error.hpp"
#include "../core/format.hpp"
#include "../core/hash.hpp"
#include "configuration.hpp"
#include "field.hpp"
#include "key.hpp"
#include "reading.hpp"
#include "write.hpp"

namespace shardwise::inline v0_1 {

/// A Configuration that came out of a file: where each value comes from, and what became of each
/// key.
class LoadedConfiguration {
 public:
  LoadedConfiguration(std::string file, ConfigForm form, const Configuration& values,
                      ConfigSources sources, std::vector<ConfigKeyReport> keys)
      : file_(std::move(file)),
        form_(form),
        values_(values),
        sources_(std::move(sources)),
        keys_(std::move(keys)) {}

  [[nodiscard]] const std::string& file() const noexcept { return file_; }
  [[nodiscard]] ConfigForm form() const noexcept { return form_; }
  [[nodiscard]] const Configuration& values() const noexcept { return values_; }
  [[nodiscard]] const Strategy& strategy() const noexcept { return values_.strategy; }

  /// "z3.json:12:5: zero_optimization.stage", "--prefetch"; "default" where nobody said.
  [[nodiscard]] std::string_view source(ConfigField field) const noexcept {
    const std::string& source = sources_[static_cast<std::size_t>(field)];
    return source.empty() ? std::string_view("default") : std::string_view(source);
  }
  /// Whether the file, a hint or an override says what this is.
  [[nodiscard]] bool says(ConfigField field) const noexcept {
    return !sources_[static_cast<std::size_t>(field)].empty();
  }
  /// Every key of the file, in its order.
  [[nodiscard]] const std::vector<ConfigKeyReport>& keys() const noexcept { return keys_; }

  /// Another source has the last word, such as an option of the command line. ConfigError, which
  /// names the source, where the text is none of the field's.
  void override_field(ConfigField field, std::string_view text, std::string source) {
    Configuration changed = values_;
    if (!detail::info_of(field).scan(text, changed)) {
      raise<ConfigError>("{}: '{}' is no value of {}", source, text, name_of(field));
    }
    values_ = changed;
    sources_[static_cast<std::size_t>(field)] = std::move(source);
  }
  /// The placements, shard_group and reshard_after_forward of a named strategy; ConfigError where
  /// there is none.
  void override_strategy(std::string_view name, const std::string& source) {
    const Strategy named = Strategy::parse(name);
    Strategy& strategy = values_.strategy;
    strategy.parameters = named.parameters;
    strategy.gradients = named.gradients;
    strategy.optimizer_state = named.optimizer_state;
    strategy.shard_group = named.shard_group;
    strategy.reshard_group = named.reshard_group;
    strategy.reshard_after_forward = named.reshard_after_forward;
    for (std::size_t i = 0; i <= static_cast<std::size_t>(ConfigField::reshard_after_forward);
         ++i) {
      sources_[i] = source;
    }
  }

  /// The effective configuration in shardwise's own form, with where each value comes from and,
  /// below, the keys that had no effect or were refused. load_config reads it back as an equal one.
  [[nodiscard]] std::string print() const {
    ConfigSources sources;
    for (std::size_t i = 0; i < config_field_count; ++i) {
      sources[i] = source(static_cast<ConfigField>(i));
    }
    std::string text =
        write_config(values_, detail::format("{} ({})", file_, name_of(form_)), sources);
    for (const ConfigOutcome outcome : {ConfigOutcome::without_effect, ConfigOutcome::refused}) {
      bool any = false;
      for (const ConfigKeyReport& key : keys_) {
        if (key.outcome != outcome) continue;
        if (!any) text += detail::format("# {}:\n", name_of(outcome));
        any = true;
        text += detail::commented(detail::format("  {}:{}: {} = {}: {}", key.line, key.column,
                                                 key.path, key.value, key.note));
      }
    }
    return text;
  }

  /// Equal where the values are; not of where they come from.
  [[nodiscard]] std::uint64_t hash() const {
    detail::Hash hash;
    for (std::size_t i = 0; i < config_field_count; ++i) {
      hash.add(text_of(values_, static_cast<ConfigField>(i)));
    }
    return hash.value();
  }

 private:
  std::string file_;
  ConfigForm form_;
  Configuration values_;
  ConfigSources sources_;
  std::vector<ConfigKeyReport> keys_;
};

}  // namespace shardwise::inline v0_1
