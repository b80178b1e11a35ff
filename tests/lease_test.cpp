#include <array>
#include <atomic>
#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_exception.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "support/device.hpp"
#include "support/ranks.hpp"

using namespace shardwise;
using Catch::Matchers::ContainsSubstring;
using Catch::Matchers::MessageMatches;
using namespace shardwise::test;

namespace {

using Messages = std::vector<std::string>;

/// "Type: message" of what f() throws; empty where it throws nothing.
std::string error_of(const std::function<void()>& f) {
  try {
    f();
  } catch (const CollectiveMismatch& error) {
    return std::string("CollectiveMismatch: ") + error.what();
  } catch (const UsageError& error) {
    return std::string("UsageError: ") + error.what();
  } catch (const PeerFailed& error) {
    return std::string("PeerFailed: ") + error.what();
  } catch (const std::exception& error) {
    return std::string("other: ") + error.what();
  }
  return {};
}

/// One instantiation for all tests: this file would take three times as long to compile.
std::vector<Messages> messages_of(int world, const std::function<Messages(Communicator&)>& f) {
  return on_ranks(world, [&](Communicator& communicator) { return f(communicator); });
}

std::vector<Strategy> placements() {
  Strategy persistent = Strategy::zero3();
  persistent.persistence_threshold = 100;
  return {Strategy::ddp(),
          Strategy::zero1(),
          Strategy::zero2(),
          Strategy::zero3(),
          Strategy::zero3_no_reshard(),
          persistent};
}

/// Parameters "p0", "p1", ... of 50 + i elements with gradients and states, initialised to i + 1.
struct Model {
  Context<Device> context;
  std::vector<Parameter<float>> parameters;
  std::vector<Gradient<float>> gradients;
  std::vector<State<Sgd>> states;

  Model(Communicator& communicator, const Strategy& strategy,
        const ContextOptions& options = {.overlap_from = 0}, std::size_t count = 3,
        bool tied = false)
      : context(communicator, strategy, options) {
    parameters.reserve(count);
    for (std::size_t i = 0; i < count; ++i) {
      parameters.emplace_back(context, std::vector<TensorSpec>{{fmt::format("p{}", i), {50 + i}}},
                              ParameterOptions{.tied = tied});
      parameters.back().initialize(
          [&](const auto&, std::size_t) { return static_cast<float>(i + 1); });
    }
    for (auto& parameter : parameters) gradients.emplace_back(parameter);
    for (auto& parameter : parameters) states.emplace_back(parameter, Sgd{.learning_rate = 1});
  }

  /// Whether every element of the gathered parameter is `value`.
  bool is(std::size_t i, float value) {
    const auto lease = parameters[i].gather();
    return all_are(context, lease[0], value);
  }
  /// The gradient is `value` on all ranks.
  void contribute(std::size_t i, float value) {
    auto lease = gradients[i].lease();
    add(lease, value);
    std::move(lease).reduce();
  }
  void add(Contribution<float>& lease, float value) {
    shardwise::test::add(context, lease[0], value);
  }
};

void check_all(const std::vector<Messages>& ranks, std::size_t which,
               const std::vector<std::string>& parts) {
  for (const Messages& messages : ranks) {
    REQUIRE(which < messages.size());
    for (const std::string& part : parts) CHECK_THAT(messages[which], ContainsSubstring(part));
  }
}
void check_none(const std::vector<Messages>& ranks, std::size_t which) {
  for (const Messages& messages : ranks) {
    REQUIRE(which < messages.size());
    CHECK(messages[which] == "");
  }
}

std::string yes(bool value) { return value ? "" : "wrong value"; }

}  // namespace

TEST_CASE("an exhausted slot pool lists the holders on all ranks and the context goes on") {
  for (const int world : worlds) {
    Strategy strategy = Strategy::zero3();
    strategy.prefetch = 0;
    strategy.overlap = false;
    const auto ranks = messages_of(world, [&](Communicator& communicator) {
      Model model(communicator, strategy, {.open_parameters = 2});
      Messages messages;
      {
        const auto first = model.parameters[0].gather();
        const auto third = model.parameters[2].gather();
        messages.push_back(error_of([&] { (void)model.parameters[1].gather(); }));
        // The holder itself may be leased again.
        messages.push_back(error_of([&] { (void)model.parameters[0].gather(); }));
        messages.push_back(yes(at(model.context, first[0], 0) == 1));
        messages.push_back(yes(at(model.context, third[0], 0) == 3));
      }
      messages.push_back(error_of(
          [&] { (void)gather(model.parameters[0], model.parameters[1], model.parameters[2]); }));
      messages.push_back(yes(model.is(1, 2) && model.is(0, 1) && model.is(2, 3)));
      // One gradient slot.
      {
        auto lease = model.gradients[1].lease();
        messages.push_back(error_of([&] { (void)model.gradients[0].lease(); }));
        model.add(lease, 1);
        std::move(lease).reduce();
      }
      model.contribute(0, 2);
      model.states[1].step(model.parameters[1], model.gradients[1]);
      model.states[0].step(model.parameters[0], model.gradients[0]);
      messages.push_back(yes(model.is(1, 1) && model.is(0, -1)));
      return messages;
    });
    check_all(ranks, 0, {"UsageError", "'p1'", "'p0', 'p2'", "all 2", "open_parameters"});
    check_none(ranks, 1);
    check_none(ranks, 2);
    check_none(ranks, 3);
    check_all(ranks, 4, {"UsageError", "'p0'", "this call"});
    check_none(ranks, 5);
    check_all(ranks, 6, {"UsageError", "'p0'", "to 'p1'", "open_gradients"});
    check_none(ranks, 7);
  }
}

TEST_CASE("only who holds a slot is named as its holder") {
  const auto ranks = messages_of(2, [](Communicator& communicator) {
    Strategy strategy = Strategy::zero3();
    strategy.prefetch = 0;
    Context<Device> context(communicator, strategy);
    Parameter<float> replicated(context, {{"replicated", {10}}}, {.strategy = Strategy::ddp()});
    Parameter<float> kept(context, {{"kept", {10}}}, {.strategy = Strategy::zero3_no_reshard()});
    Parameter<float> a(context, {{"a", {10}}});
    Parameter<float> b(context, {{"b", {10}}});
    const auto one = replicated.gather();
    const auto two = kept.gather();
    const auto three = a.gather();
    return Messages{error_of([&] { (void)b.gather(); })};
  });
  check_all(ranks, 0, {"to 'a'."});
}

TEST_CASE("writing a parameter with an open lease is an error on all ranks, in every placement") {
  for (const int world : worlds) {
    for (const Strategy& strategy : placements()) {
      for (const bool plain : {false, true}) {
        INFO(strategy.name() << " world " << world << " plain " << plain);
        const auto ranks = messages_of(world, [&](Communicator& communicator) {
          Model model(communicator, strategy);
          auto& parameter = model.parameters[1];
          std::vector<std::function<void()>> writes = {
              [&] { model.states[1].step(parameter, model.gradients[1]); },
              [&] { parameter.initialize([](const auto&, std::size_t) { return 7.0f; }); },
              [&] {
                parameter.load([](const auto&, std::size_t, std::span<float> elements) {
                  for (float& element : elements) element = 8;
                });
              },
              [&] {
                parameter.broadcast(0, [](const auto&, std::size_t, std::span<float> elements) {
                  for (float& element : elements) element = 9;
                });
              },
              [&] {
                parameter.update([&](std::span<float> elements) {
                  fill(model.context, elements, [](std::size_t) { return 10; });
                });
              }};
          Messages messages;
          Weights<float> lease;
          if (plain) {
            parameter.ensure_gathered();
          } else {
            lease = parameter.gather();
          }
          for (const auto& write : writes) messages.push_back(error_of(write));
          lease.release();
          parameter.release();
          messages.push_back(yes(model.is(1, 2)));
          const float expected[] = {2, 7, 8, 9, 10};
          for (std::size_t i = 0; i < writes.size(); ++i) {
            messages.push_back(error_of(writes[i]));
            if (i < 4) messages.back() += yes(model.is(1, expected[i]));
          }
          // update() wrote padding too where the host was told to; the tensor is what counts.
          messages.push_back(yes(model.is(1, expected[4])));
          return messages;
        });
        const char* names[] = {"step", "initialize", "load", "broadcast", "update"};
        for (std::size_t i = 0; i < 5; ++i) check_all(ranks, i, {"UsageError", names[i], "'p1'"});
        for (std::size_t i = 5; i < 12; ++i) check_none(ranks, i);
      }
    }
  }
}

TEST_CASE("using a gradient with its lease open is an error on all ranks") {
  for (const Strategy& strategy : placements()) {
    INFO(strategy.name());
    const auto ranks = messages_of(3, [&](Communicator& communicator) {
      Model model(communicator, strategy);
      auto lease = model.gradients[2].lease();
      model.add(lease, 1);
      Messages messages;
      messages.push_back(
          error_of([&] { model.states[2].step(model.parameters[2], model.gradients[2]); }));
      messages.push_back(error_of([&] { (void)model.gradients[2].shard(); }));
      messages.push_back(error_of([&] { (void)gradient_norm(model.context); }));
      messages.push_back(error_of([&] { (void)LossScaler().unscale(model.context); }));
      messages.push_back(yes(gradient_norm(model.context, model.gradients[0]) == 0));
      std::move(lease).reduce();
      model.states[2].step(model.parameters[2], model.gradients[2]);
      messages.push_back(yes(model.is(2, 2)));
      return messages;
    });
    for (std::size_t i = 0; i < 4; ++i) check_all(ranks, i, {"UsageError", "'p2'"});
    check_none(ranks, 4);
    check_none(ranks, 5);
  }
}

TEST_CASE("a dropped gradient lease is an error at the next call, whichever it is") {
  for (const Strategy& strategy : placements()) {
    for (const int world : {1, 3}) {
      INFO(strategy.name() << " world " << world);
      const auto ranks = messages_of(world, [&](Communicator& communicator) {
        Model model(communicator, strategy, {.open_gradients = 2});
        Sequence<float> sequence;
        for (std::size_t i = 0; i < 3; ++i) sequence.add(model.parameters[i], model.gradients[i]);
        auto other = model.gradients[0].lease();
        model.add(other, 1);
        auto& parameter = model.parameters[1];
        const std::vector<std::function<void()>> calls = {
            [&] { (void)parameter.gather(); },
            [&] { parameter.ensure_gathered(); },
            [&] { (void)gather(parameter, model.parameters[0]); },
            [&] { parameter.prefetch(); },
            [&] { (void)model.gradients[2].lease(); },
            [&] { model.gradients[2].ensure_open(); },
            [&] { (void)model.gradients[2].shard(); },
            [&] { model.states[1].step(parameter, model.gradients[1]); },
            [&] { parameter.update([](std::span<float>) {}); },
            [&] { parameter.initialize([](const auto&, std::size_t) { return 2.0f; }); },
            [&] { parameter.read([](const auto&, std::size_t, std::span<const float>) {}); },
            [&] { (void)gradient_norm(model.context, model.gradients[1]); },
            [&] { (void)model.context.sum(1); },
            [&] { (void)model.context.weighted_mean(1, 1); },
            [&] { (void)model.context.weigh(1); },
            [&] { model.context.barrier(); },
            [&] { model.context.prepare(); },
            [&] { (void)sequence.forward(1); },
            [&] { (void)sequence.backward(1); },
            [&] { std::move(other).reduce(); },
        };
        Messages messages;
        for (const auto& call : calls) {
          {
            auto lease = model.gradients[1].lease();
            model.add(lease, 100);
          }
          messages.push_back(error_of(call));
          messages.push_back(error_of([&] { model.context.barrier(); }));
        }
        // The refused reduce() has not ended the other lease.
        messages.push_back(error_of([&] { std::move(other).reduce(); }));
        model.states[0].step(model.parameters[0], model.gradients[0]);
        model.states[1].step(model.parameters[1], model.gradients[1]);
        messages.push_back(yes(model.is(0, 0) && model.is(1, 2)));
        return messages;
      });
      for (std::size_t i = 0; i + 2 < ranks[0].size(); i += 2) {
        INFO("call " << i / 2);
        check_all(ranks, i, {"UsageError", "'p1'", "dropped"});
        check_none(ranks, i + 1);
      }
      check_none(ranks, ranks[0].size() - 2);
      check_none(ranks, ranks[0].size() - 1);
    }
  }
}

TEST_CASE("the plain reduce() that is refused for another's dropped lease can be repeated") {
  const auto ranks = messages_of(2, [](Communicator& communicator) {
    Model model(communicator, Strategy::zero3());
    add(model.context, model.gradients[0].ensure_open()[0], 1);
    { auto lease = model.gradients[1].lease(); }
    Messages messages;
    messages.push_back(error_of([&] { model.gradients[0].reduce(); }));
    messages.push_back(error_of([&] { model.gradients[0].reduce(); }));
    messages.push_back(error_of([&] { model.gradients[0].reduce(); }));
    messages.push_back(
        error_of([&] { model.states[0].step(model.parameters[0], model.gradients[0]); }));
    messages.push_back(yes(model.is(0, 0)));
    return messages;
  });
  check_all(ranks, 0, {"'p1'", "dropped"});
  for (std::size_t i = 1; i < 5; ++i) check_none(ranks, i);
}

TEST_CASE("every way to lose a gradient lease is reported once") {
  const auto ranks = messages_of(2, [](Communicator& communicator) {
    Model model(communicator, Strategy::zero3(), {.open_gradients = 2});
    Messages messages;
    const auto next = [&] { messages.push_back(error_of([&] { model.context.barrier(); })); };
    {  // assigned over
      auto lease = model.gradients[0].lease();
      lease = Contribution<float>();
    }
    next();
    next();
    {  // moved, then dropped
      auto lease = model.gradients[0].lease();
      auto taken = std::move(lease);
    }
    next();
    {  // discarded: nothing is lost by accident
      auto lease = model.gradients[0].lease();
      lease.discard();
      lease.discard();
    }
    next();
    {  // a sequence that keeps a lease open and is destroyed
      Sequence<float> sequence;
      sequence.add(model.parameters[0], model.gradients[0]);
      sequence.backward(0).finish(false);
    }
    next();
    {  // dropped while an exception unwinds
      try {
        auto lease = model.gradients[0].lease();
        throw std::runtime_error("the host's own");
      } catch (const std::runtime_error&) {
      }
    }
    next();
    {  // made and dropped within a destructor that an exception calls
      struct Guard {
        Model& model;
        ~Guard() { auto lease = model.gradients[0].lease(); }
      };
      try {
        const Guard guard{model};
        throw std::runtime_error("the host's own");
      } catch (const std::runtime_error&) {
      }
    }
    next();
    // Nothing that was lost entered.
    messages.push_back(yes(gradient_norm(model.context) == 0));
    return messages;
  });
  check_all(ranks, 0, {"'p0'"});
  check_none(ranks, 1);
  check_all(ranks, 2, {"'p0'"});
  check_none(ranks, 3);
  check_all(ranks, 4, {"'p0'"});
  check_none(ranks, 5);
  check_all(ranks, 6, {"'p0'"});
  check_none(ranks, 7);
}

TEST_CASE("a parameter without a name is reported too") {
  const auto ranks = messages_of(2, [](Communicator& communicator) {
    Context<Device> context(communicator);
    Parameter<float> nameless(context, {});
    ShardedGradient gradient(nameless);
    { auto lease = gradient.lease(); }
    return Messages{error_of([&] { context.barrier(); })};
  });
  check_all(ranks, 0, {"dropped"});
}

TEST_CASE("leases move, end once and free what they leave") {
  const auto ranks = messages_of(3, [](Communicator& communicator) {
    Strategy strategy = Strategy::zero3();
    strategy.prefetch = 0;
    strategy.overlap = false;
    Model model(communicator, strategy);  // one slot of each kind
    Messages messages;
    auto lease = model.parameters[0].gather();
    Weights<float> taken(std::move(lease));
    lease.release();  // lends nothing: no effect
    messages.push_back(yes(at(model.context, taken[0], 0) == 1));
    messages.push_back(error_of([&] { (void)model.parameters[1].gather(); }));
    taken.release();
    taken.release();
    messages.push_back(error_of([&] { lease = model.parameters[1].gather(); }));
    taken = std::move(lease);
    lease = std::move(taken);
    auto& self = lease;
    lease = std::move(self);
    messages.push_back(yes(at(model.context, lease["p1"], 50) == 2));
    lease = Weights<float>();  // releases
    messages.push_back(error_of([&] { lease = model.parameters[2].gather(); }));
    lease.release();

    auto gradient = model.gradients[0].lease();
    model.add(gradient, 1);
    Contribution<float> moved(std::move(gradient));
    messages.push_back(error_of([&] { std::move(gradient).reduce(); }));
    std::move(moved).reduce();
    messages.push_back(error_of([&] { std::move(moved).reduce(); }));
    messages.push_back(error_of([&] { Contribution<float>().discard(); }));
    model.states[0].step(model.parameters[0], model.gradients[0]);
    messages.push_back(yes(model.is(0, 0)));
    messages.push_back(error_of([&] { (void)model.parameters[0].gather()["nothing"]; }));
    return messages;
  });
  check_none(ranks, 0);
  check_all(ranks, 1, {"'p0'"});
  for (std::size_t i = 2; i < 5; ++i) check_none(ranks, i);
  check_all(ranks, 5, {"UsageError", "ended"});
  check_all(ranks, 6, {"UsageError", "ended"});
  check_none(ranks, 7);
  check_none(ranks, 8);
  check_all(ranks, 9, {"UsageError", "nothing", "'p0'"});
}

TEST_CASE("a lease of the wrong type says what to do") {
  const auto ranks = messages_of(2, [](Communicator& communicator) {
    Strategy strategy = Strategy::zero3();
    strategy.lease = DType::bf16;
    strategy.gradient_lease = DType::f16;
    Model model(communicator, strategy);
    auto& parameter = model.parameters[0];
    auto& gradient = model.gradients[0];
    Sequence<float> sequence;
    return Messages{error_of([&] { (void)parameter.gather(); }),
                    error_of([&] { parameter.ensure_gathered<f16>(); }),
                    error_of([&] { (void)gather(parameter, model.parameters[1]); }),
                    error_of([&] { (void)gather_as<f16>(parameter); }),
                    error_of([&] { sequence.add(parameter, gradient); }),
                    error_of([&] { (void)gradient.lease(); }),
                    error_of([&] { gradient.ensure_open<bf16>(); }),
                    error_of([&] {
                      (void)parameter.gather<bf16>();
                      (void)gather_as<bf16>(parameter, model.parameters[1]);
                    })};
  });
  for (std::size_t i = 0; i < 5; ++i) {
    check_all(ranks, i, {"UsageError", "'p0'", "bf16", "Strategy::lease"});
  }
  for (std::size_t i = 5; i < 7; ++i) {
    check_all(ranks, i, {"UsageError", "'p0'", "f16", "Strategy::gradient_lease"});
  }
  // Two open at once where one slot is planned beside one ahead: enough.
  check_none(ranks, 7);
}

TEST_CASE(
    "what is registered twice or for another is refused; what comes and goes leaves nothing") {
  for (const Strategy& strategy : placements()) {
    const auto ranks = messages_of(2, [&](Communicator& communicator) {
      Model model(communicator, strategy);
      Messages messages;
      (void)model.parameters[0].gather();
      model.contribute(0, 1);
      const auto held = model.context.held();
      messages.push_back(error_of([&] {
        Parameter<float> late(model.context, {{"late", {1000}}});
      }));
      messages.push_back(error_of([&] { Gradient<bf16> second(model.parameters[1]); }));
      messages.push_back(
          error_of([&] { model.states[0].step(model.parameters[0], model.gradients[1]); }));
      messages.push_back(
          error_of([&] { model.states[0].step(model.parameters[1], model.gradients[1]); }));
      messages.push_back(error_of([&] {
        Sequence<float> sequence;
        sequence.add(model.parameters[1], model.gradients[2]);
      }));
      messages.push_back(error_of(
          [&] { model.context.gradient_store().check_reduction(model.gradients[1].flat(), {}); }));
      messages.push_back(error_of([&] { model.gradients[1].reduce(); }));  // plain: idempotent
      messages.push_back(yes(held == model.context.held()));
      messages.push_back(yes(model.states[0].steps() == 0));
      messages.push_back(yes(model.is(0, 1)));
      model.states[0].step(model.parameters[0], model.gradients[0]);
      messages.push_back(yes(model.is(0, 0)));
      messages.push_back(
          error_of([&] { State<AdamW> state(model.parameters[0], AdamW{.beta1 = 2}); }));
      messages.push_back(error_of([&] {
        Sequence<float> sequence;
        (void)sequence.forward(0);
      }));
      return messages;
    });
    check_none(ranks, 0);
    check_all(ranks, 1, {"UsageError", "'p1'", "already"});
    check_all(ranks, 2, {"UsageError", "'p0'", "'p1'"});
    check_all(ranks, 3, {"UsageError", "'p0'", "'p1'"});
    check_all(ranks, 4, {"UsageError", "'p1'", "'p2'"});
    check_all(ranks, 5, {"UsageError", "'p1'", "without an open lease"});
    for (std::size_t i = 6; i < 11; ++i) check_none(ranks, i);
    check_all(ranks, 11, {"UsageError", "beta1"});
    check_all(ranks, 12, {"UsageError", "layer 0", "0 layers"});
  }
}

TEST_CASE("a gradient that is registered after the first gradient lease finds a slot") {
  const auto ranks = messages_of(2, [](Communicator& communicator) {
    Context<Device> context(communicator);
    Parameter<float> a(context, {{"a", {3}}});
    Parameter<float> b(context, {{"b", {300}}});
    ShardedGradient gradient(a);
    gradient.lease().discard();
    ShardedGradient late(b);
    Messages messages;
    for (int step = 0; step < 2; ++step) {
      auto lease = late.lease();
      add(context, lease["b"], static_cast<float>(1 + context.rank()));
      std::move(lease).reduce();
      bool equal = true;
      for (const auto& segment : late.segments()) {
        equal = equal && all_are(context, segment.elements, 1.5f);
      }
      messages.push_back(yes(equal));
      late.consume();
    }
    gradient.lease().discard();  // a slot that was made for less grows when it is lent next
    context.prepare();
    messages.push_back(yes(context.held() == context.plan().bytes));
    return messages;
  });
  for (std::size_t i = 0; i < 3; ++i) check_none(ranks, i);
}

TEST_CASE("ranks that register different parameters learn it at once, by name") {
  struct Case {
    const char* what;
    std::vector<TensorSpec> odd;
    ParameterOptions options;
    std::string said;  // in what they differ, where they name the same parameter
  };
  Strategy other = Strategy::zero3();
  other.prefetch = 0;
  const std::vector<TensorSpec> usual = {{"block.weight", {5, 4}}, {"block.bias", {4}}};
  constexpr auto tensors = "differ in the tensors (names, shapes, options, order).";
  constexpr auto strategy_alone = "differ in the parameter's strategy.";
  const std::vector<Case> cases = {
      {"name", {{"block.wieght", {5, 4}}, {"block.bias", {4}}}, {.name = "block"}, tensors},
      {"parameter name", usual, {.name = "blokc"}, ""},
      {"shape", {{"block.weight", {4, 5}}, {"block.bias", {4}}}, {.name = "block"}, tensors},
      {"tensors", {{"block.weight", {5, 4}}}, {.name = "block"}, tensors},
      {"weight decay",
       {{"block.weight", {5, 4}, {.weight_decay = 0}}, {"block.bias", {4}}},
       {.name = "block"},
       tensors},
      {"strategy", usual, {.name = "block", .strategy = Strategy::zero2()}, strategy_alone},
      {"prefetch", usual, {.name = "block", .strategy = other}, strategy_alone},
      {"tied", usual, {.name = "block", .tied = true}, "differ in tied or residency."},
  };
  for (const int world : {2, 3, 4, largest_world}) {
    need_devices(world);
    for (const Case& given : cases) {
      for (const bool overlap : {false, true}) {
        INFO(given.what << " world " << world << " overlap " << overlap);
        Strategy strategy = Strategy::zero3();
        strategy.overlap = overlap;
        const auto odd_rank = world / 2;
        std::vector<std::string> messages(static_cast<std::size_t>(world));
        CHECK_THROWS_AS(run_on_ranks(
                            world,
                            [&](Communicator& communicator) {
                              const bool odd = communicator.rank() == odd_rank;
                              Context<Device> context(communicator, strategy, {.overlap_from = 0});
                              auto& message =
                                  messages[static_cast<std::size_t>(communicator.rank())];
                              try {
                                Parameter<float> parameter(
                                    context, odd ? given.odd : usual,
                                    odd ? given.options : ParameterOptions{.name = "block"});
                              } catch (const CollectiveMismatch& error) {
                                message = error.what();
                                throw;
                              }
                            },
                            checked()),
                        CollectiveMismatch);
        for (const auto& message : messages) {
          CHECK_THAT(message, ContainsSubstring("\"block\""));
          if (given.said.empty()) {
            CHECK_THAT(message, !ContainsSubstring("differ in"));
          } else {
            CHECK_THAT(message, ContainsSubstring(given.said + "\nAll ranks must"));
          }
          if (given.options.name != "block") CHECK_THAT(message, ContainsSubstring("\"blokc\""));
        }
      }
    }
  }
  // One rank registers what the other meets for.
  CHECK_THROWS_MATCHES(run_on_ranks(
                           2,
                           [&](Communicator& communicator) {
                             Context<Device> context(communicator);
                             if (communicator.rank() == 0) {
                               context.barrier("block");
                             } else {
                               Parameter<float> parameter(context, usual, {.name = "block"});
                             }
                           },
                           checked()),
                       CollectiveMismatch, MessageMatches(!ContainsSubstring("differ in")));
  // Another element type, another number of parameters.
  std::vector<std::string> messages(2);
  CHECK_THROWS_AS(run_on_ranks(
                      2,
                      [&](Communicator& communicator) {
                        Context<Device> context(communicator);
                        auto& message = messages[static_cast<std::size_t>(communicator.rank())];
                        message = error_of([&] {
                          if (communicator.rank() == 0) {
                            Parameter<float> parameter(context, {{"w", {8}}});
                          } else {
                            Parameter<double> parameter(context, {{"w", {8}}});
                          }
                        });
                        throw UsageError("done");
                      },
                      checked()),
                  UsageError);
  for (const auto& message : messages) {
    CHECK_THAT(message, ContainsSubstring("CollectiveMismatch"));
    CHECK_THAT(message,
               ContainsSubstring("\"w\"") && ContainsSubstring("differ in the storage type."));
  }
}

TEST_CASE("hold: one reduction a step") {
  for (Strategy strategy : placements()) {
    strategy.accumulation = Accumulation::hold;
    for (const int world : {1, 2, 3}) {
      INFO(strategy.name() << " world " << world);
      const auto ranks = messages_of(world, [&](Communicator& communicator) {
        Model model(communicator, strategy);
        Messages messages;
        {  // discarded ones do not count
          auto lease = model.gradients[0].lease();
          model.add(lease, 50);
          lease.discard();
        }
        model.contribute(0, 1);
        messages.push_back(error_of([&] { (void)model.gradients[0].lease(); }));
        messages.push_back(error_of([&] { model.gradients[0].ensure_open(); }));
        model.states[0].step(model.parameters[0], model.gradients[0]);
        messages.push_back(yes(model.is(0, 0)));
        messages.push_back(error_of([&] { model.contribute(0, 1); }));
        model.gradients[0].consume();
        messages.push_back(error_of([&] { model.contribute(0, 2); }));
        model.states[0].step(model.parameters[0], model.gradients[0]);
        messages.push_back(yes(model.is(0, -2)));
        // A step without a contribution has a gradient of zeros.
        model.states[0].step(model.parameters[0], model.gradients[0]);
        messages.push_back(yes(model.is(0, -2)));
        return messages;
      });
      check_all(ranks, 0, {"UsageError", "'p0'", "hold"});
      check_all(ranks, 1, {"UsageError", "'p0'", "hold"});
      for (std::size_t i = 2; i < 7; ++i) check_none(ranks, i);
    }
  }
}

// What a CUDA graph has captured of a step is right for the next one only so.
TEST_CASE("steps of the same calls lend the same addresses") {
  constexpr std::size_t frozen = 2;
  std::vector<Strategy> strategies{Strategy::ddp(), Strategy::zero2(), Strategy::zero3(),
                                   Strategy::zero3_no_reshard()};
  for (const int prefetch : {0, 2}) {
    strategies.push_back(Strategy::zero3());
    strategies.back().prefetch = prefetch;
  }
  for (const int world : {1, 2, 3}) {
    for (std::size_t which = 0; which < strategies.size(); ++which) {
      for (const std::size_t micro_batches : {1UL, 2UL}) {
        for (const std::size_t layers : {4UL, 5UL, 7UL}) {
          const auto messages = messages_of(world, [&](Communicator& communicator) -> Messages {
            Model model(communicator, strategies[which], {.overlap_from = 0}, layers);
            Sequence<float> sequence;
            for (std::size_t i = 0; i < layers; ++i) {
              if (i == frozen) {
                sequence.add(model.parameters[i]);
              } else {
                sequence.add(model.parameters[i], model.gradients[i]);
              }
            }
            const auto step = [&] {
              std::vector<const float*> lent;
              for (std::size_t micro = 0; micro < micro_batches; ++micro) {
                for (std::size_t i = 0; i < layers; ++i) {
                  lent.push_back(sequence.forward(i).weights[0].data());
                }
                for (std::size_t i = layers; i-- > 0;) {
                  auto visit = sequence.backward(i);
                  lent.push_back(visit.weights[0].data());
                  if (i != frozen) lent.push_back(visit.gradient[0].data());
                  visit.finish();
                }
              }
              for (std::size_t i = 0; i < layers; ++i) {
                if (i == frozen) continue;
                model.states[i].step(model.parameters[i], model.gradients[i]);
              }
              return lent;
            };
            const auto first = step();
            for (int again = 1; again < 5; ++again) {
              if (step() != first) return {fmt::format("step {} lent others", again)};
            }
            return {""};
          });
          INFO("world " << world << ", strategy " << which << ", " << micro_batches
                        << " micro-batches, " << layers << " layers");
          check_none(messages, 0);
        }
      }
    }
  }
}

TEST_CASE("nested leases of a tied parameter are one memory and one reduction") {
  for (const Strategy& strategy : placements()) {
    for (const auto accumulation : {Accumulation::reduce, Accumulation::hold}) {
      for (const bool tied : {false, true}) {
        Strategy own = strategy;
        own.accumulation = accumulation;
        INFO(own.name() << " hold " << (accumulation == Accumulation::hold) << " tied " << tied);
        const auto ranks = messages_of(3, [&](Communicator& communicator) {
          Model model(communicator, own, {}, 3, tied);
          Messages messages;
          const auto first_weights = model.parameters[0].gather();
          const auto second_weights = model.parameters[0].gather();
          messages.push_back(yes(first_weights.data() == second_weights.data()));
          auto first = model.gradients[0].lease();
          model.add(first, 1);
          auto second = model.gradients[0].lease();
          messages.push_back(
              yes(second.data() == first.data() && at(model.context, second[0], 0) == 1));
          model.add(second, 2);
          model.context.reset_statistics();
          std::move(first).reduce();
          messages.push_back(yes(model.context.statistics().traffic.reduce_scatter_calls +
                                     model.context.statistics().traffic.all_reduce_calls ==
                                 0));
          messages.push_back(error_of([&] { (void)model.gradients[0].shard(); }));
          std::move(second).reduce();
          messages.push_back(yes(model.context.statistics().traffic.reduce_scatter_calls +
                                     model.context.statistics().traffic.all_reduce_calls ==
                                 1));
          const auto shard = model.gradients[0].shard();
          messages.push_back(yes(at(model.context, shard, 0) == 3 || communicator.rank() > 0));
          return messages;
        });
        for (const std::size_t i : {0u, 1u, 2u, 4u, 5u}) check_none(ranks, i);
        check_all(ranks, 3, {"'p0'"});
      }
    }
  }
}

TEST_CASE("a contribution stays when a nested lease of the same gradient is discarded") {
  for (const bool plain : {false, true}) {
    const auto ranks = messages_of(2, [&](Communicator& communicator) {
      Model model(communicator, Strategy::zero3(), {}, 3, true);
      auto first = model.gradients[0].lease();
      auto second = model.gradients[0].lease();
      model.add(first, 1);
      if (plain) {
        second.discard();
        std::move(first).reduce();
      } else {
        std::move(first).reduce();
        second.discard();
      }
      model.states[0].step(model.parameters[0], model.gradients[0]);
      return Messages{yes(model.is(0, 0))};
    });
    check_none(ranks, 0);
  }
}

TEST_CASE("a gradient of a bucket may be leased again before the bucket is full") {
  for (const Strategy& named : placements()) {
    for (const bool overlap : {false, true}) {
      Strategy strategy = named;
      strategy.bucket_bytes = 1 << 20;
      strategy.overlap = overlap;
      INFO(strategy.name() << " overlap " << overlap);
      const auto ranks = messages_of(3, [&](Communicator& communicator) {
        constexpr std::size_t size = 20000;
        Context<Device> context(communicator, strategy, {.open_gradients = 2, .overlap_from = 0});
        Parameter<float> a(context, {{"a", {size}}});
        Parameter<float> b(context, {{"b", {5}}});
        ShardedGradient gradient_a(a);
        ShardedGradient gradient_b(b);
        Messages messages;
        for (int round = 0; round < 20; ++round) {
          auto open = gradient_b.lease();
          for (int micro = 0; micro < 3; ++micro) {
            auto lease = gradient_a.lease();
            add(context, lease[0], 1);
            std::move(lease).reduce();
          }
          add(context, open[0].subspan(4, 1), 2);
          std::move(open).reduce();
          bool same = true;
          a.for_each_tensor(gradient_a.shard(),
                            [&](const auto&, std::size_t, std::span<const float> elements) {
                              same = same && all_are(context, elements, 3);
                            });
          b.for_each_tensor(gradient_b.shard(),
                            [&](const auto&, std::size_t first, std::span<const float> elements) {
                              const auto values = to_host(context, elements);
                              for (std::size_t i = 0; i < values.size(); ++i) {
                                same = same && values[i] == (first + i == 4 ? 2.0f : 0.0f);
                              }
                            });
          messages.push_back(yes(same));
          gradient_a.consume();
          gradient_b.consume();
        }
        return messages;
      });
      for (std::size_t i = 0; i < ranks[0].size(); ++i) check_none(ranks, i);
    }
  }
}

TEST_CASE("a bucket that waits for an unused parameter does not keep others from a slot") {
  for (const bool overlap : {false, true}) {
    const auto ranks = messages_of(2, [&](Communicator& communicator) {
      Strategy strategy = Strategy::zero3();
      strategy.overlap = overlap;
      strategy.bucket_bytes = 2 * 64 * 4;
      Model model(communicator, strategy, {}, 8);
      Messages messages;
      // Layers 1, 3, 5 and 7 are skipped.
      for (std::size_t i = 8; i > 0; i -= 2) {
        messages.push_back(error_of([&] { model.contribute(i - 2, 1); }));
      }
      for (std::size_t i = 0; i < 8; ++i) {
        model.states[i].step(model.parameters[i], model.gradients[i]);
      }
      for (std::size_t i = 0; i < 8; ++i) {
        messages.push_back(yes(model.is(i, static_cast<float>(i % 2 == 0 ? i : i + 1))));
      }
      return messages;
    });
    for (std::size_t i = 0; i < ranks[0].size(); ++i) check_none(ranks, i);
  }
}

TEST_CASE("gradients of different types share no bucket that only some of them can use") {
  for (const Strategy& named : placements()) {
    Strategy strategy = named;
    strategy.bucket_bytes = 1 << 20;
    strategy.accumulation = Accumulation::hold;
    INFO(strategy.name());
    const auto ranks = messages_of(2, [&](Communicator& communicator) {
      Context<Device> context(communicator, strategy);
      Parameter<float> a(context, {{"a", {40}}});
      Parameter<float> b(context, {{"b", {40}}});
      Parameter<float> c(context, {{"c", {40}}});
      Gradient<float> gradient_a(a);
      Gradient<bf16> gradient_b(b);
      Gradient<float> gradient_c(c);
      Messages messages;
      messages.push_back(error_of([&] {
        auto one = gradient_a.lease();
        auto two = gradient_b.lease<float>();
        auto three = gradient_c.lease();
        add(context, one[0].first(1), 1);
        add(context, two[0].first(1), 2);
        add(context, three[0].first(1), 3);
        std::move(one).reduce();
        std::move(two).reduce();
        std::move(three).reduce();
      }));
      messages.push_back(yes(gradient_norm(context) == std::sqrt(14.0)));
      messages.push_back(error_of([&] { (void)a.gather(); }));
      messages.push_back(yes(context.held() == context.plan().bytes));
      return messages;
    });
    for (std::size_t i = 0; i < 4; ++i) check_none(ranks, i);
  }
}

TEST_CASE("a cap without room is an error each time, with the number that would do") {
  const auto ranks = messages_of(2, [](Communicator& communicator) {
    Messages messages;
    Strategy strategy = Strategy::zero3();
    strategy.max_live_bytes = 300;
    {
      Model model(communicator, strategy, {.open_parameters = 2});
      messages.push_back(error_of([&] { (void)model.parameters[0].gather(); }));
      messages.push_back(error_of([&] { (void)model.parameters[0].gather(); }));
      messages.push_back(error_of([&] { model.parameters[2].prefetch(); }));
      messages.push_back(error_of([&] { model.context.prepare(); }));
    }
    strategy.reshard_after_forward = false;
    {
      Model model(communicator, strategy);
      messages.push_back(error_of([&] { (void)model.parameters[1].gather(); }));
      messages.push_back(error_of([&] { (void)model.parameters[1].gather(); }));
    }
    strategy.reshard_after_forward = true;
    strategy.max_live_bytes = 512;
    Model model(communicator, strategy, {.open_parameters = 2});
    messages.push_back(yes(model.is(0, 1) && model.is(2, 3)));
    return messages;
  });
  for (std::size_t i = 0; i < 4; ++i) {
    check_all(ranks, i, {"UsageError", "max_live_bytes = 300", "2 open", "256 bytes", "512"});
  }
  for (std::size_t i = 4; i < 6; ++i) {
    check_all(ranks, i, {"UsageError", "max_live_bytes = 300", "768 bytes"});
  }
  check_none(ranks, 6);
}

namespace {

struct Boom : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// Delays ranks at random inside collectives.
struct Delays {
  std::atomic<std::uint64_t> count{0};
  std::uint64_t seed = 0;
  bool sleeps = false;

  static void at(void* context, int rank, ThreadPoint point) noexcept {
    auto& self = *static_cast<Delays*>(context);
    std::uint64_t x = self.seed + self.count.fetch_add(1) * 0x9e3779b97f4a7c15ull +
                      static_cast<std::uint64_t>(rank) * 77 + static_cast<std::uint64_t>(point);
    x = (x ^ (x >> 29)) * 0xbf58476d1ce4e5b9ull;
    x ^= x >> 32;
    if (x % 4 == 0) std::this_thread::yield();
    if (self.sleeps && x % 8 == 1) std::this_thread::sleep_for(std::chrono::microseconds(x % 300));
  }
  /// An emulated device has delays of its own.
  [[nodiscard]] RankOptions options() {
    if constexpr (on_host) return host_options<RankOptions>();
    return {};
  }

 private:
  template <class Options>
  Options host_options() {
    return {.at_point = &Delays::at, .context = this};
  }
};

/// Two training steps; calls `point` between any two library calls.
void train_with_points(Communicator& communicator, const Strategy& strategy,
                       const std::function<void()>& point) {
  Context<Device> context(communicator, strategy,
                          {.open_parameters = 2, .timeout = std::chrono::seconds(60)});
  std::vector<Parameter<float>> parameters;
  std::vector<Gradient<float>> gradients;
  std::vector<State<AdamW>> states;
  for (std::size_t i = 0; i < 4; ++i) {
    point();
    parameters.emplace_back(context, std::vector<TensorSpec>{{fmt::format("p{}", i), {3000 + i}}},
                            ParameterOptions{.tied = i == 0});
    parameters.back().initialize([](const auto&, std::size_t i_) { return noise(i_, 1); });
  }
  for (auto& parameter : parameters) gradients.emplace_back(parameter);
  for (auto& parameter : parameters) states.emplace_back(parameter);
  Parameter<float> frozen(context, {{"frozen", {3000}}});
  Sequence<float> sequence;
  for (std::size_t i = 0; i < 4; ++i) sequence.add(parameters[i], gradients[i]);
  sequence.add(frozen);
  sequence.add(parameters[0], gradients[0]);
  point();
  for (int step = 0; step < 2; ++step) {
    for (std::size_t i = 0; i < sequence.size(); ++i) {
      auto visit = sequence.forward(i);
      point();
      visit.finish();
      point();
    }
    for (std::size_t i = sequence.size(); i-- > 0;) {
      auto visit = sequence.backward(i);
      point();
      if (visit.gradient) {
        const auto into = visit.gradient[0].first(1);
        Device::launch(context.stream(), 1,
                       AddElements<float>{into.data(), visit.weights[0].data()});
      }
      point();
      visit.finish();
      point();
    }
    clip_gradient_norm(context, 1);
    point();
    for (std::size_t i = 0; i < 4; ++i) {
      states[i].step(parameters[i], gradients[i]);
      point();
    }
    parameters[2].prefetch();
    point();
    (void)context.mean(1);
    point();
  }
  frozen.prefetch();
  parameters[1].prefetch();
}

}  // namespace

TEST_CASE("a rank that throws anywhere in training ends everybody with its own exception") {
  std::size_t points = 0;
  run_on_ranks(1, [&](Communicator& communicator) {
    train_with_points(communicator, Strategy::zero3(), [&] { ++points; });
  });
  REQUIRE(points > 70);
  std::vector<Strategy> strategies = placements();
  strategies.push_back(Strategy::zero3());
  strategies.back().bucket_bytes = 30000;
  std::uint64_t seed = 1;
  std::size_t cases = 0;
  for (Strategy strategy : strategies) {
    for (const auto accumulation : {Accumulation::reduce, Accumulation::hold}) {
      for (const int world : {2, 3, 4}) {
        for (const bool overlap : {true, true, false}) {
          ++seed;
          strategy.overlap = overlap;
          strategy.accumulation = accumulation;
          const auto guilty = static_cast<int>(seed % static_cast<std::uint64_t>(world));
          const std::size_t when = seed * 7919 % points;
          INFO(strategy.name() << " world " << world << " overlap " << overlap << " rank " << guilty
                               << " point " << when);
          Delays delays;
          delays.seed = seed;
          delays.sleeps = seed % 2 == 0;
          std::vector<int> ended(static_cast<std::size_t>(world));
          const auto begin = std::chrono::steady_clock::now();
          std::string message;
          try {
            run_on_ranks(
                world,
                [&](Communicator& communicator) {
                  const auto rank = static_cast<std::size_t>(communicator.rank());
                  std::size_t at = 0;
                  try {
                    // Ranks that are not there yet would learn of it outside of this function.
                    communicator.barrier({"the begin"}, {});
                    train_with_points(communicator, strategy, [&] {
                      if (communicator.rank() == guilty && at++ == when) {
                        throw Boom(fmt::format("boom {}", when));
                      }
                    });
                    // Peers may have all that they need from the guilty rank already.
                    communicator.barrier({"the end"}, {});
                  } catch (const PeerFailed& error) {
                    ended[rank] = error.rank() == guilty ? 1 : -1;
                    throw;
                  } catch (const Boom&) {
                    ended[rank] = 2;
                    throw;
                  }
                },
                delays.options());
          } catch (const Boom& error) {
            message = error.what();
          } catch (const std::exception& error) {
            message = std::string("not the original: ") + error.what();
          }
          const auto took = std::chrono::steady_clock::now() - begin;
          CHECK(message == fmt::format("boom {}", when));
          for (int r = 0; r < world; ++r) {
            CHECK(ended[static_cast<std::size_t>(r)] == (r == guilty ? 2 : 1));
          }
          CHECK(took < std::chrono::seconds(5));
          ++cases;
        }
      }
    }
  }
  CHECK(cases == strategies.size() * 18);
}

TEST_CASE("parameters and context may go while gathers and reductions are under way") {
  for (Strategy strategy : placements()) {
    for (const int world : {2, 3, largest_world}) {
      for (const bool late : {false, true}) {
        strategy.prefetch = 2;
        Delays delays;
        delays.sleeps = true;
        delays.seed = static_cast<std::uint64_t>(world);
        std::atomic<int> ended{0};
        run_on_ranks(
            world,
            [&](Communicator& communicator) {
              {
                Context<Device> context(communicator, strategy, {.overlap_from = 0});
                std::optional<Parameter<float>> a(std::in_place, context,
                                                  std::vector<TensorSpec>{{"a", {40000}}});
                Parameter<float> b(context, {{"b", {40000}}});
                std::optional<Gradient<float>> gradient(std::in_place, *a);
                Gradient<float> gradient_b(b);
                State<AdamW> state(b);
                a->initialize([](const auto&, std::size_t) { return 1.0f; });
                b.initialize([](const auto&, std::size_t) { return 1.0f; });
                for (int round = 0; round < 3; ++round) {
                  auto lease = gradient_b.lease();
                  std::move(lease).reduce();
                  state.step(b, gradient_b);
                  b.prefetch();
                }
                auto lease = gradient->lease();
                std::move(lease).reduce();
                a->prefetch();
                b.prefetch();
                if (late && communicator.rank() == 0) {
                  std::this_thread::sleep_for(std::chrono::milliseconds(2));
                }
                if (!late) {
                  // One by one, the rest goes on: reduce and gather what is left.
                  gradient.reset();
                  a.reset();
                  auto again = gradient_b.lease();
                  std::move(again).reduce();
                  (void)b.gather();
                  b.update([](std::span<float>) {});
                  b.prefetch();
                }
              }
              ++ended;
            },
            delays.options());
        CHECK(ended == world);
      }
    }
  }
}

TEST_CASE("a context made and ended by a destructor during unwinding does not fail its group") {
  std::atomic<int> caught{0};
  std::string failure = error_of([&] {
    run_on_ranks(2, [&](Communicator& communicator) {
      struct Last {
        Communicator& communicator;
        ~Last() {
          Context<Device> context(communicator);
          Parameter<float> parameter(context, {{"last words", {100000}}});
          parameter.prefetch();
        }
      };
      try {
        const Last last{communicator};
        throw Boom("caught by the host");
      } catch (const Boom&) {
        ++caught;
      }
      communicator.barrier({"afterwards"}, {});
    });
  });
  CHECK(failure == "");
  CHECK(caught == 2);
}
