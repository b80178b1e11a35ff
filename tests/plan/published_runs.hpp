#pragma once

#include <array>
#include <cstddef>
#include <shardwise/plan/transformer.hpp>
#include <string_view>

/// @file
/// Throughputs that others have published, and what they say of the run. The constants that
/// predictions use are those of examples/plan/presets.cpp, which knows nothing of these runs.

namespace published {

struct Run {
  std::string_view name;
  std::string_view source;
  shardwise::TransformerShape shape;
  std::string_view device;   ///< a preset of examples/plan
  std::string_view network;  ///< a preset; where one node is enough it says nothing
  double network_bandwidth;  ///< bytes per second of each device, where no preset is that; else 0
  int devices;
  std::size_t micro_batch;
  std::size_t micro_batches;
  bool checkpoints;
  double tokens;  ///< per second and device
  /// Why the prediction misses by more than 30 %; empty where it does not.
  std::string_view miss = {};
};

constexpr shardwise::TransformerShape mpt(std::size_t layers, std::size_t width,
                                          std::size_t heads) {
  shardwise::TransformerShape shape;
  shape.layers = layers;
  shape.width = width;
  shape.heads = heads;
  shape.vocabulary = 50368;
  shape.sequence = 2048;
  shape.biases = false;
  return shape;
}

constexpr shardwise::TransformerShape llama_70b(std::size_t vocabulary, std::size_t sequence) {
  shardwise::TransformerShape shape;
  shape.layers = 80;
  shape.width = 8192;
  shape.heads = 64;
  shape.key_value_heads = 8;
  shape.feed_forward = 28672;
  shape.vocabulary = vocabulary;
  shape.sequence = sequence;
  shape.gated = true;
  shape.biases = false;
  shape.positions = false;
  shape.tied = false;
  return shape;
}

constexpr std::string_view foundry =
    "https://github.com/mosaicml/llm-foundry/blob/061f2c7/scripts/train/benchmarking/README.md";
constexpr std::string_view fms =
    "https://github.com/foundation-model-stack/fms-fsdp/blob/0d31998/README.md; 400 Gbit/s of a "
    "node: https://pytorch.org/blog/maximizing-training/";
constexpr std::string_view titan =
    "https://github.com/pytorch/torchtitan/blob/main/docs/performance.md (Llama 3, 64 A100; its "
    "network is not said: 200 Gbit/s of each device is taken)";

/// All are FSDP's full sharding in bf16 with AdamW.
inline constexpr std::array<Run, 6> runs{{
    {"MPT 7B, 8 A100", foundry, mpt(32, 4096, 32), "a100-80gb", "ib-hdr", 0, 8, 6, 2, false, 4641},
    {"MPT 30B, 8 A100", foundry, mpt(48, 7168, 56), "a100-80gb", "ib-hdr", 0, 8, 3, 21, true, 916},
    {"MPT 70B, 64 A100", foundry, mpt(80, 8192, 64), "a100-80gb", "ib-hdr", 0, 64, 8, 4, true, 410},
    {"MPT 7B, 8 H100", foundry, mpt(32, 4096, 32), "h100", "ib-ndr", 0, 8, 6, 1, false, 10643,
     "the software: its note says that the table is of before PyTorch 2.0, whose best row on H100 "
     "reaches 46 % of the chip's peak where products alone reach 80 %"},
    {"Llama 2 70B, 128 A100", fms, llama_70b(32000, 4096), "a100-80gb", "ib-hdr", 50e9 / 8, 128, 6,
     1, true, 380},
    {"Llama 3 70B, 64 A100", titan, llama_70b(128256, 8192), "a100-80gb", "ib-hdr", 0, 64, 1, 1,
     true, 331},
}};

}  // namespace published
