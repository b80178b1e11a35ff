// Times training steps of equal layers, and what they cost beyond compute:
//   compute_ms     as many ranks at once which compute the same without the library: a calibrated
//                  loop for each pass of a layer, zeroing of the layer's gradient, and the update
//                  of as many elements as a rank's share has
//   step_ms        the same by the strategy
//   overhead_ms    what the step takes more
//   bytes_moved    the whole buffers of the collectives in a step
//   copy_alone_ms  as many ranks at once which copy what the step's gathers copy and add what its
//                  reductions add, each by the better of stores through the caches and past them,
//                  one after the other and without waiting for anybody
//   copy_limit_ms  what memory takes for these at the least where a step makes them: the same
//                  between the passes of compute, less compute. Shards come from where the update
//                  left them, gradients from the cores that wrote them, who owns a shard may copy
//                  it to all ranks, and all ranks begin each at once; never below copy_alone_ms
// Which ways of copying are the best here is found out first, by samples of their own: the least of
// many medians would be less than any of them takes. Then all take turns, each after as many calls
// that warm up as are measured: the last cache forgets slowly what another one of them used.
// Differences and ratios are of one turn, and their medians are shown.

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <functional>
#include <memory>
#include <optional>
#include <shardwise/comm/thread.hpp>
#include <shardwise/shardwise.hpp>
#include <thread>

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
  std::optional<std::size_t> overlap_from;
  bool measure_overlap = false;
  int prefetch = 1;
  bool clip = false;
};

using Loop = shardwise::detail::BusyLoop;

/// One rank's layers in the library.
class Trainer {
 public:
  Trainer(Communicator& comm, const Strategy& strategy, const ContextOptions& options,
          std::size_t layers, std::size_t elements, bool clips)
      : context_(comm, strategy, options), clips_(clips) {
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
    if (clips_) clip_gradient_norm(context_, 1.0);
    for (std::size_t i = 0; i < parameters_.size(); ++i)
      states_[i].step(parameters_[i], gradients_[i]);
  }

  std::string measure_overlap() { return shardwise::measure_overlap(context_).describe(); }
  [[nodiscard]] Traffic traffic() const { return context_.statistics().traffic; }

 private:
  Context<> context_;
  bool clips_;
  std::vector<ShardedParameter<float>> parameters_;
  std::vector<ShardedGradient<float>> gradients_;
  std::vector<ShardedOptimizerState<AdamW>> states_;
  ShardedSequence<float> sequence_;
};

/// One rank's memory as the library would have it: whole buffers that layers use in turn, and what
/// each layer's update reads and writes, where the shards lie. What the compute takes without the
/// library, and the memory's limit, run here.
class Plain {
 public:
  Plain(std::size_t ranks, bool sharded_state, std::size_t layers, std::size_t elements)
      : part(elements / ranks),
        owned_(sharded_state ? part : elements),
        elements_(elements),
        slots_(3 * elements / line) {
    for (std::size_t i = 0; i < layers; ++i) {
      states_.emplace_back(4 * owned_ / line);
      std::fill_n(state(i), 4 * owned_, 0.5f);
    }
  }

  /// copies(visit, after): what a step copies before and after the compute of this visit.
  template <class Copies>
  void step(const Loop& loop, double seconds, const Copies& copies) {
    const std::size_t layers = states_.size();
    for (std::size_t visit = 0; visit < 2 * layers; ++visit) {
      const bool forwards = visit < layers;
      copies(visit, false);
      if (!forwards) std::memset(gradient(0), 0, elements_ * sizeof(float));
      loop.run(forwards ? seconds : 2 * seconds);
      copies(visit, true);
    }
    using Step = UpdateOf<AdamW, float, float>;
    for (std::size_t i = 0; i < layers; ++i) {
      float* const at = state(i);
      const Step update{at,
                        at + owned_,
                        {at + 2 * owned_, at + 3 * owned_},
                        1.0f,
                        AdamW{}.constants<float>(1, {})};
      HostDevice::run(owned_, update);
    }
  }

  /// Slots: two for parameters, which take turns, one for gradients.
  [[nodiscard]] std::byte* weights(std::size_t i) { return slot(i % 2); }
  [[nodiscard]] std::byte* gradient(std::size_t) { return slot(2); }
  [[nodiscard]] std::byte* shard(std::size_t i) { return reinterpret_cast<std::byte*>(state(i)); }
  [[nodiscard]] std::byte* reduced(std::size_t i) { return shard(i) + owned_ * sizeof(float); }

  std::size_t part;

 private:
  static constexpr std::size_t line = 16;
  struct alignas(line * sizeof(float)) Line {  // the library's buffers begin at cache lines, too
    float values[line];
  };

  std::byte* slot(std::size_t i) {
    return reinterpret_cast<std::byte*>(slots_.data()) + i * elements_ * sizeof(float);
  }
  // Parameter, gradient and two moments.
  float* state(std::size_t i) { return states_[i].data()->values; }

  std::size_t owned_;
  std::size_t elements_;
  std::vector<Line> slots_;
  std::vector<std::vector<Line>> states_;
};

/// Where ranks meet. Nobody sleeps: to wake would take longer than some of the copies.
class Gate {
 public:
  explicit Gate(std::size_t ranks) : ranks_(ranks) {}

  void meet() noexcept {
    const std::size_t all = (came_.fetch_add(1) / ranks_ + 1) * ranks_;
    for (int looks = 0; came_.load() < all; ++looks) {
      if (looks > 10000) std::this_thread::yield();
    }
  }

 private:
  std::size_t ranks_;
  std::atomic<std::size_t> came_{0};
};

/// The memory work of one rank's collectives, visit by visit: layers forwards, then backwards.
class Limit {
 public:
  Limit(std::size_t rank, std::span<Plain* const> all, std::size_t layers, const Traffic& calls)
      : gathers_(2 * layers), reductions_(2 * layers) {
    std::uint64_t gathers = calls.all_gather_calls;
    for (std::size_t visit = 0; visit < 2 * layers; ++visit) {
      const bool forwards = visit < layers;
      const std::size_t layer = forwards ? visit : 2 * layers - 1 - visit;
      const auto work = [&](Op op, auto from, auto to) {
        std::vector<Operands> operands;
        for (Plain* each : all) operands.push_back({(each->*from)(layer), (each->*to)(layer)});
        ++collectives_;
        return MemoryWork(Collective{op, DType::f32, all[0]->part, all.size()}, rank, operands);
      };
      // Every layer forwards; backwards the first ones, the last in a pass, where some are kept.
      if (gathers > (forwards ? 0 : layer)) {
        Gather gather{work(Op::all_gather, &Plain::shard, &Plain::weights),
                      all[rank]->shard(layer),
                      {},
                      all[0]->part * sizeof(float)};
        for (Plain* each : all) gather.to.push_back(each->weights(layer) + rank * gather.bytes);
        gathers_[visit].push_back(std::move(gather));
        if (forwards) --gathers;
      }
      if (forwards) continue;
      auto& reductions = reductions_[visit];
      if (calls.reduce_scatter_calls > 0)
        reductions.push_back(work(Op::reduce_scatter, &Plain::gradient, &Plain::reduced));
      if (calls.all_reduce_calls > 0)
        reductions.push_back(work(Op::all_reduce, &Plain::gradient, &Plain::weights));
    }
  }

  /// How a rank gathers: by a copy of all parts, or by one of its own part into all buffers, which
  /// reads it once.
  enum class Copies : std::uint8_t { take, take_streaming, give };
  struct Ways {
    Copies gathers;
    bool streams_reductions;
  };

  /// What belongs before the compute of a visit: gathers; or after it: reductions. begin() is
  /// called before each.
  template <class Begin>
  void run(std::size_t visit, bool after, Ways ways, const Begin& begin) const {
    if (after) {
      for (const MemoryWork& work : reductions_[visit]) {
        begin();
        work(ways.streams_reductions);
      }
    } else {
      for (const Gather& gather : gathers_[visit]) {
        begin();
        gather.run(ways.gathers);
      }
    }
  }
  void run_all(Ways ways) const {
    for (std::size_t visit = 0; visit < gathers_.size(); ++visit) {
      for (const bool after : {false, true}) run(visit, after, ways, [] {});
    }
  }
  [[nodiscard]] std::size_t collectives() const { return collectives_; }

 private:
  struct Gather {
    MemoryWork takes;
    const std::byte* from;
    std::vector<std::byte*> to;
    std::size_t bytes;

    void run(Copies way) const {
      if (way != Copies::give) return takes(way == Copies::take_streaming);
      sum_cached(to, {&from, 1}, bytes);
    }
  };

  std::vector<std::vector<Gather>> gathers_;
  std::vector<std::vector<MemoryWork>> reductions_;
  std::size_t collectives_ = 0;
};

void measure(const Options& options, Program& program, const Strategy& strategy,
             const std::string& name, std::size_t bytes) {
  const auto ranks = static_cast<std::size_t>(options.ranks);
  const std::size_t elements = bytes / sizeof(float) / (ranks * 32) * ranks * 32;
  const double seconds = options.compute * 1e-6 * static_cast<double>(bytes) / (1 << 20);
  const bool sharded_state = strategy.optimizer_state == Placement::sharded;
  std::vector<Plain*> all(ranks);
  const Loop loop;
  Gate gate(ranks);
  run_ranks(options.ranks, [&](Communicator& comm) {
    const auto rank = static_cast<std::size_t>(comm.rank());
    Plain plain(ranks, sharded_state, options.layers, elements);
    all[rank] = &plain;
    Trainer trainer(comm, strategy, {.overlap_from = options.overlap_from}, options.layers,
                    elements, options.clip);
    const std::string chosen = options.measure_overlap ? trainer.measure_overlap() : "";
    if (rank == 0 && !chosen.empty()) std::fprintf(stderr, "%s\n", chosen.c_str());
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
    sampling.warms_up = true;
    std::vector<std::function<void()>> alone_ways;
    std::vector<std::function<void()>> within_ways;
    using Copies = Limit::Copies;
    for (const Copies gathers : {Copies::take, Copies::take_streaming, Copies::give}) {
      for (const bool streams : {false, true}) {
        const Limit::Ways ways{gathers, streams};
        alone_ways.emplace_back([&, ways] { limit.run_all(ways); });
        within_ways.emplace_back([&, ways] {
          plain.step(loop, seconds, [&](std::size_t visit, bool after) {
            limit.run(visit, after, ways, [&] { gate.meet(); });
          });
        });
      }
    }
    const auto best_of = [&](const std::vector<std::function<void()>>& ways) {
      Sampling choosing = sampling;
      choosing.samples = std::min(sampling.samples, 5);
      std::vector<double> middles;
      for (const Series& times : in_turns(choosing, ways)) {
        middles.push_back(sampling.agree(times.middle()));
      }
      return ways[static_cast<std::size_t>(std::min_element(middles.begin(), middles.end()) -
                                           middles.begin())];
    };
    const std::vector<Series> times =
        in_turns(sampling, {[&] { trainer.step(loop, seconds); },
                            [&] { plain.step(loop, seconds, [](std::size_t, bool) {}); },
                            best_of(alone_ways), best_of(within_ways)});
    const Series& compute = times[1];
    const Series& alone = times[2];
    const Series within = times[3] - compute;
    const Series least = by_turns(within, alone, [](double a, double b) { return std::max(a, b); });
    const Series overhead = times[0] - compute;
    if (rank == 0) {
      program.results.add({{"strategy", name},
                           {"ranks", options.ranks},
                           {"layer_bytes", elements * sizeof(float)},
                           {"layers", options.layers},
                           {"compute_ms", compute.middle() * 1e3},
                           {"step_ms", times[0].middle() * 1e3},
                           {"step_ms_min", times[0].least() * 1e3},
                           {"step_ms_max", times[0].most() * 1e3},
                           {"overhead_ms", overhead.middle() * 1e3},
                           {"bytes_moved", limit.collectives() * elements * sizeof(float)},
                           {"copy_alone_ms", alone.middle() * 1e3},
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
  app.add_option_function<std::string>(
      "--overlap-from",
      [&](const std::string& text) {
        options.measure_overlap = text == "measure";
        if (options.measure_overlap) return;
        if (!CLI::detail::lexical_cast(text, options.overlap_from.emplace())) {
          throw CLI::ValidationError("--overlap-from", text + " is neither bytes nor 'measure'");
        }
      },
      "bytes from which on it does; measure: the library measures; else it has a rule");
  app.add_option("--prefetch", options.prefetch, "layers gathered ahead")
      ->check(CLI::NonNegativeNumber);
  app.add_flag("--clip", options.clip,
               "gradients are clipped: their norm counts as overhead, the limit has none");
  return program.run(count, arguments, [&] {
    program.results.describe("compute us/MiB", options.compute);
    program.results.describe("overlap", options.overlap);
    if (options.measure_overlap) program.results.describe("overlap from", "measured");
    if (options.overlap_from) program.results.describe("overlap from", *options.overlap_from);
    program.results.describe("prefetch", options.prefetch);
    program.results.describe("clip", options.clip);
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
