#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <cstddef>
#include <string>
#include <utility>
#include <vector>

#include "support/ranks.hpp"
#include "support/sharing.hpp"
#include "support/toy.hpp"

using namespace shardwise;
using namespace shardwise::test;
using Catch::Matchers::ContainsSubstring;

namespace {

constexpr ArenaOptions of_all_ranks{.shared = true};

// In a shared arena or in slots: the same bits and traffic by the formula, and the planned bytes.
void check_trains_as_slots(ToyRun run, int world) {
  INFO(run.strategy.name() << " overlap " << run.strategy.overlap << " bucket "
                           << run.strategy.bucket_bytes << " threshold "
                           << run.strategy.persistence_threshold << " world " << world << " debug "
                           << run.debug << " micro-batches " << run.micro_batches);
  const auto train = [&] {
    return on_ranks(world, [&](Communicator& communicator) {
      return train_toy<float, float, float>(communicator, run);
    });
  };
  const auto slots = train();
  run.residency = Residency::in_place;
  run.arena = of_all_ranks;
  std::size_t parameters = 0;
  for (const ToyResult& result : train()) {
    check_trained_as(slots[0], result);
    parameters += result.held.parameters;
  }
  const Strategy strategy = run.strategy.in_world(world);
  const int groups = strategy.shard_group > 0 ? world / strategy.shard_group : 1;
  if (!run.wide)
    CHECK(parameters == toy_elements(world) * sizeof(float) * static_cast<std::size_t>(groups));
}

/// A C-style host: four layers of two stacked arrays behind a table, all in one allocation, with a
/// tensor of no elements.
struct FlatHost {
  static constexpr std::size_t layers = 4, wide = 3001, narrow = 7, table = 1500;
  static constexpr std::size_t elements = table + layers * (wide + narrow);

  explicit FlatHost(const Arena& arena)
      : wte(arena.as<float>()), big(wte + table), small(big + layers * wide) {}

  [[nodiscard]] std::vector<std::vector<HostTensor>> tensors() const {
    auto all = stacked(layers, {{"big", big, {wide}}, {"small", small, {narrow}}});
    all.insert(all.begin(), {{"wte", wte, {table}}, {"nothing", wte, {0}}});
    return all;
  }

  float* wte;
  float* big;
  float* small;
};

std::string complaint_of(const std::vector<std::string>& messages) {
  for (const std::string& message : messages) {
    if (message != messages[0]) return "ranks differ: " + messages[0] + " / " + message;
  }
  return messages[0];
}

}  // namespace

TEST_CASE("a shared arena trains as slots do") {
  for (const int world : worlds) {
    for (Strategy strategy : sharing_strategies()) {
      strategy.overlap = (world + strategy.prefetch) % 2 == 0;
      ToyRun run{.strategy = strategy, .micro_batches = world % 2 + 1};
      run.clip = world == 2 ? 1 : 0;
      check_trains_as_slots(run, world);
    }
  }
}
TEST_CASE("a shared arena trains as slots do: in groups, in debug mode, with larger tensors") {
  check_trains_as_slots({.strategy = Strategy::hybrid(2), .clip = 0.5}, 4);
  check_trains_as_slots({.strategy = Strategy::hybrid(2), .micro_batches = 2, .debug = true}, 2);
  check_trains_as_slots({.strategy = Strategy::zero3(), .debug = true}, 3);
  check_trains_as_slots({.strategy = Strategy::zero3(), .steps = 2, .wide = true}, 2);
}

TEST_CASE("pointers into a shared arena see what all ranks have written, and nothing moves") {
  for (const int world : worlds) {
    struct Seen {
      const float* wte = nullptr;
      std::vector<std::string> wrong;
    };
    const auto all = on_ranks(world, [&](Communicator& communicator) {
      Seen seen;
      const auto expect = [&](bool holds, const char* what) {
        if (!holds) seen.wrong.emplace_back(what);
      };
      Context<> context(communicator, Strategy::zero3(), {.open_parameters = FlatHost::layers + 1});
      Arena arena(context, FlatHost::elements * sizeof(float), "weights", of_all_ranks);
      const FlatHost host(arena);
      seen.wte = host.wte;
      const auto address = reinterpret_cast<std::uintptr_t>(arena.data());
      expect(address % 4096 == 0, "it begins at a page");
      bool zero = true;
      for (std::size_t i = 0; i < FlatHost::elements; ++i) zero = zero && host.wte[i] == 0;
      expect(zero, "it is zero at the beginning");
      barrier(communicator);  // before anybody writes
      std::vector<ShardedParameter<float>> parameters;
      for (const auto& tensors : host.tensors()) parameters.emplace_back(context, tensors);
      arena.check_coverage();
      expect(arena.recycled_bytes() == 0, "nothing comes and goes");
      for (std::size_t round = 0; round < 3; ++round) {
        const auto value = [&](std::size_t at) {
          return static_cast<float>(at % 8191 + 10 * round);
        };
        for (auto& parameter : parameters) {
          parameter.update_segments([&](std::span<const ShardSegment<float>> segments) {
            for (const auto& segment : segments) {
              const auto at = static_cast<std::size_t>(segment.elements.data() - host.wte);
              for (std::size_t i = 0; i < segment.elements.size(); ++i)
                segment.elements[i] = value(at + i);
            }
          });
        }
        for (auto& parameter : parameters) parameter.ensure_gathered();
        bool right = true;
        for (std::size_t i = 0; i < FlatHost::elements; ++i)
          right = right && host.wte[i] == value(i);
        expect(right, "every element is where the host expects it");
        for (auto& parameter : parameters) {
          const auto lease = parameter.gather();
          expect(lease.data() == nullptr, "a lease is no flat buffer");
        }
        expect(parameters[1].gather()[0].data() == host.big, "tensors are where the host has them");
        for (auto& parameter : parameters) parameter.release();
      }
      const Statistics& statistics = context.statistics();
      expect(statistics.shared == statistics.traffic.all_gather, "all traffic is by sharing");
      expect(statistics.cast == 0, "nothing is cast");
      return seen;
    });
    INFO("world " << world);
    for (const Seen& seen : all) {
      CHECK(seen.wrong == std::vector<std::string>());
      CHECK(seen.wte == all[0].wte);  // threads see one address
    }
  }
}

TEST_CASE("parameters in a shared arena come late, go, and leave zeros to the next") {
  for (const int world : worlds) {
    const auto all = on_ranks(world, [&](Communicator& communicator) -> int {
      bool right = true;
      Context<> context(communicator, Strategy::zero3());
      Arena arena(context, 1000 * sizeof(float), "weights", of_all_ranks);
      float* const host = arena.as<float>();
      const auto make = [&](const char* name, std::size_t first, std::size_t count) {
        return ShardedParameter<float>(context,
                                       std::vector<HostTensor>{{name, host + first, {count}}});
      };
      auto stays = make("stays", 0, 401);
      stays.initialize([](const auto&, std::size_t i) { return static_cast<float>(i); });
      {
        auto goes = make("goes", 401, 599);
        goes.initialize([](const auto&, std::size_t) { return 7.0f; });
        const auto both = gather(stays, goes);
        right = right && host[400] == 400 && host[401] == 7 && host[999] == 7;
      }
      auto late = make("late", 401, 599);
      const auto scope = full_parameters(context);
      for (std::size_t i = 401; i < 1000; ++i) right = right && host[i] == 0;
      return right && host[400] == 400;
    });
    for (const int right : all) CHECK(right == 1);
  }
}

TEST_CASE("a shared arena stays where it is, whatever is made and destroyed in it") {
  const auto all = on_ranks(2, [](Communicator& communicator) -> int {
    bool right = true;
    Context<> context(communicator, Strategy::zero3());
    Arena arena(context, std::size_t{1} << 20, "weights", of_all_ranks);
    const std::vector<HostTensor> tensors{{"w", arena.as<float>(), {arena.size() / sizeof(float)}}};
    for (int round = 0; round < 3; ++round) {
      const ShardedParameter<float> parameter(context, tensors);
      right = right && arena.recycled_bytes() == 0 && arena.resident_bytes() == arena.size();
    }
    return right && arena.recycled_bytes() == 0;
  });
  for (const int right : all) CHECK(right == 1);
}

TEST_CASE("what a shared arena cannot hold is refused on all ranks") {
  const auto complaint = [](const Strategy& strategy, const auto& body) {
    return complaint_of(on_ranks(3, [&](Communicator& communicator) -> std::string {
      try {
        Context<> context(communicator, strategy);
        Arena arena(context, 400, "weights", of_all_ranks);
        body(context, arena);
      } catch (const UsageError& error) {
        return error.what();
      }
      return "no error";
    }));
  };
  const auto tensors = [](Arena& arena) {
    return std::vector<HostTensor>{{"w", arena.as<float>(), {100}}};
  };
  const auto nothing = [](auto&, auto&) {};
  CHECK_THAT(complaint(Strategy::ddp(), nothing), ContainsSubstring("take zero1"));
  Strategy cast = Strategy::zero3();
  cast.lease = DType::bf16;
  CHECK_THAT(
      complaint(cast,
                [&](auto& context, auto& arena) {
                  const std::vector<HostTensor> halves{{"w", arena.template as<bf16>(), {9}}};
                  ShardedParameter<float>(context, halves);
                }),
      ContainsSubstring("'w' is f32 in a shared arena, but its leases are bf16"));
  CHECK_THAT(complaint(Strategy::zero3(),
                       [&](auto& context, auto& arena) {
                         ShardedParameter<float> parameter(context, tensors(arena));
                         ShardedGradient<float>(parameter, arena);
                       }),
             ContainsSubstring("gradient of 'w'") && ContainsSubstring("without"));
  CHECK_THAT(complaint(Strategy::zero3(),
                       [&](auto& context, auto& arena) {
                         ShardedParameter<float> parameter(context, tensors(arena));
                         parameter.update([](std::span<float>) {});
                       }),
             ContainsSubstring("update_segments()"));
  CHECK_THAT(complaint(Strategy::zero3(),
                       [&](auto& context, auto& arena) {
                         ShardedParameter<float> parameter(context, tensors(arena));
                         parameter.ensure_gathered();
                         parameter.update_segments([](auto) {});
                       }),
             ContainsSubstring("'w' while 1 lease(s)"));
  Strategy groups = Strategy::hybrid(1);
  CHECK_THAT(complaint(groups, nothing), ContainsSubstring("take zero1"));
}

TEST_CASE("parameters of other groups than a shared arena's are refused") {
  const auto all = on_ranks(4, [&](Communicator& communicator) -> std::string {
    Context<> context(communicator, Strategy::zero3());
    Arena arena(context, 400, "weights", of_all_ranks);
    const std::vector<HostTensor> tensors{{"w", arena.as<float>(), {100}}};
    try {
      ShardedParameter<float>(context, tensors, {.strategy = Strategy::hybrid(2)});
    } catch (const UsageError& error) {
      ShardedParameter<float>(context, tensors);  // nothing has changed
      return error.what();
    }
    return "no error";
  });
  CHECK_THAT(complaint_of(all), ContainsSubstring("groups of 2 ranks, but arena 'weights'"));
}

TEST_CASE("ranks that make shared arenas of different sizes are told so by name") {
  const auto all = on_ranks(2, [&](Communicator& communicator) -> std::string {
    try {
      Context<> context(communicator, Strategy::zero3());
      Arena arena(context, communicator.rank() == 0 ? 400 : 800, "weights", of_all_ranks);
    } catch (const Error& error) {
      return error.what();
    }
    return "no error";
  });
  for (const std::string& message : all) CHECK_THAT(message, ContainsSubstring("weights"));
}
