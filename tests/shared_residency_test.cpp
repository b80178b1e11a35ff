#include <algorithm>
#include <atomic>
#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <shardwise/comm/checked.hpp>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "support/debug_host.hpp"
#include "support/device.hpp"
#include "support/passing_rank.hpp"
#include "support/ranks.hpp"
#include "support/sharing.hpp"
#include "support/toy.hpp"

using namespace shardwise;
using namespace shardwise::test;
using Catch::Matchers::ContainsSubstring;

namespace {

// Shared or in slots: the same bits and the same traffic by the formula, and the planned bytes.
template <FloatingElement L>
void check_trains_as_slots(ToyRun run, const Strategy& strategy, int world) {
  INFO(strategy.name() << " overlap " << strategy.overlap << " world " << world << " debug "
                       << run.debug << " micro-batches " << run.micro_batches << " bucket "
                       << strategy.bucket_bytes << " threshold " << strategy.persistence_threshold);
  const auto train = [&](const Strategy& of) {
    run.strategy = of;
    return on_ranks(world, [&](Communicator& communicator) {
      return train_toy<L, L, float>(communicator, run);
    });
  };
  const auto slots = train(strategy);
  const auto results = train(shared(strategy));
  std::size_t parameters = 0;
  for (const ToyResult& result : results) {
    check_trained_as(slots[0], result);
    parameters += result.held.parameters;
  }
  CHECK(parameters == toy_elements(world) * sizeof(float));  // each once
}

template <FloatingElement L>
void check_trains_as_slots() {
  for (const int world : worlds) {
    for (Strategy strategy : sharing_strategies()) {
      strategy.overlap = (world + strategy.prefetch) % 2 == 0;
      strategy.accumulation = world == 3 ? Accumulation::hold : Accumulation::reduce;
      ToyRun run;
      run.micro_batches = world % 2 + 1;
      run.clip = world == 2 ? 1 : 0;
      check_trains_as_slots<L>(run, strategy, world);
    }
  }
}

/// A host's own backend, which shares no memory.
class SilentRank final : public PassingRank {
 public:
  using PassingRank::PassingRank;
  [[nodiscard]] std::string_view backend() const noexcept override { return "silent"; }
};

/// The collectives that ranks call: each is published once by each rank.
struct Calls {
  std::atomic<int> count{0};
  static void at_point(void* calls, int rank, ThreadPoint point) noexcept {
    if (rank == 0 && point == ThreadPoint::published) ++static_cast<Calls*>(calls)->count;
  }
  [[nodiscard]] ThreadOptions options() {
    ThreadOptions result;
    result.at_point = &at_point;
    result.context = this;
    return result;
  }
};

}  // namespace

TEST_CASE("shared parameters train as those in slots do: fp32 leases") {
  check_trains_as_slots<float>();
}
TEST_CASE("shared parameters train as those in slots do: bf16 leases") {
  check_trains_as_slots<bf16>();
}
TEST_CASE("shared parameters train as those in slots do: in debug mode, and in groups") {
  ToyRun run;
  run.debug = true;
  for (const int world : {1, 3, 4}) {
    check_trains_as_slots<float>(run, Strategy::zero3(), world);
    check_trains_as_slots<bf16>(run, Strategy::zero3(), world);
  }
  for (const int groups : {2, 3}) {
    ToyRun grouped;
    grouped.steps = 3;
    grouped.strategy = Strategy::hybrid(2);
    const auto slots = on_ranks(2 * groups, [&](Communicator& communicator) {
      return train_toy<float>(communicator, grouped);
    });
    grouped.strategy.residency = Residency::shared;
    const auto results = on_ranks(2 * groups, [&](Communicator& communicator) {
      return train_toy<float>(communicator, grouped);
    });
    for (const ToyResult& result : results) {
      CHECK(result.hash == slots[0].hash);
      CHECK(result.held == result.plan.bytes);
      CHECK(result.traffic == slots[0].traffic);
    }
  }
}

TEST_CASE("a lease of the storage type is the storage of all ranks, and moves nothing") {
  for (const int world : worlds) {
    struct Seen {
      const float* whole;
      const float* shard;
      std::size_t elements;
      std::uint64_t moved, by_formula;
      Bytes held;
    };
    const auto seen = on_ranks(world, [&](Communicator& communicator) {
      SharedLayers host(communicator, shared(Strategy::zero3()));
      const auto lease = host.parameters[0].gather();
      const Statistics& statistics = host.context.statistics();
      return Seen{lease.data(),
                  host.parameters[0].shard().data(),
                  host.parameters[0].shard().size(),
                  statistics.bytes_moved(),
                  statistics.traffic.bytes(),
                  host.context.held()};
    });
    for (std::size_t rank = 0; rank < seen.size(); ++rank) {
      CHECK(seen[rank].whole == seen[0].whole);
      CHECK(seen[rank].shard == seen[0].whole + rank * seen[0].elements);
      CHECK(seen[rank].moved == 0);
      CHECK(seen[rank].by_formula == (seen.size() - 1) * seen[0].elements * sizeof(float));
      CHECK(seen[rank].held.parameters == 2 * seen[0].elements * sizeof(float));
      // No memory for what is gathered.
      CHECK(seen[rank].held.slots == 4 * (seen.size() + 1) * sizeof(double));
    }
  }
}

TEST_CASE("a lease of another type is one copy, of which each rank writes its shard") {
  for (const int world : worlds) {
    struct Seen {
      const bf16* whole;
      std::size_t shard_bytes;
      std::uint64_t moved;
      Bytes held;
      MemoryPlan plan;
      std::size_t wrong = 0;
    };
    const auto seen = on_ranks(world, [&](Communicator& communicator) {
      Strategy strategy = shared(Strategy::zero3());
      strategy.lease = DType::bf16;
      strategy.prefetch = 0;
      SharedLayers host(communicator, strategy);
      Seen result{};
      {
        const auto lease = host.parameters[0].gather<bf16>();
        result = {lease.data(), host.parameters[0].shard().size() * sizeof(bf16),
                  host.context.statistics().bytes_moved(), host.context.held(),
                  host.context.plan()};
      }
      for (int step = 0; step < 4; ++step) {
        for (auto& parameter : host.parameters)
          result.wrong += SharedLayers::wrong<bf16>(parameter, step);
        for (auto& parameter : host.parameters) SharedLayers::write(parameter, step + 1);
      }
      return result;
    });
    for (const Seen& one : seen) {
      CHECK(one.whole == seen[0].whole);
      CHECK(one.moved == one.shard_bytes);
      CHECK(one.held == one.plan.bytes);
      CHECK(one.held.slots == one.plan.scalars + one.shard_bytes);  // one slot, between all of them
      CHECK(one.plan.shared_slot_bytes == one.shard_bytes * seen.size());
      CHECK_THAT(one.plan.describe(), ContainsSubstring(fmt::format("shared by {} ranks", world)));
      CHECK(one.wrong == 0);
    }
  }
}

TEST_CASE("shared values are those of the last write, whatever waits between") {
  for (const int world : worlds) {
    for (const bool overlap : {false, true}) {
      const auto wrong = on_ranks(world, [&](Communicator& communicator) {
        Strategy strategy = shared(Strategy::zero3());
        strategy.overlap = overlap;
        SharedLayers host(communicator, strategy);
        std::size_t count = 0;
        for (int step = 0; step < 60; ++step) {
          // Prefetches, scalars and barriers come and go; leases of both are open at times.
          if (step % 3 == 1) host.parameters[1].prefetch();
          count += SharedLayers::wrong<float>(host.parameters[0], step);
          if (step % 4 == 1) static_cast<void>(host.context.mean(1));
          count += SharedLayers::wrong<float>(host.parameters[1], step);
          count += SharedLayers::wrong<float>(host.parameters[0], step);
          if (step % 5 == 1) host.context.barrier();
          for (auto& parameter : host.parameters) SharedLayers::write(parameter, step + 1);
          if (step % 4 == 2) static_cast<void>(host.context.any(false));
        }
        return count;
      });
      for (const std::size_t count : wrong) CHECK(count == 0);
    }
  }
}

TEST_CASE("with a norm before the update and a loss mean after it no rank waits for a gather") {
  for (const bool clips : {true, false}) {
    Calls calls;
    on_ranks(
        3,
        [&](Communicator& communicator) {
          Context<Device> context(communicator, shared(Strategy::zero3()));
          std::vector<Parameter<float>> parameters;
          std::vector<Gradient<float>> gradients;
          std::vector<State<AdamW>> states;
          for (const char* name : {"a", "b", "c"}) {
            parameters.emplace_back(context, std::vector<TensorSpec>{{name, {1000}}});
            parameters.back().initialize([](const auto&, std::size_t) { return 1.0f; });
          }
          for (auto& parameter : parameters) gradients.emplace_back(parameter);
          for (auto& parameter : parameters) states.emplace_back(parameter);
          for (int step = 0; step < 3; ++step) {
            if (step == 2) context.barrier();
            if (step == 2 && context.rank() == 0) calls.count = 0;
            for (auto& parameter : parameters) static_cast<void>(parameter.gather());
            for (std::size_t i = parameters.size(); i-- > 0;) {
              const auto weights = parameters[i].gather();
              auto gradient = gradients[i].lease();
              add(context, gradient[0], 1);
              std::move(gradient).reduce();
            }
            if (clips) clip_gradient_norm(context, 1.0);
            for (std::size_t i = 0; i < 3; ++i) states[i].step(parameters[i], gradients[i]);
            if (clips) static_cast<void>(context.mean(0));
          }
          for (auto& parameter : parameters) static_cast<void>(parameter.gather());
          return 0;
        },
        calls.options());
    // Three reductions, the norm, the mean. Or: a wait before the first update, as the last lease
    // ended after the last reduction; and one after the last.
    CHECK(calls.count == 3 + 2);
  }
}

TEST_CASE("what ranks cannot share is refused on all of them, and says what to take instead") {
  const auto refused = [](int world, const Strategy& strategy,
                          const std::function<void(Context<Device>&)>& f) {
    return on_ranks(world, [&](Communicator& communicator) -> std::string {
      try {
        Context<Device> context(communicator, strategy);
        f(context);
      } catch (const UsageError& error) {
        return error.what();
      }
      return "nothing";
    });
  };
  const auto make = [](Context<Device>& context) {
    Parameter<float> parameter(context, {{"a", {64}}});
  };
  for (const Strategy& strategy : {Strategy::ddp(), Strategy::hybrid(1)}) {
    for (const std::string& error : refused(2, shared(strategy), make)) {
      CHECK_THAT(error, ContainsSubstring("take zero1") && ContainsSubstring("slots"));
    }
  }
  for (
      const std::string& error : refused(4, shared(Strategy::zero3()), [](auto& context) {
        Parameter<float> world(context, {{"world", {64}}});
        Parameter<float> pair(context, {{"pair", {64}}}, {.strategy = shared(Strategy::hybrid(2))});
      })) {
    CHECK_THAT(error, ContainsSubstring("'pair' is shared by groups of 2") &&
                          ContainsSubstring("groups of 4") && ContainsSubstring("slots"));
  }
  Strategy wrong = Strategy::zero3();
  for (const Residency residency : {Residency::in_place, Residency::host_buffer}) {
    wrong.residency = residency;
    for (const std::string& error : refused(2, wrong, make)) {
      CHECK_THAT(error, ContainsSubstring(std::string("found ") + std::string(name_of(residency))));
    }
  }
}

TEST_CASE("a communicator that does not say that its ranks share addresses is refused") {
  const auto errors = on_ranks(3, [](Communicator& communicator) -> std::string {
    SilentRank silent(communicator);
    CheckedCommunicator checked(silent);
    for (Communicator* comm :
         {static_cast<Communicator*>(&silent), static_cast<Communicator*>(&checked)}) {
      try {
        SharedLayers host(*comm, shared(Strategy::zero3()));
        return "nothing";
      } catch (const UsageError& error) {
        if (comm == &checked) return error.what();
      }
    }
    return "nothing";
  });
  for (const std::string& error : errors) {
    CHECK_THAT(error, ContainsSubstring("ranks on the CPUs of one machine") &&
                          ContainsSubstring("the silent communicator") &&
                          ContainsSubstring("use residency slots"));
  }
}

TEST_CASE("a shared gradient is refused: each rank writes its own") {
  const auto errors = on_ranks(2, [](Communicator& communicator) -> std::string {
    SharedLayers host(communicator, shared(Strategy::zero3()));
    try {
      Gradient<float> gradient(host.parameters[0], Residency::shared);
    } catch (const UsageError& error) {
      return error.what();
    }
    return "nothing";
  });
  for (const std::string& error : errors) {
    CHECK_THAT(error, ContainsSubstring("'a'") && ContainsSubstring("take slots"));
  }
}

TEST_CASE("communicators that pass others on share the memory of their ranks") {
  const auto wrong = on_ranks(3, [](Communicator& communicator) {
    CheckedCommunicator checked(communicator);
    SharedLayers host(checked, shared(Strategy::zero3()));
    return SharedLayers::wrong<float>(host.parameters[1], 0);
  });
  for (const std::size_t count : wrong) CHECK(count == 0);
}

TEST_CASE("a write to a shared parameter with a lease open is an error on all ranks") {
  const auto errors = on_ranks(3, [](Communicator& communicator) -> std::string {
    SharedLayers host(communicator, shared(Strategy::zero3()));
    const auto lease = host.parameters[0].gather();
    try {
      SharedLayers::write(host.parameters[0], 1);
    } catch (const UsageError& error) {
      return error.what();
    }
    return "nothing";
  });
  for (const std::string& error : errors) {
    CHECK_THAT(error, ContainsSubstring("'a'") && ContainsSubstring("release"));
  }
}

TEST_CASE("ranks that gather other shared parameters are told so in debug mode, by both names") {
  const auto ends = ends_of(3, [](Communicator& communicator) {
    SharedLayers host(communicator, shared(Strategy::zero3()), {.debug = true});
    static_cast<void>(host.context.mean(0));  // gathers are free from here on
    const auto lease = host.parameters[communicator.rank() == 1 ? 1 : 0].gather();
  });
  for (const std::string& end : ends) {
    CHECK_THAT(end, ContainsSubstring("CollectiveMismatch") && ContainsSubstring("\"a\"") &&
                        ContainsSubstring("\"b\""));
  }
}

TEST_CASE(
    "a rank that fails while others use what it shares ends them all, and frees nothing early") {
  for (const bool overlap : {false, true}) {
    for (const bool casts : {false, true}) {
      const auto ends = ends_of(3, [&](Communicator& communicator) {
        Strategy strategy = shared(Strategy::zero3());
        strategy.overlap = overlap;
        if (casts) strategy.lease = DType::bf16;
        SharedLayers host(communicator, strategy);
        const auto step = [&]<class L>(L) {
          for (int i = 0; i < 10; ++i) {
            for (auto& parameter : host.parameters) {
              if (SharedLayers::wrong<L>(parameter, i) > 0) throw std::logic_error("wrong values");
              if (i == 5 && communicator.rank() == 1) throw std::runtime_error("the disk is full");
            }
            for (auto& parameter : host.parameters) SharedLayers::write(parameter, i + 1);
          }
        };
        casts ? step(bf16{}) : step(float{});
      });
      CHECK_THAT(ends[1], ContainsSubstring("the disk is full"));
      for (const std::size_t rank : {0u, 2u}) {
        CHECK_THAT(ends[rank], ContainsSubstring("PeerFailed") && ContainsSubstring("rank 1") &&
                                   ContainsSubstring("the disk is full"));
      }
    }
  }
}

TEST_CASE("shared parameters come late, go, and are gathered all at once") {
  for (const int world : worlds) {
    for (const bool casts : {false, true}) {
      const auto wrong = on_ranks(world, [&](Communicator& communicator) {
        Strategy strategy = shared(Strategy::zero3());
        if (casts) strategy.lease = DType::bf16;
        SharedLayers host(communicator, strategy);
        std::size_t count = 0;
        const auto go = [&]<class L>(L) {
          count += SharedLayers::wrong<L>(host.parameters[0], 0);
          Parameter<float> none(host.context, {{"none", {0, 3}}});
          Parameter<float> tiny(host.context, {{"tiny", {1}}});
          {
            Parameter<float> late(host.context, {{"late", {90001}}});
            SharedLayers::write(late, 3);
            count += SharedLayers::wrong<L>(late, 3);
            count += SharedLayers::wrong<L>(host.parameters[1], 0);
            count += SharedLayers::wrong<L>(late, 3);
          }
          SharedLayers::write(tiny, 5);
          SharedLayers::write(host.parameters[1], 2);
          {
            const auto all = full_parameters(host.context);
            // One rank alone may gather here, and often.
            for (int i = 0; i < 3 && communicator.rank() == 0; ++i) {
              count += SharedLayers::wrong<L>(tiny, 5) + SharedLayers::wrong<L>(none, 0);
              count += SharedLayers::wrong<L>(host.parameters[1], 2);
            }
          }
          SharedLayers::write(host.parameters[1], 4);
          count += SharedLayers::wrong<L>(host.parameters[1], 4) +
                   SharedLayers::wrong<L>(host.parameters[0], 0);
        };
        casts ? go(bf16{}) : go(float{});
        if (host.context.held().parameters == 0) ++count;
        return count;
      });
      for (const std::size_t count : wrong) CHECK(count == 0);
    }
  }
}
