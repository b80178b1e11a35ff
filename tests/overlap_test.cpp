// Which collectives run beside compute: Strategy::overlap, ContextOptions::overlap_from.
#include <catch2/catch_test_macros.hpp>
#include <cstddef>
#include <limits>
#include <map>
#include <shardwise/comm/thread.hpp>
#include <shardwise/shardwise.hpp>
#include <string>
#include <thread>
#include <utility>
#include <vector>

using namespace shardwise;

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

/// Two steps of a model of two parameters; their values.
std::vector<float> train(Communicator& comm, const ContextOptions& options) {
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

}  // namespace

TEST_CASE("collectives below overlap_from run in the caller, and bits do not depend on it") {
  for (const int world : {1, 2, 3, 4, 7}) {
    std::vector<std::vector<float>> beside(static_cast<std::size_t>(world));
    std::vector<std::vector<float>> mixed(beside.size());
    std::vector<std::vector<float>> differing(beside.size());
    std::vector<Seen> seen(beside.size());
    std::vector<Seen> all(beside.size());
    run_ranks(world, [&](Communicator& comm) {
      const auto rank = static_cast<std::size_t>(comm.rank());
      beside[rank] = train(comm, {.observer = &all[rank], .overlap_from = 0});
      mixed[rank] = train(comm, {.observer = &seen[rank], .overlap_from = 4 * small + 1});
      // A rank may have a value of its own.
      differing[rank] = train(comm, {.overlap_from = rank % 2 == 0 ? 0 : 4 * large + 1});
    });
    for (std::size_t rank = 0; rank < seen.size(); ++rank) {
      INFO("rank " << rank << " of " << world);
      CHECK(mixed[rank] == beside[0]);
      CHECK(differing[rank] == beside[0]);
      CHECK(seen[rank].of[4 * small] == std::pair(8, 0));  // two of them, two steps
      CHECK(seen[rank].of[4 * large] == std::pair(0, 4));
      CHECK(all[rank].of[4 * small] == std::pair(0, 8));
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
