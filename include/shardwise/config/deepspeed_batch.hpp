#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "../core/format.hpp"
#include "draft.hpp"
#include "field.hpp"

namespace shardwise::inline v0_1::detail {

/// DeepSpeed's keys of the batch: global = world x micro-batch x accumulation steps. Two give the
/// third; where only one is there, a step is one micro-batch.
class DeepSpeedBatch {
 public:
  explicit DeepSpeedBatch(ConfigDraft& draft) : draft_(draft), reading_(draft.reading) {}

  void apply() {
    const Hints& hints = draft_.hints;
    BatchPart micro =
        batch_part("train_micro_batch_size_per_gpu", hints.micro_batch, "micro_batch");
    BatchPart steps =
        batch_part("gradient_accumulation_steps", hints.micro_batches, "micro_batches");
    BatchPart global;
    global.value = reading_.find("train_batch_size");
    if (global.value != nullptr && global.value->automatic) {
      resolve_global(global, micro, steps);
    } else if (global.value != nullptr) {
      global.count = global.value->count;
    }
    for (const BatchPart* part : {&global, &micro, &steps}) {
      if (part->value != nullptr && !part->count) return;  // a hint is missing, as was said
    }
    const ConfigValue* origin = global.value != nullptr  ? global.value
                                : micro.value != nullptr ? micro.value
                                                         : steps.value;
    if (origin == nullptr) return;
    if (hints.world && *hints.world > 0) {
      derive(global, micro, steps, *hints.world, *origin);
      draft_.configuration.ranks = *hints.world;
      draft_.sources[static_cast<std::size_t>(ConfigField::ranks)] = "hint world";
    } else if (global.count && micro.count && steps.count) {
      divide(*global.count, *micro.count, *steps.count, "ranks", *global.value,
             [&](std::uint64_t ranks) {
               draft_.set(ConfigField::ranks, ranks, *global.value, "global / micro / steps");
             });
    }
    put(ConfigField::micro_batch, micro, *origin);
    put(ConfigField::micro_batches, steps, *origin);
    put(ConfigField::global_batch, global, *origin);
  }

 private:
  struct BatchPart {
    const ConfigValue* value = nullptr;
    std::optional<std::uint64_t> count = std::nullopt;
  };

  [[nodiscard]] BatchPart batch_part(std::string_view key, const std::optional<std::size_t>& hint,
                                     std::string_view name) {
    BatchPart part;
    part.value = reading_.find(key);
    if (part.value == nullptr) return part;
    if (!part.value->automatic) {
      part.count = part.value->count;
    } else if (const std::size_t* known = draft_.need(hint, name, *part.value)) {
      part.count = *known;
    }
    return part;
  }

  void resolve_global(BatchPart& global, const BatchPart& micro, const BatchPart& steps) {
    const ConfigValue& value = *global.value;
    const std::size_t* world = draft_.need(draft_.hints.world, "world", value);
    std::optional<std::size_t> own_micro = draft_.hints.micro_batch;
    std::optional<std::size_t> own_steps = draft_.hints.micro_batches;
    if (micro.count) own_micro = static_cast<std::size_t>(*micro.count);
    if (steps.count) own_steps = static_cast<std::size_t>(*steps.count);
    // What the file has as "auto", too, was asked for there.
    const bool asked_micro = micro.value != nullptr && !micro.count;
    const bool asked_steps = steps.value != nullptr && !steps.count;
    const std::size_t* each = asked_micro ? nullptr : draft_.need(own_micro, "micro_batch", value);
    const std::size_t* times =
        asked_steps ? nullptr : draft_.need(own_steps, "micro_batches", value);
    if (world == nullptr || each == nullptr || times == nullptr) return;
    std::uint64_t product = 0;
    if (multiply(*world, *each, *times, product)) {
      global.count = product;
    } else {
      reading_.problem(value, "world x micro_batch x micro_batches does not fit in 64 bits");
    }
  }

  [[nodiscard]] static bool multiply(std::uint64_t a, std::uint64_t b, std::uint64_t c,
                                     std::uint64_t& product) noexcept {
    return !__builtin_mul_overflow(a, b, &product) && !__builtin_mul_overflow(product, c, &product);
  }

  template <class Then>
  void divide(std::uint64_t global, std::uint64_t a, std::uint64_t b, std::string_view what,
              const ConfigValue& origin, const Then& then) {
    std::uint64_t parts = 0;
    if (multiply(a, b, 1, parts) && parts > 0 && global % parts == 0) {
      then(global / parts);
    } else {
      reading_.problem(origin,
                       format("a batch of {} does not divide into {} x {}, so that there is "
                              "no number of {}",
                              global, a, b, what));
    }
  }

  void derive(BatchPart& global, BatchPart& micro, BatchPart& steps, std::uint64_t world,
              const ConfigValue& origin) {
    if (!global.count && !micro.count) return;  // only how often: the sizes are the host's
    if (global.count && micro.count && steps.count) {
      std::uint64_t product = 0;
      if (multiply(world, *micro.count, *steps.count, product) && product == *global.count) return;
      reading_.problem(origin,
                       format("train_batch_size is ranks x train_micro_batch_size_per_gpu x "
                              "gradient_accumulation_steps, but {} is not {} x {} x {}",
                              *global.count, world, *micro.count, *steps.count));
    } else if (global.count && micro.count) {
      divide(*global.count, *micro.count, world, "micro-batches", origin,
             [&](std::uint64_t count) { steps.count = count; });
    } else if (global.count) {
      if (!steps.count) steps.count = 1;
      divide(*global.count, *steps.count, world, "samples at once", origin,
             [&](std::uint64_t count) { micro.count = count; });
    } else {
      if (!steps.count) steps.count = 1;
      std::uint64_t product = 0;
      if (multiply(world, *micro.count, *steps.count, product)) global.count = product;
    }
  }

  void put(ConfigField field, const BatchPart& part, const ConfigValue& origin) {
    if (!part.count) return;
    if (part.value != nullptr) {
      draft_.set(field, *part.count, *part.value, part.value->automatic ? "auto: hints" : "");
      return;
    }
    if (!info_of(field).scan(std::to_string(*part.count), draft_.configuration)) {
      reading_.problem(origin, format("{} = {} is out of range", name_of(field), *part.count));
      return;
    }
    draft_.sources[static_cast<std::size_t>(field)] =
        format("derived from {}", reading_.source(origin));
  }

  ConfigDraft& draft_;
  ConfigReading& reading_;
};

}  // namespace shardwise::inline v0_1::detail
