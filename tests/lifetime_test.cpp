#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_exception.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <cstddef>
#include <memory>
#include <shardwise/shardwise.hpp>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include "support/device.hpp"
#include "support/ranks.hpp"

// What happens to a context when objects go, are replaced, or host code throws midway.

using namespace shardwise;
using namespace shardwise::test;
using Catch::Matchers::ContainsSubstring;
using Catch::Matchers::MessageMatches;

namespace {

std::vector<TensorSpec> tensor(std::string name, std::size_t count) {
  return {{std::move(name), {count}}};
}

/// Memory for slots of which there is not always enough.
struct Limited final : SlotMemory {
  std::size_t left = std::size_t{1} << 20;

  [[nodiscard]] void* allocate(std::size_t bytes) override {
    if (bytes > left) throw UsageError("nothing is left");
    return Device::allocate(bytes);
  }
  void deallocate(void* memory, std::size_t bytes) noexcept override {
    Device::deallocate(memory, bytes);
  }
};

}  // namespace

TEST_CASE("a parameter that is destroyed while it is held gives its slot back") {
  const auto alone = communicator_of_one();
  Communicator& comm = *alone;
  Strategy strategy = Strategy::zero3();
  strategy.prefetch = 0;
  Context<Device> context(comm, strategy, {.overlap_from = 0});
  auto a = std::make_unique<Parameter<float>>(context, tensor("a", 64));
  Parameter<float> b(context, tensor("b", 64));
  a->ensure_gathered();
  a.reset();
  auto weights = b.gather();
  CHECK(weights[0].size() == 64);
}

TEST_CASE("a slot that could not grow is not taken for one that holds something") {
  const auto alone = communicator_of_one();
  Limited memory;
  Strategy strategy = Strategy::zero3();
  strategy.prefetch = 0;
  Context<Device> context(*alone, strategy, {.slot_memory = &memory});
  Parameter<float> a(context, tensor("a", 64));
  Parameter<float> b(context, tensor("b", 64));
  a.initialize([](const auto&, std::size_t) { return 1.0f; });
  b.initialize([](const auto&, std::size_t) { return 2.0f; });
  static_cast<void>(a.gather());
  static_cast<void>(b.gather());
  memory.left = 0;
  Parameter<float> late(context, tensor("late", 5000));
  for (int attempt = 0; attempt < 2; ++attempt) {
    CHECK_THROWS_WITH(a.gather(), "nothing is left");
  }
  memory.left = std::size_t{1} << 20;
  CHECK(all_are(context, a.gather()[0], 1));
  CHECK(all_are(context, b.gather()[0], 2));
}

TEST_CASE("full_parameters() needs no more of a memory for slots than the plan says") {
  const auto alone = communicator_of_one();
  Limited memory;
  Context<Device> context(*alone, Strategy::zero3(), {.slot_memory = &memory});
  std::vector<Parameter<float>> parameters;
  for (const char* const name : {"a", "b", "c", "d"}) {
    parameters.emplace_back(context, tensor(name, 640));
    parameters.back().initialize([](const auto&, std::size_t) { return 3.0f; });
  }
  context.prepare();
  memory.left = 0;
  const auto everything = full_parameters(context);
  for (auto& parameter : parameters) CHECK(all_are(context, parameter.gather()[0], 3));
}

TEST_CASE("gradients that are destroyed while their bucket waits, or open, leave no trace") {
  const auto alone = communicator_of_one();
  Communicator& comm = *alone;
  Strategy strategy = Strategy::zero3();
  strategy.bucket_bytes = 1 << 20;
  strategy.overlap = false;
  Context<Device> context(comm, strategy, {.overlap_from = 0});
  Parameter<float> a(context, tensor("a", 64));
  Parameter<float> b(context, tensor("b", 64));
  Parameter<float> d(context, tensor("d", 1 << 19));
  auto gradient_a = std::make_unique<Gradient<float>>(a);
  auto gradient_b = std::make_unique<Gradient<float>>(b);
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
  const auto alone = communicator_of_one();
  Communicator& comm = *alone;
  Strategy strategy = Strategy::zero3();
  strategy.bucket_bytes = std::size_t{4} * 320;
  Context<Device> context(comm, strategy, {.overlap_from = 0});
  Parameter<float> a(context, tensor("a", 192));
  Parameter<float> b(context, tensor("b", 224));
  Parameter<float> d(context, tensor("d", 128));
  ShardedGradient gradient_a(a);
  ShardedGradient gradient_d(d);
  ShardedGradient gradient_b(b);
  { const State<AdamW> replaced(a); }
  const State<Lion> state(a);
  context.prepare();
  CHECK(context.plan().bytes == context.held());
}

TEST_CASE("a load that throws midway leaves no stale copy to gather") {
  const auto alone = communicator_of_one();
  Communicator& comm = *alone;
  for (const Strategy& strategy : {Strategy::ddp(), Strategy::zero1(), Strategy::zero3()}) {
    Context<Device> context(comm, strategy, {.overlap_from = 0});
    Parameter<float> a(context, tensor("a", 4));
    a.initialize([](const auto&, std::size_t) { return 1.0f; });
    { const auto weights = a.gather(); }
    CHECK_THROWS_AS(a.load([](const auto&, std::size_t, std::span<float> elements) {
      elements[0] = 7;
      throw std::runtime_error("the file ends here");
    }),
                    std::runtime_error);
    const auto weights = a.gather();
    CHECK(at(context, weights[0], 0) == at(context, a.shard(), 0));
  }
}

TEST_CASE("a weighted reduction over one rank changes no bit") {
  const auto alone = communicator_of_one();
  Communicator& comm = *alone;
  Context<Device> context(comm, Strategy::zero3());
  Parameter<float> a(context, tensor("a", 512));
  ShardedGradient gradient(a);
  const auto value = [](std::size_t i) { return 1.0f + static_cast<float>(i) / 997; };
  auto lease = gradient.lease();
  fill(context, lease[0], value);
  std::move(lease).reduce(context.weigh(37));
  std::size_t different = 0;
  const auto shard = to_host(context, gradient.shard());
  for (std::size_t i = 0; i < 512; ++i) different += shard[i] == value(i) ? 0u : 1u;
  CHECK(different == 0);
}

TEST_CASE("leases that are open together are reduced with one weight") {
  const auto alone = communicator_of_one();
  Communicator& comm = *alone;
  Context<Device> context(comm, Strategy::zero3());
  Parameter<float> a(context, tensor("a", 8), {.tied = true});
  ShardedGradient gradient(a);
  auto first = gradient.lease();
  auto second = gradient.lease();
  std::move(first).reduce(context.weigh(2));
  CHECK_THROWS_WITH(std::move(second).reduce(), ContainsSubstring("'a'"));
  std::move(second).reduce(context.weigh(2));  // the refused one is open still
  CHECK(at(context, gradient.shard(), 0) == 0);
}

TEST_CASE("thousands of small parameters in one bucket") {
  for (const bool overlap : {false, true}) {
    const auto results = on_ranks(2, [&](Communicator& comm) {
      Strategy strategy = Strategy::zero3();
      strategy.bucket_bytes = std::size_t{1} << 30;
      strategy.overlap = overlap;
      Context<Device> context(comm, strategy,
                              {.open_parameters = 3, .open_gradients = 3, .overlap_from = 0});
      std::vector<Parameter<float>> parameters;
      std::vector<Gradient<float>> gradients;
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
        Device::copy(context.stream(), &lease[0][3], &weights[0][3], sizeof(float));
        std::move(lease).reduce();
      }
      for (auto& gradient : gradients) {
        for (const float value : to_host(context, gradient.shard())) sum += value;
      }
      return static_cast<int>(sum) + (context.plan().bytes == context.held() ? 0 : 100000);
    });
    CHECK(results[0] + results[1] == 2000);
  }
}

TEST_CASE("an error that all ranks throw does not end the communicator, overlap or not") {
  for (const bool overlap : {false, true}) {
    const auto gathered = on_ranks(3, [&](Communicator& comm) {
      Strategy strategy = Strategy::zero3();
      strategy.overlap = overlap;
      for (int attempt = 0; attempt < 5; ++attempt) {
        try {
          Context<Device> context(comm, strategy, {.overlap_from = 0});
          Parameter<float> a(context, tensor("a", 1 << 16));
          a.initialize([](const auto&, std::size_t) { return 1.0f; });
          a.prefetch();
          (void)a.tensor("missing");
        } catch (const UsageError&) {
        }
      }
      Context<Device> context(comm, strategy, {.overlap_from = 0});
      Parameter<float> a(context, tensor("a", 4));
      return a.gather()[0].size();
    });
    for (const std::size_t size : gathered) CHECK(size == 4);
  }
}

TEST_CASE("what does not belong together is refused") {
  const auto alone = communicator_of_one();
  Communicator& comm = *alone;
  CHECK_THROWS_WITH(Context<Device>(comm, Strategy::zero3(), {.open_gradients = 0}),
                    ContainsSubstring("at least 1"));
  Context<Device> one(comm, Strategy::zero3());
  Context<Device> two(comm, Strategy::zero3());
  Parameter<float> a(one, tensor("a", 4));
  Parameter<float> b(two, tensor("b", 4));
  ShardedGradient gradient(b);
  CHECK_THROWS_WITH(gather(a, b), ContainsSubstring("different contexts"));
  CHECK_THROWS_WITH(gradient_norm(one, gradient), ContainsSubstring("another context"));
  std::vector<float> range(3);
  CHECK_THROWS_WITH(a.for_each_tensor(std::span(range), [](const auto&, std::size_t, auto) {}),
                    ContainsSubstring("expected the 32"));
}

TEST_CASE("context options that differ between ranks are a mismatch by the parameter's name") {
  need_devices(2);
  const auto says_what_differs = ContainsSubstring(
      "differ in ContextOptions::open_parameters, open_gradients or debug.\nAll ranks must");
  CHECK_THROWS_MATCHES(run_on_ranks(
                           2,
                           [](Communicator& comm) {
                             const auto open = static_cast<std::size_t>(comm.rank() + 1);
                             Context<Device> context(comm, Strategy::zero3(),
                                                     {.open_parameters = open});
                             const Parameter<float> a(context, tensor("a", 4));
                           },
                           checked()),
                       CollectiveMismatch, MessageMatches(says_what_differs));
}
