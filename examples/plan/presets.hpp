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
  /// https://github.com/NVIDIA/nccl-tests/issues/212). Of other links as much is taken.
  static constexpr double link = 370.0 / 450;
  /// Fused attention reaches 50 to 73 % of A100's peak (Dao, FlashAttention-2, 2023,
  /// https://arxiv.org/abs/2307.08691); the middle is this part of what large products reach there.
  static constexpr double attention = 0.72;
  // Assumed, for want of a source; none of them weighs much in a large model.
  static constexpr double memory = 0.9;               ///< of the peak, by kernels that stream
  static constexpr double link_latency = 3e-6;        ///< seconds of a message within a node
  static constexpr double launch = 5e-6;              ///< seconds of the host to enqueue a kernel
  static constexpr double communication_share = 0.1;  ///< of a GPU's cores, taken by collectives
};

/// The hardware that a program can expect of `device`, `per_node` of them in a node.
[[nodiscard]] shardwise::Hardware hardware_of(const DevicePreset& device,
                                              const NetworkPreset& network, int per_node);

}  // namespace plan
