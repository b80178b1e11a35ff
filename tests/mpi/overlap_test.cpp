#include <algorithm>
#include <catch2/catch_test_macros.hpp>
#include <chrono>
#include <cstddef>
#include <cstdio>
#include <shardwise/comm/collectives.hpp>
#include <shardwise/shardwise.hpp>
#include <string>
#include <thread>
#include <vector>

#include "world.hpp"

namespace shardwise::test {
namespace {

using Clock = std::chrono::steady_clock;
using Seconds = std::chrono::duration<double>;

/// A model of equal layers whose compute sleeps: with two cores, compute and the copies of two
/// ranks' communication would share them, and nothing could be shown.
class SleepingModel {
 public:
  SleepingModel(Communicator& comm, bool overlap) : context_(comm, strategy(overlap)) {
    for (int layer = 0; layer < layers; ++layer) {
      parameters_.emplace_back(
          context_, std::vector<TensorSpec>{{"weight" + std::to_string(layer), {elements}}});
      parameters_.back().initialize([](const auto&, std::size_t) { return 1.0f; });
      gradients_.emplace_back(parameters_.back());
    }
    for (std::size_t i = 0; i < parameters_.size(); ++i) {
      sequence_.add(parameters_[i], gradients_[i]);
    }
  }

  /// Seconds of one forward and backward pass whose compute takes `compute` a layer and direction.
  double pass(Communicator& comm, double compute) {
    barrier(comm);
    const auto begin = Clock::now();
    context_.begin_step();
    for (std::size_t i = 0; i < parameters_.size(); ++i) {
      const auto visit = sequence_.forward(i);
      std::this_thread::sleep_for(Seconds(compute));
    }
    for (std::size_t i = parameters_.size(); i > 0; --i) {
      auto visit = sequence_.backward(i - 1);
      std::this_thread::sleep_for(Seconds(compute));
      visit.finish();
    }
    context_.end_step({});
    barrier(comm);
    return max(comm, Seconds(Clock::now() - begin).count());
  }

 private:
  static constexpr int layers = 12;
  static constexpr std::size_t elements = std::size_t{1} << 20;  // 4 MiB

  static Strategy strategy(bool overlap) {
    Strategy result = Strategy::zero3();
    result.overlap = overlap;
    result.prefetch = 1;
    return result;
  }

  Context<> context_;
  std::vector<ShardedParameter<float>> parameters_;
  std::vector<ShardedGradient<float>> gradients_;
  ShardedSequence<float, float, float> sequence_;
};

TEST_CASE("communication and compute overlap: a pass takes at most 0.75 of the serial form") {
  MpiCommunicator comm = world();
  SleepingModel serial(comm, false);
  SleepingModel overlapped(comm, true);
  const auto median = [](std::vector<double> values) {
    std::sort(values.begin(), values.end());
    return values[values.size() / 2];
  };
  serial.pass(comm, 0);
  std::vector<double> alone;
  for (int i = 0; i < 5; ++i) alone.push_back(serial.pass(comm, 0));
  const double communication = median(alone);
  const double compute = communication / 24;  // of each layer, twice
  std::vector<double> ratios;
  for (int i = 0; i < 9; ++i) {
    const double one = serial.pass(comm, compute);
    const double both = overlapped.pass(comm, compute);
    ratios.push_back(both / one);
  }
  const double ratio = median(ratios);
  if (comm.rank() == 0) {
    std::printf("communication %.1f ms, as much compute; overlapped / serial: %.2f\n",
                communication * 1e3, ratio);
  }
  CHECK(ratio < 0.75);
}

}  // namespace
}  // namespace shardwise::test
