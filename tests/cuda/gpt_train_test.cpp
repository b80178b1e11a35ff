#include <cuda_runtime_api.h>

#include <algorithm>
#include <catch2/catch_test_macros.hpp>
#include <cmath>
#include <cstddef>
#include <string>
#include <vector>

#include "../../examples/cuda_gpt/trainer.hpp"
#include "../../examples/train_gpt/model.hpp"
#include "../../examples/train_gpt/train.hpp"
#include "gpt_worlds.hpp"

namespace {

using cuda_gpt::Options;
using train_gpt::Accumulate;
using train_gpt::Report;

Options small(std::size_t ranks) {
  Options options;
  options.ranks = ranks;
  options.layers = 2;
  options.width = 16;
  options.heads = 2;
  options.sequence = 8;
  options.batch = 24;
  options.steps = 12;
  options.learning_rate = 3e-3;
  options.clip = 0.9;
  // Adam divides gradients that are nothing but rounding, such as that of the keys' bias, by
  // themselves; a larger epsilon leaves them small.
  options.epsilon = 1e-5;
  options.quiet = true;
  options.keep_parameters = true;
  return options;
}

Report reference(const Options& options) {
  Options plain = options;
  plain.ranks = 1;
  return train_gpt::plain::train(plain);
}

std::vector<float> initial_values(const Options& options) {
  const train_gpt::GptShape shape{options.layers, options.width, options.heads, options.sequence};
  std::vector<float> values;
  for (const auto& unit : shape.units()) {
    for (const auto& tensor : unit) {
      for (std::size_t i = 0; i < tensor.size(); ++i) {
        values.push_back(shape.initial_value(tensor.name, i, options.seed));
      }
    }
  }
  return values;
}

double distance(const std::vector<float>& a, const std::vector<float>& b) {
  REQUIRE(a.size() == b.size());
  double squares = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    const double difference = static_cast<double>(a[i]) - static_cast<double>(b[i]);
    squares += difference * difference;
  }
  return std::sqrt(squares);
}

double largest_difference(const std::vector<double>& a, const std::vector<double>& b) {
  REQUIRE(a.size() == b.size());
  double largest = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    largest = std::max(largest, std::abs(a[i] - b[i]) / std::abs(a[i]));
  }
  return largest;
}

/// How far a run may be from the plain trainer: the loss and the norm of the gradient of each step
/// by a part of themselves, the final parameters by a part of the way that training moved them.
struct Bounds {
  double loss;
  double norm;
  double parameters;
};
// Products add up in another order, and so do sums over tokens: emulated, it is 7e-9, 1.2e-7 and
// 3.7e-7.
constexpr Bounds float_noise{1e-7, 2e-6, 1e-5};
// Activations are rounded to 8 bits, too, where they enter products: emulated, it is 4.3e-5, 1.5e-3
// and 2.7e-3.
constexpr Bounds bf16_noise{5e-4, 1e-2, 2e-2};

void check_same_training(const Report& found, const Report& expected, const Options& options,
                         const Bounds& bounds) {
  const double loss = largest_difference(expected.loss, found.loss);
  const double norm = largest_difference(expected.grad_norm, found.grad_norm);
  const double way = distance(expected.values, initial_values(options));
  const double off = distance(expected.values, found.values) / way;
  CAPTURE(options.ranks, options.lease, options.micro_batches, loss, norm, off);
  CHECK(expected.loss.back() < 0.95 * expected.loss.front());
  CHECK(loss < bounds.loss);
  CHECK(norm < bounds.norm);
  CHECK(off < bounds.parameters);
}

}  // namespace

TEST_CASE("losses and parameters are those of the plain trainer on the host") {
  for (const char* lease : {"fp32", "bf16"}) {
    for (const std::size_t world : shardwise::test::gpt_worlds()) {
      for (const std::size_t micro : {1u, 2u}) {
        for (const Accumulate accumulate : {Accumulate::reduce, Accumulate::hold}) {
          if (micro == 1 && accumulate == Accumulate::hold) continue;
          Options options = small(world);
          options.lease = lease;
          options.micro_batches = micro;
          options.accumulate = accumulate;
          check_same_training(cuda_gpt::train_in_threads(options), reference(options), options,
                              options.lease == "bf16" ? bf16_noise : float_noise);
        }
      }
    }
  }
}

TEST_CASE("strategies and prefetch change no bit, and a run repeats itself") {
  for (const std::size_t world : shardwise::test::gpt_worlds()) {
    for (const char* lease : {"fp32", "bf16"}) {
      Options options = small(world);
      options.steps = 3;
      options.lease = lease;
      const std::string expected = cuda_gpt::train_in_threads(options).parameters_hash;
      for (const char* strategy : {"ddp", "zero1", "zero2", "zero3", "zero3-no-reshard"}) {
        for (const std::size_t prefetch : {0u, 2u}) {
          options.strategy = strategy;
          options.prefetch = prefetch;
          const Report report = cuda_gpt::train_in_threads(options);
          CAPTURE(strategy, prefetch, world, lease);
          CHECK(report.parameters_hash == expected);
          CHECK(report.bytes_per_rank.peak == report.planned_bytes_per_rank.peak);
        }
      }
    }
  }
}

TEST_CASE("weights in one flat allocation change no bit") {
  for (const std::size_t world : shardwise::test::gpt_worlds()) {
    for (const char* lease : {"fp32", "bf16"}) {
      Options options = small(world);
      options.steps = 3;
      options.lease = lease;
      const std::string expected = cuda_gpt::train_in_threads(options).parameters_hash;
      options.in_place = true;
      for (const char* strategy : {"ddp", "zero2", "zero3"}) {
        for (const std::size_t prefetch : {1u, 2u}) {
          options.strategy = strategy;
          options.prefetch = prefetch;
          const Report report = cuda_gpt::train_in_threads(options);
          CAPTURE(strategy, prefetch, world, lease);
          CHECK(report.parameters_hash == expected);
          CHECK(report.bytes_per_rank.peak == report.planned_bytes_per_rank.peak);
        }
      }
    }
  }
}

TEST_CASE("NCCL's own order of sums is float noise") {
  for (const std::size_t world : shardwise::test::gpt_worlds()) {
    Options options = small(world);
    const std::string canonical = cuda_gpt::train_in_threads(options).parameters_hash;
    options.fast_reductions = true;
    const Report fast = cuda_gpt::train_in_threads(options);
    check_same_training(fast, reference(options), options, float_noise);
    // Two summands have one order, three have several.
    if (world > 2) CHECK(fast.parameters_hash != canonical);
  }
}

TEST_CASE("a sample is what the plain trainer writes") {
  for (const std::size_t world : shardwise::test::gpt_worlds()) {
    Options options = small(world);
    options.sample = 20;  // longer than a sequence: the window slides
    CHECK(cuda_gpt::train_in_threads(options).sample == reference(options).sample);
  }
}
