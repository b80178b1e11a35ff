#include <catch2/catch_test_macros.hpp>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <deque>
#include <shardwise/checkpoint.hpp>
#include <shardwise/shardwise.hpp>
#include <string>
#include <vector>

#include "saving.hpp"
#include "simulated_disk.hpp"

// A training that goes on from a save is the training that was never interrupted.

namespace shardwise::test {
namespace {

enum class What { everything, weights_alone };

/// A training whose gradients depend on the step and on the weights; f16 gradients are scaled.
struct Run {
  Run(Communicator& comm, const Strategy& strategy)
      : model(comm, strategy, small_layers(), true), weights(model.context) {
    for (auto& parameter : model.parameters) {
      gradients.emplace_back(parameter);
      weights.add(parameter);
    }
    model.fill(1);
    for (auto& state : model.states) state.restore_steps(0);
    for (auto& state : model.states) {
      for (const char* const slot : {"exp_avg", "exp_avg_sq"}) {
        const auto values = state.values<float>(slot);
        std::memset(values.data(), 0, values.size_bytes());
      }
    }
    model.training.add(scaler);
  }

  void step(std::uint64_t step) {
    for (std::size_t i = 0; i < model.parameters.size(); ++i) {
      const auto w = model.parameters[i].gather();
      auto g = gradients[i].lease();
      const auto tensors = model.parameters[i].layout().tensors();
      for (std::size_t t = 0; t < tensors.size(); ++t) {
        for (std::size_t j = 0; j < tensors[t].count; ++j) {
          const float noise = SavedModel<float>::value(tensors[t].name, j, 100 + step) - 32;
          g[t].data()[j] += (noise + 0.1f * w[t].data()[j]) * static_cast<float>(scaler.scale());
        }
      }
      std::move(g).reduce();
    }
    if (!scaler.unscale(model.context)) return;
    static_cast<void>(clip_gradient_norm(model.context, 10.0));
    for (std::size_t i = 0; i < model.parameters.size(); ++i) {
      model.states[i].step(model.parameters[i], gradients[i]);
    }
  }

  std::vector<float> values() {
    std::vector<float> all;
    for (auto& parameter : model.parameters) {
      parameter.read([&](const auto&, std::size_t, auto part) {
        all.insert(all.end(), part.begin(), part.end());
      });
    }
    return all;
  }

  SavedModel<float> model;
  std::deque<Gradient<float>> gradients;
  LossScaler scaler{{.initial_scale = 8, .growth_interval = 2}};
  TrainingState<Device> weights;
};

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

}  // namespace

TEST_CASE("a resumed run ends with the bits of an uninterrupted one; weights alone do not") {
  constexpr std::uint64_t steps = 7;
  constexpr std::uint64_t interrupted = 3;
  Strategy shared = Strategy::zero3();
  shared.residency = Residency::shared;
  for (const int world : {1, 2, 3, 4, 7}) {
    for (const Strategy& strategy :
         {Strategy::ddp(), Strategy::zero1(), Strategy::zero3(), shared}) {
      SimulatedDisk disk;
      std::vector<float> whole;
      std::vector<float> resumed;
      std::vector<float> from_weights;
      run_ranks(world, [&](Communicator& comm) {
        Run run(comm, strategy);
        CheckpointFolder folder("run", {.files = &disk});
        SaveHandle saving;
        for (std::uint64_t step = 0; step < steps; ++step) {
          if (step == interrupted) saving = folder.save_async(run.model.training, step);
          run.step(step);
        }
        saving.finish();
        const auto values = run.values();
        if (comm.rank() == 0) whole = values;
      });
      for (const What what : {What::everything, What::weights_alone}) {
        run_ranks(world, [&](Communicator& comm) {
          Run run(comm, strategy);
          CheckpointFolder folder("run", {.files = &disk});
          const bool all = what == What::everything;
          const auto loaded = all ? folder.load(run.model.training)
                                  : folder.load(run.weights, {.allow_extra = true});
          for (std::uint64_t step = loaded->step; step < steps; ++step) run.step(step);
          const auto values = run.values();
          if (comm.rank() == 0) (all ? resumed : from_weights) = values;
        });
      }
      INFO(strategy.name() << ", " << name_of(strategy.residency) << ", world " << world);
      CHECK(same_bits(whole, resumed));
      CHECK_FALSE(same_bits(whole, from_weights));
    }
  }
}

}  // namespace shardwise::test
