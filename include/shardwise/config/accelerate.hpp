#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>

#include "accelerate_keys.hpp"
#include "draft.hpp"
#include "field.hpp"

namespace shardwise::inline v0_1::detail {

/// What accelerate's keys mean here.
class AccelerateRules {
 public:
  explicit AccelerateRules(ConfigDraft& draft) : draft_(draft), reading_(draft.reading) {}

  /// fsdp_config's keys are with or without fsdp_.
  [[nodiscard]] static std::string spell(std::string_view path, std::string_view key) {
    if (path == "fsdp_config" && key.starts_with("fsdp_")) key.remove_prefix(5);
    return std::string(key);
  }

  void apply() {
    const bool sharded = apply_type();
    if (sharded) {
      apply_sharding();
      apply_prefetch();
    } else {
      for (const std::string_view key : {"version", "sharding_strategy", "reshard_after_forward",
                                         "backward_prefetch", "forward_prefetch"}) {
        if (const ConfigValue* value = find(key)) {
          reading_.without_effect(*value, "distributed_type is not FSDP");
        }
      }
    }
    apply_precision();
    if (const ConfigValue* ranks = reading_.find("num_processes")) {
      draft_.set(ConfigField::ranks, ranks->count, *ranks);
    }
    apply_groups(sharded);
  }

  [[nodiscard]] std::string nearest() const {
    const Strategy& strategy = draft_.configuration.strategy;
    if (strategy.parameters == Placement::replicated) return "examples/configs/ddp.yaml";
    return version_ == 2                    ? "examples/configs/fsdp2.yaml"
           : strategy.reshard_after_forward ? "examples/configs/fsdp_full_shard.yaml"
                                            : "examples/configs/fsdp_shard_grad_op.yaml";
  }

 private:
  [[nodiscard]] const ConfigValue* find(std::string_view key) const {
    return reading_.find("fsdp_config." + std::string(key));
  }

  // Whether fsdp_config counts.
  bool apply_type() {
    const ConfigValue* type = reading_.find("distributed_type");
    if (type == nullptr) {
      reading_.problem("distributed_type is missing; a file of accelerate names it: FSDP");
      return true;
    }
    if (type->text == "fsdp") {
      reading_.applied(*type, "by fsdp_config");
      return true;
    }
    if (type->text == "no" || type->text.starts_with("multi_")) {
      draft_.set_strategy("ddp", *type);
      return false;
    }
    reading_.refuse(*type, type->text == "deepspeed"
                               ? "DeepSpeed by way of accelerate (give its JSON itself)"
                               : "this kind of parallelism");
    return true;
  }

  void apply_sharding() {
    if (const ConfigValue* version = find("version")) {
      version_ = static_cast<int>(version->count);
      reading_.applied(*version, format("the rules of version {} hold", version_));
    }
    const ConfigValue* sharding = find("sharding_strategy");
    const ConfigValue* reshard = find("reshard_after_forward");
    if (version_ == 2) {
      apply_version2(sharding, reshard);
      return;
    }
    if (sharding != nullptr && reshard != nullptr) {
      reading_.problem(*reshard,
                       format("in version 1 it says the same as {}; keep one", sharding->path));
    } else if (sharding != nullptr || reshard != nullptr) {
      apply_version1(sharding != nullptr ? *sharding : *reshard);
    } else {
      say_default("FSDP's default: FULL_SHARD");
    }
  }

  void apply_version1(const ConfigValue& value) {
    const std::string& word = value.text;
    if (word == "full_shard" || word == "1") {
      draft_.set_strategy("zero3", value);
    } else if (word == "shard_grad_op" || word == "2") {
      draft_.set_strategy("zero3-no-reshard", value);
    } else if (word == "no_shard" || word == "3") {
      draft_.set_strategy("ddp", value);
    } else if (word.starts_with("hybrid") || word == "4" || word == "5") {
      const bool reshards = word == "hybrid_shard" || word == "4";
      draft_.set_strategy(reshards ? "zero3" : "zero3-no-reshard", value);
      hybrid_ = &value;
    } else {
      reading_.problem(value, format("{} is of version 2; in version 1 write a sharding strategy, "
                                     "such as FULL_SHARD, or add fsdp_version: 2",
                                     word));
    }
  }

  void apply_version2(const ConfigValue* sharding, const ConfigValue* reshard) {
    if (reshard == nullptr && sharding != nullptr) {
      reading_.problem(*sharding, "it is of version 1; version 2 has reshard_after_forward");
      return;
    }
    if (sharding != nullptr) {
      reading_.without_effect(*sharding, "it is of version 1; reshard_after_forward counts");
    }
    if (reshard == nullptr) {
      say_default("FSDP's default: it reshards after forward");
    } else if (reshard->text == "true" || reshard->text == "yes") {
      draft_.set_strategy("zero3", *reshard);
    } else if (reshard->text == "false" || reshard->text == "no") {
      draft_.set_strategy("zero3-no-reshard", *reshard);
    } else {
      reading_.problem(*reshard, "in version 2 it is true or false");
    }
  }

  // Which ranks shard together: those of a machine, or what a grid of devices says.
  void apply_groups(bool sharded) {
    const ConfigValue* machines = reading_.find("num_machines");
    const ConfigValue* copies =
        reading_.find("parallelism_config.parallelism_config_dp_replicate_size");
    const ConfigValue* group = reading_.find("parallelism_config.parallelism_config_dp_shard_size");
    if (machines != nullptr && hybrid_ == nullptr) {
      reading_.without_effect(*machines, std::string(why::launcher));
    }
    if (hybrid_ != nullptr) group_by_machine(machines);
    const bool grid = sharded && hybrid_ == nullptr && copies != nullptr && copies->count > 1;
    for (const ConfigValue* value : {copies, group}) {
      if (value == nullptr || grid) continue;
      reading_.without_effect(*value, hybrid_ != nullptr ? "HYBRID_SHARD says the groups"
                                      : sharded          ? "parameters are sharded over all ranks"
                                                         : "distributed_type is not FSDP");
    }
    if (grid) group_by_grid(*copies, group);
  }

  void group_by_machine(const ConfigValue* machines) {
    const std::size_t count = machines != nullptr ? machines->count : 1;
    const std::optional<std::size_t> ranks = draft_.ranks();
    if (!ranks) {
      reading_.problem(*hybrid_, "its groups are the ranks of a machine: say num_processes");
    } else if (*ranks % count != 0) {
      reading_.problem(*machines, format("{} ranks are not alike on {} machines", *ranks, count));
    } else {
      if (machines != nullptr) reading_.applied(*machines, "machines that have a group each");
      draft_.set(ConfigField::shard_group, *ranks / count, *hybrid_,
                 format("{} ranks on {} machine(s)", *ranks, count));
      reading_.applied(*hybrid_, format("strategy = {}", draft_.configuration.strategy.name()));
    }
  }

  void group_by_grid(const ConfigValue& copies, const ConfigValue* group) {
    // accelerate's default: a group of one rank, which is to say that nothing is sharded.
    const std::size_t size = group == nullptr || group->count == 0 ? 1 : group->count;
    const ConfigValue& says = group != nullptr ? *group : copies;
    draft_.set(ConfigField::shard_group, size, says);
    if (group != nullptr) reading_.applied(copies, "so many groups");
    const std::optional<std::size_t> ranks = draft_.ranks();
    if (!ranks || (*ranks % size == 0 && *ranks / size == copies.count)) return;
    reading_.problem(
        copies, format("{} groups of {} rank(s) are not {} ranks", copies.count, size, *ranks));
  }

  void say_default(std::string_view text) {
    for (std::size_t i = 0; i <= static_cast<std::size_t>(ConfigField::reshard_after_forward);
         ++i) {
      draft_.sources[i] = text;
    }
  }

  // One setting, for both directions. What is not there leaves shardwise's default, one: version 1
  // gathers ahead by itself where the host runs ahead, version 2 always.
  void apply_prefetch() {
    const ConfigValue* backward = find("backward_prefetch");
    const ConfigValue* forward = find("forward_prefetch");
    if (version_ == 2) {
      if (backward != nullptr) {
        reading_.without_effect(*backward, "it is of version 1; version 2 gathers ahead by itself");
      }
      if (forward != nullptr) {
        reading_.problem(*forward, "it is of version 1; remove it, or write fsdp_version: 1");
      }
      return;
    }
    const bool ahead = forward != nullptr && forward->flag;
    if (forward != nullptr && !ahead) {
      reading_.applied(*forward, "prefetch is left to backward_prefetch");
    }
    if (backward != nullptr) {
      const bool pre = backward->text == "backward_pre" || backward->text == "1";
      draft_.set(ConfigField::prefetch, pre || ahead ? 1u : 0u, *backward);
    }
    if (ahead) draft_.set(ConfigField::prefetch, 1u, *forward);
  }

  void apply_precision() {
    const ConfigValue* precision = reading_.find("mixed_precision");
    const ConfigValue* legacy = reading_.find("fp16");
    if (legacy != nullptr) {
      if (precision != nullptr) {
        reading_.without_effect(*legacy, "mixed_precision counts");
      } else if (legacy->flag) {
        draft_.set(ConfigField::lease, "f16", *legacy);
      }
    }
    if (precision == nullptr) return;
    if (precision->text == "fp8") {
      reading_.refuse(*precision, std::string(why::fp8));
      return;
    }
    draft_.set(ConfigField::lease, precision->text == "no" ? "default" : precision->text,
               *precision);
  }

  ConfigDraft& draft_;
  ConfigReading& reading_;
  int version_ = 1;
  const ConfigValue* hybrid_ = nullptr;  // where version 1 asks for groups
};

}  // namespace shardwise::inline v0_1::detail
