#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <functional>
#include <stdexcept>
#include <string>
#include <vector>

#include "support/toy.hpp"

using namespace shardwise;
using Catch::Matchers::ContainsSubstring;
using shardwise::test::worlds;

namespace {

/// Two layers in two stacked arrays, one of them large enough for pages of its own, in place or in
/// slots of the library.
class Host {
 public:
  static constexpr std::size_t layers = 2, wide = 60000, narrow = 100;

  Host(Communicator& communicator, bool in_place, const Strategy& strategy = Strategy::zero3(),
       std::chrono::nanoseconds timeout = std::chrono::seconds(30))
      : context(communicator, strategy, {.timeout = timeout, .debug = true}),
        weights(context, layers * (wide + narrow) * sizeof(float), "weights"),
        gradients(context, layers * (wide + narrow) * sizeof(float), "gradients") {
    const auto tensors = stacked(layers, {{"wide", weights.as<float>(), {wide}},
                                          {"narrow", narrow_of(weights, 0), {narrow}}});
    for (std::size_t l = 0; l < layers; ++l) {
      const ParameterOptions options{.name = fmt::format("layer.{}", l)};
      if (in_place) {
        parameter.emplace_back(context, tensors[l], options);
      } else {
        parameter.emplace_back(
            context, std::vector<TensorSpec>{tensors[l][0].spec, tensors[l][1].spec}, options);
      }
      parameter[l].initialize([](const auto&, std::size_t) { return 1.0f; });
    }
    for (auto& p : parameter) {
      if (in_place) {
        gradient.emplace_back(p, gradients);
      } else {
        gradient.emplace_back(p);
      }
      state.emplace_back(p);
    }
  }

  [[nodiscard]] static float* wide_of(const Arena& arena, std::size_t layer) {
    return arena.as<float>() + layer * wide;
  }
  [[nodiscard]] static float* narrow_of(const Arena& arena, std::size_t layer) {
    return arena.as<float>() + layers * wide + layer * narrow;
  }

  /// A step as it should be; `before(layer)` and `after(layer)` may do wrong.
  void step() {
    for (std::size_t l = 0; l < layers; ++l) {
      parameter[l].ensure_gathered();
      parameter[l].release();
    }
    for (std::size_t l = layers; l-- > 0;) {
      parameter[l].ensure_gathered();
      gradient[l].ensure_open();
      gradient[l].reduce();
      parameter[l].release();
    }
    clip_gradient_norm(context, 1.0);
    for (std::size_t l = 0; l < layers; ++l) state[l].step(parameter[l], gradient[l]);
  }

  Context<> context;
  Arena weights;
  Arena gradients;
  std::vector<ShardedParameter<float>> parameter;
  std::vector<ShardedGradient<float>> gradient;
  std::vector<ShardedOptimizerState<AdamW>> state;
};

/// What each rank's function threw: "Type: message".
std::vector<std::string> ends_of(int world, const std::function<void(Communicator&)>& f) {
  std::vector<std::string> ends(static_cast<std::size_t>(world));
  try {
    run_ranks(world, [&](Communicator& communicator) {
      std::string& end = ends[static_cast<std::size_t>(communicator.rank())];
      try {
        f(communicator);
      } catch (const CollectiveMismatch& error) {
        end = std::string("CollectiveMismatch: ") + error.what();
        throw;
      } catch (const UsageError& error) {
        end = std::string("UsageError: ") + error.what();
        throw;
      } catch (const PeerFailed& error) {
        end = std::string("PeerFailed: ") + error.what();
        throw;
      } catch (const TimedOut& error) {
        end = std::string("TimedOut: ") + error.what();
        throw;
      } catch (const std::exception& error) {
        end = std::string("other: ") + error.what();
        throw;
      }
    });
  } catch (const std::exception&) {
  }
  return ends;
}

/// Rank 0's mistake ends every rank, by the names in `parts`.
void check_all_end(int world, const std::vector<std::string>& parts,
                   const std::function<void(Communicator&)>& f) {
  const auto ends = ends_of(world, f);
  for (std::size_t rank = 0; rank < ends.size(); ++rank) {
    INFO("world " << world << " rank " << rank);
    CHECK_THAT(ends[rank],
               ContainsSubstring(rank == 0 || parts[0] != "UsageError" ? parts[0] : "PeerFailed"));
    for (std::size_t i = 1; i < parts.size(); ++i)
      CHECK_THAT(ends[rank], ContainsSubstring(parts[i]));
  }
}

volatile float sink = 0;

}  // namespace

TEST_CASE("debug mode: correct programs run") {
  for (const int world : worlds) {
    for (const bool in_place : {false, true}) {
      for (const char* name : {"ddp", "zero1", "zero2", "zero3", "zero3-no-reshard"}) {
        const auto ends = ends_of(world, [&](Communicator& communicator) {
          Host host(communicator, in_place, Strategy::parse(name));
          for (int i = 0; i < 3; ++i) host.step();
        });
        INFO(name << " world " << world << " in place " << in_place);
        for (const auto& end : ends) CHECK(end == "");
      }
    }
  }
}

TEST_CASE("debug mode: leaving out a gather is an error with the tensor's name on all ranks") {
  for (const int world : worlds) {
    check_all_end(
        world,
        {"UsageError", "rank 0 read element 30000 of tensor 'wide.1' of parameter 'layer.1'",
         "while it was not gathered"},
        [](Communicator& communicator) {
          Host host(communicator, true);
          host.step();
          if (communicator.rank() == 0) {
            const float value = Host::wide_of(host.weights, 1)[30000];
            if (!std::isnan(value)) throw std::runtime_error("not NaN");
            sink = value;
          }
          host.step();
        });
    // Where no page can be taken away the values are NaN.
    const auto ends = ends_of(world, [](Communicator& communicator) {
      Host host(communicator, true);
      host.step();
      if (!std::isnan(Host::narrow_of(host.weights, 1)[7])) throw std::runtime_error("not NaN");
      host.step();
    });
    for (const auto& end : ends) CHECK(end == "");
  }
}

TEST_CASE("debug mode: in slots, a view that outlives its lease is NaN") {
  const auto ends = ends_of(2, [](Communicator& communicator) {
    Host host(communicator, false);
    const float* kept = nullptr;
    {
      const auto lease = host.parameter[0].gather();
      kept = lease["narrow.0"].data();
    }
    if (!std::isnan(kept[5])) throw std::runtime_error("not NaN");
  });
  for (const auto& end : ends) CHECK(end == "");
}

TEST_CASE("debug mode: a write outside a lease is an error with a name on all ranks") {
  struct Case {
    const char* what;
    bool in_place;
    std::function<void(Host&)> wrong;
    std::string parameter;
  };
  const std::vector<Case> cases = {
      {"a released parameter's pages", true,
       [](Host& host) { Host::wide_of(host.weights, 0)[20000] = 1; },
       "wrote to element 20000 of tensor 'wide.0' of parameter 'layer.0'"},
      {"a released parameter's crumbs", true,
       [](Host& host) { Host::narrow_of(host.weights, 1)[3] = 1; },
       "wrote to element 3 of tensor 'narrow.1' of parameter 'layer.1'"},
      {"a released gradient's pages", true,
       [](Host& host) { Host::wide_of(host.gradients, 1)[10000] += 1; }, "of parameter 'layer.1'"},
      {"a released gradient's crumbs", true,
       [](Host& host) { Host::narrow_of(host.gradients, 0)[3] = 1; },
       "wrote to element 3 of tensor 'narrow.0' of parameter 'layer.0'"},
      {"a gathered parameter", true,
       [](Host& host) {
         host.parameter[0].ensure_gathered();
         Host::wide_of(host.weights, 0)[20000] = 1;
         host.parameter[0].release();
       },
       "wrote to element 20000 of tensor 'wide.0' of parameter 'layer.0'"},
      {"a released parameter's slot", false,
       [](Host& host) {
         float* kept = nullptr;
         {
           const auto lease = host.parameter[0].gather();
           kept = const_cast<float*>(lease["wide.0"].data());
         }
         kept[5] = 1;
       },
       "wrote to parameter 'layer.0' after it was released"},
      {"a reduced gradient's slot", false,
       [](Host& host) {
         auto lease = host.gradient[1].lease();
         float* const kept = lease["wide.1"].data();
         std::move(lease).reduce();
         host.context.barrier();
         (void)host.gradient[1].shard();
         kept[5] = 1;
       },
       "wrote to the gradient of 'layer.1' after its lease had ended"},
  };
  for (const int world : worlds) {
    for (const Case& wrong : cases) {
      INFO(wrong.what);
      check_all_end(world, {"UsageError", wrong.parameter}, [&](Communicator& communicator) {
        Host host(communicator, wrong.in_place);
        host.step();
        if (communicator.rank() == 0) {
          wrong.wrong(host);
        } else if (std::string(wrong.what) == "a gathered parameter") {
          host.parameter[0].ensure_gathered();
          host.parameter[0].release();
        } else if (std::string(wrong.what) == "a released parameter's slot") {
          (void)host.parameter[0].gather();
        } else if (std::string(wrong.what) == "a reduced gradient's slot") {
          auto lease = host.gradient[1].lease();
          std::move(lease).reduce();
          host.context.barrier();
          (void)host.gradient[1].shard();
        }
        host.step();
        host.step();
      });
    }
  }
}

TEST_CASE("debug mode: a gather on one rank alone, and another order, name both sides") {
  for (const bool in_place : {false, true}) {
    for (const int world : {2, 3, 4, 7}) {
      // Free for ddp, and so invisible without the debug mode.
      for (const char* name : {"ddp", "zero3"}) {
        INFO(name << " in place " << in_place);
        const Strategy strategy = Strategy::parse(name);
        check_all_end(world, {"CollectiveMismatch", "\"layer.1\"", "\"layer.0\""},
                      [&](Communicator& communicator) {
                        Host host(communicator, in_place, strategy);
                        host.step();
                        if (communicator.rank() == 0) (void)host.parameter[1].gather();
                        host.step();
                      });
        check_all_end(world, {"CollectiveMismatch", "\"layer.1\"", "\"layer.0\""},
                      [&](Communicator& communicator) {
                        Host host(communicator, in_place, strategy);
                        host.step();
                        const std::size_t first = communicator.rank() == 0 ? 1 : 0;
                        (void)host.parameter[first].gather();
                        (void)host.parameter[1 - first].gather();
                      });
      }
    }
  }
}

TEST_CASE("debug mode: a rank that does not come is named, with each rank's last calls") {
  for (const int world : {2, 3, 4, 7}) {
    const auto ends = ends_of(world, [](Communicator& communicator) {
      Host host(communicator, true, Strategy::zero3(), std::chrono::milliseconds(200));
      host.step();
      if (communicator.rank() == 0) {
        std::this_thread::sleep_for(std::chrono::milliseconds(600));
        host.context.barrier("too late");
      } else {
        (void)host.parameter[1].gather();
      }
    });
    for (const auto& end : ends) {
      CHECK_THAT(end, ContainsSubstring("missing ranks: 0"));
      CHECK_THAT(end, ContainsSubstring("all_gather #"));
      CHECK_THAT(end, ContainsSubstring("\"layer.1\""));
      CHECK_THAT(end, ContainsSubstring("rank 0 (missing): all_gather \"gradient_norm\"") ||
                          ContainsSubstring("rank 0 (missing): all_gather #"));
    }
  }
}

TEST_CASE("debug mode: an exception in one rank ends all, and says which") {
  for (const bool in_place : {false, true}) {
    for (const int world : {2, 3, 4, 7}) {
      const auto ends = ends_of(world, [&](Communicator& communicator) {
        Host host(communicator, in_place);
        host.step();
        host.parameter[0].ensure_gathered();
        if (communicator.rank() == 0) throw std::runtime_error("the host's data is bad");
        host.parameter[0].release();
        host.step();
      });
      CHECK(ends[0] == "other: the host's data is bad");
      for (std::size_t rank = 1; rank < ends.size(); ++rank) {
        CHECK_THAT(ends[rank],
                   ContainsSubstring("PeerFailed: rank 0 failed: the host's data is bad"));
        CHECK_THAT(ends[rank], ContainsSubstring("\"layer."));
      }
    }
  }
}
