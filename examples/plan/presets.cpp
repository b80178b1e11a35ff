#include "presets.hpp"

#include <fmt/core.h>

#include <array>
#include <stdexcept>
#include <string>

namespace plan {
namespace {

constexpr double tera = 1e12;
constexpr double giga = 1e9;
constexpr std::size_t mebi = std::size_t{1} << 20;

// Efficiencies of A100, H100, H200, B200 and MI300X are measured ones: the table of maximum
// achievable matmul FLOPS in
// https://github.com/stas00/ml-engineering/tree/master/compute/accelerator . The others, for which
// it has none, take 0.86. Memory is what nvidia-smi and rocm-smi show as total, which is up to 7 %
// less, or more, than the round number of the data sheet in units of 1e9 bytes.
constexpr std::array<DevicePreset, 9> devices{{
    {"v100-32gb", 125 * tera, 0.86, 900 * giga, 32510 * mebi, 150 * giga,
     "https://images.nvidia.com/content/technologies/volta/pdf/"
     "volta-v100-datasheet-update-us-1165301-r5.pdf"},
    {"a100-40gb", 312 * tera, 0.869, 1555 * giga, 40960 * mebi, 300 * giga,
     "https://www.nvidia.com/en-us/data-center/a100/"},
    {"a100-80gb", 312 * tera, 0.869, 2039 * giga, 81920 * mebi, 300 * giga,
     "https://www.nvidia.com/en-us/data-center/a100/"},
    {"h100", 989.4 * tera, 0.803, 3350 * giga, 81559 * mebi, 450 * giga,
     "https://www.nvidia.com/en-us/data-center/h100/"},
    {"h200", 989.4 * tera, 0.803, 4800 * giga, 143771 * mebi, 450 * giga,
     "https://www.nvidia.com/en-us/data-center/h200/"},
    {"b200", 2250 * tera, 0.776, 8000 * giga, 183359 * mebi, 900 * giga,
     "https://www.nvidia.com/en-us/data-center/dgx-b200/"},
    {"l40s", 362.05 * tera, 0.86, 864 * giga, 46068 * mebi, 32 * giga,
     "https://www.nvidia.com/en-us/data-center/l40s/"},
    {"rtx-4090", 165.2 * tera, 0.86, 1008 * giga, 24564 * mebi, 32 * giga,
     "https://images.nvidia.com/aem-dam/Solutions/geforce/ada/nvidia-ada-gpu-architecture.pdf"},
    {"mi300x", 1307.4 * tera, 0.514, 5300 * giga, 196592 * mebi, 448 * giga,
     "https://www.amd.com/en/products/accelerators/instinct/mi300/mi300x.html"},
}};

constexpr std::array<NetworkPreset, 6> networks{{
    {"ib-edr", 12.5 * giga, 5e-6, "https://www.infinibandta.org/infiniband-roadmap/"},
    {"ib-hdr", 25 * giga, 5e-6, "https://www.infinibandta.org/infiniband-roadmap/"},
    {"ib-ndr", 50 * giga, 5e-6, "https://www.infinibandta.org/infiniband-roadmap/"},
    {"ib-xdr", 100 * giga, 5e-6, "https://www.infinibandta.org/infiniband-roadmap/"},
    {"ethernet-100", 12.5 * giga / 8, 20e-6,
     "one port of 100 Gbit/s for a node of 8 devices (IEEE 802.3bm)"},
    {"ethernet-10", 1.25 * giga / 8, 50e-6,
     "one port of 10 Gbit/s for a node of 8 devices (IEEE 802.3ae)"},
}};

constexpr std::string_view gpt2 =
    "https://d4mucfpksywv.cloudfront.net/better-language-models/language-models.pdf";
constexpr std::string_view gpt3 = "https://arxiv.org/abs/2005.14165";
constexpr std::string_view llama = "https://arxiv.org/abs/2302.13971";
constexpr std::string_view llama2 = "https://arxiv.org/abs/2307.09288";
constexpr std::string_view llama3 = "https://arxiv.org/abs/2407.21783";

constexpr shardwise::TransformerShape gpt(std::size_t layers, std::size_t width, std::size_t heads,
                                          std::size_t sequence) {
  shardwise::TransformerShape shape;
  shape.layers = layers;
  shape.width = width;
  shape.heads = heads;
  shape.sequence = sequence;
  return shape;
}
constexpr shardwise::TransformerShape llama_of(std::size_t layers, std::size_t width,
                                               std::size_t heads, std::size_t key_value_heads,
                                               std::size_t feed_forward, std::size_t vocabulary,
                                               std::size_t sequence) {
  shardwise::TransformerShape shape = gpt(layers, width, heads, sequence);
  shape.key_value_heads = key_value_heads;
  shape.feed_forward = feed_forward;
  shape.vocabulary = vocabulary;
  shape.gated = true;
  shape.biases = false;
  shape.positions = false;
  shape.tied = false;
  return shape;
}

constexpr std::array<ModelPreset, 14> models{{
    {"gpt2", gpt(12, 768, 12, 1024), gpt2},
    {"gpt2-medium", gpt(24, 1024, 16, 1024), gpt2},
    {"gpt2-large", gpt(36, 1280, 20, 1024), gpt2},
    {"gpt2-xl", gpt(48, 1600, 25, 1024), gpt2},
    {"gpt3-175b", gpt(96, 12288, 96, 2048), gpt3},
    {"llama-7b", llama_of(32, 4096, 32, 32, 11008, 32000, 2048), llama},
    {"llama-13b", llama_of(40, 5120, 40, 40, 13824, 32000, 2048), llama},
    {"llama-65b", llama_of(80, 8192, 64, 64, 22016, 32000, 2048), llama},
    {"llama2-7b", llama_of(32, 4096, 32, 32, 11008, 32000, 4096), llama2},
    {"llama2-13b", llama_of(40, 5120, 40, 40, 13824, 32000, 4096), llama2},
    {"llama2-70b", llama_of(80, 8192, 64, 8, 28672, 32000, 4096), llama2},
    {"llama3-8b", llama_of(32, 4096, 32, 8, 14336, 128256, 8192), llama3},
    {"llama3-70b", llama_of(80, 8192, 64, 8, 28672, 128256, 8192), llama3},
    {"llama3-405b", llama_of(126, 16384, 128, 8, 53248, 128256, 8192), llama3},
}};

template <class Presets>
const auto& find(const Presets& presets, std::string_view kind, std::string_view name) {
  std::string names;
  for (const auto& preset : presets) {
    if (preset.name == name) return preset;
    names += fmt::format("{}{}", names.empty() ? "" : ", ", preset.name);
  }
  throw std::invalid_argument(fmt::format("there is no {} '{}'; there is {}", kind, name, names));
}

}  // namespace

std::span<const DevicePreset> device_presets() { return devices; }
std::span<const NetworkPreset> network_presets() { return networks; }
std::span<const ModelPreset> model_presets() { return models; }

const DevicePreset& device_preset(std::string_view name) { return find(devices, "device", name); }
const NetworkPreset& network_preset(std::string_view name) {
  return find(networks, "network", name);
}
const ModelPreset& model_preset(std::string_view name) { return find(models, "model", name); }

shardwise::Hardware hardware_of(const DevicePreset& device, const NetworkPreset& network,
                                int per_node) {
  shardwise::Hardware hardware;
  hardware.name = device.name;
  hardware.flops = device.flops * device.efficiency;
  hardware.attention_flops = hardware.flops * Reached::attention;
  hardware.memory = device.memory;
  hardware.processor.memory_bandwidth = device.memory_bandwidth * Reached::memory;
  hardware.processor.launch = Reached::launch;
  hardware.processor.communication_share = Reached::communication_share;
  hardware.topology.devices_per_node = per_node;
  hardware.topology.node = {Reached::link_latency, device.link * Reached::link};
  hardware.topology.network = {network.latency, network.bandwidth * Reached::link};
  hardware.topology.sum_bandwidth = hardware.processor.memory_bandwidth;
  return hardware;
}

}  // namespace plan
