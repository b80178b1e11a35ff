#include <algorithm>
#include <catch2/catch_test_macros.hpp>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <numbers>
#include <span>
#include <string_view>
#include <vector>

#include "../../examples/flat_host/gpt.hpp"
#include "../../examples/flat_host/options.hpp"
#include "../../examples/flat_host/plain.hpp"
#include "../../examples/flat_host/train.hpp"
#include "../../examples/train_gpt/random.hpp"

namespace {

using namespace flat_host;
using train_gpt::random_bits;
using train_gpt::to_unit_interval;

double normal(std::uint64_t key, std::uint64_t index) {
  const double radius = to_unit_interval(random_bits(key, index, 0));
  const double angle = to_unit_interval(random_bits(key, index, 1));
  return std::sqrt(-2 * std::log(radius)) * std::cos(2 * std::numbers::pi * angle);
}

/// The plain trainer's model, three sequences, and parameters far from the ones it starts with, so
/// that every path carries something.
struct Problem {
  explicit Problem(const Config& config) {
    model.config = config;
    model.batch = 3;
    model.num_parameters = describe_parameters(&config, model.table);
    params.resize(model.num_parameters);
    grads.resize(model.num_parameters);
    model.params_memory = params.data();
    model.grads_memory = grads.data();
    point_parameters(&model.params, model.table, params.data());
    point_parameters(&model.grads, model.table, grads.data());
    model.acts_memory = allocate_activations(&model.acts, &config, model.batch);
    std::size_t at = 0;
    for (const TensorInfo& tensor : model.table) {
      for (std::size_t i = 0; i < tensor.count; ++i, ++at) {
        params[at] = static_cast<float>(initial_value(&config, tensor.name, i, 3) +
                                        0.3 * normal(train_gpt::key_of(tensor.name), i));
      }
    }
    inputs.resize(model.batch * config.sequence);
    targets.resize(inputs.size());
    for (std::size_t i = 0; i < inputs.size(); ++i) {
      inputs[i] = static_cast<std::uint8_t>(random_bits(1, i) % 7);  // repeated: rows add up
      targets[i] = static_cast<std::uint8_t>(random_bits(2, i) % 7);
    }
  }
  Problem(const Problem&) = delete;
  Problem& operator=(const Problem&) = delete;
  ~Problem() { std::free(model.acts_memory); }

  double loss() {
    plain::gpt_forward(&model, inputs.data(), targets.data());
    return model.mean_loss;
  }

  /// The slope of the loss along a direction of some parameters, by central differences.
  double slope(std::span<float> tensor, const std::vector<double>& direction) {
    constexpr double step = 1e-2;
    const std::vector<float> kept(tensor.begin(), tensor.end());
    const auto loss_at = [&](double distance) {
      for (std::size_t i = 0; i < tensor.size(); ++i) {
        tensor[i] = static_cast<float>(static_cast<double>(kept[i]) + distance * direction[i]);
      }
      return loss();
    };
    const double result = (loss_at(step) - loss_at(-step)) / (2 * step);
    std::copy(kept.begin(), kept.end(), tensor.begin());
    return result;
  }

  plain::Model model{};
  std::vector<float> params;
  std::vector<float> grads;
  std::vector<std::uint8_t> inputs;
  std::vector<std::uint8_t> targets;
};

void require_slopes(const Config& config) {
  Problem problem(config);
  problem.loss();
  plain::gpt_backward(&problem.model);
  const std::vector<float> gradient = problem.grads;

  std::size_t first = 0;
  for (const TensorInfo& tensor : problem.model.table) {
    const std::size_t count = tensor.rows * tensor.columns;
    for (std::size_t l = 0; l < tensor.count / count; ++l, first += count) {
      INFO(tensor.name << ", layer " << l);
      const std::span<const float> g(&gradient[first], count);
      double squares = 0;
      for (const float value : g) squares += std::pow(static_cast<double>(value), 2);
      const double length = std::sqrt(squares);
      REQUIRE(length > 1e-4);

      // Along the gradient the slope is its length; along any direction it is the projection.
      for (const std::uint64_t random : {0u, 1u, 2u}) {
        std::vector<double> direction(count);
        double size = 0, expected = 0;
        for (std::size_t i = 0; i < count; ++i) {
          direction[i] = random == 0 ? static_cast<double>(g[i]) : normal(random, i);
          size += direction[i] * direction[i];
        }
        for (std::size_t i = 0; i < count; ++i) {
          direction[i] /= std::sqrt(size);
          expected += direction[i] * static_cast<double>(g[i]);
        }
        const double found =
            problem.slope(std::span(problem.params).subspan(first, count), direction);
        CAPTURE(random, expected, found);
        CHECK(std::abs(found - expected) < 2e-3 * length + 1e-4);
      }
    }
  }
  REQUIRE(first == problem.model.num_parameters);
}

const char* const strategies[] = {"ddp", "zero1", "zero2", "zero3", "zero3-no-reshard"};

Options small(std::size_t ranks, const char* strategy) {
  Options options;
  options.config = {.layers = 2, .channels = 24, .heads = 2, .sequence = 16};
  options.ranks = ranks;
  options.strategy = strategy;
  options.steps = 20;
  options.learning_rate = 3e-3;
  options.quiet = true;
  return options;
}

/// Few steps of a model with tensors of several times 64 KiB, whose pages move: those of small()
/// share their pages with others and stay.
Options wide(std::size_t ranks, const char* strategy) {
  Options options = small(ranks, strategy);
  options.config = {.layers = 2, .channels = 128, .heads = 4, .sequence = 4};
  options.steps = 3;
  return options;
}

/// How far the losses are from the expected ones, relatively.
double difference(const std::vector<double>& expected, const std::vector<double>& found) {
  double largest = 0;
  for (std::size_t i = 0; i < expected.size(); ++i) {
    largest = std::max(largest, std::abs(found[i] - expected[i]) / expected[i]);
  }
  return largest;
}

/// How far the parameters are apart.
double difference(const std::vector<float>& expected, const std::vector<float>& found) {
  float largest = 0;
  for (std::size_t i = 0; i < expected.size(); ++i) {
    largest = std::max(largest, std::abs(found[i] - expected[i]));
  }
  return static_cast<double>(largest);
}

}  // namespace

TEST_CASE("the flat trainer's backward pass is the slope of the loss") {
  SECTION("small") { require_slopes({.layers = 2, .channels = 16, .heads = 2, .sequence = 6}); }
  SECTION("one head, one layer, rows that four does not divide") {
    require_slopes({.layers = 1, .channels = 24, .heads = 1, .sequence = 9});
  }
}

TEST_CASE("the flat trainer's gradients add to what is there") {
  Problem problem({.layers = 1, .channels = 8, .heads = 2, .sequence = 4});
  problem.loss();
  plain::gpt_backward(&problem.model);
  const std::vector<float> once = problem.grads;
  plain::gpt_backward(&problem.model);
  // Sums of several addends grow by rounding too.
  double worst = 0;
  for (std::size_t i = 0; i < once.size(); ++i) {
    worst = std::max(worst, static_cast<double>(std::abs(problem.grads[i] - 2 * once[i])));
  }
  CHECK(worst < 1e-6);
}

TEST_CASE("the flat trainer learns") {
  const Result result = plain::train(small(1, "zero3"));
  REQUIRE(result.loss.size() == 20);
  CHECK(result.loss.back() < 0.8 * result.loss.front());
  CHECK(plain::train(small(1, "zero3")).parameters == result.parameters);
}

TEST_CASE("one rank, sharded in place, ends with the bits of the flat trainer") {
  for (const auto make : {small, wide}) {
    const Result expected = plain::train(make(1, "zero3"));
    for (const char* strategy : strategies) {
      for (const bool debug : {false, true}) {
        INFO(strategy << (debug ? ", debug" : ""));
        Options options = make(1, strategy);
        options.debug = debug;
        const Result result = sharded::train(options);
        CHECK(result.loss == expected.loss);
        CHECK(result.parameters == expected.parameters);
      }
    }
  }
}

// Sums over ranks are made in another order than sums over the batch. For 12 seeds the losses
// differed by up to 1.4e-6 of their values and the parameters by up to 5.5e-5 (a step of AdamW
// moves them by 3e-3); the bounds are ten times that.
TEST_CASE("several ranks, sharded in place, train as the flat trainer does") {
  const Result expected = plain::train(small(1, "zero3"));
  for (const std::size_t ranks : {2u, 3u, 4u}) {
    const Result result = sharded::train(small(ranks, "zero3"));
    REQUIRE(result.loss.size() == expected.loss.size());
    REQUIRE(result.parameters.size() == expected.parameters.size());
    CAPTURE(ranks);
    CHECK(difference(expected.loss, result.loss) < 1.4e-5);
    CHECK(difference(expected.parameters, result.parameters) < 5.5e-4);
    CHECK(result.parameters != expected.parameters);  // several ranks did compute
  }
}

TEST_CASE("every strategy, and the debug mode, gives the bits of zero3 in place") {
  for (const auto make : {small, wide}) {
    for (const std::size_t ranks : {2u, 3u}) {
      const Result expected = sharded::train(make(ranks, "zero3"));
      for (const char* strategy : strategies) {
        for (const bool debug : {false, true}) {
          INFO(strategy << ", world " << ranks << (debug ? ", debug" : ""));
          Options options = make(ranks, strategy);
          options.debug = debug;
          const Result result = sharded::train(options);
          CHECK(result.loss == expected.loss);
          CHECK(result.parameters == expected.parameters);
        }
      }
    }
  }
}

TEST_CASE("ranks that share the memory of parameters end with the bits of zero3 in place") {
  for (const auto make : {small, wide}) {
    for (const std::size_t ranks : {1u, 2u, 3u, 4u}) {
      const Result expected = sharded::train(make(ranks, "zero3"));
      for (const char* strategy : strategies) {
        if (std::string_view(strategy) == "ddp") continue;  // each rank updates all of it
        for (const bool debug : {false, true}) {
          INFO(strategy << ", world " << ranks << (debug ? ", debug" : ""));
          Options options = make(ranks, strategy);
          options.debug = debug;
          options.shared = true;
          const Result result = sharded::train(options);
          CHECK(result.loss == expected.loss);
          CHECK(result.parameters == expected.parameters);
          CHECK(result.bytes == result.planned);
          CHECK(result.bytes.parameters <= expected.bytes.parameters);
        }
      }
    }
  }
}

TEST_CASE("a rank holds its part of the flat trainer's state and no more") {
  for (const std::size_t ranks : {1u, 2u, 3u, 4u}) {
    Options options = small(ranks, "zero3");
    // Shards of 64 KiB and more, save the final norm's.
    options.config = {.layers = 2, .channels = 256, .heads = 4, .sequence = 8};
    options.steps = 1;
    const Result result = sharded::train(options);
    const std::size_t part = (result.parameters.size() + ranks - 1) / ranks;
    const Bytes& bytes = result.bytes;
    INFO("world " << ranks << ": " << result.parameters.size() << " parameters, a rank's part is "
                  << part << ", it holds " << bytes.parameters << " + " << bytes.gradients << " + "
                  << bytes.optimizer_state << " bytes");
    CHECK(static_cast<double>(bytes.parameters + bytes.gradients + bytes.optimizer_state) <=
          1.02 * 16 * static_cast<double>(part));
    CHECK(bytes.parameters >= 4 * part);  // it is there at all
  }
}

TEST_CASE("the flat trainer's command line is read whole or refused") {
  const auto wrong = [](std::vector<const char*> arguments, Options* options) {
    arguments.insert(arguments.begin(), "flat_host");
    return parse_options(options, static_cast<int>(arguments.size()), arguments.data());
  };
  Options options;
  REQUIRE(wrong({"--ranks", "3",     "--strategy", "zero1",  "--debug",    "--steps", "7",
                 "--batch", "6",     "--layers",   "1",      "--channels", "8",       "--heads",
                 "2",       "--seq", "5",          "--seed", "9",          "--lr",    "0.5",
                 "--text",  "file",  "--plain",    "--quiet"},
                &options) == nullptr);
  CHECK(options.ranks == 3);
  CHECK(options.strategy == std::string_view("zero1"));
  CHECK(options.debug);
  CHECK(options.steps == 7);
  CHECK(options.batch == 6);
  CHECK(options.config.layers == 1);
  CHECK(options.config.channels == 8);
  CHECK(options.config.heads == 2);
  CHECK(options.config.sequence == 5);
  CHECK(options.seed == 9);
  CHECK(options.learning_rate == 0.5);
  CHECK(options.text == std::string_view("file"));
  CHECK(options.plain);
  CHECK(options.quiet);

  for (const std::vector<const char*>& bad : {std::vector{"--rank", "2"},
                                              {"--steps"},
                                              {"--steps", "-1"},
                                              {"--steps", "2x"},
                                              {"--steps", "99999999999999999999"},
                                              {"--steps", "0"},
                                              {"--ranks", "5"},
                                              {"--heads", "3"},
                                              {"--layers", "0"},
                                              {"--lr", "0"},
                                              {"--lr", "nan"},
                                              {"--strategy"},
                                              {"3"}}) {
    INFO(bad.front());
    options = {};
    CHECK(wrong(bad, &options) != nullptr);
  }
}
