// What the library's own bookkeeping costs, apart from bytes that move:
//   plan       the memory plan of a model before it exists, by ranks and parameters
//   shard      finding the tensors of one rank's shard in a layout, by ranks and tensors
//   simulate   a predicted step of a world of many ranks: the library's own code on a virtual clock
//   step       what each parameter adds to a real step (gather, release, gradient lease, reduction,
//              update), by parameters of 32 elements in a world of one, zero3
//   register   time of a parameter (with gradient and state), and heap of a tensor
// Medians of at least 7 runs after one that warms up. Fails where the bounds at the end are passed:
// what one page of a profile must never be spent on.

#include <malloc.h>

#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <functional>
#include <memory>
#include <shardwise/comm/self.hpp>
#include <shardwise/plan/memory.hpp>
#include <shardwise/plan/step.hpp>
#include <shardwise/shardwise.hpp>
#include <string>
#include <utility>
#include <vector>

#include "program.hpp"

namespace {

using namespace shardwise;

constexpr double most_plan_seconds = 1;       // of 100,000 ranks and 10,000 parameters
constexpr double most_step_microseconds = 2;  // of a parameter in a step
constexpr double most_heap_bytes = 1024;      // of a registered tensor, also one that is alone

struct Options {
  int ranks = 100000;
  std::size_t parameters = 100000;
};

std::vector<TensorSpec> tensors(std::size_t count, std::size_t elements) {
  std::vector<TensorSpec> result;
  for (std::size_t i = 0; i < count; ++i) {
    result.push_back({"layers." + std::to_string(i) + ".weight", {elements}});
  }
  return result;
}

std::vector<PlannedParameter> planned(std::size_t count, std::size_t elements) {
  std::vector<PlannedParameter> result;
  for (TensorSpec& tensor : tensors(count, elements)) {
    PlannedParameter& parameter = result.emplace_back();
    parameter.tensors.push_back(std::move(tensor));
    parameter.state = {DType::f32, DType::f32};
  }
  return result;
}

class Scale {
 public:
  Scale(benchmarks::Program& program, const Options& options)
      : program_(program), options_(options) {}

  [[nodiscard]] bool run() {
    plans();
    shards();
    simulations();
    steps();
    registrations();
    return holds_;
  }

 private:
  /// `scale`: of the samples' seconds.
  void row(const char* what, int ranks, std::size_t parameters, const std::string& unit,
           const benchmarks::Series& samples, double scale = 1, double bound = 0) {
    const double value = samples.middle() * scale;
    const bool above = bound > 0 && value > bound;
    holds_ = holds_ && !above;
    program_.results.add({{"what", what},
                          {"ranks", ranks},
                          {"parameters", parameters},
                          {unit, value},
                          {unit + "_min", samples.least() * scale},
                          {unit + "_max", samples.most() * scale}});
    if (above) std::printf("above its bound, %g\n", bound);
  }

  [[nodiscard]] bool leaves_out(int ranks, std::size_t parameters) const {
    return ranks > options_.ranks || parameters > options_.parameters;
  }

  /// Each sample is one call, after one that warms up.
  [[nodiscard]] benchmarks::Series samples_of(const std::function<void()>& f) const {
    benchmarks::Sampling once = program_.sampling;
    once.seconds = 1e-9;
    return benchmarks::in_turns(once, {f})[0];
  }

  void plans() {
    for (const auto& [ranks, count] : {std::pair{8, 1000},
                                       {1000, 1000},
                                       {100000, 1000},
                                       {8, 10000},
                                       {100000, 10000},
                                       {100000, 100000}}) {
      if (leaves_out(ranks, static_cast<std::size_t>(count))) continue;
      const auto parameters = planned(static_cast<std::size_t>(count), 1000000);
      PlanOptions plan;
      plan.world = ranks;
      const benchmarks::Series seconds = samples_of([&] {
        if (plan_memory(parameters, Strategy::zero3(), plan).bytes.total() == 0) std::abort();
      });
      const bool bounded = ranks == 100000 && count == 10000;
      row("plan", ranks, parameters.size(), "seconds", seconds, 1, bounded ? most_plan_seconds : 0);
    }
  }

  // The layout knows by bisection where a shard begins, so that only its own tensors are visited.
  void shards() {
    for (const auto& [ranks, count] : {std::pair{8, 100000}, {1000, 100000}, {100000, 100000}}) {
      if (leaves_out(ranks, static_cast<std::size_t>(count))) continue;
      const Layout layout(tensors(static_cast<std::size_t>(count), 4096), ranks);
      std::size_t found = 0;
      const benchmarks::Series seconds = samples_of([&] {
        for (int i = 0; i < 1000; ++i) {
          const std::size_t begin = layout.shard_begin(i * (ranks / 8) % ranks);
          layout.for_each_segment(begin, begin + layout.shard_size(),
                                  [&](const Layout::Segment&) { ++found; });
        }
      });
      if (found == 0) std::abort();
      row("shard", ranks, static_cast<std::size_t>(count), "microseconds", seconds, 1e6 / 1000);
    }
  }

  void simulations() {
    Hardware hardware;
    hardware.name = "nominal";
    hardware.flops = 1e14;
    hardware.processor.memory_bandwidth = 1e12;
    // Norms gather a number of every rank for every parameter.
    for (const auto& [ranks, count] :
         {std::pair{8, 1000}, {8, 10000}, {1000, 1000}, {100000, 100}}) {
      if (leaves_out(ranks, static_cast<std::size_t>(count))) continue;
      PlannedModel model;
      model.parameters = planned(static_cast<std::size_t>(count), 1000000);
      for (std::size_t i = 0; i < model.parameters.size(); ++i) {
        model.visits.push_back({{i}, {.flops = 1e9}, {.flops = 2e9}});
      }
      StepOptions step;
      step.world = ranks;
      const benchmarks::Series seconds = samples_of([&] {
        if (predict_step(model, Strategy::zero3(), hardware, step).seconds <= 0) std::abort();
      });
      row("simulate", ranks, model.parameters.size(), "seconds", seconds);
    }
  }

  struct Unit {
    Unit(Context<>& context, std::vector<TensorSpec> tensors)
        : parameter(context, std::move(tensors)), gradient(parameter), state(parameter) {}
    ShardedParameter<float> parameter;
    ShardedGradient<float> gradient;
    ShardedOptimizerState<AdamW> state;
  };

  [[nodiscard]] static Strategy inline_zero3() {
    Strategy strategy = Strategy::zero3();
    strategy.overlap = false;
    return strategy;
  }

  void steps() {
    for (const std::size_t count : {10u, 100u, 1000u, 10000u}) {
      if (leaves_out(1, count)) continue;
      SelfCommunicator comm;
      Context<> context(comm, inline_zero3());
      std::vector<std::unique_ptr<Unit>> units;
      for (TensorSpec& tensor : tensors(count, 32)) {
        units.push_back(std::make_unique<Unit>(context, std::vector{std::move(tensor)}));
      }
      const std::size_t repeats = 10000 / count;
      const benchmarks::Series seconds = samples_of([&] {
        for (std::size_t i = 0; i < repeats; ++i) {
          for (auto& unit : units) unit->parameter.gather().release();
          for (auto& unit : units) {
            auto weights = unit->parameter.gather();
            auto gradient = unit->gradient.lease();
            weights.release();
            std::move(gradient).reduce();
          }
          for (auto& unit : units) unit->state.step(unit->parameter, unit->gradient);
        }
      });
      row("step", 1, count, "microseconds", seconds, 1e6 / static_cast<double>(repeats * count),
          most_step_microseconds);
    }
  }

  // One tensor each, and twelve as a layer of a transformer has.
  void registrations() {
    for (const auto& [count, each] : {std::pair{1000u, 1u}, {10000u, 1u}, {1000u, 12u}}) {
      if (leaves_out(1, count * each)) continue;
      benchmarks::Series seconds;
      benchmarks::Series heap;
      for (int sample = -1; sample < program_.sampling.samples; ++sample) {  // the first warms up
        SelfCommunicator comm;
        Context<> context(comm, inline_zero3());
        std::vector<TensorSpec> specs = tensors(count * each, 32);
        std::vector<std::unique_ptr<Unit>> units;
        units.reserve(count);
        const std::size_t before = mallinfo2().uordblks;
        const auto registers = [&] {
          for (auto next = specs.begin(); next != specs.end(); next += each) {
            units.push_back(std::make_unique<Unit>(context, std::vector(next, next + each)));
          }
          context.prepare();
        };
        const double took = benchmarks::seconds_of({}, registers, 1);
        const std::size_t held = mallinfo2().uordblks - before - context.held().total();
        if (sample < 0) continue;
        seconds.values.push_back(took);
        heap.values.push_back(static_cast<double>(held));
      }
      row("register", 1, count, "microseconds", seconds, 1e6 / count);
      row("register", 1, count, "heap_bytes_a_tensor", heap, 1.0 / (count * each), most_heap_bytes);
    }
  }

  benchmarks::Program& program_;
  Options options_;
  bool holds_ = true;
};

}  // namespace

int main(int count, char** arguments) {
  Options options;
  benchmarks::Program program("bench_scale",
                              "What the library's own bookkeeping costs, by ranks and parameters");
  program.options.add_option("--ranks", options.ranks, "cases with more are left out");
  program.options.add_option("--parameters", options.parameters, "cases with more are left out");
  return program.run(count, arguments, [&] { return Scale(program, options).run(); });
}
