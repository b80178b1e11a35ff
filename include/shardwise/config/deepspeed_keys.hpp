#pragma once

#include <string_view>

#include "key.hpp"

/// @file
/// The keys of DeepSpeed's configuration: its documentation (deepspeed.ai/docs/config-json) and the
/// classes that read it (runtime/config.py, runtime/constants.py, runtime/zero/config.py), as of
/// 0.19; older spellings too.
namespace shardwise::inline v0_1::detail {

[[nodiscard]] constexpr ConfigKey applies(std::string_view path, ConfigKind kind,
                                          std::string_view note, std::string_view domain = {},
                                          bool automatic = false, bool nullable = false) noexcept {
  return {.path = path,
          .kind = kind,
          .outcome = ConfigOutcome::applied,
          .note = note,
          .domain = domain,
          .automatic = automatic,
          .nullable = nullable};
}
[[nodiscard]] constexpr ConfigKey ignores(std::string_view path, ConfigKind kind,
                                          std::string_view reason,
                                          std::string_view domain = {}) noexcept {
  return {.path = path,
          .kind = kind,
          .outcome = ConfigOutcome::without_effect,
          .note = reason,
          .domain = domain,
          .nullable = true};
}
[[nodiscard]] constexpr ConfigKey refuses(std::string_view path, ConfigKind kind,
                                          std::string_view what, std::string_view harmless,
                                          std::string_view domain = {}) noexcept {
  return {.path = path,
          .kind = kind,
          .outcome = ConfigOutcome::refused,
          .note = what,
          .domain = domain,
          .harmless = harmless,
          .nullable = true};
}
[[nodiscard]] constexpr ConfigKey group(std::string_view path, bool nullable = false) noexcept {
  return {.path = path, .kind = ConfigKind::map, .note = "a group of keys", .nullable = nullable};
}
/// The same key by another name.
[[nodiscard]] constexpr ConfigKey spelled(std::string_view path, ConfigKey key) noexcept {
  key.means = key.path;
  key.path = path;
  return key;
}

namespace why {
inline constexpr std::string_view host_optimizer =
    "the host makes its optimizer: ShardedOptimizerState<AdamW> and others";
inline constexpr std::string_view host_schedule = "the host sets its learning rate in each step";
inline constexpr std::string_view host_recompute =
    "activations are the host's: it recomputes or keeps them";
inline constexpr std::string_view host_data = "the host reads its data";
inline constexpr std::string_view prints = "it only prints or measures; see Statistics and monitor";
inline constexpr std::string_view fixed_order =
    "sums are taken in one fixed order, in fp32, and scaled once";
inline constexpr std::string_view contiguous = "gradients are always contiguous";
inline constexpr std::string_view saves = "saving is not a matter of the strategy";
inline constexpr std::string_view offloaded = "it tunes an offload";
inline constexpr std::string_view compiler = "there is no Python to compile";
inline constexpr std::string_view offload = "offload of the training state";
inline constexpr std::string_view quantized = "quantised communication";
inline constexpr std::string_view tensor_parallel = "tensor parallelism";
inline constexpr std::string_view sequence_parallel = "sequence parallelism";
inline constexpr std::string_view pipeline = "pipeline parallelism";
inline constexpr std::string_view experts = "expert parallelism";
inline constexpr std::string_view fp8 = "fp8";
inline constexpr std::string_view low_master = "master weights below fp32";
inline constexpr std::string_view amp = "casts that a framework chooses by operation";
inline constexpr std::string_view other_training = "a change of what is trained";
inline constexpr std::string_view by_scale = "an overflow halves the scale at once";
inline constexpr std::string_view units = "the host decides which tensors are one parameter";
}  // namespace why

namespace keys {

using enum ConfigKind;

/// accelerate makes "none" of "auto", unless it is told otherwise.
[[nodiscard]] constexpr ConfigKey offloads(std::string_view path) noexcept {
  ConfigKey key = refuses(path, word, why::offload, "none|auto", "none|cpu|nvme");
  key.automatic = true;
  return key;
}

inline constexpr ConfigKey prefetch_bucket =
    applies("zero_optimization.stage3_prefetch_bucket_size", integer,
            "prefetch: 0 for 0; else elements / Hints::largest_parameter, rounded up; without it "
            "1. Stage 3",
            "0..", true);
inline constexpr ConfigKey persistence =
    applies("zero_optimization.stage3_param_persistence_threshold", integer,
            "persistence_threshold, of a whole parameter of the host's. Stage 3", "0..", true);
inline constexpr ConfigKey model_persistence = {
    .path = "zero_optimization.stage3_model_persistence_threshold",
    .kind = integer,
    .outcome = ConfigOutcome::without_effect,
    .note = "what stays replicated has no cap in total",
    .domain = "0..",
    .automatic = true};
inline constexpr ConfigKey max_live =
    applies("zero_optimization.stage3_max_live_parameters", integer,
            "max_live_bytes: elements x bytes of the lease type. Stage 3", "0..", true);
inline constexpr ConfigKey max_reuse = {
    .path = "zero_optimization.stage3_max_reuse_distance",
    .kind = integer,
    .outcome = ConfigOutcome::without_effect,
    .note = "a parameter is given back when the host releases it",
    .domain = "0..",
    .automatic = true};
inline constexpr ConfigKey gather_16bit = {
    .path = "zero_optimization.stage3_gather_16bit_weights_on_model_save",
    .kind = boolean,
    .outcome = ConfigOutcome::without_effect,
    .note = why::saves,
    .automatic = true,
    .nullable = true};
inline constexpr ConfigKey granularity =
    ignores("zero_optimization.stage3_module_granularity_threshold", integer, why::units, "0..");
inline constexpr ConfigKey all_reduce_fetch =
    ignores("zero_optimization.stage3_use_all_reduce_for_fetch_params", boolean,
            "parameters are contiguous: an all-gather copies nothing");
inline constexpr ConfigKey sequential =
    ignores("zero_optimization.stage3_allgather_sequential", boolean,
            "parameters are contiguous: see bucket_bytes");
inline constexpr ConfigKey stream_chunk =
    ignores("zero_optimization.stage3_partition_stream_chunk_size", integer,
            "parameters are made as shards", "0..");
inline constexpr ConfigKey allgather_bucket =
    applies("zero_optimization.allgather_bucket_size", integer,
            "bucket_bytes, the smaller of both buckets. Stages 0 to 2", "0..", true);
inline constexpr ConfigKey bf16_enabled =
    applies("bf16.enabled", boolean, "lease = bf16", {}, true);
inline constexpr ConfigKey bf16_immediate =
    ignores("bf16.immediate_grad_update", boolean, "each reduction adds to the stored gradient");
inline constexpr ConfigKey bf16_overflow =
    ignores("bf16.check_grad_overflow", boolean, "the host asks gradient_norm");
inline constexpr ConfigKey bf16_master =
    refuses("bf16.bf16_master_weights_and_grads", boolean, why::low_master, "false");
inline constexpr ConfigKey bf16_states =
    refuses("bf16.bf16_optimizer_states", boolean, "optimizer state below fp32 by a file", "false");

inline constexpr ConfigKey deepspeed[] = {
    // The batch.
    applies("train_batch_size", integer,
            "global_batch = ranks x micro_batch x micro_batches; two give the third", "1..", true,
            true),
    applies("train_micro_batch_size_per_gpu", integer, "micro_batch", "1..", true, true),
    applies("gradient_accumulation_steps", integer,
            "micro_batches; each is reduced, unless the host holds its leases open "
            "(accumulation: hold)",
            "1..", true, true),
    ignores("managed_gradient_accumulation", boolean, "the host calls step when it is time"),
    applies("gradient_clipping", number, "clip", "0..", true, true),

    // Communication.
    applies("communication_data_type", word, "wire", "fp16|bf16|fp32", false, true),
    ignores("seq_parallel_communication_data_type", word, "there is no sequence parallelism",
            "fp16|bf16|fp32"),
    ignores("prescale_gradients", boolean, why::fixed_order),
    ignores("gradient_predivide_factor", number, why::fixed_order, "0<.."),
    refuses("gradient_allreduce_op", word, "a sum in the place of the mean", "mean", "mean|sum"),
    ignores("sparse_gradients", boolean, "gradients of embeddings travel whole"),
    ignores("disable_allgather", boolean, "parameters are always gathered by an all-gather"),
    spelled("allgather_size", allgather_bucket),
    {.path = "fp32_allreduce",
     .kind = boolean,
     .note = "wire = f32 (older than communication_data_type)"},
    refuses("sequence_parallel_size", integer, why::sequence_parallel, "1", "1.."),
    ignores("data_parallel_size", integer, "the world is what the launcher makes", "1.."),
    ignores("use_data_before_expert_parallelism", boolean, "there are no experts"),

    // ZeRO.
    {.path = "zero_optimization", .kind = map_or_flag, .note = "a group of keys; true: stage 1"},
    applies("zero_optimization.stage", integer, "strategy: ddp, zero1, zero2, zero3", "0..3"),
    ignores("zero_optimization.contiguous_gradients", boolean, why::contiguous),
    ignores("zero_optimization.reduce_scatter", boolean,
            "reduction follows its consumer: a reduce-scatter where the optimizer is sharded"),
    applies("zero_optimization.reduce_bucket_size", integer,
            "bucket_bytes: elements x bytes of the lease type. Stages 0 to 2", "0..", true),
    ignores("zero_optimization.use_multi_rank_bucket_allreduce", boolean,
            "a bucket is one collective of all ranks"),
    ignores("zero_optimization.allgather_partitions", boolean,
            "parameters are always gathered by an all-gather"),
    allgather_bucket,
    applies("zero_optimization.overlap_comm", boolean, "overlap", {}, false, true),
    ignores("zero_optimization.load_from_fp32_weights", boolean,
            "storage is what the host initialises it to"),
    ignores("zero_optimization.elastic_checkpoint", boolean, why::saves),
    group("zero_optimization.offload_param", true),
    offloads("zero_optimization.offload_param.device"),
    ignores("zero_optimization.offload_param.nvme_path", text, why::offloaded),
    ignores("zero_optimization.offload_param.buffer_count", integer, why::offloaded, "0.."),
    ignores("zero_optimization.offload_param.buffer_size", integer, why::offloaded, "0.."),
    ignores("zero_optimization.offload_param.max_in_cpu", integer, why::offloaded, "0.."),
    ignores("zero_optimization.offload_param.pin_memory", boolean, why::offloaded),
    group("zero_optimization.offload_optimizer", true),
    offloads("zero_optimization.offload_optimizer.device"),
    ignores("zero_optimization.offload_optimizer.nvme_path", text, why::offloaded),
    ignores("zero_optimization.offload_optimizer.buffer_count", integer, why::offloaded, "0.."),
    ignores("zero_optimization.offload_optimizer.pin_memory", boolean, why::offloaded),
    ignores("zero_optimization.offload_optimizer.pipeline", boolean, why::offloaded),
    ignores("zero_optimization.offload_optimizer.pipeline_read", boolean, why::offloaded),
    ignores("zero_optimization.offload_optimizer.pipeline_write", boolean, why::offloaded),
    ignores("zero_optimization.offload_optimizer.fast_init", boolean, why::offloaded),
    ignores("zero_optimization.offload_optimizer.ratio", number, why::offloaded, "0..1"),
    ignores("zero_optimization.offload_optimizer.super_offload", boolean, why::offloaded),
    ignores("zero_optimization.offload_optimizer.cpuadam_cores_perc", number, why::offloaded,
            "0..1"),
    refuses("zero_optimization.zenflow", free_map, why::offload, ""),
    ignores("zero_optimization.sub_group_size", integer, "the optimizer updates in one pass",
            "0.."),
    refuses("zero_optimization.cpu_offload", boolean, why::offload, "false"),
    refuses("zero_optimization.cpu_offload_param", boolean, why::offload, "false"),
    ignores("zero_optimization.cpu_offload_use_pin_memory", boolean, why::offloaded),
    prefetch_bucket,
    spelled("zero_optimization.prefetch_bucket_size", prefetch_bucket),
    persistence,
    spelled("zero_optimization.param_persistence_threshold", persistence),
    model_persistence,
    spelled("zero_optimization.model_persistence_threshold", model_persistence),
    max_live,
    spelled("zero_optimization.max_live_parameters", max_live),
    max_reuse,
    spelled("zero_optimization.max_reuse_distance", max_reuse),
    gather_16bit,
    spelled("zero_optimization.gather_16bit_weights_on_model_save", gather_16bit),
    spelled("zero_optimization.stage3_gather_fp16_weights_on_model_save", gather_16bit),
    granularity,
    spelled("zero_optimization.module_granularity_threshold", granularity),
    all_reduce_fetch,
    spelled("zero_optimization.use_all_reduce_for_fetch_params", all_reduce_fetch),
    sequential,
    spelled("zero_optimization.allgather_sequential", sequential),
    stream_chunk,
    spelled("zero_optimization.partition_stream_chunk_size", stream_chunk),
    ignores("zero_optimization.ignore_unused_parameters", boolean,
            "a gradient that is not reduced is not stepped"),
    ignores("zero_optimization.legacy_stage1", boolean, "there is one implementation"),
    ignores("zero_optimization.round_robin_gradients", boolean, why::contiguous),
    applies("zero_optimization.zero_hpz_partition_size", integer,
            "reshard_group; 0 and 1: none. Stage 3", "0..2147483647"),
    refuses("zero_optimization.zero_quantized_weights", boolean, why::quantized, "false"),
    refuses("zero_optimization.zero_quantized_nontrainable_weights", boolean, why::quantized,
            "false"),
    refuses("zero_optimization.zero_quantized_gradients", boolean, why::quantized, "false"),
    refuses("zero_optimization.zeropp_loco_param", free_map, why::quantized, ""),
    applies("zero_optimization.mics_shard_size", integer,
            "shard_group; -1 and 0: all ranks. Stage 3", "-1..2147483647"),
    ignores("zero_optimization.mics_hierarchical_params_gather", boolean,
            "a communicator knows how a gather travels best"),
    ignores("zero_optimization.memory_efficient_linear", boolean, why::host_recompute),
    ignores("zero_optimization.pipeline_loading_checkpoint", boolean, why::saves),
    ignores("zero_optimization.override_module_apply", boolean, "it is about Python modules"),
    ignores("zero_optimization.log_trace_cache_warnings", boolean, why::prints),
    ignores("zero_optimization.enable_sanity_checks", boolean, "see ContextOptions::debug"),
    ignores("zero_optimization.save_muon_momentum_buffer_in_memory", boolean, why::offloaded),
    ignores("zero_optimization.leaf_module", free_map, why::units),
    ignores("zero_allow_untested_optimizer", boolean, why::host_optimizer),
    ignores("zero_force_ds_cpu_optimizer", boolean, why::host_optimizer),

    // Precision.
    group("fp16"),
    applies("fp16.enabled", boolean, "lease = f16", {}, true),
    ignores("fp16.auto_cast", boolean, "the host casts its inputs"),
    applies("fp16.loss_scale", number, "loss_scale; 0: dynamic. With fp16.enabled", "0.."),
    applies("fp16.initial_scale_power", integer, "loss_scale = 2^n. With fp16.enabled", "0..120"),
    applies("fp16.loss_scale_window", integer, "loss_scale_window. With fp16.enabled", "1.."),
    ignores("fp16.hysteresis", integer, why::by_scale, "1.."),
    ignores("fp16.consecutive_hysteresis", boolean, why::by_scale),
    applies("fp16.min_loss_scale", number, "loss_scale_minimum. With fp16.enabled", "0<.."),
    refuses("fp16.fp16_master_weights_and_grads", boolean, why::low_master, "false"),
    ignores("fp16.fp16_opt_level", text, "it is about apex"),
    group("bf16"),
    bf16_enabled,
    bf16_immediate,
    bf16_overflow,
    bf16_master,
    bf16_states,
    spelled("bfloat16", group("bf16")),
    spelled("bfloat16.enabled", bf16_enabled),
    spelled("bfloat16.immediate_grad_update", bf16_immediate),
    spelled("bfloat16.check_grad_overflow", bf16_overflow),
    spelled("bfloat16.bf16_master_weights_and_grads", bf16_master),
    spelled("bfloat16.bf16_optimizer_states", bf16_states),
    group("fp8"),
    refuses("fp8.enabled", boolean, why::fp8, "false"),
    ignores("fp8.loss_scale", number, "it tunes fp8", "0.."),
    ignores("fp8.initial_scale_power", integer, "it tunes fp8", "0.."),
    ignores("fp8.loss_scale_window", integer, "it tunes fp8", "1.."),
    ignores("fp8.hysteresis", integer, "it tunes fp8", "1.."),
    ignores("fp8.min_loss_scale", number, "it tunes fp8", "0.."),
    group("amp"),
    {.path = "amp.enabled",
     .kind = boolean,
     .outcome = ConfigOutcome::refused,
     .note = why::amp,
     .harmless = "false|auto",
     .automatic = true},
    ignores("amp.opt_level", text, "it is about apex"),
    ignores("amp.loss_scale", value, "it is about apex"),
    ignores("amp.keep_batchnorm_fp32", value, "it is about apex"),
    ignores("amp.master_weights", value, "it is about apex"),
    group("torch_autocast"),
    refuses("torch_autocast.enabled", boolean, why::amp, "false"),
    ignores("torch_autocast.dtype", word, "it is about autocast",
            "bfloat16|float16|bf16|fp16|fp32|float32"),
    ignores("torch_autocast.lower_precision_safe_modules", list, "it is about autocast"),
    group("data_types"),
    applies("data_types.grad_accum_dtype", word, "gradient_storage: the host's ShardedGradient<T>",
            "fp32|bf16|fp16|float32|bfloat16|float16", false, true),
    ignores("data_types.param_dtype", word, "storage is the host's ShardedParameter<T>",
            "fp32|bf16|fp16|float32|bfloat16|float16"),
    ignores("data_types.buffer_dtype", word, "buffers are the host's",
            "fp32|bf16|fp16|float32|bfloat16|float16"),

    // Other kinds of parallelism.
    group("tensor_parallel"),
    refuses("tensor_parallel.autotp_size", integer, why::tensor_parallel, "0|1", "0.."),
    refuses("tensor_parallel.tp_size", integer, why::tensor_parallel, "0|1", "0.."),
    group("tensor_parallel.tp"),
    refuses("tensor_parallel.tp.tp_size", integer, why::tensor_parallel, "0|1", "0.."),
    ignores("tensor_parallel.tp.tp_grain_size", integer, "it tunes tensor parallelism", "1.."),
    ignores("tensor_parallel.tp_overlap_comm", boolean, "it tunes tensor parallelism"),
    ignores("tensor_parallel.dtype", text, "it tunes tensor parallelism"),
    ignores("tensor_parallel.preset_model", text, "it tunes tensor parallelism"),
    ignores("tensor_parallel.partition_config", free_map, "it tunes tensor parallelism"),
    group("pipeline"),
    {.path = "pipeline.stages",
     .kind = integer,
     .outcome = ConfigOutcome::refused,
     .note = why::pipeline,
     .domain = "1..",
     .harmless = "auto|1",
     .automatic = true},
    ignores("pipeline.partition", text, "it tunes pipelines"),
    ignores("pipeline.seed_layers", boolean, "it tunes pipelines"),
    ignores("pipeline.activation_checkpoint_interval", integer, why::host_recompute, "0.."),
    ignores("pipeline.pipe_partitioned", boolean, "it tunes pipelines"),
    ignores("pipeline.grad_partitioned", boolean, "it tunes pipelines"),
    refuses("expert_parallel", free_map, why::experts, ""),

    // What changes the training.
    refuses("compression_training", free_map, why::other_training, ""),
    refuses("quantize_training", free_map, why::other_training, ""),
    refuses("weight_quantization", free_map, why::other_training, ""),
    refuses("sparse_attention", free_map, why::other_training, ""),
    group("elasticity"),
    refuses("elasticity.enabled", boolean, "a world that changes while it trains", "false"),
    ignores("elasticity.max_train_batch_size", integer, "it tunes elasticity", "1.."),
    ignores("elasticity.micro_batch_sizes", list, "it tunes elasticity"),
    ignores("elasticity.min_gpus", integer, "it tunes elasticity", "1.."),
    ignores("elasticity.max_gpus", integer, "it tunes elasticity", "1.."),
    ignores("elasticity.num_gpus_per_node", integer, "it tunes elasticity", "1.."),
    ignores("elasticity.model_parallel_size", integer, "it tunes elasticity", "1.."),
    ignores("elasticity.min_time", integer, "it tunes elasticity", "0.."),
    ignores("elasticity.prefer_larger_batch", boolean, "it tunes elasticity"),
    ignores("elasticity.ignore_non_elastic_batch_info", boolean, "it tunes elasticity"),
    ignores("elasticity.version", number, "it tunes elasticity", "0.."),
    group("progressive_layer_drop"),
    refuses("progressive_layer_drop.enabled", boolean, why::other_training, "false"),
    ignores("progressive_layer_drop.theta", number, "it tunes layer drop", "0..1"),
    ignores("progressive_layer_drop.gamma", number, "it tunes layer drop", "0..1"),
    group("data_efficiency"),
    refuses("data_efficiency.enabled", boolean, why::other_training, "false"),
    ignores("data_efficiency.seed", integer, why::host_data, "0.."),
    ignores("data_efficiency.data_sampling", free_map, why::host_data),
    ignores("data_efficiency.data_routing", free_map, why::host_data),
    ignores("curriculum_learning", free_map, why::host_data),
    ignores("dataloader_drop_last", boolean, why::host_data),
    ignores("eigenvalue", free_map, why::prints),

    // What is the host's.
    group("optimizer"),
    ignores("optimizer.type", text, why::host_optimizer),
    ignores("optimizer.params", free_map, why::host_optimizer),
    ignores("optimizer.legacy_fusion", boolean, why::host_optimizer),
    group("scheduler"),
    ignores("scheduler.type", text, why::host_schedule),
    ignores("scheduler.params", free_map, why::host_schedule),
    group("activation_checkpointing"),
    ignores("activation_checkpointing.partition_activations", boolean, why::host_recompute),
    ignores("activation_checkpointing.number_checkpoints", integer, why::host_recompute, "0.."),
    ignores("activation_checkpointing.contiguous_memory_optimization", boolean,
            why::host_recompute),
    ignores("activation_checkpointing.synchronize_checkpoint_boundary", boolean,
            why::host_recompute),
    ignores("activation_checkpointing.profile", boolean, why::host_recompute),
    ignores("activation_checkpointing.cpu_checkpointing", boolean, why::host_recompute),
    group("checkpoint"),
    ignores("checkpoint.tag_validation", text, why::saves),
    ignores("checkpoint.load_universal", boolean, why::saves),
    ignores("checkpoint.use_node_local_storage", boolean, why::saves),
    ignores("checkpoint.parallel_write", free_map, why::saves),
    ignores("checkpoint.writer", free_map, why::saves),
    ignores("checkpoint.checkpoint_serialization", boolean, why::saves),
    ignores("nebula", free_map, why::saves),
    ignores("datastates_ckpt", free_map, why::saves),
    ignores("aio", free_map, why::offloaded),
    ignores("compile", free_map, why::compiler),
    ignores("graph_harvesting", boolean, why::compiler),
    ignores("autotuning", free_map, "see compare_strategies --tune"),
    ignores("hybrid_engine", free_map, "it is about inference between steps"),
    ignores("vocabulary_size", integer, "it is about a warning of DeepSpeed's", "1.."),

    // What prints.
    ignores("steps_per_print", integer, why::prints, "0.."),
    ignores("wall_clock_breakdown", boolean, why::prints),
    ignores("memory_breakdown", boolean, why::prints),
    ignores("dump_state", boolean, why::prints),
    ignores("log_level", text, why::prints),
    group("comms_logger"),
    ignores("comms_logger.enabled", boolean, why::prints),
    ignores("comms_logger.verbose", boolean, why::prints),
    ignores("comms_logger.prof_all", boolean, why::prints),
    ignores("comms_logger.debug", boolean, why::prints),
    ignores("comms_logger.prof_ops", list, why::prints),
    group("comms_config"),
    ignores("comms_config.enabled", boolean, why::prints),
    ignores("comms_config.verbose", boolean, why::prints),
    ignores("comms_config.prof_all", boolean, why::prints),
    ignores("comms_config.debug", boolean, why::prints),
    ignores("comms_config.prof_ops", list, why::prints),
    group("monitor_config"),
    ignores("monitor_config.enabled", boolean, why::prints),
    ignores("monitor_config.tag", text, why::prints),
    ignores("monitor_config.tensorboard", free_map, why::prints),
    ignores("monitor_config.wandb", free_map, why::prints),
    ignores("monitor_config.comet", free_map, why::prints),
    group("monitor_config.csv_monitor"),
    ignores("monitor_config.csv_monitor.enabled", boolean, why::prints),
    ignores("monitor_config.csv_monitor.output_path", text, why::prints),
    ignores("monitor_config.csv_monitor.job_name", text, why::prints),
    ignores("tensorboard", free_map, why::prints),
    ignores("wandb", free_map, why::prints),
    ignores("comet", free_map, why::prints),
    ignores("csv_monitor", free_map, why::prints),
    group("flops_profiler"),
    ignores("flops_profiler.enabled", boolean, why::prints),
    ignores("flops_profiler.recompute_fwd_factor", number, why::prints, "0.."),
    ignores("flops_profiler.profile_step", integer, why::prints, "0.."),
    ignores("flops_profiler.module_depth", integer, why::prints, "-1.."),
    ignores("flops_profiler.top_modules", integer, why::prints, "0.."),
    ignores("flops_profiler.detailed", boolean, why::prints),
    ignores("flops_profiler.output_file", text, why::prints),
    ignores("timers", free_map, why::prints),
};

}  // namespace keys
}  // namespace shardwise::inline v0_1::detail
