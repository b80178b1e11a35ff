#pragma once

#include <array>
#include <cstddef>
#include <string>
#include <string_view>

#include "draft.hpp"
#include "field.hpp"
#include "key.hpp"

namespace shardwise::inline v0_1::detail {

namespace keys {

[[nodiscard]] constexpr ConfigKey own_key(ConfigField field) noexcept {
  const ConfigFieldInfo& info = info_of(field);
  // What stands there is checked by the field itself, which takes 25MiB and 5e8, too.
  ConfigKey key{.path = info.name, .kind = info.kind, .note = info.meaning, .domain = info.range};
  return key;
}

[[nodiscard]] constexpr std::array<ConfigKey, config_field_count + 1> own_keys() noexcept {
  std::array<ConfigKey, config_field_count + 1> all{};
  all[0] = {
      .path = "strategy",
      .kind = ConfigKind::word,
      .note = "the placements and reshard_after_forward, by a name; hybrid: zero3 with shard_group",
      .domain = "ddp|zero1|zero2|zero3|zero3-no-reshard|fsdp|fsdp-shard-grad-op|hybrid"};
  for (std::size_t i = 0; i < config_field_count; ++i) {
    all[i + 1] = own_key(static_cast<ConfigField>(i));
  }
  return all;
}

/// shardwise's own form: the name of a strategy, and the fields of a Configuration.
inline constexpr std::array<ConfigKey, config_field_count + 1> own = own_keys();

}  // namespace keys

class OwnRules {
 public:
  explicit OwnRules(ConfigDraft& draft) : draft_(draft) {}

  void apply() {
    if (const ConfigValue* name = draft_.reading.find("strategy")) {
      draft_.set_strategy(name->text, *name);
    }
    for (std::size_t i = 0; i < config_field_count; ++i) {
      const auto field = static_cast<ConfigField>(i);
      const ConfigValue* value = draft_.reading.find(name_of(field));
      if (value != nullptr) draft_.set(field, value->text, *value);
    }
    check_placements();
    check_residency();
    check_groups();
    const Configuration& found = draft_.configuration;
    const ConfigValue* batch = draft_.reading.find("global_batch");
    if (batch != nullptr && found.ranks && found.global_batch && found.micro_batch &&
        found.micro_batches) {
      std::size_t product = 0;
      if (__builtin_mul_overflow(*found.ranks, *found.micro_batch, &product) ||
          __builtin_mul_overflow(product, *found.micro_batches, &product) ||
          product != *found.global_batch) {
        draft_.reading.problem(
            *batch,
            format("it is ranks x micro_batch x micro_batches, but {} is not {} x {} x {}",
                   *found.global_batch, *found.ranks, *found.micro_batch, *found.micro_batches));
      }
    }
  }

  [[nodiscard]] std::string nearest() const {
    const std::string name = placements_name(draft_.configuration.strategy);
    return format("examples/configs/{}.yaml", name.empty() ? "zero3" : name);
  }

 private:
  void check_groups() {
    const ConfigValue* secondary = draft_.reading.find("reshard_group");
    if (secondary != nullptr) draft_.check_secondary(*secondary);
    const ConfigValue* group = draft_.reading.find("shard_group");
    if (group != nullptr) return draft_.check_group(*group);
    const ConfigValue* name = draft_.reading.find("strategy");
    if (name == nullptr || name->text != "hybrid") return;
    draft_.reading.problem(*name,
                           "it is sharding within groups: say how many ranks are in one, "
                           "such as shard_group: 8");
  }

  void check_residency() const {
    const Strategy& strategy = draft_.configuration.strategy;
    const ConfigValue* value = draft_.reading.find("residency");
    if (value == nullptr || strategy.residency != Residency::shared) return;
    if (strategy.optimizer_state == Placement::sharded) return;
    draft_.reading.problem(*value,
                           "each rank updates its own part of what is shared, but the optimizer "
                           "state is replicated: shard it (zero1 has the bits of ddp)");
  }

  // What Strategy::validate refuses, at the key that says it.
  void check_placements() {
    const Strategy& strategy = draft_.configuration.strategy;
    const auto sharded = [](Placement placement) { return placement == Placement::sharded; };
    if (sharded(strategy.optimizer_state) ||
        (!sharded(strategy.parameters) && !sharded(strategy.gradients))) {
      return;
    }
    for (const std::string_view key : {"optimizer_state", "parameters", "gradients", "strategy"}) {
      const ConfigValue* value = draft_.reading.find(key);
      if (value == nullptr) continue;
      draft_.reading.problem(*value,
                             "sharded parameters or gradients need sharded optimizer state: each "
                             "rank updates its own shard");
      return;
    }
  }

  ConfigDraft& draft_;
};

}  // namespace shardwise::inline v0_1::detail
