#include <dlib/dnn/core.h>
#include <dlib/dnn/input.h>
#include <dlib/dnn/layers.h>
#include <dlib/dnn/loss.h>
#include <malloc.h>

#include <algorithm>
#include <atomic>
#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <new>
#include <shardwise/comm/self.hpp>
#include <shardwise/plan/planner.hpp>
#include <sstream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <tuple>
#include <utility>
#include <vector>

#include "../../examples/callback_host/adam.hpp"
#include "../../examples/callback_host/digits.hpp"
#include "../../examples/callback_host/sharded_layer.hpp"
#include "../../examples/callback_host/train.hpp"
#include "support/ranks.hpp"

using namespace callback_host;
using Catch::Matchers::ContainsSubstring;
using shardwise::test::on_ranks;

namespace {

// What dlib's tensors hold on the heap: it is dlib that allocates arrays.
std::atomic<std::int64_t> array_bytes{0};

}  // namespace

// Not inlined: a compiler that sees one of the two without the other suspects a mismatch.
[[gnu::noinline]] void* operator new[](std::size_t bytes) {
  void* const memory = std::malloc(bytes == 0 ? 1 : bytes);
  if (memory == nullptr) throw std::bad_alloc();
  array_bytes += static_cast<std::int64_t>(malloc_usable_size(memory));
  return memory;
}
[[gnu::noinline]] void operator delete[](void* memory) noexcept {
  array_bytes -= static_cast<std::int64_t>(malloc_usable_size(memory));
  std::free(memory);
}
void operator delete[](void* memory, std::size_t) noexcept { operator delete[](memory); }

namespace {

using Image = dlib::matrix<float>;
using Input = dlib::input<Image>;
using Solver = ShardedSolver<shardwise::Adam>;

double largest_difference(const Report& a, const Report& b) {
  REQUIRE(a.parameters.size() == b.parameters.size());
  double largest = 0;
  for (std::size_t i = 0; i < a.parameters.size(); ++i) {
    largest = std::max(largest, std::abs(static_cast<double>(a.parameters[i]) -
                                         static_cast<double>(b.parameters[i])));
  }
  return largest;
}

double largest_relative(const std::vector<double>& a, const std::vector<double>& b) {
  REQUIRE(a.size() == b.size());
  double largest = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    largest = std::max(largest, std::abs(a[i] - b[i]) / b[i]);
  }
  return largest;
}

bool same(const Report& a, const Report& b) {
  return a.loss == b.loss && a.parameters == b.parameters && a.accuracy == b.accuracy;
}

std::vector<Report> train_sharded(std::size_t ranks, Options options = {}) {
  options.ranks = ranks;
  return sharded::train(options);
}

// A net of two layers that maps images to numbers, to break in parts; LAYER is the upper one.
template <class LAYER>
using Small = dlib::loss_mean_squared<dlib::add_layer<LAYER, dlib::relu<sharded_fc<6, Input>>>>;
using PlainSmall = dlib::loss_mean_squared<dlib::fc<1, dlib::relu<dlib::fc<6, Input>>>>;
using Upper = Sharded<dlib::fc_<1, dlib::FC_HAS_BIAS>>;

struct Batch {
  explicit Batch(int rank = 0) {
    for (std::size_t i = 0; i < 4; ++i) {
      Image image(3, 3);
      for (long k = 0; k < image.size(); ++k) {
        image(k / 3, k % 3) =
            std::sin(static_cast<float>(1 + k * (rank + 2)) * static_cast<float>(i + 1));
      }
      images.push_back(image);
      labels.push_back(std::cos(static_cast<float>(i + 1)));
    }
  }
  std::vector<Image> images;
  std::vector<float> labels;
};

template <class NET, class SOLVER>
double train_step(NET& net, std::vector<SOLVER>& solvers, Batch& batch) {
  const double loss = net.compute_parameter_gradients(batch.images.begin(), batch.images.end(),
                                                      batch.labels.begin());
  net.update_parameters(solvers, 1e-2);
  return loss;
}

template <class NET>
std::string saved(NET& net) {
  net.clean();
  std::ostringstream out;
  serialize(net, out);
  return out.str();
}

// dlib's own solvers would move a stand-in of one element: they must not compile.
template <class LAYER>
concept ShowsParameters = requires(const LAYER& layer) {
  layer.get_layer_params();
};
static_assert(ShowsParameters<dlib::fc_<1, dlib::FC_HAS_BIAS>> && !ShowsParameters<Upper>);

}  // namespace

TEST_CASE("each rank holds what the plan of the net says, with every strategy") {
  // Weights and biases: a convolution of 12 filters of 5 x 5, then three full layers.
  const std::size_t layers[][2] = {
      {12 * 25, 12}, {12 * 10 * 10 * 128, 128}, {128 * 64, 64}, {64 * digits::classes, 10}};
  std::vector<shardwise::PlannedParameter> net;
  for (const auto& [weights, biases] : layers) {
    auto& layer = net.emplace_back();
    layer.tensors = {{"weights", {weights}}, {"biases", {biases}}};
    layer.state = {shardwise::DType::f32, shardwise::DType::f32};
    layer.options.residency = layer.gradient_residency = shardwise::Residency::host_buffer;
  }
  for (const std::string_view name : shardwise::planned_strategies) {
    for (const std::size_t ranks : {1u, 2u, 3u, 4u}) {
      Options options;
      options.strategy = name;
      options.steps = 1;
      shardwise::PlanOptions where;
      where.world = static_cast<int>(ranks);
      const auto plan = plan_memory(net, shardwise::Strategy::parse(name), where);
      INFO(name << " ranks " << ranks);
      for (const Report& report : train_sharded(ranks, options)) {
        CHECK(report.bytes.held == plan.bytes);
        CHECK(report.bytes.planned == plan.bytes);
      }
    }
  }
}

TEST_CASE("ranks train as dlib alone does") {
  const Report alone = plain::train({});
  CHECK(alone.loss.size() == Options().steps);
  CHECK(alone.loss.back() < 0.2 * alone.loss.front());
  CHECK(alone.accuracy > 0.9);
  for (const std::size_t ranks : {1u, 2u, 3u, 4u}) {
    const std::vector<Report> reports = train_sharded(ranks);
    INFO(ranks << " ranks");
    for (const Report& report : reports) CHECK(same(report, reports[0]));
    if (ranks == 1) {
      CHECK(same(reports[0], alone));
      continue;
    }
    // Sums over another partition of the batch. Measured: 1.2e-6 and 1.3e-5.
    CHECK(largest_relative(reports[0].loss, alone.loss) < 1.2e-5);
    CHECK(largest_difference(reports[0], alone) < 1.3e-4);
    CHECK(std::abs(reports[0].accuracy - alone.accuracy) < 0.005);
  }
}

TEST_CASE("all strategies give the same bits, twice in a row and in debug mode") {
  Options options;
  options.steps = 5;
  for (const std::size_t ranks : {1u, 3u}) {
    const Report expected = train_sharded(ranks, options)[0];
    for (const char* strategy : {"ddp", "zero1", "zero2", "zero3", "zero3-no-reshard"}) {
      INFO(strategy << " on " << ranks << " ranks");
      options.strategy = strategy;
      CHECK(same(train_sharded(ranks, options)[0], expected));
    }
    options.strategy = "zero3";
    options.debug = true;
    CHECK(same(train_sharded(ranks, options)[0], expected));
    options.debug = false;
  }
}

TEST_CASE("the first parameters are those that dlib draws alone, on every rank") {
  Options options;
  options.steps = 0;  // the first forward is that of the unseen digits
  const Report alone = plain::train(options);
  CHECK(std::count(alone.parameters.begin(), alone.parameters.end(), 0.0f) == 12 + 128 + 64 + 10);
  for (const std::size_t ranks : {1u, 2u, 3u, 4u}) {
    for (const Report& report : train_sharded(ranks, options)) {
      CHECK(report.parameters == alone.parameters);
    }
  }
  options.seed = 2;
  CHECK(train_sharded(2, options)[1].parameters != alone.parameters);
}

TEST_CASE("between steps a rank holds its shards, and dlib's layers nothing") {
  using Wide = dlib::loss_multiclass_log<
      sharded_fc<256, dlib::relu<sharded_fc<300, dlib::relu<sharded_fc<400, Input>>>>>>;
  constexpr std::size_t counts[] = {257 * 400, 401 * 300, 301 * 256};
  struct Held {
    std::size_t elements = 0;  // in the layers' tensors, after each step
    std::size_t largest = 0;   // while a layer computed
    std::int64_t arrays = 0;
    shardwise::Bytes bytes, plan;
  };
  for (const int ranks : {1, 2, 3, 4}) {
    const auto results = on_ranks(ranks, [&](shardwise::Communicator& comm) {
      shardwise::Context<> context(comm);
      std::vector<Image> images(4, Image(16, 16));
      for (Image& image : images) image = static_cast<float>(comm.rank() + 1) / 8;
      const std::vector<unsigned long> labels{1, 20, 120, 255};
      Held held;
      context.barrier();
      const std::int64_t before = array_bytes;
      context.barrier();
      Wide net;
      shard(net, context);
      std::vector<ShardedSolver<shardwise::AdamW>> solvers(Wide::num_computational_layers);
      for (int step = 0; step < 3; ++step) {
        net.compute_parameter_gradients(images.begin(), images.end(), labels.begin());
        net.update_parameters(solvers, 1e-3);
        visit_sharded(net, [&](auto& layer) { held.elements += layer.held(); });
      }
      visit_gathered(net, [&](const dlib::tensor& parameters) {
        held.largest = std::max(held.largest, parameters.size());
      });
      net.clean();
      context.barrier();
      held.arrays = array_bytes - before;
      held.bytes = context.held();
      held.plan = context.plan().bytes;
      context.barrier();
      return held;
    });
    double allowed = 0;
    for (const std::size_t count : counts) {
      const auto world = static_cast<std::size_t>(ranks);
      const std::size_t part = (count + world - 1) / world;
      REQUIRE(part * sizeof(float) >= 65536);
      allowed += 1.02 * 16 * static_cast<double>(part);
    }
    for (const Held& held : results) {
      INFO(ranks << " ranks: " << held.bytes.parameters << " + " << held.bytes.gradients << " + "
                 << held.bytes.optimizer_state << " + " << held.bytes.slots);
      CHECK(held.elements == 0);
      CHECK(held.largest == 401 * 300);
      CHECK(held.arrays < 4096);  // of all ranks
      CHECK(static_cast<double>(held.bytes.total()) <= allowed);
      CHECK(held.bytes == held.plan);
    }
  }
}

namespace {

// Trains both for five steps by train(net, solvers), after prepare(net); the parameters of each.
template <class Prepare, class Train>
std::pair<std::vector<float>, std::vector<float>> train_both(Prepare&& prepare, Train&& train) {
  const auto add_to = [](std::vector<float>& all) {
    return [&](const dlib::tensor& one) { all.insert(all.end(), one.begin(), one.end()); };
  };
  std::pair<std::vector<float>, std::vector<float>> result;
  std::srand(5);
  PlainSmall alone;
  prepare(alone);
  std::vector<Adam> adams(PlainSmall::num_computational_layers, Adam(0.1));
  for (int step = 0; step < 5; ++step) train(alone, adams);
  dlib::visit_layer_parameters(alone, add_to(result.first));

  std::srand(5);
  shardwise::SelfCommunicator comm;
  shardwise::Context<> context(comm);
  Small<Upper> net;
  prepare(net);
  shard(net, context);
  std::vector<Solver> solvers(PlainSmall::num_computational_layers, Solver({.weight_decay = 0.1}));
  for (int step = 0; step < 5; ++step) train(net, solvers);
  visit_gathered(net, add_to(result.second));
  return result;
}

}  // namespace

TEST_CASE("multipliers of layers and biases count, and a frozen layer stays") {
  for (const double rate_below : {1.0, 0.5, 0.0}) {
    Batch batch;
    const auto [alone, found] = train_both(
        [&](auto& net) {
          dlib::layer<1>(net).layer_details().set_bias_learning_rate_multiplier(3);
          dlib::layer<1>(net).layer_details().set_bias_weight_decay_multiplier(2);
          dlib::layer<3>(net).layer_details().set_weight_decay_multiplier(7);
          dlib::layer<3>(net).layer_details().set_learning_rate_multiplier(rate_below);
        },
        [&](auto& net, auto& solvers) {
          train_step(net, solvers, batch);
          if constexpr (requires { dlib::layer<3>(net).layer_details().shard(); }) {
            CHECK(dlib::layer<3>(net).layer_details().shard().learns() == (rate_below != 0));
          }
        });
    INFO("rate of the lower layer times " << rate_below);
    CHECK(found == alone);
  }
}

TEST_CASE("a layer may have no biases") {
  Batch batch;
  const auto [alone, found] =
      train_both([](auto& net) { dlib::layer<3>(net).layer_details().disable_bias(); },
                 [&](auto& net, auto& solvers) {
                   train_step(net, solvers, batch);
                   auto& layer = dlib::layer<3>(net).layer_details();
                   CHECK(bias_count(layer) == 0);
                   if constexpr (requires { layer.shard(); }) {
                     CHECK(layer.shard().parameter().layout().tensors().size() == 1);
                   }
                 });
  CHECK(found.size() == 7 + 9 * 6);
  CHECK(found == alone);
}

TEST_CASE("of two backward passes without an update the last one counts") {
  Batch batch, other(1);
  const auto [alone, found] =
      train_both([](auto&) {},
                 [&](auto& net, auto& solvers) {
                   net.compute_parameter_gradients(other.images.begin(), other.images.end(),
                                                   other.labels.begin());
                   train_step(net, solvers, batch);
                 });
  CHECK(found == alone);
}

TEST_CASE("files pass between nets of sharded layers and of dlib's own") {
  for (const int ranks : {1, 4}) {  // most of four hold nothing of the upper layer
    const auto files = on_ranks(ranks, [&](shardwise::Communicator& comm) {
      shardwise::Context<> context(comm);
      Small<Upper> empty;
      shard(empty, context);
      std::istringstream nothing(saved(empty));  // before the first forward
      Small<Upper> net;
      shard(net, context);
      deserialize(net, nothing);
      std::vector<Solver> solvers(PlainSmall::num_computational_layers);
      Batch batch(comm.rank());
      for (int step = 0; step < 3; ++step) train_step(net, solvers, batch);
      const std::vector<float> outputs = net(Batch().images);
      return std::pair(saved(net), outputs);
    });
    const auto& [file, outputs] = files[0];
    PlainSmall alone;
    std::istringstream in(file);
    deserialize(alone, in);
    CHECK(alone(Batch().images) == outputs);
    for (const auto& other : files) CHECK(other == files[0]);

    const std::string of_alone = saved(alone);
    const auto read = on_ranks(ranks, [&](shardwise::Communicator& comm) {
      shardwise::Context<> context(comm);
      Small<Upper> net;
      shard(net, context);
      std::istringstream stream(of_alone);
      deserialize(net, stream);
      const std::size_t held = dlib::layer<1>(net).layer_details().held();
      const std::vector<float> before = net(Batch().images);
      std::vector<Solver> solvers(PlainSmall::num_computational_layers);
      Batch batch(comm.rank());
      train_step(net, solvers, batch);
      return std::tuple(held, before, net(Batch().images));
    });
    for (const auto& [held, before, after] : read) {
      CHECK(held == 0);
      CHECK(before == outputs);
      CHECK(after != before);
    }
  }
}

namespace {

// Goes wrong on rank 1 in the second step.
struct Failing : Upper {
  template <class SUBNET>
  void forward(const SUBNET& sub, dlib::resizable_tensor& output) {
    Upper::forward(sub, output);
    if (++calls == 2 && shard().context().rank() == 1) {
      throw std::runtime_error("layer '" + shard().name() + "' has run out of ink");
    }
  }
  int calls = 0;
};

// Forgets to gather, on `rank` or (-1) on all.
template <int rank>
struct ForgetsForward : Upper {
  template <class SUBNET>
  void forward(const SUBNET& sub, dlib::resizable_tensor& output) {
    if (rank < 0 || shard().context().rank() == rank) return compute_forward(sub, output);
    Upper::forward(sub, output);
  }
};
template <int rank>
struct ForgetsBackward : Upper {
  template <class SUBNET>
  void backward(const dlib::tensor& gradient_input, SUBNET& sub, dlib::tensor& params_grad) {
    if (rank >= 0 && shard().context().rank() != rank) {
      return Upper::backward(gradient_input, sub, params_grad);
    }
    dlib::resizable_tensor gradient(7);
    compute_backward(gradient_input, sub, gradient);
  }
};

struct Outcome {
  std::string message;
  int failed_peer = -1;
};

// Three steps on 3 ranks; what each rank saw, and what came of run_ranks.
template <class LAYER, class Check>
void train_failing(Check&& check) {
  std::vector<Outcome> outcomes(3);
  std::string thrown;
  try {
    shardwise::run_ranks(3, [&](shardwise::Communicator& comm) {
      Outcome& outcome = outcomes[static_cast<std::size_t>(comm.rank())];
      try {
        shardwise::Context<> context(comm);
        Small<LAYER> net;
        shard(net, context);
        std::vector<Solver> solvers(PlainSmall::num_computational_layers);
        Batch batch(comm.rank());
        for (int step = 0; step < 3; ++step) train_step(net, solvers, batch);
      } catch (const shardwise::PeerFailed& error) {
        outcome = {error.what(), error.rank()};
        throw;
      } catch (const std::exception& error) {
        outcome = {error.what(), -1};
        throw;
      }
    });
  } catch (const std::exception& error) {
    thrown = error.what();
  }
  check(outcomes, thrown);
}

// Rank 1 has an error of its own with this text; the others are told of it.
template <class LAYER>
void check_rank_1_fails(const std::string& text) {
  train_failing<LAYER>([&](const std::vector<Outcome>& outcomes, const std::string& thrown) {
    CHECK_THAT(thrown, ContainsSubstring(text));
    CHECK(thrown == outcomes[1].message);
    for (const std::size_t peer : {0u, 2u}) {
      CHECK(outcomes[peer].failed_peer == 1);
      CHECK_THAT(outcomes[peer].message, ContainsSubstring("rank 1") && ContainsSubstring(text));
    }
  });
}

template <class LAYER>
void check_all_fail(const std::string& text) {
  train_failing<LAYER>([&](const std::vector<Outcome>& outcomes, const std::string& thrown) {
    CHECK_THAT(thrown, ContainsSubstring(text));
    for (const Outcome& outcome : outcomes) CHECK_THAT(outcome.message, ContainsSubstring(text));
  });
}

}  // namespace

TEST_CASE("an exception in the layer of one rank ends all, and they say which") {
  check_rank_1_fails<Failing>("layer 'fc.1' has run out of ink");
}

TEST_CASE("a layer that forgets to gather is named") {
  const std::string text = "layer 'fc.1' computes with 0 of its 7 parameters: gather them first";
  SECTION("in forward, on one rank") { check_rank_1_fails<ForgetsForward<1>>(text); }
  SECTION("in backward, on one rank") { check_rank_1_fails<ForgetsBackward<1>>(text); }
  SECTION("in forward, everywhere") { check_all_fail<ForgetsForward<-1>>(text); }
  SECTION("in backward, everywhere") { check_all_fail<ForgetsBackward<-1>>(text); }
}

TEST_CASE("nets that cannot be trained say so") {
  shardwise::SelfCommunicator comm;
  shardwise::Context<> context(comm);
  Batch batch;
  SECTION("no context") {
    Small<Upper> net;
    CHECK_THROWS_WITH(net(batch.images), ContainsSubstring("call shard(net, context) first"));
  }
  SECTION("two contexts") {
    Small<Upper> net;
    shard(net, context);
    CHECK_THROWS_WITH(shard(net, context), ContainsSubstring("layer 'fc.1' has a context already"));
  }
  SECTION("parameters twice") {
    Small<Upper> net;
    shard(net, context);
    std::istringstream file(saved((net(batch.images), net)));
    CHECK_THROWS_WITH(deserialize(net, file), ContainsSubstring("has parameters already"));
  }
  SECTION("multipliers that come too late") {
    Small<Upper> net;
    shard(net, context);
    std::vector<Solver> solvers(PlainSmall::num_computational_layers);
    train_step(net, solvers, batch);
    dlib::layer<1>(net).layer_details().set_learning_rate_multiplier(0.5);
    CHECK_THROWS_WITH(train_step(net, solvers, batch),
                      ContainsSubstring("layer 'fc.1': its multipliers"));
  }
  SECTION("a layer that nobody sharded") {
    Small<dlib::fc_<1, dlib::FC_HAS_BIAS>> net;
    shard(net, context);
    std::vector<Solver> solvers(PlainSmall::num_computational_layers);
    CHECK_THROWS_WITH(
        train_step(net, solvers, batch),
        ContainsSubstring("not sharded has 7 parameters") && ContainsSubstring("num_outputs=1"));
  }
  SECTION("a solver that has been used") {
    Small<Upper> net;
    shard(net, context);
    std::vector<Solver> solvers(PlainSmall::num_computational_layers);
    train_step(net, solvers, batch);
    CHECK_THROWS_WITH(std::vector<Solver>(solvers), ContainsSubstring("cannot be copied"));
    Small<Upper> other;
    shard(other, context);
    CHECK_THROWS_WITH(train_step(other, solvers, batch), ContainsSubstring("belongs to parameter"));
  }
}

TEST_CASE("digits depend on their number alone") {
  std::vector<float> first(digits::pixels), again(digits::pixels);
  std::vector<std::size_t> counts(digits::classes);
  for (std::uint64_t i = 0; i < 1000; ++i) {
    ++counts[digits::draw(3, i, std::span<float, digits::pixels>(first))];
  }
  for (const std::size_t count : counts) CHECK((count > 70 && count < 130));
  const auto label = digits::draw(3, 999, std::span<float, digits::pixels>(again));
  CHECK(label < digits::classes);
  CHECK(first == again);
}
