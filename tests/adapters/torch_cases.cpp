#include "torch_cases.hpp"

#include <torch/torch.h>

#include <atomic>
#include <cmath>
#include <functional>
#include <limits>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <shardwise/adapters/torch.hpp>
#include <shardwise/comm/thread.hpp>
#include <shardwise/shardwise.hpp>
#include <stdexcept>
#include <utility>

namespace shardwise::test {
namespace {

using torch::Tensor;
using Tensors = std::vector<Tensor>;
using Unit = std::function<Tensors(Tensors)>;

constexpr std::int64_t rows = 24;  // of the batch, over all ranks
constexpr int steps = 3;

/// A module that does what it is told with two matrices and a vector.
struct Part : torch::nn::Module {
  using Body = std::function<Tensors(Part&, Tensors)>;

  Part(std::int64_t width, Body told, Tensor tied = {})
      : body(std::move(told)),
        a(register_parameter("a", tied.defined() ? tied : torch::randn({width, width}) * 0.3)),
        b(register_parameter("b", torch::randn({width, width}) * 0.3)),
        c(register_parameter("c", torch::randn({width}) * 0.3)) {}
  Tensors forward(Tensors inputs) { return body(*this, std::move(inputs)); }

  Body body;
  Tensor a, b, c;
  std::vector<Unit>* units = nullptr;  // of all parts
};

/// A layer with a residual: what most parts do.
Tensors layer(Part& p, Tensors x) {
  return {x[0] + torch::linear(torch::tanh(torch::linear(x[0], p.a, p.c)), p.b)};
}

struct Net : torch::nn::Module {
  std::shared_ptr<Part> add(Part::Body body, Tensor tied = {}) {
    auto part = std::make_shared<Part>(width, std::move(body), std::move(tied));
    parts.push_back(register_module("part" + std::to_string(parts.size()), part));
    return part;
  }
  std::int64_t width = 6;
  std::vector<std::shared_ptr<Part>> parts;
};

Tensors unique_parameters(const Net& net) {
  Tensors unique;
  std::set<const void*> seen;
  for (const Tensor& tensor : net.parameters()) {
    if (seen.insert(tensor.unsafeGetTensorImpl()).second) unique.push_back(tensor);
  }
  return unique;
}

/// What a pass is given: the parts, wrapped or not, this rank's rows, and what to call.
struct Step {
  std::vector<Unit>& units;
  Tensor x;
  int number;
  std::function<void(bool)> accumulate;

  [[nodiscard]] Tensor operator()(std::size_t unit, Tensor input) const {
    return units[unit]({std::move(input)})[0];
  }
};

struct Scenario {
  std::function<void(Net&)> build;
  std::function<void(const Step&)> pass;  // forward and backward
  bool weighted = false;                  // ranks have different numbers of rows
  bool library = false;                   // the library's optimizer instead of torch's
  bool partly = false;   // backward does not come to all tensors of a part: their gradient is 0
  std::size_t open = 1;  // parameters that are used at once
  torch::ScalarType type = torch::kFloat;
  std::size_t reductions = 0;  // of a step, where they are counted
};

// Models.

void three_layers(Net& net) {
  for (int i = 0; i < 3; ++i) net.add(layer);
}
void two_matrices_each(Net& net) {
  net.add([](Part& p, Tensors x) {
    return Tensors{torch::linear(x[0], p.a, p.c), torch::linear(x[0], p.b)};
  });
  net.add([](Part& p, Tensors x) {
    return Tensors{torch::linear(x[0], p.a, p.c) * x[1], torch::linear(x[1], p.b), x[2]};
  });
}
void input_changed_in_place(Net& net) {
  net.add(layer);
  net.add([](Part& p, Tensors x) {
    x[0].mul_(0.5);
    return Tensors{torch::linear(x[0], p.a, p.c).add_(torch::linear(x[0], p.b))};
  });
  net.add(layer);
}
void second_calls_first(Net& net) {
  const auto first = net.add(layer);
  net.add([](Part& p, Tensors x) { return layer(p, p.units->at(0)(layer(p, x))); }, first->a);
}
void first_and_last_tied(Net& net) {
  const auto first = net.add(layer);
  net.add(layer);
  net.add(layer, first->a);
}
void partly_frozen(Net& net) {
  three_layers(net);
  net.parts[0]->a.set_requires_grad(false);
  net.parts[2]->b.set_requires_grad(false);
  for (Tensor& tensor : net.parts[1]->parameters()) tensor.set_requires_grad(false);
}
void two_tensors_unused(Net& net) {
  net.add(layer);
  net.add([](Part& p, Tensors x) { return Tensors{torch::linear(x[0], p.a)}; });
}
void weight_detached_too(Net& net) {
  net.add(layer);
  net.add([](Part& p, Tensors x) {
    const Tensor y = torch::linear(x[0], p.a.detach(), p.c);
    return Tensors{torch::linear(torch::tanh(y), p.a) + torch::linear(y, p.b)};
  });
  net.add(layer);
}
void expanded_and_summed(Net& net) {
  net.add(layer);
  net.add([](Part& p, Tensors x) {
    return Tensors{x[0].matmul(p.a) * (0.1 * p.b).sum() + p.c.expand_as(x[0])};
  });
}

// Passes, forward and backward.

Tensor loss_of(const Tensor& y) { return y.pow(2).mean(); }

void chain(const Step& s) { loss_of(s(2, s(1, s(0, s.x)))).backward(); }
void chain_of_two(const Step& s) { loss_of(s(1, s(0, s.x))).backward(); }
void second_alone(const Step& s) { loss_of(s(1, s.x)).backward(); }
void outputs_changed_in_place(const Step& s) {
  Tensor y = s(1, s(0, s.x) + 0);
  y.add_(1);
  loss_of(s(2, y).mul_(0.5)).backward();
}
void all_tensors(const Step& s) {
  const Tensors middle = s.units[0]({s.x});
  const Tensors out = s.units[1]({middle[0], middle[1], s.x});
  loss_of(out[0] + out[1] + out[2]).backward();
}
void one_tensor_of_several(const Step& s) {
  const Tensors middle = s.units[0]({s.x});
  loss_of(s.units[1]({middle[s.number % 2 == 0 ? 1u : 0u], s.x, s.x})[0]).backward();
}
void each_twice(const Step& s) { loss_of(s(1, s(0, s(1, s(0, s.x))))).backward(); }
void two_branches(const Step& s) {
  loss_of(s(2, s(0, s.x) + s(0, 2 * s.x) * s(1, s.x))).backward();
}
void second_at_times(const Step& s) {
  const Tensor y = s(0, s.x);
  loss_of(s(2, s.number % 2 == 0 ? s(1, y) : y)).backward();
}
void inputs_without_gradient(const Step& s) {
  loss_of(s(0, s.x) + s(1, s.x.square()) + s(2, s.x.abs())).backward();
}
void two_losses(const Step& s) {
  const Tensor y = s(0, s.x);
  loss_of(s(1, y)).backward({}, true);
  loss_of(s(2, y)).backward();
}
void one_graph_twice(const Step& s) {
  const Tensor loss = loss_of(s(1, s(0, s.x)));
  loss.backward({}, true);
  loss.backward();
}
void forwards_aside(const Step& s) {
  const Tensor unused = s(1, s(0, s.x));
  {
    const torch::NoGradGuard no_grad;
    if (s(2, s.x).requires_grad()) throw std::logic_error("a graph was recorded");
  }
  chain(s);
}
Tensor half(const Step& s, std::int64_t which) { return s.x.slice(0, which, {}, 2); }
void micro_batches(const Step& s) {
  for (const std::int64_t which : {0, 1})
    (loss_of(s(2, s(1, s(0, half(s, which))))) / 2).backward();
}
void micro_batches_together(const Step& s) {
  s.accumulate(true);
  (loss_of(s(2, s(1, s(0, half(s, 0))))) / 2).backward();
  s.accumulate(false);
  (loss_of(s(2, s(0, half(s, 1)))) / 2).backward();  // not through all parts
}

const std::map<std::string, Scenario>& scenarios() {
  static const std::map<std::string, Scenario> all = {
      {"a chain", {.build = three_layers, .pass = chain}},
      {"changes in place", {.build = input_changed_in_place, .pass = outputs_changed_in_place}},
      {"several tensors in and out", {.build = two_matrices_each, .pass = all_tensors}},
      {"one output of several",
       {.build = two_matrices_each, .pass = one_tensor_of_several, .partly = true}},
      {"parts that are called twice", {.build = three_layers, .pass = each_twice}},
      {"two branches through one part", {.build = three_layers, .pass = two_branches}},
      {"a part within a part", {.build = second_calls_first, .pass = chain_of_two, .open = 3}},
      {"a part within a part, no gradient in",
       {.build = second_calls_first, .pass = second_alone, .open = 3}},
      {"tied", {.build = first_and_last_tied, .pass = chain, .open = 2, .reductions = 4}},
      {"frozen parameters", {.build = partly_frozen, .pass = chain, .open = 2}},
      {"tensors that are not used",
       {.build = two_tensors_unused, .pass = chain_of_two, .partly = true}},
      {"a part that is left out at times", {.build = three_layers, .pass = second_at_times}},
      {"a weight used without its gradient", {.build = weight_detached_too, .pass = chain}},
      {"gradients that are views", {.build = expanded_and_summed, .pass = chain_of_two}},
      {"inputs without a gradient", {.build = three_layers, .pass = inputs_without_gradient}},
      {"two losses", {.build = three_layers, .pass = two_losses}},
      {"a graph that runs twice", {.build = three_layers, .pass = one_graph_twice}},
      {"forwards without a backward", {.build = three_layers, .pass = forwards_aside}},
      {"micro-batches, each reduced",
       {.build = three_layers, .pass = micro_batches, .reductions = 6}},
      {"micro-batches, reduced once",
       {.build = three_layers, .pass = micro_batches_together, .reductions = 3}},
      {"batches of different sizes", {.build = three_layers, .pass = chain, .weighted = true}},
      {"parameters of type double",
       {.build = first_and_last_tied, .pass = chain, .open = 2, .type = torch::kDouble}},
      {"the library's optimizer", {.build = three_layers, .pass = chain, .library = true}},
  };
  return all;
}

std::shared_ptr<Net> make_net(const Scenario& scenario) {
  static std::mutex generator;
  const std::lock_guard lock(generator);
  torch::manual_seed(7);
  auto net = std::make_shared<Net>();
  scenario.build(*net);
  return net;
}

Tensor batch_of(int step, std::int64_t width = 6) {
  return torch::arange(rows * width).view({rows, width}).mul(0.37 * (step + 1)).sin();
}

std::vector<double> values_of(const Net& net) {
  std::vector<double> values;
  for (const Tensor& tensor : unique_parameters(net)) {
    const Tensor copy = tensor.detach().to(torch::kDouble);
    const double* const data = copy.data_ptr<double>();
    values.insert(values.end(), data, data + copy.numel());
  }
  return values;
}

torch::optim::SGD make_sgd(Tensors matrices, Tensors vectors) {
  const auto group = [](Tensors tensors, double decay) {
    auto options = torch::optim::SGDOptions(0.1).momentum(0.9).weight_decay(decay);
    return torch::optim::OptimizerParamGroup(std::move(tensors),
                                             std::make_unique<torch::optim::SGDOptions>(options));
  };
  std::vector<torch::optim::OptimizerParamGroup> groups;
  groups.push_back(group(std::move(matrices), 0.1));
  groups.push_back(group(std::move(vectors), 0));
  return torch::optim::SGD(std::move(groups), torch::optim::SGDOptions(0.1));
}

std::vector<double> train_plain(const Scenario& scenario) {
  const auto net = make_net(scenario);
  net->to(scenario.type);
  std::vector<Unit> units;
  for (const auto& part : net->parts) {
    units.emplace_back([part](Tensors x) { return part->forward(std::move(x)); });
    part->units = &units;
  }
  Tensors learning, matrices, vectors;
  for (const Tensor& tensor : unique_parameters(*net)) {
    if (!tensor.requires_grad()) continue;
    learning.push_back(tensor);
    (tensor.dim() > 1 ? matrices : vectors).push_back(tensor);
  }
  auto sgd = make_sgd(matrices, vectors);
  for (int step = 0; step < steps; ++step) {
    for (Tensor& tensor : learning) {
      tensor.mutable_grad() = scenario.partly ? torch::zeros_like(tensor) : Tensor();
    }
    scenario.pass({units, batch_of(step).to(scenario.type), step, [](bool) {}});
    sgd.step();
  }
  return values_of(*net);
}

template <class T>
std::vector<double> train_sharded(const Scenario& scenario, Context<>& context) {
  const auto net = make_net(scenario);
  net->to(scenario.type);
  const int root = context.world() - 1;
  if (context.rank() != root) {
    const torch::NoGradGuard no_grad;
    for (Tensor& tensor : net->parameters()) tensor.add_(1);
  }
  const auto decays_by_dimension = [](const std::string& name, const Tensor& tensor) {
    if (!name.starts_with("part")) throw std::logic_error("not a name of the model's: " + name);
    return TensorOptions{.weight_decay = tensor.dim() > 1 ? 1.0f : 0.0f};
  };
  TorchAdapter<T> adapter(context, *net, {.tensor_options = decays_by_dimension, .root = root});
  std::vector<Unit> units;
  for (auto& part : adapter.wrap(net->parts)) units.emplace_back(part);
  for (const auto& part : net->parts) part->units = &units;
  std::vector<ShardedOptimizerState<SgdMomentum>> states;
  std::optional<torch::optim::SGD> sgd;
  if (scenario.library) {
    states = adapter.optimizer_states(
        SgdMomentum{.learning_rate = 0.1, .momentum = 0.9, .weight_decay = 0.1});
  } else {
    const auto decays = [](const Layout::Tensor& parameter) {
      return parameter.options.weight_decay > 0;
    };
    sgd.emplace(make_sgd(adapter.shards(decays), adapter.shards(std::not_fn(decays))));
  }
  const int rank = context.rank();
  const int world = context.world();
  // Shares in the ratio 1 : 2 : 3 ..., or equal ones.
  const auto end_of = [&](int ranks) {
    return scenario.weighted ? rows * ranks * (ranks + 1) / (world * (world + 1))
                             : rows * ranks / world;
  };
  for (int step = 0; step < steps; ++step) {
    const Tensor x = batch_of(step).slice(0, end_of(rank), end_of(rank + 1)).to(scenario.type);
    if (scenario.weighted) adapter.weigh(static_cast<double>(x.size(0)));
    context.reset_statistics();
    scenario.pass({units, x, step, [&](bool on) { adapter.accumulate(on); }});
    const Traffic& traffic = context.statistics().traffic;
    const std::size_t reductions = traffic.reduce_scatter_calls + traffic.all_reduce_calls;
    if (scenario.reductions != 0 && reductions != scenario.reductions) {
      throw std::logic_error(fmt::format("{} reductions, not {}", reductions, scenario.reductions));
    }
    if (sgd) {
      adapter.step([&] { sgd->step(); });
    } else {
      adapter.step(states);
    }
  }
  const auto whole = full_parameters(context);
  return values_of(*net);
}

/// What misuses need: a context, a net of three layers, its adapter and its units.
struct Bench {
  explicit Bench(Context<>& of, const std::function<void(Net&)>& build = three_layers)
      : context(of), net(make_net({build, {}})) {
    adapter.emplace(context, *net);
  }
  void wrap() {
    for (auto& part : adapter->wrap(net->parts)) units.emplace_back(part);
    for (const auto& part : net->parts) part->units = &units;
  }
  [[nodiscard]] Step step() {
    return {units, batch_of(0), 0, [](bool) {}};
  }

  Context<>& context;
  std::shared_ptr<Net> net;
  std::optional<TorchAdapter<>> adapter;
  std::vector<Unit> units;
};

struct Thrown : std::runtime_error {
  using std::runtime_error::runtime_error;
};

using Misuse = std::function<void(Context<>&)>;

const std::map<std::string, Misuse>& misuses() {
  static const std::map<std::string, Misuse> all = [] {
    std::map<std::string, Misuse> m;
    m["a module that is not wrapped"] = [](Context<>& context) {
      Bench bench(context);
      auto first = bench.adapter->wrap(bench.net->parts[0]);
      static_cast<void>(first(Tensors{batch_of(0)}));
    };
    m["a module of another model"] = [](Context<>& context) {
      Bench bench(context);
      static_cast<void>(bench.adapter->wrap(std::make_shared<Part>(6, layer)));
    };
    m["a wrap that comes late"] = [](Context<>& context) {
      Bench bench(context);
      bench.wrap();
      bench.adapter->prepare();
      static_cast<void>(bench.adapter->wrap(bench.net->parts[0]));
    };
    m["a parameter of another type"] = [](Context<>& context) {
      Bench bench(context);
      bench.net->parts[1]->to(torch::kDouble);
      bench.wrap();
      bench.adapter->prepare();
    };
    m["memory that is shared by two tensors"] = [](Context<>& context) {
      Bench bench(context);
      bench.net->parts[1]->a.set_data(bench.net->parts[0]->a.data());
      bench.wrap();
      bench.adapter->prepare();
    };
    m["requires_grad that changes late"] = [](Context<>& context) {
      Bench bench(context);
      bench.wrap();
      chain(bench.step());
      bench.net->parts[1]->a.set_requires_grad(false);
      chain(bench.step());
    };
    m["a sparse gradient"] = [](Context<>& context) {
      Bench bench(context, [](Net& net) {
        net.add([](Part& p, Tensors x) {
          return Tensors{torch::embedding(p.a, x[0].to(torch::kLong).abs(), -1, false, true)};
        });
      });
      bench.wrap();
      loss_of(bench.step()(0, bench.step().x)).backward();
    };
    m["a gradient with a graph"] = [](Context<>& context) {
      Bench bench(context);
      bench.wrap();
      loss_of(bench.step()(0, bench.step().x)).backward({}, true, true);
    };
    m["a forward within backward"] = [](Context<>& context) {
      Bench bench(context);
      bench.wrap();
      Tensor y = bench.step()(0, bench.step().x);
      y.register_hook([&](const Tensor&) { static_cast<void>(bench.step()(1, batch_of(1))); });
      loss_of(bench.step()(1, y)).backward();
    };
    m["a step within backward"] = [](Context<>& context) {
      Bench bench(context);
      bench.wrap();
      Tensor y = bench.step()(0, bench.step().x);
      y.register_hook([&](const Tensor&) { bench.adapter->step([] {}); });
      loss_of(bench.step()(1, y)).backward();
    };
    m["a call after the adapter"] = [](Context<>& context) {
      Bench bench(context);
      bench.wrap();
      bench.adapter.reset();
      static_cast<void>(bench.step()(0, batch_of(0)));
    };
    m["backward after the adapter"] = [](Context<>& context) {
      Bench bench(context);
      bench.wrap();
      const Tensor loss = loss_of(bench.step()(0, batch_of(0)));
      bench.adapter.reset();
      if (bench.net->parts[0]->a.numel() != 0) throw std::logic_error("dangling");
      loss.backward();
    };
    m["a rank that throws in forward"] = [](Context<>& context) {
      Bench bench(context, [](Net& net) {
        net.add(layer);
        net.add([](Part& p, Tensors x) {
          if (p.units == nullptr) throw Thrown("in forward");
          return layer(p, x);
        });
        net.add(layer);
      });
      bench.wrap();
      chain(bench.step());
      bench.adapter->step([] {});
      if (context.rank() == context.world() - 1) bench.net->parts[1]->units = nullptr;
      chain(bench.step());
    };
    m["a rank that throws in backward"] = [](Context<>& context) {
      Bench bench(context);
      bench.wrap();
      chain(bench.step());
      bench.adapter->step([] {});
      Tensor y = bench.step()(1, bench.step()(0, batch_of(0)));
      if (context.rank() == context.world() - 1) {
        y.register_hook([](const Tensor&) { throw Thrown("in backward"); });
      }
      loss_of(bench.step()(2, y)).backward();
      // The peers may have come here: all of their collectives were complete.
      bench.adapter->step([] {});
      chain(bench.step());
    };
    m["a rank that throws in the update"] = [](Context<>& context) {
      Bench bench(context);
      bench.wrap();
      chain(bench.step());
      bench.adapter->step([&] {
        if (context.rank() == context.world() - 1) throw Thrown("in the update");
      });
      chain(bench.step());
    };
    m["ranks that record different graphs"] = [](Context<>& context) {
      Bench bench(context);
      bench.wrap();
      const Tensor y = bench.step()(0, batch_of(0));
      const Tensor z = bench.step()(1, y);
      loss_of(bench.step()(2, context.rank() == 0 ? z : y)).backward();
    };
    m["states of another model"] = [](Context<>& context) {
      Bench bench(context);
      bench.wrap();
      auto states = bench.adapter->optimizer_states<Sgd>();
      states.pop_back();
      chain(bench.step());
      bench.adapter->step(states);
    };
    m["backward after one that threw"] = [](Context<>& context) {
      Bench bench(context);
      bench.wrap();
      Tensor y = bench.step()(0, batch_of(0));
      y.register_hook([](const Tensor&) { throw Thrown("in backward"); });
      try {
        loss_of(bench.step()(1, y)).backward();
      } catch (const Thrown&) {
        chain(bench.step());
      }
    };
    // Large enough to be given back when it is released.
    const auto large = [](Net& net) {
      net.width = 160;
      three_layers(net);
    };
    m["a weight that is read while it is released"] = [large](Context<>& context) {
      Bench bench(context, large);
      bench.wrap();
      const Tensor y = bench.step()(0, batch_of(0, 160));
      static_cast<void>(torch::linear(y, bench.net->parts[1]->a).sum().item<float>());
      context.barrier();
    };
    m["a weight that is written while it is released"] = [large](Context<>& context) {
      Bench bench(context, large);
      bench.wrap();
      bench.adapter->prepare();
      const torch::NoGradGuard no_grad;
      bench.net->parts[1]->b.mul_(0.5);
      context.barrier();
    };
    m["a tensor that leaves its module by another way"] = [](Context<>& context) {
      Tensor aside;
      Bench bench(context, [&](Net& net) {
        net.width = 160;
        net.add([&](Part& p, Tensors x) {
          aside = torch::linear(x[0], p.a).tanh().matmul(p.b);
          return layer(p, x);
        });
        net.add(layer);
      });
      bench.wrap();
      const Tensor y = bench.step()(1, bench.step()(0, batch_of(0, 160)));
      loss_of(aside).backward();
      context.barrier();
    };
    return m;
  }();
  return all;
}

}  // namespace

std::vector<std::string> torch_scenarios() {
  std::vector<std::string> names;
  for (const auto& [name, scenario] : scenarios()) names.push_back(name);
  return names;
}

TorchComparison compare_torch(const std::string& name, int world, bool debug,
                              const std::string& strategy) {
  at::set_num_threads(1);
  const Scenario& scenario = scenarios().at(name);
  std::vector<std::vector<double>> values(static_cast<std::size_t>(world));
  run_ranks(world, [&](Communicator& comm) {
    Context context(comm, Strategy::parse(strategy),
                    {.open_parameters = scenario.open, .debug = debug});
    values[static_cast<std::size_t>(comm.rank())] = scenario.type == torch::kDouble
                                                        ? train_sharded<double>(scenario, context)
                                                        : train_sharded<float>(scenario, context);
  });
  TorchComparison comparison{train_plain(scenario), values[0]};
  for (const auto& other : values) {
    if (other != values[0]) comparison.sharded.clear();
  }
  return comparison;
}

std::vector<std::string> torch_misuses() {
  std::vector<std::string> names;
  for (const auto& [name, misuse] : misuses()) names.push_back(name);
  return names;
}

std::string misuse_torch(const std::string& name, int world) {
  at::set_num_threads(1);
  std::atomic<int> failed = 0;
  std::string message;
  try {
    run_ranks(world, [&](Communicator& comm) {
      try {
        Context context(comm, Strategy::zero3(), {.open_parameters = 4, .debug = true});
        misuses().at(name)(context);
        context.barrier();
      } catch (...) {
        ++failed;
        throw;
      }
    });
  } catch (const std::exception& error) {
    message = error.what();
  }
  if (failed != world)
    return fmt::format("{} of {} ranks failed: {}", failed.load(), world, message);
  return message;
}

}  // namespace shardwise::test
