#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <cstddef>
#include <memory>
#include <shardwise/comm/self.hpp>
#include <shardwise/shardwise.hpp>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include "support/ranks.hpp"

// What happens to a context when objects go, are replaced, or host code throws midway.

using namespace shardwise;
using Catch::Matchers::ContainsSubstring;

namespace {

std::vector<TensorSpec> tensor(std::string name, std::size_t count) {
  return {{std::move(name), {count}}};
}

}  // namespace

TEST_CASE("a parameter that is destroyed while it is held gives its slot back") {
  SelfCommunicator comm;
  Strategy strategy = Strategy::zero3();
  strategy.prefetch = 0;
  Context context(comm, strategy);
  auto a = std::make_unique<ShardedParameter<float>>(context, tensor("a", 64));
  ShardedParameter<float> b(context, tensor("b", 64));
  a->ensure_gathered();
  a.reset();
  auto weights = b.gather();
  CHECK(weights[0].size() == 64);
}

TEST_CASE("gradients that are destroyed while their bucket waits, or open, leave no trace") {
  SelfCommunicator comm;
  Strategy strategy = Strategy::zero3();
  strategy.bucket_bytes = 1 << 20;
  strategy.overlap = false;
  Context context(comm, strategy);
  ShardedParameter<float> a(context, tensor("a", 64));
  ShardedParameter<float> b(context, tensor("b", 64));
  ShardedParameter<float> d(context, tensor("d", 1 << 19));
  auto gradient_a = std::make_unique<ShardedGradient<float>>(a);
  auto gradient_b = std::make_unique<ShardedGradient<float>>(b);
  ShardedGradient gradient_d(d);
  gradient_a->lease().reduce();
  gradient_b->ensure_open();
  gradient_a.reset();
  gradient_b.reset();
  auto lease = gradient_d.lease();
  CHECK(lease[0].size() == std::size_t{1} << 19);
  lease.discard();
}

TEST_CASE(
    "planned equals held whatever order gradients are made in, and after a state is replaced") {
  SelfCommunicator comm;
  Strategy strategy = Strategy::zero3();
  strategy.bucket_bytes = std::size_t{4} * 320;
  Context context(comm, strategy);
  ShardedParameter<float> a(context, tensor("a", 192));
  ShardedParameter<float> b(context, tensor("b", 224));
  ShardedParameter<float> d(context, tensor("d", 128));
  ShardedGradient gradient_a(a);
  ShardedGradient gradient_d(d);
  ShardedGradient gradient_b(b);
  { const ShardedOptimizerState<AdamW> replaced(a); }
  const ShardedOptimizerState<Lion> state(a);
  context.prepare();
  CHECK(context.plan().bytes == context.held());
}

TEST_CASE("a load that throws midway leaves no stale copy to gather") {
  SelfCommunicator comm;
  for (const Strategy& strategy : {Strategy::ddp(), Strategy::zero1(), Strategy::zero3()}) {
    Context context(comm, strategy);
    ShardedParameter<float> a(context, tensor("a", 4));
    a.initialize([](const auto&, std::size_t) { return 1.0f; });
    { const auto weights = a.gather(); }
    CHECK_THROWS_AS(a.load([](const auto&, std::size_t, std::span<float> elements) {
      elements[0] = 7;
      throw std::runtime_error("the file ends here");
    }),
                    std::runtime_error);
    const auto weights = a.gather();
    CHECK(weights[0][0] == a.shard()[0]);
  }
}

TEST_CASE("a weighted reduction over one rank changes no bit") {
  SelfCommunicator comm;
  Context context(comm, Strategy::zero3());
  ShardedParameter<float> a(context, tensor("a", 512));
  ShardedGradient gradient(a);
  const auto value = [](std::size_t i) { return 1.0f + static_cast<float>(i) / 997; };
  auto lease = gradient.lease();
  for (std::size_t i = 0; i < 512; ++i) lease[0][i] = value(i);
  std::move(lease).reduce(context.weigh(37));
  std::size_t different = 0;
  const auto shard = gradient.shard();
  for (std::size_t i = 0; i < 512; ++i) different += shard[i] == value(i) ? 0u : 1u;
  CHECK(different == 0);
}

TEST_CASE("leases that are open together are reduced with one weight") {
  SelfCommunicator comm;
  Context context(comm, Strategy::zero3());
  ShardedParameter<float> a(context, tensor("a", 8), {.tied = true});
  ShardedGradient gradient(a);
  auto first = gradient.lease();
  auto second = gradient.lease();
  std::move(first).reduce(context.weigh(2));
  CHECK_THROWS_WITH(std::move(second).reduce(), ContainsSubstring("'a'"));
  std::move(second).reduce(context.weigh(2));  // the refused one is open still
  CHECK(gradient.shard()[0] == 0);
}

TEST_CASE("thousands of small parameters in one bucket") {
  for (const bool overlap : {false, true}) {
    const auto results = test::on_ranks(2, [&](Communicator& comm) {
      Strategy strategy = Strategy::zero3();
      strategy.bucket_bytes = std::size_t{1} << 30;
      strategy.overlap = overlap;
      Context context(comm, strategy, {.open_parameters = 3, .open_gradients = 3});
      std::vector<ShardedParameter<float>> parameters;
      std::vector<ShardedGradient<float>> gradients;
      for (int i = 0; i < 2000; ++i) {
        parameters.emplace_back(context, tensor("p" + std::to_string(i), 4));
        gradients.emplace_back(parameters.back());
      }
      float sum = 0;
      for (std::size_t i = 0; i < parameters.size(); ++i) {
        parameters[i].initialize([](const auto&, std::size_t) { return 1.0f; });
      }
      for (std::size_t i = 0; i < parameters.size(); ++i) {
        const auto weights = parameters[i].gather();
        auto lease = gradients[i].lease();
        lease[0][3] = weights[0][3];
        std::move(lease).reduce();
      }
      for (auto& gradient : gradients) {
        for (const float value : gradient.shard()) sum += value;
      }
      return static_cast<int>(sum) + (context.plan().bytes == context.held() ? 0 : 100000);
    });
    CHECK(results[0] + results[1] == 2000);
  }
}

TEST_CASE("an error that all ranks throw does not end the communicator, overlap or not") {
  for (const bool overlap : {false, true}) {
    const auto gathered = test::on_ranks(3, [&](Communicator& comm) {
      Strategy strategy = Strategy::zero3();
      strategy.overlap = overlap;
      for (int attempt = 0; attempt < 5; ++attempt) {
        try {
          Context context(comm, strategy);
          ShardedParameter<float> a(context, tensor("a", 1 << 16));
          a.initialize([](const auto&, std::size_t) { return 1.0f; });
          a.prefetch();
          (void)a.tensor("missing");
        } catch (const UsageError&) {
        }
      }
      Context context(comm, strategy);
      ShardedParameter<float> a(context, tensor("a", 4));
      return a.gather()[0].size();
    });
    for (const std::size_t size : gathered) CHECK(size == 4);
  }
}

TEST_CASE("what does not belong together is refused") {
  SelfCommunicator comm;
  CHECK_THROWS_WITH(Context<>(comm, Strategy::zero3(), {.open_gradients = 0}),
                    ContainsSubstring("at least 1"));
  Context one(comm, Strategy::zero3());
  Context two(comm, Strategy::zero3());
  ShardedParameter<float> a(one, tensor("a", 4));
  ShardedParameter<float> b(two, tensor("b", 4));
  ShardedGradient gradient(b);
  CHECK_THROWS_WITH(gather(a, b), ContainsSubstring("different contexts"));
  CHECK_THROWS_WITH(gradient_norm(one, gradient), ContainsSubstring("another context"));
  std::vector<float> range(3);
  CHECK_THROWS_WITH(a.for_each_tensor(std::span(range), [](const auto&, std::size_t, auto) {}),
                    ContainsSubstring("expected the 32"));
}

TEST_CASE("context options that differ between ranks are a mismatch by the parameter's name") {
  CHECK_THROWS_AS(run_ranks(2,
                            [](Communicator& comm) {
                              const auto open = static_cast<std::size_t>(comm.rank() + 1);
                              Context context(comm, Strategy::zero3(), {.open_parameters = open});
                              const ShardedParameter<float> a(context, tensor("a", 4));
                            }),
                  CollectiveMismatch);
}
