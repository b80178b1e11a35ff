#include <algorithm>
#include <atomic>
#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <string>
#include <string_view>
#include <tuple>
#include <utility>
#include <vector>

#include "support/device.hpp"
#include "support/ranks.hpp"
#include "support/sanitized.hpp"

using namespace shardwise;
using namespace shardwise::test;
using Catch::Matchers::ContainsSubstring;

namespace {

struct Grouping {
  int world;
  int size;
};
const Grouping groupings[] = {{2, 1}, {2, 2}, {4, 2}, {6, 2}, {6, 3}, {8, 2}, {8, 4}};

std::vector<TensorSpec> tensors() { return {{"weight", {37, 11}}, {"none", {0}}, {"bias", {5}}}; }

float value_at(const Layout::Tensor& tensor, std::size_t element) {
  return noise(tensor.count, 3, element);
}

/// What one rank sees of a parameter and of the mean of its gradients.
struct Held {
  std::size_t first = 0;  // of the shard in the flat buffer
  std::vector<float> shard;
  std::vector<float> gradient;
  std::vector<float> gathered;
};

Held hold(Communicator& communicator, const Strategy& strategy) {
  Context<Device> context(communicator, strategy);
  Parameter<float> parameter(context, tensors());
  Gradient<float> gradient(parameter);
  parameter.initialize(value_at);
  Held held;
  {
    auto weights = parameter.gather();
    for (const Layout::Tensor& tensor : parameter.layout().tensors()) {
      const auto values = to_host(context, std::span<const float>(weights[tensor.name]));
      held.gathered.insert(held.gathered.end(), values.begin(), values.end());
    }
  }
  {
    auto lease = gradient.lease();
    for (const Layout::Tensor& tensor : parameter.layout().tensors()) {
      fill(context, std::span<float>(lease[tensor.name]), [&](std::size_t i) {
        return noise(static_cast<std::uint64_t>(context.rank()), tensor.count, i);
      });
    }
    std::move(lease).reduce();
  }
  held.shard = to_host(context, parameter.shard());
  held.gradient = to_host(context, gradient.shard());
  held.first = parameter.flat().owned_begin();
  return held;
}

}  // namespace

TEST_CASE("each rank of a group holds a part, and each group everything") {
  for (const Grouping& grouping : groupings) {
    const int world = grouping.world;
    const int size = grouping.size;
    const auto whole = on_ranks(world, [](Communicator& c) { return hold(c, Strategy::ddp()); })[0];
    const auto groups =
        on_ranks(world, [size](Communicator& c) { return hold(c, Strategy::hybrid(size)); });
    for (int rank = 0; rank < world; ++rank) {
      INFO("rank " << rank << " of " << world << " in groups of " << size);
      const Held& held = groups[static_cast<std::size_t>(rank)];
      const auto part = static_cast<std::size_t>(size == 1 ? 1 : size);
      REQUIRE(held.shard.size() == whole.shard.size() / part);
      CHECK(held.first == static_cast<std::size_t>(rank % size) * held.shard.size());
      const auto begin = static_cast<std::ptrdiff_t>(held.first);
      CHECK(std::equal(held.shard.begin(), held.shard.end(), whole.shard.begin() + begin));
      CHECK(held.gathered == whole.gathered);
      REQUIRE(held.gradient.size() == held.shard.size());
      if (size != 3) {
        CHECK(
            std::equal(held.gradient.begin(), held.gradient.end(), whole.gradient.begin() + begin));
        continue;
      }
      // Another order of at most six numbers below one half: an ulp or two of their sum.
      for (std::size_t i = 0; i < held.gradient.size(); ++i) {
        CHECK(std::abs(held.gradient[i] - whole.gradient[held.first + i]) < 1e-6f);
      }
    }
  }
}

TEST_CASE("values are read, broadcast and loaded alike in groups") {
  for (const Grouping& grouping : groupings) {
    const int world = grouping.world;
    const int size = grouping.size;
    const auto results = on_ranks(world, [size](Communicator& communicator) {
      Context<Device> context(communicator, Strategy::hybrid(size));
      Parameter<float> parameter(context, tensors());
      const int root = communicator.size() - 1;
      parameter.broadcast(root, [](const auto& tensor, std::size_t first, std::span<float> out) {
        for (std::size_t i = 0; i < out.size(); ++i) out[i] = value_at(tensor, first + i);
      });
      std::size_t wrong = 0;
      std::size_t seen = 0;
      const auto compare = [&](const auto& tensor, std::size_t first, auto values) {
        seen += values.size();
        for (std::size_t i = 0; i < values.size(); ++i) {
          wrong += values[i] != value_at(tensor, first + i);
        }
      };
      parameter.read(compare);
      {
        auto everything = full_parameters(context);
        auto weights = parameter.gather();
        for (const Layout::Tensor& tensor : parameter.layout().tensors()) {
          const auto values = to_host(context, std::span<const float>(weights[tensor.name]));
          compare(tensor, 0, std::span<const float>(values));
        }
      }
      return std::make_pair(wrong, seen == 2 * parameter.layout().size());
    });
    INFO("world " << world << " in groups of " << size);
    for (const auto& [wrong, complete] : results) {
      CHECK(wrong == 0);
      CHECK(complete);
    }
  }
}

TEST_CASE("weights of uneven batches count once in groups, too") {
  const auto reduce = [](Communicator& communicator, const Strategy& strategy) {
    Context<Device> context(communicator, strategy);
    Parameter<float> parameter(context, tensors());
    Gradient<float> gradient(parameter);
    const auto weight = context.weigh(1 + context.rank() * context.rank());
    for (int micro = 0; micro < 2; ++micro) {
      auto lease = gradient.lease();
      fill(context, std::span<float>(lease["weight"]), [&](std::size_t i) {
        return noise(static_cast<std::uint64_t>(context.rank() + 100 * micro), 1, i);
      });
      std::move(lease).reduce(weight);
    }
    const double norm = gradient_norm(context);
    std::vector<float> shard = to_host(context, gradient.shard());
    return std::make_tuple(shard, parameter.flat().owned_begin(), norm);
  };
  for (const Grouping& grouping : groupings) {
    const int world = grouping.world;
    const int size = grouping.size;
    if (size == 3) continue;
    const auto [whole, begin, norm] =
        on_ranks(world, [&](Communicator& c) { return reduce(c, Strategy::ddp()); })[0];
    INFO("world " << world << " in groups of " << size);
    for (const auto& [shard, first, part_norm] :
         on_ranks(world, [&](Communicator& c) { return reduce(c, Strategy::hybrid(size)); })) {
      CHECK(std::equal(shard.begin(), shard.end(),
                       whole.begin() + static_cast<std::ptrdiff_t>(first)));
      CHECK(part_norm == norm);
    }
  }
}

TEST_CASE("parameters of several groupings live in one context") {
  const auto train = [](Communicator& communicator, bool mixed) {
    Context<Device> context(communicator, Strategy::zero3(), {.open_parameters = 4});
    std::vector<Parameter<float>> parameters;
    std::vector<Gradient<float>> gradients;
    std::vector<State<AdamW>> states;
    const Strategy own[] = {Strategy::hybrid(2), Strategy::zero3(), Strategy::hybrid(4),
                            Strategy::parse("hybrid-zero1-2")};
    for (int i = 0; i < 4; ++i) {
      ParameterOptions options;
      if (mixed) options.strategy = own[i];
      parameters.emplace_back(context, tensors(), options);
      parameters.back().initialize(value_at);
    }
    for (auto& parameter : parameters) {
      gradients.emplace_back(parameter);
      states.emplace_back(parameter);
    }
    std::vector<float> values;
    for (int step = 0; step < 3; ++step) {
      auto all = gather(parameters[0], parameters[1], parameters[2], parameters[3]);
      const auto seen = to_host(context, std::span<const float>(std::get<3>(all)["weight"]));
      for (std::size_t i = 0; i < 4; ++i) {
        auto lease = gradients[i].lease();
        fill(context, std::span<float>(lease["weight"]), [&](std::size_t k) {
          return seen[k] + noise(static_cast<std::uint64_t>(context.rank()), i, k);
        });
        std::move(lease).reduce();
      }
      std::apply([](auto&... lent) { (lent.release(), ...); }, all);
      clip_gradient_norm(context, 0.1);
      for (std::size_t i = 0; i < 4; ++i) states[i].step(parameters[i], gradients[i]);
    }
    const bool exact = context.held() == context.plan().bytes;
    for (auto& parameter : parameters) {
      parameter.read([&](const auto&, std::size_t, std::span<const float> part) {
        values.insert(values.end(), part.begin(), part.end());
      });
    }
    return std::make_pair(values, exact);
  };
  const auto expected = on_ranks(4, [&](Communicator& c) { return train(c, false); })[0];
  for (const auto& [values, exact] : on_ranks(4, [&](Communicator& c) { return train(c, true); })) {
    CHECK(values == expected.first);
    CHECK(exact);
  }
}

TEST_CASE("sums of groups take memory of their own only where nothing else can hold them") {
  const auto partials = [](Strategy strategy, DType lease, DType stored) {
    strategy.lease = lease;
    return on_ranks(4, [&](Communicator& communicator) {
      Context<Device> context(communicator, strategy);
      Parameter<float> parameter(context, tensors());
      return dispatch_floating(stored, [&]<class Stored>() {
        Gradient<Stored> gradient(parameter);
        const MemoryPlan plan = context.plan();
        context.prepare();
        const std::size_t shard = parameter.flat().shard_size();
        const bool exact = plan.partials % shard == 0 && context.held() == plan.bytes;
        return exact ? plan.partials / shard : 99;  // bytes for each element of a shard
      });
    })[0];
  };
  Strategy holding = Strategy::hybrid(2);
  holding.accumulation = Accumulation::hold;
  CHECK(partials(Strategy::hybrid(2), DType::f32, DType::f32) == 0);   // in the lease
  CHECK(partials(Strategy::hybrid(2), DType::f32, DType::bf16) == 0);  // in the lease
  CHECK(partials(Strategy::hybrid(2), DType::bf16, DType::f32) == 4);
  CHECK(partials(holding, DType::bf16, DType::f32) == 0);  // where the result goes
  CHECK(partials(holding, DType::bf16, DType::bf16) == 4);
  CHECK(partials(Strategy::hybrid(4), DType::bf16, DType::f32) == 0);  // one group
  CHECK(partials(Strategy::hybrid(1), DType::bf16, DType::f32) == 0);
}

TEST_CASE("bytes are counted within groups and across them, by the formula") {
  for (const Grouping& grouping : groupings) {
    const int world = grouping.world;
    const int size = grouping.size;
    for (const DType lease : {DType::f32, DType::bf16}) {
      Strategy strategy = Strategy::hybrid(size);
      strategy.lease = lease;
      const auto [traffic, padded] = on_ranks(world, [&](Communicator& communicator) {
        return dispatch_floating(lease, [&]<class L>() {
          Context<Device> context(communicator, strategy);
          Parameter<float> parameter(context, tensors());
          Gradient<float> gradient(parameter);
          parameter.initialize(value_at);
          static_cast<void>(parameter.template gather<L>());
          for (int micro = 0; micro < 3; ++micro) {
            auto contribution = gradient.template lease<L>();
            std::move(contribution).reduce();
          }
          context.barrier();
          return std::make_pair(context.statistics().traffic, parameter.layout().padded_size());
        });
      })[0];
      INFO("world " << world << " in groups of " << size << " as " << name_of(lease));
      const auto n = static_cast<std::size_t>(world);
      const auto g = static_cast<std::size_t>(size);
      const std::size_t bytes = padded * size_of(lease);
      if (size == 1) {
        CHECK(traffic.all_gather == 0);
        CHECK(traffic.reduce_scatter == 0);
        CHECK(traffic.all_reduce == 3 * 2 * bytes / n * (n - 1));
        CHECK(traffic.across_groups == 0);
        continue;
      }
      CHECK(traffic.all_gather == bytes / g * (g - 1));
      CHECK(traffic.reduce_scatter == 3 * (bytes / g * (g - 1)));
      CHECK(traffic.all_reduce == 3 * 2 * (padded * 4 / g / n * (n - g)));
      CHECK(traffic.across_groups == traffic.all_reduce);
      CHECK(traffic.reduce_scatter_calls == 3);
      CHECK(traffic.all_reduce_calls == (size == world ? 0u : 3u));
    }
  }
}

TEST_CASE("groups that cannot be are refused on all ranks") {
  const auto refusal = [](int world, const Strategy& strategy, bool of_parameter) {
    const auto results = on_ranks(world, [&](Communicator& communicator) -> std::string {
      try {
        Context<Device> context(communicator, of_parameter ? Strategy::zero3() : strategy);
        Parameter<float> parameter(context, tensors(), {.strategy = strategy});
      } catch (const UsageError& error) {
        return error.what();
      }
      return "";
    });
    CHECK(std::all_of(results.begin(), results.end(),
                      [&](const std::string& text) { return text == results[0]; }));
    return results[0];
  };
  for (const bool of_parameter : {false, true}) {
    CHECK_THAT(refusal(4, Strategy::hybrid(3), of_parameter),
               ContainsSubstring("shard_group = 3 does not divide a world of 4 ranks"));
    CHECK_THAT(refusal(4, Strategy::hybrid(8), of_parameter),
               ContainsSubstring("shard_group = 8 does not divide a world of 4 ranks"));
    CHECK_THAT(refusal(2, Strategy::hybrid(-2), of_parameter), ContainsSubstring("not negative"));
    Strategy nothing = Strategy::ddp();
    nothing.shard_group = 2;
    CHECK_THAT(refusal(2, nothing, of_parameter), ContainsSubstring("nothing is sharded"));
  }
}

TEST_CASE("ranks that shard in different groups are told so") {
  CHECK_THROWS_AS(on_ranks(
                      4,
                      [](Communicator& communicator) {
                        const int size = communicator.rank() == 3 ? 4 : 2;
                        Context<Device> context(communicator, Strategy::hybrid(size));
                        Parameter<float> parameter(context, tensors());
                        return 0;
                      },
                      checked()),
                  CollectiveMismatch);
}

TEST_CASE("a rank that fails between a group and the others ends every rank's step") {
  if (!on_host) SKIP("the backend's own tests have this");
  for (int failing = 0; failing < 4; ++failing) {
    std::atomic<int> told{0};
    const auto train = [&](Communicator& communicator) {
      Context<Device> context(communicator, Strategy::hybrid(2));
      Parameter<float> first(context, tensors(), {.name = "first"});
      Parameter<float> second(context, tensors(), {.name = "second"});
      Gradient<float> gradient(first);
      Gradient<float> other(second);
      try {
        for (int step = 0; step < 3; ++step) {
          if (step == 1 && context.rank() == failing) throw std::runtime_error("no more");
          auto a = gradient.lease();
          std::move(a).reduce();
          auto b = other.lease();
          std::move(b).reduce();
          static_cast<void>(gradient.shard());
          static_cast<void>(other.shard());
          gradient.consume();
          other.consume();
        }
      } catch (const PeerFailed& error) {
        const std::string_view what = error.what();
        if (what.find("no more") != what.npos || heard_early(what)) ++told;
        throw;
      }
    };
    CHECK_THROWS_WITH(run_ranks(4, train), "no more");
    CHECK(told == 3);
  }
}
