// What a monitor costs: steps of training with one attached against the same steps without, which
// take turns in one run. The ratio is the median over pairs of their quotients; pairs are added
// until its interval of 95 % lies on one side of 1.01, or the time is over: then the median
// decides. Fails where it is above. Beside it: how many records a step makes, what one costs, and
// what part of the step that is.

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <cstdio>
#include <memory>
#include <shardwise/comm/thread.hpp>
#include <shardwise/monitor/monitor.hpp>
#include <shardwise/shardwise.hpp>
#include <string>
#include <vector>

namespace {

using Clock = std::chrono::steady_clock;

struct Options {
  int ranks = 2;
  std::size_t layers = 8;
  std::size_t width = 128;  // of a layer's square matrix
  std::size_t rows = 32;    // of a rank's batch
  double seconds = 90;
  double limit = 1.01;
};

double quantile(std::vector<double> values, double part) {
  std::sort(values.begin(), values.end());
  return values[static_cast<std::size_t>(part * static_cast<double>(values.size() - 1))];
}

/// Layers of matrices over a context of their own.
class Trainer {
 public:
  Trainer(shardwise::Communicator& comm, const Options& options, shardwise::Observer* observer)
      : options_(options),
        context_(comm, shardwise::Strategy::zero3(), {.observer = observer}),
        x_(options.rows * options.width, 0.1f),
        y_(options.rows * options.width) {
    for (std::size_t i = 0; i < options.layers; ++i) {
      parameters_.emplace_back(
          context_, std::vector<shardwise::TensorSpec>{{"weight", {options.width, options.width}}},
          shardwise::ParameterOptions{.name = "h." + std::to_string(i)});
      parameters_.back().initialize(
          [](const auto&, std::size_t k) { return static_cast<float>(k % 7) * 0.01f; });
    }
    for (auto& parameter : parameters_) {
      gradients_.emplace_back(parameter);
      states_.emplace_back(parameter);
    }
    for (std::size_t i = 0; i < options.layers; ++i) sequence_.add(parameters_[i], gradients_[i]);
  }

  void step() {
    for (std::size_t i = 0; i < options_.layers; ++i) {
      auto visit = sequence_.forward(i);
      multiply(visit.weights[0].data());
      visit.finish();
    }
    for (std::size_t i = options_.layers; i-- > 0;) {
      auto visit = sequence_.backward(i);
      multiply(visit.weights[0].data());
      float* const gradient = visit.gradient[0].data();
      for (std::size_t k = 0; k < options_.width; ++k) gradient[k] += y_[k];
      multiply(visit.weights[0].data());
      visit.finish();
    }
    clip_gradient_norm(context_, 1.0);
    for (std::size_t i = 0; i < options_.layers; ++i)
      states_[i].step(parameters_[i], gradients_[i]);
    context_.end_step({.loss = 1, .tokens = options_.rows});
  }

 private:
  void multiply(const float* weights) {
    const std::size_t n = options_.width;
    for (std::size_t row = 0; row < options_.rows; ++row) {
      float* const out = y_.data() + row * n;
      std::fill_n(out, n, 0.0f);
      for (std::size_t k = 0; k < n; ++k) {
        const float value = x_[row * n + k];
        for (std::size_t j = 0; j < n; ++j) out[j] += value * weights[k * n + j];
      }
    }
  }

  const Options& options_;
  shardwise::Context<> context_;
  std::vector<float> x_, y_;
  std::vector<shardwise::ShardedParameter<float>> parameters_;
  std::vector<shardwise::ShardedGradient<float>> gradients_;
  std::vector<shardwise::ShardedOptimizerState<shardwise::AdamW>> states_;
  shardwise::ShardedSequence<float> sequence_;
};

/// Whether the median's interval of 95 % (by the order of the values) is below the limit, or above.
bool ratios_are_on_one_side(const std::vector<double>& ratios, double limit) {
  const double half = 0.98 / std::sqrt(static_cast<double>(ratios.size()));
  return quantile(ratios, 0.5 + half) <= limit || quantile(ratios, 0.5 - half) > limit;
}

/// Nanoseconds of one wait's record, the clock's two readings included.
double cost_of_record() {
  shardwise::Monitor monitor;
  monitor.introduce(0, "x", true, 0);
  constexpr int count = 200000;
  const auto begin = Clock::now();
  for (int i = 0; i < count; ++i) {
    const auto from = Clock::now();
    const auto to = Clock::now();
    monitor.waited({0, shardwise::Activity::all_gather, from, to});
  }
  return std::chrono::duration<double, std::nano>(Clock::now() - begin).count() / count;
}

}  // namespace

int main(int count, char** arguments) {
  Options options;
  CLI::App app("What a monitor costs");
  app.add_option("--ranks", options.ranks, "Threads");
  app.add_option("--layers", options.layers, "Layers");
  app.add_option("--width", options.width, "Of a layer's matrix");
  app.add_option("--rows", options.rows, "Of a rank's batch");
  app.add_option("--seconds", options.seconds, "At most");
  app.add_option("--limit", options.limit, "Largest ratio");
  CLI11_PARSE(app, count, arguments);

  std::vector<double> without, with, ratios;
  std::size_t spans = 0;
  bool decided = false;  // rank 0 writes it before a barrier, all read it after that
  shardwise::run_ranks(options.ranks, [&](shardwise::Communicator& comm) {
    shardwise::Monitor monitor;
    Trainer plain(comm, options, nullptr);
    Trainer watched(comm, options, &monitor);
    const auto time = [&](Trainer& trainer) {
      comm.barrier({"pair"}, {});
      const auto begin = Clock::now();
      trainer.step();
      comm.barrier({"pair"}, {});
      return std::chrono::duration<double, std::milli>(Clock::now() - begin).count();
    };
    const auto start = Clock::now();
    for (int i = -20; i < 0 || !decided; ++i) {
      const bool first = i % 2 == 0;  // who comes first may have it warmer
      const double a = first ? time(plain) : 0;
      const double b = time(watched);
      const double plain_ms = first ? a : time(plain);
      if (i < 0) continue;
      if (comm.rank() == 0) {
        without.push_back(plain_ms);
        with.push_back(b);
        ratios.push_back(b / plain_ms);
        const bool late = Clock::now() - start > std::chrono::duration<double>(options.seconds);
        if (i % 100 == 99) decided = late || ratios_are_on_one_side(ratios, options.limit);
      }
      comm.barrier({"decision"}, {});
    }
    if (comm.rank() == 0) {
      const auto snapshot = monitor.snapshot();
      std::size_t steps = 0;
      for (const auto& span : snapshot.host) {
        if (span.kind == shardwise::monitor::SpanKind::step) ++steps;
      }
      spans = 2 * snapshot.host.size() / steps;  // the stream of collectives has fewer
    }
  });
  const double ratio = quantile(ratios, 0.5);
  const double record = cost_of_record();
  const double step_ms = quantile(without, 0.5);
  std::printf(
      "%d ranks, %zu layers: %.3f ms a step without, %.3f with a monitor (medians of %zu)\n",
      options.ranks, options.layers, step_ms, quantile(with, 0.5), ratios.size());
  std::printf("ratio: median %.4f, quartiles %.4f and %.4f\n", ratio, quantile(ratios, 0.25),
              quantile(ratios, 0.75));
  std::printf("at most %zu spans a step of %.0f ns each: %.3f %% of the step\n", spans, record,
              static_cast<double>(spans) * record / (step_ms * 1e6) * 100);
  if (ratio > options.limit) {
    std::printf("FAILED: the ratio is above %.4f\n", options.limit);
    return 1;
  }
  return 0;
}
