// Times training steps of equal layers, and what they cost beyond compute:
//   compute_ms     as many ranks at once which compute the same without the library: a calibrated
//                  loop for each pass of a layer, zeroing of the layer's gradient, and the update
//                  of as many elements as a rank's share has
//   step_ms        the same by the strategy
//   overhead_ms    what the step takes more
//   bytes_moved    the whole buffers of the collectives in a step
//   copy_limit_ms  what memory takes for these at the least: as many ranks at once which copy what
//                  the step's gathers copy and add what its reductions add, each by the better of
//                  stores through the caches and past them
// All take turns; differences and ratios are of one turn, and their medians are shown.

#include <array>
#include <cmath>
#include <memory>
#include <shardwise/comm/thread.hpp>
#include <shardwise/shardwise.hpp>

#include "collective.hpp"
#include "program.hpp"

namespace {

using namespace benchmarks;
using namespace shardwise;

struct Options {
  int ranks = 2;
  std::vector<std::string> strategies{"zero3"};
  std::size_t min = std::size_t{1} << 20;
  std::size_t max = std::size_t{64} << 20;
  std::size_t layers = 4;
  double compute = 100;
  bool overlap = true;
  int prefetch = 1;
};

/// Keeps a core busy without memory.
class Loop {
 public:
  /// Calibrates: the least time counts, others on the machine only add.
  Loop() {
    double least = 1;
    for (int i = 0; i < 20; ++i) {
      least = std::min(least, seconds_of(
                                  {}, [&] { spin(100000); }, 1));
    }
    turns_a_second_ = 100000 / least;
  }
  void run(double seconds) const { spin(static_cast<std::size_t>(seconds * turns_a_second_)); }

 private:
  static void spin(std::size_t turns) {
    std::uint64_t value = 1;
    for (std::size_t i = 0; i < turns; ++i) {
      value = value * 6364136223846793005u + 1;
      asm volatile("" : "+r"(value));  // else the compiler sees that nobody reads it
    }
  }
  double turns_a_second_;
};

/// One rank's layers in the library.
class Trainer {
 public:
  Trainer(Communicator& comm, const Strategy& strategy, std::size_t layers, std::size_t elements)
      : context_(comm, strategy) {
    parameters_.reserve(layers);
    gradients_.reserve(layers);
    states_.reserve(layers);
    for (std::size_t i = 0; i < layers; ++i) {
      const ParameterOptions named{.name = "layer." + std::to_string(i)};
      parameters_.emplace_back(context_, std::vector<TensorSpec>{{"weight", {elements}}}, named);
      parameters_.back().initialize([](const auto&, std::size_t) { return 1.0f; });
      gradients_.emplace_back(parameters_.back());
      states_.emplace_back(parameters_.back());
      sequence_.add(parameters_.back(), gradients_.back());
    }
  }

  void step(const Loop& loop, double seconds) {
    for (std::size_t i = 0; i < parameters_.size(); ++i) {
      auto visit = sequence_.forward(i);
      loop.run(seconds);
      visit.finish();
    }
    for (std::size_t i = parameters_.size(); i > 0; --i) {
      auto visit = sequence_.backward(i - 1);
      loop.run(2 * seconds);
      visit.finish();
    }
    for (std::size_t i = 0; i < parameters_.size(); ++i)
      states_[i].step(parameters_[i], gradients_[i]);
  }

  [[nodiscard]] Traffic traffic() const { return context_.statistics().traffic; }

 private:
  Context<> context_;
  std::vector<ShardedParameter<float>> parameters_;
  std::vector<ShardedGradient<float>> gradients_;
  std::vector<ShardedOptimizerState<AdamW>> states_;
  ShardedSequence<float> sequence_;
};

/// One rank's memory as the library would have it: whole buffers that layers use in turn, shards of
/// each layer's own. What the compute takes without the library, and the memory's limit, run here.
class Plain {
 public:
  Plain(std::size_t ranks, bool sharded_state, std::size_t layers, std::size_t elements)
      : part(elements / ranks), owned_(sharded_state ? part : elements), whole_(4 * elements) {
    for (std::size_t i = 0; i < layers; ++i) {
      shards_.emplace_back(2 * part);
      states_.emplace_back(4 * owned_, 0.5f);
    }
  }

  void step(const Loop& loop, double seconds) {
    for (std::size_t i = 0; i < states_.size(); ++i) loop.run(seconds);
    for (std::size_t i = states_.size(); i > 0; --i) {
      std::memset(gradient(i), 0, whole_.size());  // a quarter of its bytes: one layer
      loop.run(2 * seconds);
    }
    using Step = UpdateOf<AdamW, float, float>;
    for (auto& of : states_) {
      float* const at = of.data();
      const Step update{at,
                        at + owned_,
                        {at + 2 * owned_, at + 3 * owned_},
                        1.0f,
                        AdamW{}.constants<float>(1, {})};
      HostDevice::run(owned_, update);
    }
  }

  /// Slots take turns: two for parameters, two for gradients.
  [[nodiscard]] std::byte* weights(std::size_t i) { return bytes(whole_, i % 2); }
  [[nodiscard]] std::byte* gradient(std::size_t i) { return bytes(whole_, 2 + i % 2); }
  [[nodiscard]] std::byte* shard(std::size_t i) {
    return reinterpret_cast<std::byte*>(shards_[i].data());
  }
  [[nodiscard]] std::byte* reduced(std::size_t i) { return shard(i) + part * sizeof(float); }

  std::size_t part;

 private:
  static std::byte* bytes(std::vector<float>& of, std::size_t quarter) {
    return reinterpret_cast<std::byte*>(of.data() + of.size() / 4 * quarter);
  }

  std::size_t owned_;
  std::vector<float> whole_;
  std::vector<std::vector<float>> shards_;
  std::vector<std::vector<float>> states_;
};

/// The memory work of one rank's collectives, layer by layer, forwards and backwards.
class Limit {
 public:
  Limit(std::size_t rank, std::span<Plain* const> all, std::size_t layers, const Traffic& calls) {
    std::uint64_t gathers = calls.all_gather_calls;
    for (std::uint64_t i = 0; i < 2 * layers; ++i) {
      const bool forwards = i < layers;
      const std::size_t layer = forwards ? i : 2 * layers - 1 - i;
      const auto add = [&](Op op, auto from, auto to) {
        std::vector<Operands> operands;
        for (Plain* each : all) operands.push_back({(each->*from)(layer), (each->*to)(layer)});
        work_.emplace_back(Collective{op, DType::f32, all[0]->part, all.size()}, rank, operands);
        reduces_.push_back(op != Op::all_gather);
      };
      // Every layer forwards; backwards the first ones, the last in a pass, where some are kept.
      if (gathers > (forwards ? 0 : layer)) {
        add(Op::all_gather, &Plain::shard, &Plain::weights);
        if (forwards) --gathers;
      }
      if (forwards) continue;
      if (calls.reduce_scatter_calls > 0)
        add(Op::reduce_scatter, &Plain::gradient, &Plain::reduced);
      if (calls.all_reduce_calls > 0) add(Op::all_reduce, &Plain::gradient, &Plain::weights);
    }
  }

  void run(bool streams_gathers, bool streams_reductions) const {
    for (std::size_t i = 0; i < work_.size(); ++i) {
      work_[i](reduces_[i] ? streams_reductions : streams_gathers);
    }
  }
  [[nodiscard]] std::size_t collectives() const { return work_.size(); }

 private:
  std::vector<MemoryWork> work_;
  std::vector<bool> reduces_;
};

void measure(const Options& options, Program& program, const Strategy& strategy,
             const std::string& name, std::size_t bytes) {
  const auto ranks = static_cast<std::size_t>(options.ranks);
  const std::size_t elements = bytes / sizeof(float) / (ranks * 32) * ranks * 32;
  const double seconds = options.compute * 1e-6 * static_cast<double>(bytes) / (1 << 20);
  const bool sharded_state = strategy.optimizer_state == Placement::sharded;
  std::vector<Plain*> all(ranks);
  const Loop loop;
  run_ranks(options.ranks, [&](Communicator& comm) {
    const auto rank = static_cast<std::size_t>(comm.rank());
    Plain plain(ranks, sharded_state, options.layers, elements);
    all[rank] = &plain;
    Trainer trainer(comm, strategy, options.layers, elements);
    trainer.step(loop, 0);
    const Traffic before = trainer.traffic();
    trainer.step(loop, 0);
    Traffic calls = trainer.traffic();
    calls.all_gather_calls -= before.all_gather_calls;
    calls.reduce_scatter_calls -= before.reduce_scatter_calls;
    calls.all_reduce_calls -= before.all_reduce_calls;
    const Limit limit(rank, all, options.layers, calls);
    Sampling sampling = program.sampling;
    sampling.barrier = [&] { shardwise::barrier(comm); };
    sampling.agree = [&](double here) { return shardwise::max(comm, here); };
    const std::vector<Series> times = in_turns(
        sampling, {[&] { trainer.step(loop, seconds); }, [&] { plain.step(loop, seconds); },
                   [&] { limit.run(false, false); }, [&] { limit.run(false, true); },
                   [&] { limit.run(true, false); }, [&] { limit.run(true, true); }});
    const Series& least =
        *std::min_element(times.begin() + 2, times.end(),
                          [](const auto& a, const auto& b) { return a.middle() < b.middle(); });
    const Series overhead = times[0] - times[1];
    if (rank == 0) {
      program.results.add({{"strategy", name},
                           {"ranks", options.ranks},
                           {"layer_bytes", elements * sizeof(float)},
                           {"layers", options.layers},
                           {"compute_ms", times[1].middle() * 1e3},
                           {"step_ms", times[0].middle() * 1e3},
                           {"step_ms_min", times[0].least() * 1e3},
                           {"step_ms_max", times[0].most() * 1e3},
                           {"overhead_ms", overhead.middle() * 1e3},
                           {"bytes_moved", limit.collectives() * elements * sizeof(float)},
                           {"copy_limit_ms", least.middle() * 1e3},
                           {"overhead_ratio", (overhead / least).middle()}});
    }
    shardwise::barrier(comm);
  });
}

}  // namespace

int main(int count, char** arguments) {
  Options options;
  Program program("bench_step",
                  "Times what a step costs beyond compute, against the memory's limit");
  CLI::App& app = program.options;
  app.add_option("--ranks", options.ranks, "threads")->check(CLI::Range(2, 1024));
  app.add_option("--strategy", options.strategies,
                 "ddp, zero1, zero2, zero3, zero3_no_reshard, ...")
      ->delimiter(',');
  program.add_bytes("--min", options.min, "bytes of the smallest layer");
  program.add_bytes("--max", options.max, "bytes of the largest layer");
  app.add_option("--layers", options.layers)->check(CLI::PositiveNumber);
  app.add_option("--compute", options.compute,
                 "us of a forward pass for each MiB; twice for backward")
      ->check(CLI::NonNegativeNumber);
  app.add_option("--overlap", options.overlap, "communication runs beside compute");
  app.add_option("--prefetch", options.prefetch, "layers gathered ahead")
      ->check(CLI::NonNegativeNumber);
  return program.run(count, arguments, [&] {
    program.results.describe("compute us/MiB", options.compute);
    program.results.describe("overlap", options.overlap);
    program.results.describe("prefetch", options.prefetch);
    for (const std::string& name : options.strategies) {
      Strategy strategy = Strategy::parse(name);
      strategy.overlap = options.overlap;
      strategy.prefetch = options.prefetch;
      for (const std::size_t bytes : sizes_between(options.min, options.max)) {
        measure(options, program, strategy, name, bytes);
      }
    }
    return true;
  });
}
