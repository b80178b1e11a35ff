#pragma once

#include "deepspeed_keys.hpp"
#include "key.hpp"

/// @file
/// The keys of Hugging Face accelerate's configuration with FSDP (commands/config/config_args.py,
/// utils/dataclasses.py: FullyShardedDataParallelPlugin), versions 1 and 2. Within fsdp_config the
/// names are without fsdp_ here, and with or without it in files.
namespace shardwise::inline v0_1::detail {

namespace why {
inline constexpr std::string_view launcher = "ranks are started by whoever starts the host";
inline constexpr std::string_view tpu = "it is about TPUs";
inline constexpr std::string_view loading = "the host initialises parameters; see initialize";
inline constexpr std::string_view wrapping = units;
}  // namespace why

namespace keys {

using enum ConfigKind;

inline constexpr ConfigKey wrapped_layers =
    ignores("fsdp_config.transformer_layer_cls_to_wrap", value, why::wrapping);

inline constexpr ConfigKey accelerate[] = {
    {.path = "compute_environment",
     .kind = word,
     .outcome = ConfigOutcome::refused,
     .note = "a launcher for a cloud service",
     .domain = "LOCAL_MACHINE|AMAZON_SAGEMAKER",
     .harmless = "local_machine"},
    applies("distributed_type", word,
            "FSDP: by fsdp_config; MULTI_GPU, MULTI_CPU, MULTI_NPU, MULTI_XPU, NO: strategy = ddp; "
            "others are refused",
            "NO|MULTI_CPU|MULTI_GPU|MULTI_NPU|MULTI_XPU|MULTI_MLU|MULTI_HPU|FSDP|DEEPSPEED|"
            "MEGATRON_LM|TP|XLA|TPU"),
    applies("mixed_precision", word,
            "lease: bf16, or f16 for fp16; no: the storage type. fp8 is "
            "refused",
            "no|fp16|bf16|fp8", false, true),
    {.path = "fp16", .kind = yes_no, .note = "lease = f16 (older than mixed_precision)"},
    applies("num_processes", integer, "ranks", "1..", false, true),

    group("fsdp_config"),
    applies("fsdp_config.version", integer, "which of the rules hold", "1..2"),
    applies(
        "fsdp_config.sharding_strategy", word,
        "strategy: FULL_SHARD zero3, SHARD_GRAD_OP zero3-no-reshard, NO_SHARD ddp; HYBRID_SHARD "
        "and "
        "HYBRID_SHARD_ZERO2: these within shard_group = num_processes / num_machines. Version 1",
        "FULL_SHARD|SHARD_GRAD_OP|NO_SHARD|HYBRID_SHARD|HYBRID_SHARD_ZERO2|1|2|3|4|5"),
    applies("fsdp_config.reshard_after_forward", word,
            "strategy: true zero3, false zero3-no-reshard (version 2); a sharding_strategy "
            "(version 1)",
            "true|false|yes|no|FULL_SHARD|SHARD_GRAD_OP|NO_SHARD|HYBRID_SHARD|HYBRID_SHARD_ZERO2"),
    refuses("fsdp_config.offload_params", yes_no, why::offload, "false|no|off|0"),
    spelled("fsdp_config.cpu_offload",
            refuses("fsdp_config.offload_params", yes_no, why::offload, "false|no|off|0")),
    applies("fsdp_config.backward_prefetch", word,
            "prefetch: 1 for BACKWARD_PRE; 0 for BACKWARD_POST and NO_PREFETCH, unless "
            "forward_prefetch. Version 1",
            "BACKWARD_PRE|BACKWARD_POST|NO_PREFETCH|1|2|3", false, true),
    applies("fsdp_config.forward_prefetch", yes_no, "prefetch: at least 1 where true. Version 1"),
    ignores("fsdp_config.auto_wrap_policy", word, why::wrapping,
            "TRANSFORMER_BASED_WRAP|SIZE_BASED_WRAP|NO_WRAP"),
    wrapped_layers,
    spelled("fsdp_config.transformer_cls_names_to_wrap", wrapped_layers),
    ignores("fsdp_config.min_num_params", integer, why::wrapping, "0.."),
    ignores("fsdp_config.ignored_modules", value, why::wrapping),
    ignores("fsdp_config.state_dict_type", word, why::saves,
            "FULL_STATE_DICT|LOCAL_STATE_DICT|SHARDED_STATE_DICT|1|2|3"),
    ignores("fsdp_config.sync_module_states", yes_no, why::loading),
    ignores("fsdp_config.cpu_ram_efficient_loading", yes_no, why::loading),
    ignores("fsdp_config.use_orig_params", yes_no,
            "tensors keep their names and options within a parameter"),
    ignores("fsdp_config.activation_checkpointing", yes_no, why::host_recompute),
    ignores("fsdp_config.limit_all_gathers", yes_no, "slots are counted before the first step"),
    ignores("fsdp_config.xla", yes_no, why::tpu),
    ignores("fsdp_config.xla_fsdp_v2", yes_no, why::tpu),
    ignores("fsdp_config.xla_fsdp_settings", value, why::tpu),
    ignores("fsdp_config.xla_fsdp_grad_ckpt", yes_no, why::tpu),

    refuses("fp8_config", free_map, why::fp8, ""),
    refuses("megatron_lm_config", free_map, "Megatron's tensor and pipeline parallelism", ""),
    refuses("deepspeed_config", free_map, "DeepSpeed by way of accelerate (give its JSON itself)",
            ""),
    group("parallelism_config", true),
    applies("parallelism_config.parallelism_config_dp_replicate_size", integer,
            "more than 1: so many groups of parallelism_config_dp_shard_size ranks each", "0.."),
    applies("parallelism_config.parallelism_config_dp_shard_size", integer,
            "shard_group, where parallelism_config_dp_replicate_size is more than 1",
            "0..2147483647"),
    refuses("parallelism_config.parallelism_config_tp_size", integer, why::tensor_parallel, "0|1",
            "0.."),
    refuses("parallelism_config.parallelism_config_cp_size", integer, why::sequence_parallel, "0|1",
            "0.."),
    refuses("parallelism_config.parallelism_config_sp_size", integer, why::sequence_parallel, "0|1",
            "0.."),
    ignores("parallelism_config.parallelism_config_cp_comm_strategy", text,
            "it tunes context parallelism"),
    ignores("parallelism_config.parallelism_config_cp_backend", text,
            "it tunes context parallelism"),
    ignores("parallelism_config.parallelism_config_sp_backend", text,
            "it tunes sequence parallelism"),
    ignores("parallelism_config.parallelism_config_sp_seq_length", integer,
            "it tunes sequence parallelism", "0.."),
    ignores("parallelism_config.parallelism_config_sp_seq_length_is_variable", yes_no,
            "it tunes sequence parallelism"),
    ignores("parallelism_config.parallelism_config_sp_attn_implementation", text,
            "it tunes sequence parallelism"),

    ignores("debug", yes_no, "see ContextOptions::debug"),
    ignores("downcast_bf16", yes_no, why::tpu),
    ignores("use_cpu", yes_no, "the device is the host's: Context<CudaDevice>"),
    ignores("enable_cpu_affinity", yes_no, why::launcher),
    ignores("gpu_ids", value, why::launcher),
    ignores("machine_rank", integer, why::launcher, "0.."),
    applies("num_machines", integer, "shard_group of HYBRID_SHARD: the ranks of one machine",
            "1.."),
    ignores("main_process_ip", text, why::launcher),
    ignores("main_process_port", integer, why::launcher, "0..65535"),
    ignores("main_training_function", text, why::launcher),
    ignores("rdzv_backend", text, why::launcher),
    ignores("same_network", yes_no, why::launcher),
    ignores("mpirun_config", free_map, why::launcher),
    ignores("dynamo_config", free_map, why::compiler),
    ignores("dynamo_backend", text, why::compiler),
    ignores("tpu_name", text, why::tpu),
    ignores("tpu_zone", text, why::tpu),
    ignores("tpu_use_cluster", yes_no, why::tpu),
    ignores("tpu_use_sudo", yes_no, why::tpu),
    ignores("tpu_env", list, why::tpu),
    ignores("tpu_vm", list, why::tpu),
    ignores("command_file", text, why::tpu),
    ignores("commands", list, why::tpu),
};

}  // namespace keys
}  // namespace shardwise::inline v0_1::detail
