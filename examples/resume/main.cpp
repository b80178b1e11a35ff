// A training that saves itself, and that goes on from there at any number of ranks.
//
//   resume DIR [--ranks N] [--steps S] [--die-after S]
//
// Run it, kill it when you like, run it again with another --ranks: it goes on from its newest
// save.
// --die-after kills it in the middle of a step, with a save on its way.

#include <fmt/core.h>

#include <algorithm>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <random>
#include <shardwise/checkpoint.hpp>
#include <shardwise/comm/thread.hpp>
#include <shardwise/shardwise.hpp>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>

namespace {

struct Options {
  std::string folder;
  int ranks = 2;
  std::uint64_t steps = 200;
  std::uint64_t die_after = 0;
};

Options parse(int count, char** arguments) {
  Options options;
  for (int i = 1; i < count; ++i) {
    const std::string_view word = arguments[i];
    const auto number = [&] {
      if (i + 1 == count) throw std::invalid_argument(fmt::format("{} needs a number", word));
      return std::stoul(arguments[++i]);
    };
    if (word == "--ranks") {
      options.ranks = static_cast<int>(number());
    } else if (word == "--steps") {
      options.steps = number();
    } else if (word == "--die-after") {
      options.die_after = number();
    } else if (options.folder.empty() && !word.starts_with('-')) {
      options.folder = word;
    } else {
      throw std::invalid_argument(fmt::format("there is no option {}", word));
    }
  }
  if (options.folder.empty()) {
    throw std::invalid_argument("usage: resume DIR [--ranks N] [--steps S] [--die-after S]");
  }
  return options;
}

constexpr std::size_t width = 64;

// Learns y = sum of w_i * x_i; what each step sees depends on the step alone.
void train(const Options& options, shardwise::Communicator& comm) {
  shardwise::Context context(comm, shardwise::Strategy::zero3());
  shardwise::ShardedParameter<float> layer(context, {{"weight", {width}}, {"bias", {1}}});
  shardwise::ShardedGradient gradient(layer);
  shardwise::ShardedOptimizerState<shardwise::AdamW> state(
      layer, {.learning_rate = 0.02, .weight_decay = 0});
  layer.initialize([](const auto&, std::size_t) { return 0.0f; });

  // What a save holds. Its values come back bit for bit, at any number of ranks.
  shardwise::TrainingState training(context);
  training.add(layer);
  training.add(state);
  double best = 1e30;  // the host's own: equal on all ranks
  training.add_replicated("best", std::span(&best, 1));

  shardwise::CheckpointFolder folder(options.folder, {.keep = 2});
  std::uint64_t done = 0;
  if (const auto loaded = folder.load(training)) {
    done = loaded->step;
    if (comm.rank() == 0) {
      fmt::print("going on after step {}, which {} ranks saved; seed {}\n", done, loaded->world,
                 loaded->values.at("seed").as<std::int64_t>());
    }
  } else if (comm.rank() == 0) {
    fmt::print("{} has no save: starting anew\n", options.folder);
  }

  shardwise::SaveHandle saving;  // at most one is on its way
  for (std::uint64_t step = done; step < options.steps; ++step) {
    float loss = 0;
    {
      const auto weights = layer.gather();
      auto slopes = gradient.lease();
      std::mt19937 random(static_cast<std::mt19937::result_type>(step));
      std::uniform_real_distribution<float> uniform(-1, 1);
      float error = weights["bias"][0] - 1;
      float inputs[width];
      for (std::size_t i = 0; i < width; ++i) {
        inputs[i] = uniform(random);
        error += (weights["weight"][i] - static_cast<float>(i) / width) * inputs[i];
      }
      loss = error * error;
      for (std::size_t i = 0; i < width; ++i) slopes["weight"][i] = 2 * error * inputs[i];
      slopes["bias"][0] = 2 * error;
      std::move(slopes).reduce();
    }
    state.step(layer, gradient);
    best = std::min(best, static_cast<double>(loss));

    if ((step + 1) % 20 == 0 || step + 1 == options.steps) {
      saving.finish();
      saving = folder.save_async(training, step + 1, {{"seed", 1}});
    }
    if (step + 1 == options.die_after) std::raise(SIGKILL);
  }
  saving.finish();
  float sum = 0;
  layer.read([&](const auto&, std::size_t, auto values) {
    for (const float value : values) sum += value;
  });
  if (comm.rank() == 0) {
    fmt::print("{} steps: sum of the weights {:a}, best loss {:a}\n", options.steps, sum, best);
  }
}

}  // namespace

int main(int count, char** arguments) try {
  const Options options = parse(count, arguments);
  shardwise::run_ranks(options.ranks, [&](shardwise::Communicator& comm) { train(options, comm); });
  return 0;
} catch (const std::exception& error) {
  fmt::print(stderr, "resume: {}\n", error.what());
  return 1;
}
