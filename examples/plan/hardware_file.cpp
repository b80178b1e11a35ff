#include "hardware_file.hpp"

#include <fmt/core.h>

#include <fstream>
#include <nlohmann/json.hpp>
#include <set>
#include <stdexcept>

namespace plan {
namespace {

using Json = nlohmann::ordered_json;
using shardwise::Hardware;
using shardwise::Link;

Json json_of(const Link& link) {
  return {{"latency", link.latency}, {"bandwidth", link.bandwidth}};
}

// An object whose keys are asked for by name; what was not asked for is an error.
class Reader {
 public:
  Reader(const Json& json, std::string path) : json_(json), path_(std::move(path)) {
    if (!json_.is_object()) {
      throw std::invalid_argument(fmt::format("{} is no object", path_));
    }
  }
  template <class T>
  void read(const char* key, T& value) {
    known_.insert(key);
    if (!json_.contains(key)) return;
    try {
      json_.at(key).get_to(value);
    } catch (const nlohmann::json::exception&) {
      throw std::invalid_argument(
          fmt::format("{}.{} has the wrong type: {}", path_, key, json_.at(key).dump()));
    }
  }
  template <class F>
  void object(const char* key, F&& f) {
    known_.insert(key);
    if (!json_.contains(key)) return;
    Reader inner(json_.at(key), fmt::format("{}.{}", path_, key));
    f(inner);
    inner.finish();
  }
  void link(const char* key, Link& value) {
    object(key, [&](Reader& inner) {
      inner.read("latency", value.latency);
      inner.read("bandwidth", value.bandwidth);
    });
  }
  void finish() const {
    for (const auto& [key, value] : json_.items()) {
      if (!known_.contains(key)) {
        throw std::invalid_argument(fmt::format("{}.{}: unknown key", path_, key));
      }
    }
  }

 private:
  const Json& json_;
  std::string path_;
  std::set<std::string> known_;
};

}  // namespace

Hardware read_hardware(const std::string& file) {
  std::ifstream stream(file);
  const Json json = Json::parse(stream, nullptr, false);
  if (!stream || json.is_discarded()) {
    throw std::invalid_argument(fmt::format("{} is no JSON file", file));
  }
  Hardware hardware;
  Reader top(json, file + ": hardware");
  top.read("name", hardware.name);
  top.read("flops", hardware.flops);
  top.read("attention_flops", hardware.attention_flops);
  top.read("exponentials", hardware.exponentials);
  top.read("element_bandwidth", hardware.element_bandwidth);
  top.read("memory", hardware.memory);
  top.object("processor", [&](Reader& r) {
    auto& processor = hardware.processor;
    r.read("memory_bandwidth", processor.memory_bandwidth);
    r.read("update_bandwidth", processor.update_bandwidth);
    r.read("norm_bandwidth", processor.norm_bandwidth);
    r.read("cast_bandwidth", processor.cast_bandwidth);
    r.read("launch", processor.launch);
    r.read("inline_compute", processor.inline_compute);
    r.read("overlap_from", processor.overlap_from);
    r.read("communication_share", processor.communication_share);
  });
  top.object("topology", [&](Reader& r) {
    auto& topology = hardware.topology;
    r.read("devices_per_node", topology.devices_per_node);
    r.link("node", topology.node);
    r.link("network", topology.network);
    r.read("sum_bandwidth", topology.sum_bandwidth);
    r.object("measured", [&](Reader& inner) {
      shardwise::MeasuredCollectives measured;
      inner.link("all_gather", measured.all_gather);
      inner.link("reduce_scatter", measured.reduce_scatter);
      inner.link("all_reduce", measured.all_reduce);
      inner.read("scalar", measured.scalar);
      topology.measured = measured;
    });
  });
  top.finish();
  return hardware;
}

void require_ranks(const Hardware& hardware, std::size_t ranks) {
  const auto measured = static_cast<std::size_t>(hardware.topology.devices_per_node);
  if (!hardware.topology.measured || measured == ranks) return;
  throw std::invalid_argument(
      fmt::format("the hardware '{}' was measured with {} ranks, but there are {}: calibrate with "
                  "--ranks {}",
                  hardware.name, measured, ranks, ranks));
}

void write_hardware(const Hardware& hardware, const std::string& file) {
  const auto& processor = hardware.processor;
  const auto& topology = hardware.topology;
  Json json = {{"name", hardware.name},
               {"flops", hardware.flops},
               {"attention_flops", hardware.attention_flops},
               {"exponentials", hardware.exponentials},
               {"element_bandwidth", hardware.element_bandwidth},
               {"memory", hardware.memory},
               {"processor",
                {{"memory_bandwidth", processor.memory_bandwidth},
                 {"update_bandwidth", processor.update_bandwidth},
                 {"norm_bandwidth", processor.norm_bandwidth},
                 {"cast_bandwidth", processor.cast_bandwidth},
                 {"launch", processor.launch},
                 {"inline_compute", processor.inline_compute},
                 {"overlap_from", processor.overlap_from},
                 {"communication_share", processor.communication_share}}},
               {"topology",
                {{"devices_per_node", topology.devices_per_node},
                 {"node", json_of(topology.node)},
                 {"network", json_of(topology.network)},
                 {"sum_bandwidth", topology.sum_bandwidth}}}};
  if (topology.measured) {
    json["topology"]["measured"] = {{"all_gather", json_of(topology.measured->all_gather)},
                                    {"reduce_scatter", json_of(topology.measured->reduce_scatter)},
                                    {"all_reduce", json_of(topology.measured->all_reduce)},
                                    {"scalar", topology.measured->scalar}};
  }
  std::ofstream stream(file, std::ios::binary);
  stream << json.dump(2) << '\n' << std::flush;
  if (!stream) throw std::runtime_error(fmt::format("cannot write {}", file));
}

}  // namespace plan
