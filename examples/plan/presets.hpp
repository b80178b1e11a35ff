#pragma once

#include <cstddef>
#include <shardwise/plan/hardware.hpp>
#include <shardwise/plan/transformer.hpp>
#include <span>
#include <string_view>

namespace plan {

/// A device by its data sheet, and what programs reach of that.
struct DevicePreset {
  std::string_view name;
  double flops;             ///< of dense bf16 products (V100: f16), peak
  double efficiency;        ///< of large products, measured
  double memory_bandwidth;  ///< bytes per second, peak
  std::size_t memory;       ///< bytes
  double link;              ///< bytes per second to the other devices of a node, one direction
  std::string_view source;
};
[[nodiscard]] std::span<const DevicePreset> device_presets();

/// A network between nodes, for each device.
struct NetworkPreset {
  std::string_view name;
  double bandwidth;  ///< bytes per second, one direction, peak
  double latency;    ///< seconds
  std::string_view source;
};
[[nodiscard]] std::span<const NetworkPreset> network_presets();

struct ModelPreset {
  std::string_view name;
  shardwise::TransformerShape shape;
  std::string_view source;
};
[[nodiscard]] std::span<const ModelPreset> model_presets();

/// The preset with this name; throws std::invalid_argument that lists the names.
[[nodiscard]] const DevicePreset& device_preset(std::string_view name);
[[nodiscard]] const NetworkPreset& network_preset(std::string_view name);
[[nodiscard]] const ModelPreset& model_preset(std::string_view name);

/// What programs reach of a data sheet's numbers.
struct Reached {
  /// NVLink's protocol takes a fifth: 370 of 450 GB/s (NCCL's maintainers,
  /// https://github.com/NVIDIA/nccl-tests/issues/212).
  static constexpr double link = 370.0 / 450;
  /// STREAM-like kernels on HBM: 0.9 of the peak of A100 (https://arxiv.org/abs/2206.02874 measures
  /// 1.4 of 1.555 TB/s).
  static constexpr double memory = 0.9;
  /// Fused attention on A100 runs at 0.72 of what large products reach: 193 of 268 TFLOPS, forwards
  /// and backwards, causal, heads of 128 (Dao, FlashAttention-2, 2023, figure 4: up to 225
  /// forwards).
  static constexpr double attention = 0.72;
  /// Seconds for a message within a node, and for the host to enqueue a kernel.
  static constexpr double link_latency = 3e-6;
  static constexpr double launch = 5e-6;
  /// The part of a GPU's cores that NCCL's kernels take (16 to 32 of 108 or 132).
  static constexpr double communication_share = 0.1;
};

/// The hardware that a program can expect of `device`, `per_node` of them in a node.
[[nodiscard]] shardwise::Hardware hardware_of(const DevicePreset& device,
                                              const NetworkPreset& network, int per_node);

}  // namespace plan
