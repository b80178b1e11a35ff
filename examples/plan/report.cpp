#include "report.hpp"

#include <fmt/core.h>

#include <fstream>
#include <nlohmann/json.hpp>
#include <shardwise/config/write.hpp>
#include <stdexcept>

#include "presets.hpp"

namespace plan {
namespace {

using Json = nlohmann::ordered_json;

double giga(double bytes) { return bytes / 1e9; }
double giga(std::size_t bytes) { return giga(static_cast<double>(bytes)); }

std::string fits(const Options& options, const shardwise::StrategyPlan& row, bool memory_known) {
  if (!memory_known) return "?";
  const double spare = giga(row.spare);
  if (!row.fits) return fmt::format("no, {:.1f} over", -spare);
  return options.knows_units() ? fmt::format("{:.1f} left", spare) : "if slots do";
}

std::string of_step(const shardwise::StrategyPlan& row) {
  if (!row.step) return fmt::format("{:>10}{:>10}{:>10}", "-", "-", "-");
  return fmt::format("{:>10.1f}{:>10.1f}{:>10.1f}", 1e3 * row.step->seconds,
                     1e3 * row.step->exposed, giga(static_cast<double>(row.step->traffic.bytes())));
}

std::string heading(const Options& options, const shardwise::PlannedModel& model,
                    const shardwise::Hardware& hardware) {
  return fmt::format(
      "{}{:.3g} parameters; {} device(s) in {} node(s), {} of {:.1f} GB; leases {}, gradients {}, "
      "{}; {} x {} sequence(s) a device and step\n",
      model.name.empty() ? "" : model.name + ", ", static_cast<double>(model.elements()),
      options.devices, options.nodes, hardware.name, giga(hardware.memory), options.lease,
      options.gradient, options.optimizer, options.micro_batches, options.micro_batch);
}

Json json_of(const shardwise::Traffic& traffic) {
  return {{"all_gather", traffic.all_gather},
          {"reduce_scatter", traffic.reduce_scatter},
          {"all_reduce", traffic.all_reduce},
          {"calls",
           {{"all_gather", traffic.all_gather_calls},
            {"reduce_scatter", traffic.reduce_scatter_calls},
            {"all_reduce", traffic.all_reduce_calls}}}};
}

Json json_of(const shardwise::StrategyPlan& row, bool knows_units) {
  const shardwise::Bytes& bytes = row.memory.bytes;
  const Json unknown = nullptr;
  Json json = {
      {"name", row.strategy.name()},
      {"residency", name_of(row.strategy.residency)},
      {"bytes_per_rank",
       {{"parameters", bytes.parameters},
        {"gradients", bytes.gradients},
        {"optimizer_state", bytes.optimizer_state},
        {"slots", knows_units ? Json(bytes.slots) : unknown},
        {"peak", knows_units ? Json(row.memory.peak()) : unknown},
        {"at_rest", bytes.parameters + bytes.gradients + bytes.optimizer_state}}},
      {"activation_bytes", row.activation_bytes > 0 ? Json(row.activation_bytes) : unknown},
      {"fits", row.fits},
      {"spare_bytes", row.spare}};
  if (row.step) {
    json["step_ms"] = 1e3 * row.step->seconds;
    json["compute_ms"] = 1e3 * row.step->compute;
    json["update_ms"] = 1e3 * row.step->update;
    json["communication_ms"] = 1e3 * row.step->communication;
    json["exposed_ms"] = 1e3 * row.step->exposed;
    json["traffic_per_step"] = json_of(row.step->traffic);
  } else {
    json["step_ms"] = nullptr;
    json["traffic_per_step"] = nullptr;
  }
  json["advice"] = row.advice.empty() ? unknown : Json(row.advice);
  return json;
}

}  // namespace

std::string table(const Options& options, const shardwise::PlannedModel& model,
                  const shardwise::Hardware& hardware, const shardwise::Plan& plan) {
  std::string text = heading(options, model, hardware);
  text += fmt::format("\n{:<17}|{:>8}{:>8}{:>8}{:>8}{:>8}{:>9} | {:<16}|{:>10}{:>10}{:>10} |\n", "",
                      "param.", "grad.", "optim.", "slots", "activ.", "sum", "", "step", "exposed",
                      "sent");
  text += fmt::format("{:<17}|{:^49} | {:<16}|{:>10}{:>10}{:>10} | {}\n", "strategy",
                      "GB per device (1 GB = 1e9 bytes)", "fits", "ms", "ms", "GB", "");
  for (const shardwise::StrategyPlan& row : plan.strategies) {
    const shardwise::Bytes& bytes = row.memory.bytes;
    const bool known = options.knows_units();
    text += fmt::format(
        "{:<17}|{:>8.2f}{:>8.2f}{:>8.2f}{:>8}{:>8}{:>9.2f} | {:<16}|{} | {}\n", row.strategy.name(),
        giga(bytes.parameters), giga(bytes.gradients), giga(bytes.optimizer_state),
        known ? fmt::format("{:.2f}", giga(bytes.slots)) : "?",
        known ? fmt::format("{:.2f}", giga(row.activation_bytes)) : "?", giga(row.needed()),
        fits(options, row, hardware.memory > 0), of_step(row), row.advice);
  }
  if (options.residency == "shared") {
    text +=
        "\nParameters are shared by the ranks of a process (ddp's are not): each rank has its part "
        "of them.";
    text +=
        hardware.flops > 0 ? "\n" : " Times need a CPU: give --hardware, a file of calibrate.\n";
  }
  if (options.knows_units()) {
    text += "\nActivations are an estimate; everything else that is held is exact.\n";
  } else {
    text +=
        "\nSlots, activations and times are not known from the number of parameters: give --layers "
        "and --width.\n";
  }
  return text + fmt::format("\n{}: {}.\n", plan.recommended ? "Recommended" : "None", plan.reason);
}

std::string to_json(const Options& options, const shardwise::PlannedModel& model,
                    const shardwise::Hardware& hardware, const shardwise::Plan& plan) {
  Json strategies = Json::array();
  for (const shardwise::StrategyPlan& row : plan.strategies) {
    strategies.push_back(json_of(row, options.knows_units()));
  }
  const Json unknown = nullptr;
  const Json json = {
      {"model", model.name.empty() ? unknown : Json(model.name)},
      {"parameters", model.elements()},
      {"devices", options.devices},
      {"nodes", options.nodes},
      {"hardware", hardware.name},
      {"device_memory", hardware.memory},
      {"strategies", strategies},
      {"missing", options.knows_units()
                      ? unknown
                      : Json("slots, activations and step times: give --layers and --width")},
      {"recommended",
       plan.recommended ? Json(plan.strategies[*plan.recommended].strategy.name()) : unknown},
      {"reason", plan.reason}};
  return json.dump(2) + '\n';
}

std::string config_of(const Options& options, const shardwise::Plan& plan) {
  if (!plan.recommended) {
    throw std::invalid_argument("--write-config: " + plan.reason);
  }
  shardwise::Configuration configuration;
  configuration.strategy = plan.strategies[*plan.recommended].strategy;
  configuration.gradient_storage = type_of(options.gradient);
  configuration.ranks = options.devices;
  configuration.micro_batch = options.micro_batch;
  configuration.micro_batches = options.micro_batches;
  return shardwise::write_config(configuration, "recommended by plan: " + plan.reason);
}

std::string list_presets() {
  std::string text = "models\n";
  for (const ModelPreset& model : model_presets()) {
    const auto elements = shardwise::plan_transformer(model.shape, {}, std::nullopt, {}).elements();
    text += fmt::format("  {:<14}{:>8.3g} parameters, {} x {}, sequences of {}  {}\n", model.name,
                        static_cast<double>(elements), model.shape.layers, model.shape.width,
                        model.shape.sequence, model.source);
  }
  text +=
      "\ndevices: peak of dense 16-bit products, what large ones reach; memory; one direction\n";
  for (const DevicePreset& device : device_presets()) {
    text += fmt::format(
        "  {:<14}{:>7.0f} TFLOPS x {:.3f}, {:>4.0f} GB at {:>4.0f} GB/s, link {:>3.0f} GB/s  {}\n",
        device.name, device.flops / 1e12, device.efficiency, giga(device.memory),
        device.memory_bandwidth / 1e9, device.link / 1e9, device.source);
  }
  text += "\nnetworks: of each device, one direction\n";
  for (const NetworkPreset& network : network_presets()) {
    text += fmt::format("  {:<14}{:>7.2f} GB/s, {:.0f} us  {}\n", network.name,
                        network.bandwidth / 1e9, network.latency * 1e6, network.source);
  }
  text += fmt::format(
      "\nOf links {:.2f} of the peak is counted on, of memory {:.2f}; attention reaches {:.2f} of "
      "what other products do.\n",
      Reached::link, Reached::memory, Reached::attention);
  return text;
}

void write_file(const std::string& file, const std::string& text) {
  std::ofstream stream(file, std::ios::binary);
  stream << text << std::flush;
  if (!stream) throw std::runtime_error(fmt::format("cannot write {}", file));
}

}  // namespace plan
