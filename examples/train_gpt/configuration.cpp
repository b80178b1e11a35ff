#include "configuration.hpp"

#include <fmt/core.h>

#include <algorithm>
#include <optional>
#include <shardwise/config.hpp>
#include <stdexcept>
#include <string>

#include "model.hpp"

namespace train_gpt {
namespace {

using shardwise::ConfigField;
using shardwise::DType;
using shardwise::LoadedConfiguration;

using Given = std::function<bool(std::string_view)>;

std::string option_name(std::optional<DType> type) {
  return !type || *type == DType::f32 ? "fp32" : std::string(name_of(*type));
}

// What "auto" in the file stands for is what the options say, by default too.
shardwise::Hints hints_of(const Options& o, bool with_ranks) {
  shardwise::Hints hints;
  if (with_ranks) hints.world = o.ranks;
  hints.micro_batches = o.micro_batches;
  hints.micro_batch =
      std::max<std::size_t>(1, o.batch / std::max<std::size_t>(1, o.ranks * o.micro_batches));
  hints.clip = o.clip;
  hints.lease = o.lease == "bf16" ? DType::bf16 : o.lease == "f16" ? DType::f16 : DType::f32;
  hints.hidden_size = o.width;
  std::size_t largest = 0;
  for (const Unit& unit : GptShape{o.layers, o.width, o.heads, o.sequence}.units()) {
    std::size_t elements = 0;
    for (const Tensor& tensor : unit) elements += tensor.size();
    largest = std::max(largest, elements);
  }
  hints.largest_parameter = largest;
  return hints;
}

// The world is the command line's; else the file's, where its batch tells one; else the default.
LoadedConfiguration load(const Options& o, const Given& given) {
  const shardwise::ConfigOptions options{.allow_unsupported = o.allow_unsupported};
  if (!given("--ranks")) {
    try {
      LoadedConfiguration loaded = load_config(o.config, hints_of(o, false), options);
      if (loaded.values().ranks) return loaded;
    } catch (const shardwise::ConfigErrors&) {
      // It needs a world, or is refused: the second attempt tells.
    }
  }
  return load_config(o.config, hints_of(o, true), options);
}

void override_with_options(LoadedConfiguration& loaded, const Options& o, const Given& given) {
  if (given("--strategy")) loaded.override_strategy(o.strategy, "--strategy");
  const auto take = [&](const char* option, ConfigField field, const std::string& text) {
    if (given(option)) loaded.override_field(field, text, option);
  };
  take("--shard-group", ConfigField::shard_group, std::to_string(o.shard_group));
  take("--residency", ConfigField::residency, o.residency);
  take("--lease", ConfigField::lease, o.lease);
  take("--gradient", ConfigField::gradient_storage, o.gradient);
  take("--prefetch", ConfigField::prefetch, std::to_string(o.prefetch));
  take("--accumulate", ConfigField::accumulation,
       o.accumulate == Accumulate::hold ? "hold" : "reduce");
  take("--ranks", ConfigField::ranks, std::to_string(o.ranks));
  take("--micro-batches", ConfigField::micro_batches, std::to_string(o.micro_batches));
  take("--clip", ConfigField::clip, fmt::format("{}", o.clip));
  take("--batch", ConfigField::global_batch, std::to_string(o.batch));
}

// The size of the step: an option, or what the file says, or as many samples of a rank as it says.
void settle_batch(LoadedConfiguration& loaded, Options& o, const Given& given) {
  const shardwise::Configuration& values = loaded.values();
  if (values.ranks) o.ranks = *values.ranks;
  if (values.micro_batches) o.micro_batches = *values.micro_batches;
  const bool resized = given("--ranks") || given("--micro-batches");
  if (!given("--batch")) {
    if (values.global_batch && !(resized && values.micro_batch)) {
      o.batch = *values.global_batch;
    } else if (values.micro_batch) {
      o.batch = o.ranks * *values.micro_batch * o.micro_batches;
    }
  }
  const auto say = [&](ConfigField field, std::size_t value, const char* source) {
    if (text_of(loaded.values(), field) == std::to_string(value)) return;
    loaded.override_field(field, std::to_string(value), source);
  };
  if (loaded.source(ConfigField::ranks) == "hint world") {
    loaded.override_field(ConfigField::ranks, std::to_string(o.ranks), "train_gpt's default");
  }
  say(ConfigField::ranks, o.ranks, "train_gpt's default");
  say(ConfigField::micro_batches, o.micro_batches, "train_gpt's default");
  say(ConfigField::global_batch, o.batch,
      values.micro_batch ? "ranks x micro_batch x micro_batches" : "train_gpt's default");
  const std::size_t parts = o.ranks * o.micro_batches;
  if (parts > 0 && o.batch % parts == 0 && o.batch > 0) {
    say(ConfigField::micro_batch, o.batch / parts, "global_batch / ranks / micro_batches");
  }
}

void refuse_what_is_not_here(const LoadedConfiguration& loaded) {
  const auto refuse = [&](ConfigField field, const char* why) {
    throw std::invalid_argument(fmt::format("{}: {} = {}: {}", loaded.source(field), name_of(field),
                                            text_of(loaded.values(), field), why));
  };
  const shardwise::Strategy& strategy = loaded.strategy();
  if (strategy.lease == DType::f64) {
    refuse(ConfigField::lease, "train_gpt computes in fp32, bf16 or f16");
  }
  if (strategy.gradient_lease && strategy.gradient_lease != strategy.lease.value_or(DType::f32)) {
    refuse(ConfigField::gradient_lease, "train_gpt writes gradients in the lease type");
  }
  const std::optional<DType>& stored = loaded.values().gradient_storage;
  if (stored && *stored != DType::f32 && *stored != DType::bf16) {
    refuse(ConfigField::gradient_storage, "train_gpt stores gradients in fp32 or bf16");
  }
}

}  // namespace

void apply_configuration(Options& options, const Given& given) {
  LoadedConfiguration loaded = load(options, given);
  override_with_options(loaded, options, given);
  settle_batch(loaded, options, given);
  refuse_what_is_not_here(loaded);
  const shardwise::Strategy& strategy = loaded.strategy();
  const shardwise::Configuration& values = loaded.values();
  options.strategy = strategy.name();
  options.shard_group = static_cast<std::size_t>(strategy.shard_group);
  options.residency = name_of(strategy.residency);
  options.lease = option_name(strategy.lease);
  options.gradient = option_name(values.gradient_storage);
  options.prefetch = static_cast<std::size_t>(strategy.prefetch);
  options.accumulate = strategy.accumulation == shardwise::Accumulation::hold ? Accumulate::hold
                                                                              : Accumulate::reduce;
  if (values.clip) options.clip = *values.clip;
  options.strategy_of_file = strategy;
  options.effective = loaded.print();
  if (options.world_of_one_reference) {
    options.effective +=
        "# --world-of-one-reference: of this, the size of the step, types and clip\n";
  }
  if (values.loss_scale || values.loss_scale_growth || values.loss_scale_window ||
      values.loss_scale_minimum) {
    options.effective += "# train_gpt does not scale its loss: loss_scale has no effect in it\n";
  }
}

}  // namespace train_gpt
