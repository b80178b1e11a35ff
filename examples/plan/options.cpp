#include "options.hpp"

#include <fmt/core.h>

#include <cmath>
#include <stdexcept>
#include <utility>

#include "../train_gpt/command_line.hpp"
#include "hardware_file.hpp"
#include "presets.hpp"
#include "quantity.hpp"

namespace plan {
namespace {

using train_gpt::add_count;

CLI::Option* add_quantity(CLI::App& app, const std::string& name, double& value,
                          const std::string& description) {
  const auto set = [&value, name](const std::string& text) {
    try {
      value = quantity(text);
    } catch (const std::invalid_argument& error) {
      throw CLI::ValidationError(name, error.what());
    }
  };
  return app.add_option_function<std::string>(name, set, description)->type_name("QUANTITY");
}

std::size_t whole(double value) { return static_cast<std::size_t>(std::llround(value)); }

shardwise::OptimizerKind optimizer_of(const std::string& name) {
  if (name == "adam") return shardwise::OptimizerKind::adam;
  if (name == "sgd") return shardwise::OptimizerKind::sgd;
  if (name == "momentum") return shardwise::OptimizerKind::momentum;
  if (name == "lion") return shardwise::OptimizerKind::lion;
  return shardwise::OptimizerKind::adamw;
}

void add_model(CLI::App& app, Options& o) {
  app.add_option("--model", o.model, "A known model (--list)")->group("Model");
  add_quantity(app, "--params", o.params, "Parameters, as 7e9")->group("Model");
  add_count(app, "--layers", o.shape.layers, "Transformer blocks")->group("Model");
  add_count(app, "--width", o.shape.width, "Size of the residual stream")->group("Model");
  add_count(app, "--heads", o.shape.heads, "Attention heads; 0: width / 64")->group("Model");
  add_count(app, "--kv-heads", o.shape.key_value_heads, "Heads of keys and values; 0: all")
      ->group("Model");
  add_count(app, "--feed-forward", o.shape.feed_forward, "Width of the MLP; 0: 4 x width")
      ->group("Model");
  add_count(app, "--vocabulary", o.shape.vocabulary, "Tokens that there are")->group("Model");
  add_count(app, "--sequence", o.shape.sequence, "Tokens of a sequence")->group("Model");
  app.add_flag("--gated", o.shape.gated, "The MLP has three matrices (SwiGLU)")->group("Model");
  app.add_flag("!--untied", o.shape.tied, "The head is no embedding")->group("Model");
  app.add_flag("!--no-biases", o.shape.biases, "Linear layers and norms have no bias")
      ->group("Model");
  app.add_flag("!--no-positions", o.shape.positions, "Positions are not learned")->group("Model");
}

void add_training(CLI::App& app, Options& o) {
  app.add_option("--lease", o.lease, "Type of the weights that the compute sees")
      ->check(CLI::IsMember({"fp32", "bf16", "f16"}))
      ->group("Training");
  app.add_option("--gradient", o.gradient, "Type of the stored gradient")
      ->check(CLI::IsMember({"fp32", "bf16", "f16"}))
      ->group("Training");
  app.add_option("--optimizer", o.optimizer, "Optimizer")
      ->check(CLI::IsMember({"adamw", "adam", "sgd", "momentum", "lion"}))
      ->group("Training");
  add_count(app, "--micro-batch", o.micro_batch, "Sequences that a device computes at once")
      ->group("Training");
  add_count(app, "--micro-batches", o.micro_batches, "Micro-batches of a step")->group("Training");
  app.add_option("--accumulate", o.accumulate,
                 "Micro-batches: reduce each, or hold the gradient and reduce once")
      ->check(CLI::IsMember({"reduce", "hold"}))
      ->group("Training");
  app.add_flag("--checkpoint", o.checkpoints, "Blocks are computed again in the backward pass")
      ->group("Training");
  add_count(app, "--prefetch", o.prefetch, "Parameters gathered ahead of use")->group("Training");
  add_quantity(app, "--bucket", o.bucket, "Bytes of leases that share a collective")
      ->group("Training");
  add_count(app, "--persistence", o.persistence, "Smaller parameters stay replicated (elements)")
      ->group("Training");
  app.add_option("--residency", o.residency,
                 "Where gathered parameters live; shared: in one copy for all ranks, which are "
                 "threads of one process on CPUs (times: with --hardware)")
      ->check(CLI::IsMember({"slots", "shared"}))
      ->group("Training");
}

void add_hardware(CLI::App& app, Options& o) {
  add_count(app, "--devices", o.devices, "Devices in all: the ranks")->group("Hardware");
  add_count(app, "--nodes", o.nodes, "Nodes that they are in; 0: of 8 devices each")
      ->group("Hardware");
  app.add_option("--device", o.device, "A known device (--list)")->group("Hardware");
  app.add_option("--network", o.network, "A known network between nodes (--list)")
      ->group("Hardware");
  app.add_option("--hardware", o.hardware_file, "A file that `calibrate` wrote, in their place")
      ->check(CLI::ExistingFile)
      ->group("Hardware");
  add_quantity(app, "--device-memory", o.device_memory, "Bytes of a device")->group("Hardware");
  add_quantity(app, "--flops", o.flops, "Matrix products that a device reaches, per second")
      ->group("Hardware");
  add_quantity(app, "--memory-bandwidth", o.memory_bandwidth, "Bytes per second that it reaches")
      ->group("Hardware");
  add_quantity(app, "--link", o.link, "Peak between devices of a node, one direction")
      ->group("Hardware");
  add_quantity(app, "--link-latency", o.link_latency, "Of a message between them")
      ->group("Hardware");
  add_quantity(app, "--network-bandwidth", o.network_bandwidth,
               "Peak of one device to other nodes, one direction")
      ->group("Hardware");
  app.add_option("--backend", o.backend,
                 "What connects the ranks: nccl, mpi or threads; what it needs of memory counts. "
                 "Without it: threads where they share parameters or --hardware says so, else nccl")
      ->check(CLI::IsMember({"nccl", "mpi", "threads"}))
      ->group("Hardware");
  app.add_option("--order", o.order,
                 "Sums over ranks: canonical (bit-equal), or fast, the backend's own")
      ->check(CLI::IsMember({"canonical", "fast"}))
      ->group("Hardware");
  add_quantity(app, "--reserve", o.reserve, "Bytes of a device that are for others")
      ->group("Hardware");
}

void complete(Options& o) {
  o.has_sizes = o.shape.layers > 0 && o.shape.width > 0;
  if (o.backend.empty()) {
    // A machine that was calibrated was so with threads.
    o.backend = o.hardware_file.empty() && o.residency != "shared" ? "nccl" : "threads";
  }
  if (o.backend == "nccl" && o.residency == "shared") {
    throw std::invalid_argument(
        "--residency shared is for ranks that see one memory: give --backend threads or mpi");
  }
  if (o.list) return;
  if (!o.has_sizes && (o.shape.layers > 0 || o.shape.width > 0)) {
    throw std::invalid_argument("--layers and --width belong together: give both");
  }
  if (o.model.empty() && o.params == 0 && !o.has_sizes) {
    throw std::invalid_argument(
        "which model? Give --model (--list shows them), --layers and --width, or --params");
  }
  if (o.devices < 1 || o.micro_batch < 1 || o.micro_batches < 1) {
    throw std::invalid_argument("--devices, --micro-batch and --micro-batches are at least 1");
  }
  if (o.nodes == 0) o.nodes = (o.devices + 7) / 8;
  if (o.devices % o.nodes != 0) {
    throw std::invalid_argument(fmt::format(
        "--devices {} are not the same number on each of --nodes {}", o.devices, o.nodes));
  }
  if (o.devices > 1'000'000) {
    throw std::invalid_argument(fmt::format("--devices {}: at most 1,000,000", o.devices));
  }
}

}  // namespace

Options parse_options(int count, const char* const* arguments) {
  Options o;
  CLI::App app(
      "Tells what training a model takes of each device, bytes and time, with every strategy, and "
      "which to choose.",
      "plan");
  app.option_defaults()->always_capture_default();
  add_model(app, o);
  add_training(app, o);
  add_hardware(app, o);
  app.add_option("--json", o.json, "File for the plan")->group("Output");
  app.add_option("--write-config", o.write_config, "File for the configuration to take")
      ->group("Output");
  app.add_flag("--list", o.list, "Known models, devices and networks, with their sources")
      ->group("Output");
  train_gpt::parse(app, count, arguments, [&] {
    o.has_vocabulary = app.count("--vocabulary") > 0;
    o.has_sequence = app.count("--sequence") > 0;
    for (const char* size :
         {"--params", "--layers", "--width", "--heads", "--kv-heads", "--feed-forward",
          "--vocabulary", "--gated", "--untied", "--no-biases", "--no-positions"}) {
      if (o.model.empty() || app.count(size) == 0) continue;
      throw std::invalid_argument(
          fmt::format("--model says all sizes but --sequence: leave {} out, or --model", size));
    }
    complete(o);
    if (!o.list) {
      static_cast<void>(model_of(o));
      static_cast<void>(hardware_of(o));
    }
  });
  return o;
}

shardwise::DType type_of(const std::string& name) {
  if (name == "bf16") return shardwise::DType::bf16;
  if (name == "f16") return shardwise::DType::f16;
  return shardwise::DType::f32;
}

shardwise::PlannedModel model_of(const Options& o) {
  const shardwise::DType gradient = type_of(o.gradient);
  const auto state = shardwise::state_of(optimizer_of(o.optimizer));
  if (!o.knows_units()) {
    shardwise::PlannedParameter all{{{"parameters", {whole(o.params)}}}};
    all.gradient = gradient;
    all.state = state;
    return {"", {std::move(all)}, {}, 0};
  }
  shardwise::TransformerShape shape = o.model.empty() ? o.shape : model_preset(o.model).shape;
  if (o.has_sequence) shape.sequence = o.shape.sequence;
  shardwise::TransformerUse use;
  use.micro_batch = o.micro_batch;
  use.activation_bytes = shardwise::size_of(type_of(o.lease));
  use.checkpoints = o.checkpoints;
  if (o.params > 0 && !o.has_vocabulary) {
    // The blocks are said; the rest of the parameters is the embedding.
    shape.vocabulary = 1;
    const auto least = shardwise::plan_transformer(shape, use, gradient, state).elements();
    const double rest = o.params - static_cast<double>(least);
    const auto rows = static_cast<double>(shape.width * (shape.tied ? 1 : 2));
    if (rest < 0) {
      throw std::invalid_argument(fmt::format(
          "{} layers of width {} have {:.3g} parameters already, more than --params {:.3g}",
          shape.layers, shape.width, static_cast<double>(least), o.params));
    }
    shape.vocabulary = 1 + whole(rest / rows);
  }
  try {
    shardwise::PlannedModel model = shardwise::plan_transformer(shape, use, gradient, state);
    model.name = o.model;
    return model;
  } catch (const shardwise::Error& error) {
    throw std::invalid_argument(error.what());
  }
}

shardwise::Hardware hardware_of(const Options& o) {
  const int per_node = static_cast<int>(o.devices / std::max<std::size_t>(1, o.nodes));
  shardwise::Hardware hardware =
      o.hardware_file.empty()
          ? hardware_of(device_preset(o.device), network_preset(o.network), per_node)
          : read_hardware(o.hardware_file);
  require_ranks(hardware, o.devices);
  if (o.device_memory > 0) hardware.memory = whole(o.device_memory);
  if (o.flops > 0) hardware.flops = o.flops;
  if (o.memory_bandwidth > 0) hardware.processor.memory_bandwidth = o.memory_bandwidth;
  if (o.link > 0) hardware.topology.node.bandwidth = o.link * Reached::link;
  if (o.link_latency >= 0) hardware.topology.node.latency = o.link_latency;
  if (o.network_bandwidth > 0) {
    hardware.topology.network.bandwidth = o.network_bandwidth * Reached::link;
  }
  // No known device is a CPU, whose threads alone share parameters.
  if (o.residency == "shared" && o.hardware_file.empty()) hardware.flops = 0;
  hardware.topology.sums =
      o.order == "fast" ? shardwise::SumPath::ring : shardwise::SumPath::direct;
  return hardware;
}

shardwise::PlanRequest request_of(const Options& o) {
  shardwise::PlanRequest request;
  request.settings.lease = type_of(o.lease);
  request.settings.prefetch = static_cast<int>(o.prefetch);
  request.settings.bucket_bytes = whole(o.bucket);
  request.settings.persistence_threshold = o.persistence;
  if (o.residency == "shared") request.settings.residency = shardwise::Residency::shared;
  request.settings.accumulation =
      o.accumulate == "hold" ? shardwise::Accumulation::hold : shardwise::Accumulation::reduce;
  request.step.world = static_cast<int>(o.devices);
  request.step.micro_batches = o.micro_batches;
  request.step.optimizer = optimizer_of(o.optimizer);
  // Threads need no landing buffers.
  if (o.backend == "nccl") {
    request.step.backend.nccl =
        o.order == "fast" ? shardwise::NcclOrder::fast : shardwise::NcclOrder::canonical;
  } else if (o.backend == "mpi") {
    request.step.backend.mpi.emplace().order =
        o.order == "fast" ? shardwise::MpiOrder::fast : shardwise::MpiOrder::canonical;
  }
  request.reserved = whole(o.reserve);
  request.knows_slots = o.knows_units();
  return request;
}

}  // namespace plan
