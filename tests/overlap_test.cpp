// Which collectives run beside compute: Strategy::overlap, ContextOptions::overlap_from,
// measure_overlap.
#include <algorithm>
#include <atomic>
#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <shardwise/comm/thread.hpp>
#include <shardwise/shardwise.hpp>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "support/passing_rank.hpp"
#include "support/sanitized.hpp"

using namespace shardwise;
using namespace shardwise::test;
using namespace std::chrono_literals;
using Catch::Matchers::ContainsSubstring;

namespace {

/// How often collectives of so many bytes ran in the caller, and how often not.
class Seen final : public Observer {
 public:
  void record(const ActivityRecord& record) noexcept override {
    if (record.activity != Activity::all_gather && record.activity != Activity::reduce_scatter)
      return;
    auto& [in_caller, beside] = of[record.bytes];
    ++(record.blocking ? in_caller : beside);
  }

  std::map<std::size_t, std::pair<int, int>> of;
};

constexpr std::size_t small = 840 * 32;  // elements: a multiple of 32 for each of 1 to 7 ranks
constexpr std::size_t large = 2 * small;

/// Parameters of one tensor each, of so many elements, with what trains them.
struct Layers {
  Layers(Context<>& context, const std::vector<std::size_t>& counts) {
    parameters.reserve(counts.size());
    gradients.reserve(counts.size());
    for (const std::size_t count : counts) {
      const std::string name = "p" + std::to_string(parameters.size());
      parameters.emplace_back(context, std::vector<TensorSpec>{{name, {count}}});
      parameters.back().initialize([](const auto&, std::size_t) { return 1.0f; });
      gradients.emplace_back(parameters.back());
      states.emplace_back(parameters.back());
    }
  }

  void step() {
    for (std::size_t i = 0; i < parameters.size(); ++i) states[i].step(parameters[i], gradients[i]);
  }

  std::vector<ShardedParameter<float>> parameters;
  std::vector<ShardedGradient<float>> gradients;
  std::vector<ShardedOptimizerState<Sgd>> states;
};

/// Two steps of a model of three parameters, after `prepare`; their values.
std::vector<float> train(
    Communicator& comm, const ContextOptions& options,
    const std::function<void(Context<>&)>& prepare = [](Context<>&) {}) {
  Context<> context(comm, Strategy::zero3(), options);
  std::vector<ShardedParameter<float>> parameters;
  std::vector<ShardedGradient<float>> gradients;
  std::vector<ShardedOptimizerState<AdamW>> states;
  for (const std::size_t count : {small, large, small}) {
    parameters.emplace_back(
        context, std::vector<TensorSpec>{{"p" + std::to_string(parameters.size()), {count}}});
    parameters.back().initialize(
        [](const auto&, std::size_t i) { return static_cast<float>(i % 13); });
  }
  for (auto& parameter : parameters) {
    gradients.emplace_back(parameter);
    states.emplace_back(parameter);
  }
  prepare(context);
  for (int step = 0; step < 2; ++step) {
    for (std::size_t p = 0; p < parameters.size(); ++p) {
      const auto weights = parameters[p].gather();
      auto gradient = gradients[p].lease();
      for (std::size_t i = 0; i < weights[0].size(); ++i) {
        gradient[0][i] = weights[0][i] * static_cast<float>(comm.rank() + 1);
      }
      std::move(gradient).reduce();
      context.engine().communication.synchronize();  // nothing is queued when the next one comes
    }
    for (std::size_t p = 0; p < parameters.size(); ++p) {
      states[p].step(parameters[p], gradients[p]);
    }
  }
  std::vector<float> values;
  for (auto& parameter : parameters) {
    parameter.read([&](const auto&, std::size_t, std::span<const float> part) {
      values.insert(values.end(), part.begin(), part.end());
    });
  }
  return values;
}

/// A rank whose collectives of parameters take time that keeps no core busy: those of a worker, of
/// the caller, or both. Counts the calls.
class SlowRank final : public PassingRank {
 public:
  enum class Where : std::uint8_t { everywhere, on_a_worker };

  SlowRank(Communicator& inner, std::chrono::microseconds time, Where where)
      : PassingRank(inner), time_(time), where_(where) {}

  [[nodiscard]] std::string_view backend() const noexcept override { return "slow"; }
  [[nodiscard]] bool shares_addresses() const noexcept override { return true; }
  [[nodiscard]] std::size_t landing_bytes(const ReduceItem& item, bool) const noexcept override {
    return item.count;
  }
  void reduce_scatter(std::span<const ReduceItem> items, const CallInfo& info,
                      StreamRef stream) override {
    without_landing += items[0].landing == nullptr ? 1 : 0;
    PassingRank::reduce_scatter(items, info, stream);
  }

  int calls = 0;
  int without_landing = 0;

 private:
  void before(Operation operation, StreamRef stream) override {
    ++calls;
    const bool of_parameters =
        operation == Operation::all_gather || operation == Operation::reduce_scatter;
    if (!of_parameters || stream.native == nullptr) return;  // or scalars
    auto& queue = *static_cast<HostStream*>(stream.native);
    if (where_ == Where::on_a_worker && queue.is_inline()) return;
    queue.enqueue([time = time_] { std::this_thread::sleep_for(time); });
  }

  std::chrono::microseconds time_;
  Where where_;
};

constexpr std::size_t never = std::numeric_limits<std::size_t>::max();

/// Measures everything, with as few runs as there may be.
constexpr OverlapOptions briefly{.least = 1, .compute = 1, .budget = 0ns};

void require(bool condition, const char* what) {
  if (!condition) throw Error(what);
}

}  // namespace

TEST_CASE("collectives below overlap_from run in the caller, and bits do not depend on it") {
  for (const int world : {1, 2, 3, 4, 7}) {
    std::vector<std::vector<float>> beside(static_cast<std::size_t>(world));
    std::vector<std::vector<float>> mixed(beside.size());
    std::vector<Seen> seen(beside.size());
    std::vector<Seen> all(beside.size());
    run_ranks(world, [&](Communicator& comm) {
      const auto rank = static_cast<std::size_t>(comm.rank());
      beside[rank] = train(comm, {.observer = &all[rank], .overlap_from = 0});
      mixed[rank] = train(comm, {.observer = &seen[rank], .overlap_from = 4 * small + 1});
    });
    for (std::size_t rank = 0; rank < seen.size(); ++rank) {
      INFO("rank " << rank << " of " << world);
      CHECK(mixed[rank] == beside[0]);
      CHECK(seen[rank].of[4 * small] == std::pair(8, 0));  // two of them, two steps
      CHECK(seen[rank].of[4 * large] == std::pair(0, 4));
      CHECK(all[rank].of[4 * small] == std::pair(0, 8));
    }
  }
}

TEST_CASE("ranks that differ in overlap_from learn it when they register") {
  for (const int world : {2, 3, 4, 7}) {
    std::atomic<int> refused = 0;
    CHECK_THROWS_AS(
        run_ranks(
            world,
            [&](Communicator& comm) {
              const ContextOptions options{.overlap_from = comm.rank() == world / 2 ? never : 0};
              try {
                train(comm, options);
              } catch (const CollectiveMismatch& error) {
                const std::string said = error.what();
                require(said.find("differ in what runs beside compute (") != std::string::npos,
                        "named");
                ++refused;
                throw;
              }
            }),
        CollectiveMismatch);
    CHECK(refused == world);
  }
}

TEST_CASE("a sequence gathers ahead what runs beside compute, and else when it is visited") {
  constexpr std::size_t layers = 5;
  struct Step {
    std::vector<std::uint64_t> gathers;  // so far, after each visit's begin
    std::set<const float*> gradients;    // lent
  };
  for (const bool in_caller : {false, true}) {
    for (const int world : {1, 2, 3, 4, 7}) {
      std::vector<std::vector<Step>> seen(static_cast<std::size_t>(world));
      run_ranks(world, [&](Communicator& comm) {
        Context<> context(comm, Strategy::zero3(), {.overlap_from = in_caller ? never : 0});
        Layers model(context, std::vector<std::size_t>(layers, small));
        ShardedSequence<float> sequence;
        for (std::size_t i = 0; i < layers; ++i) {
          sequence.add(model.parameters[i], model.gradients[i]);
        }
        for (int step = 0; step < 3; ++step) {
          context.reset_statistics();
          Step now;
          const auto note = [&] {
            now.gathers.push_back(context.statistics().traffic.all_gather_calls);
          };
          for (std::size_t i = 0; i < layers; ++i) {
            auto visit = sequence.forward(i);
            note();
          }
          for (std::size_t i = layers; i-- > 0;) {
            auto visit = sequence.backward(i);
            note();
            now.gradients.insert(visit.gradient[0].data());
            visit.finish();
          }
          model.step();
          seen[static_cast<std::size_t>(comm.rank())].push_back(std::move(now));
        }
      });
      // Two slots: the last two layers are there still when backward begins.
      const std::vector<std::uint64_t> when_visited{1, 2, 3, 4, 5, 5, 5, 6, 7, 8};
      const std::vector<std::uint64_t> ahead{2, 3, 4, 5, 5, 5, 6, 7, 8, 8};
      for (const auto& steps : seen) {
        for (const Step& step : steps) {
          INFO("world " << world << " in the caller " << in_caller);
          CHECK(step.gathers == (in_caller ? when_visited : ahead));
          CHECK(step.gradients.size() == (in_caller ? 1 : 2));
          if (in_caller) CHECK(step.gradients == steps[1].gradients);
        }
      }
    }
  }
}

TEST_CASE("gradients behind a reduction that is under way do not take the slot used last") {
  struct Model {
    std::vector<std::size_t> counts;  // backward goes from the last to the first
    std::vector<int> slots;           // of the leases of a step, by the order of their first use
  };
  constexpr std::size_t big = 50 * small;
  const std::vector<Model> models{
      {{small, small, big, small, small}, {0, 0, 1, 0, 1}},
      {{small, big, big, small}, {0, 1, 0, 1}},
      {{small, small, small}, {0, 0, 0}},
      {{big, small, small, big}, {0, 1, 0, 1}},
  };
  for (const Model& model : models) {
    for (const int world : {1, 2, 3, 4, 7}) {
      std::vector<std::vector<const float*>> seen(static_cast<std::size_t>(world));
      run_ranks(world, [&](Communicator& comm) {
        Context<> context(comm, Strategy::zero3(), {.overlap_from = 4 * small + 1000});
        Layers layers(context, model.counts);
        for (int step = 0; step < 4; ++step) {
          for (std::size_t i = layers.gradients.size(); i-- > 0;) {
            auto lease = layers.gradients[i].lease();
            seen[static_cast<std::size_t>(comm.rank())].push_back(lease[0].data());
            std::move(lease).reduce();
          }
          layers.step();
        }
      });
      for (const auto& lent : seen) {
        std::vector<const float*> slots;  // by the order of their first use
        for (std::size_t i = 0; i < lent.size(); ++i) {
          if (std::find(slots.begin(), slots.end(), lent[i]) == slots.end()) {
            slots.push_back(lent[i]);
          }
          INFO("model " << &model - models.data() << ", world " << world << ", lease " << i);
          const auto which = static_cast<std::size_t>(model.slots[i % model.slots.size()]);
          REQUIRE(which < slots.size());
          CHECK(lent[i] == slots[which]);
        }
      }
    }
  }
}

TEST_CASE("what the host says of overlap holds; else the ranks' cores decide") {
  for (const int world : {1, 2, 3, 4, 7}) {
    std::vector<std::size_t> chosen(static_cast<std::size_t>(world));
    run_ranks(world, [&](Communicator& comm) {
      Context<> without(comm, [] {
        Strategy strategy = Strategy::zero3();
        strategy.overlap = false;
        return strategy;
      }());
      Context<> with(comm, Strategy::zero3(), {.overlap_from = 12345});
      if (without.overlap_from() != std::numeric_limits<std::size_t>::max()) throw Error("without");
      if (with.overlap_from() != 12345) throw Error("with");
      chosen[static_cast<std::size_t>(comm.rank())] = Context<>(comm).overlap_from();
    });
    const auto ranks = static_cast<std::size_t>(world);
    const std::size_t cores = std::thread::hardware_concurrency();
    const std::size_t expected = cores == 0 || cores >= 2 * ranks ? 0 : (8u << 20) + 1;
    CHECK(chosen == std::vector<std::size_t>(ranks, expected));
  }
}

TEST_CASE("what is measured is agreed on, and leaves everything else as it was") {
  for (const int world : {1, 2, 3, 4, 7}) {
    std::vector<std::vector<float>> without(static_cast<std::size_t>(world));
    std::vector<std::vector<float>> with(without.size());
    std::vector<OverlapChoice> chosen(without.size());
    std::vector<Seen> seen(without.size());
    run_ranks(world, [&](Communicator& comm) {
      const auto rank = static_cast<std::size_t>(comm.rank());
      without[rank] = train(comm, {});
      with[rank] = train(comm, {.observer = &seen[rank]}, [&](Context<>& context) {
        const Statistics before = context.statistics();
        const Bytes held = context.held();
        const std::size_t rule = context.overlap_from();
        const OverlapChoice choice = measure_overlap(context, briefly);
        require(choice.measured() == (world > 1), "measured");
        require(choice.measured() || choice.overlap_from == rule, "the rule stays");
        require(context.overlap_from() == choice.overlap_from, "overlap_from");
        require(context.statistics().traffic == before.traffic, "traffic");
        require(context.statistics().waited == before.waited, "waited");
        require(context.held() == held, "held");
        require(seen[rank].of.empty(), "observed");
        context.prepare();
        require(context.held() == context.plan().bytes, "planned and held");
        require(context.peak_held() == context.plan().peak(), "planned and highest");
        chosen[rank] = choice;
      });
    });
    for (std::size_t rank = 0; rank < with.size(); ++rank) {
      INFO("rank " << rank << " of " << world << ": " << chosen[rank].describe());
      CHECK(with[rank] == without[0]);
      CHECK(chosen[rank].overlap_from == chosen[0].overlap_from);
      CHECK(chosen[rank].describe() == chosen[0].describe());
      REQUIRE(chosen[rank].samples.size() == chosen[0].samples.size());
      for (const OverlapSample& sample : chosen[rank].samples) {
        CHECK(sample.in_caller > 0);
        CHECK(sample.beside > 0);
      }
      const auto& [in_caller, beside] = seen[rank].of[4 * large];
      if (world == 1) continue;
      const bool all_in_caller = chosen[rank].overlap_from > 4 * large;
      CHECK((all_in_caller ? beside : in_caller) == 0);
    }
  }
}

TEST_CASE("what is measured decides: where a network takes time everything gains by overlap") {
  struct Case {
    SlowRank::Where where;
    OverlapOptions options;
    std::size_t overlap_from;
    std::vector<std::size_t> measured;
  };
  const auto with = [](std::size_t least, std::size_t most, double compute = 1) {
    OverlapOptions options = briefly;
    options.compute = compute;
    options.budget = 100ms;
    options.least = least;
    options.most = most;
    return options;
  };
  using Where = SlowRank::Where;
  const std::vector<Case> cases{
      {Where::everywhere, with(1, never), 4 * small, {4 * small, 4 * large}},
      {Where::everywhere, with(4 * small + 1, never), 4 * large, {4 * large}},
      {Where::everywhere, with(1, 4 * small), 4 * small, {4 * small}},
      // Where the largest does not gain nothing does.
      {Where::on_a_worker, with(1, never, 0), never, {4 * large}},
  };
  for (const Case& one : cases) {
    std::vector<OverlapChoice> chosen(2);
    // Others on the machine may disturb a measurement, but not each.
    for (int attempt = 0;
         attempt < (sanitized ? 1 : 5) && chosen[0].overlap_from != one.overlap_from; ++attempt) {
      run_ranks(2, [&](Communicator& comm) {
        SlowRank slow(comm, 2ms, one.where);
        train(slow, {}, [&](Context<>& context) {
          chosen[static_cast<std::size_t>(comm.rank())] = measure_overlap(context, one.options);
          require(slow.without_landing == 0, "the backend's scratch memory");
        });
      });
    }
    for (const OverlapChoice& choice : chosen) {
      INFO(choice.describe());
      CHECK(choice.overlap_from == chosen[0].overlap_from);
      if (sanitized) continue;  // what is measured is the sanitizer
      CHECK(choice.overlap_from == one.overlap_from);
      std::vector<std::size_t> sizes;
      for (const OverlapSample& sample : choice.samples) sizes.push_back(sample.bytes);
      CHECK(sizes == one.measured);
    }
  }
}

TEST_CASE("where any rank has no choice, or nothing is worth it, nothing is measured") {
  for (const int world : {1, 2, 3, 4, 7}) {
    run_ranks(world, [&](Communicator& comm) {
      const bool last = comm.rank() + 1 == world;
      SlowRank counting(comm, 0us, SlowRank::Where::everywhere);
      const auto unmeasured = [&](int calls, const OverlapOptions& options) {
        return [&, calls, options](Context<>& context) {
          const std::size_t before = context.overlap_from();
          const int called = counting.calls;
          const OverlapChoice choice = measure_overlap(context, options);
          require(!choice.measured(), "measured");
          require(choice.overlap_from == before, "chosen");
          require(context.overlap_from() == before, "changed");
          require(counting.calls - called == (world == 1 ? 0 : calls), "calls");
        };
      };
      train(counting, {}, unmeasured(0, {}));  // the parameters are small
      train(counting, {.overlap_from = 0}, unmeasured(1, briefly));
      // One rank's word is enough, wherever it is.
      ContextOptions named;
      if (last) named.overlap_from = Context<>(counting).overlap_from();
      train(counting, named, unmeasured(1, briefly));

      Strategy strategy = Strategy::zero3();
      strategy.overlap = false;
      Context<> inline_calls(counting, strategy);
      ShardedParameter<float> parameter(inline_calls, {{"p", {small}}});
      unmeasured(1, briefly)(inline_calls);
      Context<> empty(counting);
      unmeasured(0, briefly)(empty);
    });
  }
}

TEST_CASE("the choice is said in words") {
  OverlapChoice choice{0, {}};
  CHECK(choice.describe() == "all collectives run beside compute (not measured)");
  choice.overlap_from = never;
  choice.samples = {{std::size_t{3} << 19, 0.001, 0.0025, false}};
  CHECK(choice.describe() ==
        "all collectives run in the caller; ms measured in the caller and beside compute: 1.5 MiB "
        "1.000 2.500");
  choice.overlap_from = std::size_t{4} << 20;
  choice.samples.push_back({std::size_t{4} << 20, 0.003, 0.002, true});
  CHECK_THAT(choice.describe(),
             ContainsSubstring("collectives of 4 MiB and more run beside compute; ") &&
                 ContainsSubstring(": 1.5 MiB 1.000 2.500, 4 MiB 3.000 2.000"));
}

TEST_CASE("a rank that throws instead of measuring ends the others' calls") {
  for (const int world : {2, 3, 4, 7}) {
    std::atomic<int> ended{0};
    CHECK_THROWS_WITH(run_ranks(world,
                                [&](Communicator& comm) {
                                  train(comm, {}, [&](Context<>& context) {
                                    if (comm.rank() + 1 == world) throw Error("no time for this");
                                    try {
                                      measure_overlap(context, briefly);
                                    } catch (const PeerFailed& error) {
                                      require(error.rank() + 1 == world, "who");
                                      ++ended;
                                      throw;
                                    }
                                  });
                                }),
                      ContainsSubstring("no time for this"));
    CHECK(ended == world - 1);
  }
}

TEST_CASE("a rank that fails while it measures ends all ranks' calls") {
  // Each takes 8 times 2 ms, then 25 rounds of both forms, of more than that.
  for (const auto delay : {1ms, 10ms, 35ms, 60ms, 100ms, 150ms}) {
    for (const int world : {2, 3, 4, 7}) {
      std::atomic<int> ended{0};
      CHECK_THROWS_WITH(run_ranks(world,
                                  [&](Communicator& comm) {
                                    SlowRank slow(comm, 2ms, SlowRank::Where::everywhere);
                                    train(slow, {}, [&](Context<>& context) {
                                      std::optional<std::jthread> other;
                                      if (comm.rank() == 0) {
                                        other.emplace([&] {
                                          std::this_thread::sleep_for(delay);
                                          comm.abort("the disk is full");
                                        });
                                      }
                                      OverlapOptions options = briefly;
                                      options.budget = 100s;
                                      try {
                                        measure_overlap(context, options);
                                      } catch (const PeerFailed&) {
                                        ++ended;
                                        throw;
                                      }
                                    });
                                  }),
                        ContainsSubstring("the disk is full"));
      CHECK(ended == world);
    }
  }
}

TEST_CASE("what is measured are the collectives that steps make: buckets, not their limit") {
  std::vector<std::vector<std::size_t>> all(2);
  run_ranks(2, [&](Communicator& communicator) {
    Strategy strategy = Strategy::zero3();
    strategy.bucket_bytes = std::size_t{1} << 20;
    Context<> context(communicator, strategy);
    std::vector<ShardedParameter<float>> parameters;
    for (const char* name : {"a", "b", "c", "d"}) {
      parameters.emplace_back(context, std::vector<TensorSpec>{{name, {3 << 15}}});
    }
    auto& sizes = all[static_cast<std::size_t>(communicator.rank())];
    for (const OverlapSample& sample :
         measure_overlap(context, {.budget = std::chrono::milliseconds(1)}).samples) {
      sizes.push_back(sample.bytes);
    }
  });
  // 384 KiB each, of which two fit.
  for (const auto& sizes : all) CHECK(sizes == std::vector<std::size_t>{std::size_t{3} << 18});
}
