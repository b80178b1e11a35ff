#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "../core/dtype.hpp"
#include "deepspeed_batch.hpp"
#include "deepspeed_keys.hpp"
#include "draft.hpp"
#include "field.hpp"

namespace shardwise::inline v0_1::detail {

/// What DeepSpeed's keys mean here, and what Hugging Face's "auto" stands for (transformers,
/// integrations/deepspeed.py: HfTrainerDeepSpeedConfig). A key that is not there leaves shardwise's
/// default, but for the stage: without one there is no sharding.
class DeepSpeedRules {
 public:
  explicit DeepSpeedRules(ConfigDraft& draft)
      : draft_(draft), reading_(draft.reading), strategy_(draft.configuration.strategy) {}

  void apply() {
    apply_stage();
    apply_precision();
    apply_communication();
    if (stage_ == 3) {
      apply_stage3();
      apply_groups();
    } else {
      for (const std::string_view key :
           {"stage3_prefetch_bucket_size", "stage3_param_persistence_threshold",
            "stage3_max_live_parameters", "mics_shard_size", "zero_hpz_partition_size"}) {
        if (const ConfigValue* value = find_zero(key)) {
          reading_.without_effect(*value, format("it is about stage 3, and this is {}", stage_));
        }
      }
    }
    DeepSpeedBatch(draft_).apply();
    if (const ConfigValue* clip = reading_.find("gradient_clipping")) {
      const double* hint =
          clip->automatic ? draft_.need(draft_.hints.clip, "clip", *clip) : nullptr;
      if (!clip->automatic || hint != nullptr) {
        draft_.set(ConfigField::clip, print_number(hint != nullptr ? *hint : clip->number), *clip,
                   hint != nullptr ? "auto: hint clip" : "");
      }
    }
  }

  /// A file of ours that is nearest to what was refused.
  [[nodiscard]] std::string nearest() const {
    return format("examples/configs/deepspeed_zero{}.json", stage_);
  }

 private:
  [[nodiscard]] const ConfigValue* find_zero(std::string_view key) const {
    return reading_.find("zero_optimization." + std::string(key));
  }

  void apply_stage() {
    constexpr std::string_view names[] = {"ddp", "zero1", "zero2", "zero3"};
    if (const ConfigValue* legacy = reading_.find("zero_optimization")) {
      stage_ = legacy->flag ? 1 : 0;
      draft_.set_strategy(names[stage_], *legacy);
      return;
    }
    if (const ConfigValue* stage = find_zero("stage")) {
      stage_ = static_cast<std::size_t>(stage->count);
      draft_.set_strategy(names[stage_], *stage);
      return;
    }
    const Strategy ddp = Strategy::ddp();
    strategy_.parameters = ddp.parameters;
    strategy_.gradients = ddp.gradients;
    strategy_.optimizer_state = ddp.optimizer_state;
    for (std::size_t i = 0; i <= static_cast<std::size_t>(ConfigField::optimizer_state); ++i) {
      draft_.sources[i] = "DeepSpeed's default: stage 0";
    }
  }

  // fp16.enabled or bf16.enabled; none where it is "auto" without a hint.
  [[nodiscard]] std::optional<bool> enabled(const ConfigValue* value, DType type) {
    if (value == nullptr) return false;
    if (!value->automatic) return value->flag;
    const DType* hint = draft_.need(draft_.hints.lease, "lease", *value);
    if (hint == nullptr) return std::nullopt;
    return *hint == type;
  }

  void apply_precision() {
    const ConfigValue* half = reading_.find("fp16.enabled");
    const ConfigValue* brain = reading_.find("bf16.enabled");
    const std::optional<bool> half_on = enabled(half, DType::f16);
    const std::optional<bool> brain_on = enabled(brain, DType::bf16);
    const bool both = half_on.value_or(false) && brain_on.value_or(false);
    if (both) reading_.problem(*brain, "fp16.enabled and bf16.enabled cannot both be true");
    choose_lease(half, half_on, "f16");
    if (!both) choose_lease(brain, brain_on, "bf16");
    apply_loss_scale(half_on.value_or(false));
  }

  void choose_lease(const ConfigValue* value, const std::optional<bool>& on,
                    std::string_view type) {
    if (value == nullptr || !on) return;
    const std::string_view how = value->automatic ? "auto: hint lease" : "";
    if (*on) {
      draft_.set(ConfigField::lease, type, *value, how);
    } else {
      reading_.applied(*value, format("lease is not {}{}", type, how.empty() ? "" : ", by hint"));
      std::string& source = draft_.sources[static_cast<std::size_t>(ConfigField::lease)];
      if (source.empty()) source = reading_.source(*value);
    }
  }

  void apply_loss_scale(bool on) {
    const ConfigValue* scale = reading_.find("fp16.loss_scale");
    const ConfigValue* power = reading_.find("fp16.initial_scale_power");
    const ConfigValue* window = reading_.find("fp16.loss_scale_window");
    const ConfigValue* minimum = reading_.find("fp16.min_loss_scale");
    const bool fixed = scale != nullptr && scale->number > 0;
    for (const ConfigValue* value : {scale, power, window, minimum}) {
      if (value == nullptr) continue;
      if (!on) {
        reading_.without_effect(*value, "fp16 is not enabled");
      } else if (fixed && value != scale) {
        reading_.without_effect(*value, "fp16.loss_scale fixes the scale");
      }
    }
    if (!on) return;
    if (fixed) {
      const std::string text = print_number(scale->number);
      draft_.set(ConfigField::loss_scale_minimum, text, *scale, "fixed");
      draft_.set(ConfigField::loss_scale_growth, "1", *scale, "fixed");
      draft_.set(ConfigField::loss_scale, text, *scale, "fixed");
      return;
    }
    if (scale != nullptr) draft_.set(ConfigField::loss_scale_growth, "2", *scale, "dynamic");
    if (power != nullptr) {
      double initial = 1;
      for (std::uint64_t i = 0; i < power->count; ++i) initial *= 2;
      draft_.set(ConfigField::loss_scale, print_number(initial), *power, "2^n");
    }
    if (window != nullptr) draft_.set(ConfigField::loss_scale_window, window->count, *window);
    if (minimum != nullptr) {
      draft_.set(ConfigField::loss_scale_minimum, print_number(minimum->number), *minimum);
    }
  }

  void apply_communication() {
    const ConfigValue* wire = reading_.find("communication_data_type");
    if (wire != nullptr) draft_.set(ConfigField::wire, wire->text, *wire);
    if (const ConfigValue* legacy = reading_.find("fp32_allreduce")) {
      if (!legacy->flag) {
        reading_.applied(*legacy, "wire stays the gradient lease type");
      } else if (wire != nullptr) {
        reading_.problem(*legacy, format("it says the same as {}; keep that one", wire->path));
      } else {
        draft_.set(ConfigField::wire, "f32", *legacy);
      }
    }
    if (const ConfigValue* stored = reading_.find("data_types.grad_accum_dtype")) {
      draft_.set(ConfigField::gradient_storage, stored->text, *stored);
    }
    if (const ConfigValue* overlap = find_zero("overlap_comm")) {
      draft_.set(ConfigField::overlap, *overlap);
    }
    apply_buckets();
  }

  // One setting joins the gathers and the reductions of consecutive parameters. Under stage 3 it
  // would hold as many elements gathered, which DeepSpeed's buckets do not.
  void apply_buckets() {
    constexpr const char* other_counts =
        "there is one setting for both buckets: the smaller counts";
    const ConfigValue* smaller = nullptr;
    std::uint64_t least = 0;
    for (const std::string_view key : {"reduce_bucket_size", "allgather_bucket_size"}) {
      const ConfigValue* value = find_zero(key);
      if (value == nullptr) continue;
      const std::optional<std::uint64_t> elements = resolve_auto(*value, key);
      if (stage_ == 3) {
        reading_.without_effect(
            *value, format("{}each parameter is reduced by itself; bucket_bytes would join gathers",
                           resolved(*value, elements)));
      } else if (elements && (smaller == nullptr || *elements < least)) {
        if (smaller != nullptr) reading_.without_effect(*smaller, other_counts);
        smaller = value;
        least = *elements;
      } else {
        reading_.without_effect(*value, other_counts);
      }
    }
    if (smaller != nullptr) set_bytes(ConfigField::bucket_bytes, least, *smaller);
  }

  void set_bytes(ConfigField field, std::uint64_t elements, const ConfigValue& value) {
    const DType type = strategy_.lease.value_or(DType::f32);
    std::uint64_t bytes = 0;
    if (__builtin_mul_overflow(elements, std::uint64_t{size_of(type)}, &bytes)) {
      reading_.problem(value, format("{} elements are too many", elements));
      return;
    }
    draft_.set(field, bytes, value, format("{} elements x {}", elements, name_of(type)));
  }

  [[nodiscard]] static std::string resolved(const ConfigValue& value,
                                            const std::optional<std::uint64_t>& elements) {
    return value.automatic && elements ? format("auto is {}; ", *elements) : std::string();
  }

  // Elements; none where it is "auto" and there is no hint, or none applies. Hugging Face: h is the
  // hidden size; reduce bucket h^2, prefetch int(0.9 h^2), persistence 10 h.
  [[nodiscard]] std::optional<std::uint64_t> resolve_auto(const ConfigValue& value,
                                                          std::string_view key) {
    if (!value.automatic) return value.count;
    const bool square = key == "reduce_bucket_size";
    const bool prefetch = key == "stage3_prefetch_bucket_size";
    if (!square && !prefetch && key != "stage3_param_persistence_threshold") {
      reading_.problem(value, "there is no rule for \"auto\" here; write a value");
      return std::nullopt;
    }
    const std::size_t* hidden = draft_.need(draft_.hints.hidden_size, "hidden_size", value);
    if (hidden == nullptr) return std::nullopt;
    if (*hidden > 0xffffffffu) {
      reading_.problem(value, format("the hint hidden_size = {} is no width of a model", *hidden));
      return std::nullopt;
    }
    const std::uint64_t h = *hidden;
    if (square) return h * h;
    // int(0.9 * h * h), in Python's doubles.
    if (prefetch)
      return static_cast<std::uint64_t>(0.9 * static_cast<double>(h) * static_cast<double>(h));
    return 10 * h;
  }

  void apply_stage3() {
    if (const ConfigValue* value = find_zero("stage3_param_persistence_threshold")) {
      if (const auto elements = resolve_auto(*value, "stage3_param_persistence_threshold")) {
        draft_.set(ConfigField::persistence_threshold, *elements, *value,
                   value->automatic ? "auto: 10 x hidden_size" : "");
      }
    }
    if (const ConfigValue* value = find_zero("stage3_prefetch_bucket_size")) {
      if (const auto elements = resolve_auto(*value, "stage3_prefetch_bucket_size")) {
        set_prefetch(*elements, *value);
      }
    }
    if (const ConfigValue* value = find_zero("stage3_max_live_parameters")) {
      if (const auto elements = resolve_auto(*value, "stage3_max_live_parameters")) {
        set_bytes(ConfigField::max_live_bytes, *elements, *value);
      }
    }
  }

  // MiCS shards within groups of consecutive ranks; hpZ keeps a second shard within a node.
  void apply_groups() {
    if (const ConfigValue* value = find_zero("mics_shard_size")) {
      draft_.set(ConfigField::shard_group, value->count, *value);
      draft_.check_group(*value);
    }
    if (const ConfigValue* value = find_zero("zero_hpz_partition_size")) {
      draft_.set(ConfigField::reshard_group, value->count > 1 ? value->count : 0, *value);
      draft_.check_secondary(*value);
    }
  }

  // DeepSpeed fetches whole parameters ahead until they have so many elements; so many of ours that
  // takes.
  void set_prefetch(std::uint64_t elements, const ConfigValue& value) {
    const std::optional<std::size_t>& largest = draft_.hints.largest_parameter;
    std::uint64_t count = elements > 0 ? 1 : 0;
    if (largest && *largest > 0) count = elements / *largest + (elements % *largest > 0 ? 1 : 0);
    const std::string how =
        format("{}{} elements", value.automatic ? "auto: 0.9 x hidden_size^2 = " : "", elements);
    draft_.set(ConfigField::prefetch, count, value, how);
  }

  ConfigDraft& draft_;
  ConfigReading& reading_;
  Strategy& strategy_;
  std::size_t stage_ = 0;
};

}  // namespace shardwise::inline v0_1::detail
