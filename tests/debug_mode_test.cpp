#include <atomic>
#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <functional>
#include <span>
#include <stdexcept>
#include <string>
#include <thread>
#include <tuple>
#include <vector>

#include "support/debug_host.hpp"
#include "support/endings.hpp"

using namespace shardwise;
using namespace shardwise::test;
using Catch::Matchers::ContainsSubstring;

namespace {

using SlotHost = DebugHost<InSlots>;

#ifdef SHARDWISE_TEST_CUDA
using Hosts = std::tuple<SlotHost>;
#else
struct InArenas {
  static constexpr bool in_place = true;
  InArenas(Context<>& context, std::size_t bytes)
      : weights(context, bytes, "weights"), gradients(context, bytes, "gradients") {}

  Arena weights;
  Arena gradients;
};
using ArenaHost = DebugHost<InArenas>;
using Hosts = std::tuple<SlotHost, ArenaHost>;

volatile float sink = 0;
#endif

/// What a host keeps of a lease that has ended.
template <class T>
std::span<float> kept(TensorView<T> view) {
  return {const_cast<float*>(view.data()), view.size()};
}

}  // namespace

TEMPLATE_LIST_TEST_CASE("debug mode: correct programs run", "", Hosts) {
  for (const int world : worlds) {
    for (const char* name : {"ddp", "zero1", "zero2", "zero3", "zero3-no-reshard"}) {
      const auto ends = ends_of(world, [&](Communicator& communicator) {
        TestType host(communicator, Strategy::parse(name));
        for (int i = 0; i < 3; ++i) host.step();
      });
      INFO(name << " world " << world);
      for (const auto& end : ends) CHECK(end == "");
    }
  }
}

TEMPLATE_LIST_TEST_CASE(
    "debug mode: a gather on one rank alone, and another order, name both sides", "", Hosts) {
  for (const int world : {2, 3, 4, largest_world}) {
    // Free for ddp, and so invisible without the debug mode.
    for (const char* name : {"ddp", "zero3"}) {
      INFO(name);
      const Strategy strategy = Strategy::parse(name);
      check_all_end(
          world, {"CollectiveMismatch", "\"layer.1\"", "\"layer.0\""},
          [&](Communicator& communicator) {
            TestType host(communicator, strategy);
            host.step();
            if (communicator.rank() == 0) (void)host.parameter[1].gather();
            host.step();
          },
          checked());
      check_all_end(
          world, {"CollectiveMismatch", "\"layer.1\"", "\"layer.0\""},
          [&](Communicator& communicator) {
            TestType host(communicator, strategy);
            host.step();
            const std::size_t first = communicator.rank() == 0 ? 1 : 0;
            (void)host.parameter[first].gather();
            (void)host.parameter[1 - first].gather();
          },
          checked());
    }
  }
}

TEMPLATE_LIST_TEST_CASE(
    "debug mode: a rank that does not come is named, with each rank's last calls", "", Hosts) {
  for (const int world : {2, 3, 4, largest_world}) {
    std::atomic<int> ended{0};
    const auto ends = ends_of(world, [&](Communicator& communicator) {
      const CountsEnd end{ended};
      TestType host(communicator, Strategy::zero3(), patience(400));
      host.step();
      if (communicator.rank() == 0) {
        while (ended < world - 1) std::this_thread::sleep_for(std::chrono::milliseconds(1));
        host.context.barrier("too late");
      } else {
        const auto lease = host.parameter[1].gather();
        host.context.stream().synchronize();
        host.context.barrier();  // a device's collective fails here at the latest
      }
    });
    std::size_t early = 0;
    for (const auto& end : ends) {
      if (gave_up_early(end)) {
        ++early;
        continue;
      }
      CHECK_THAT(end, ContainsSubstring("missing ranks: 0"));
      CHECK_THAT(end, ContainsSubstring("all_gather #"));
      CHECK_THAT(end, ContainsSubstring("\"layer.1\""));
      CHECK_THAT(end, ContainsSubstring("rank 0 (missing): all_gather \"gradient_norm\"") ||
                          ContainsSubstring("rank 0 (missing): all_gather #"));
    }
    CHECK(early < ends.size() - 1);
  }
}

TEMPLATE_LIST_TEST_CASE("debug mode: an exception in one rank ends all, and says which", "",
                        Hosts) {
  for (const int world : {2, 3, 4, largest_world}) {
    const auto ends = ends_of(world, [&](Communicator& communicator) {
      TestType host(communicator);
      host.step();
      host.parameter[0].ensure_gathered();
      if (communicator.rank() == 0) throw std::runtime_error("the host's data is bad");
      host.parameter[0].release();
      host.step();
    });
    CHECK(ends[0] == "other: the host's data is bad");
    for (std::size_t rank = 1; rank < ends.size(); ++rank) {
      if (heard_early(ends[rank])) continue;
      CHECK_THAT(ends[rank],
                 ContainsSubstring("PeerFailed: rank 0 failed: the host's data is bad"));
      // On a device a rank may hear of it where it has not yet seen the end of the step before, or
      // between two calls.
      CHECK_THAT(ends[rank],
                 ContainsSubstring(fmt::format("while rank {} was in ", rank)) &&
                     (ContainsSubstring("\"layer.") || ContainsSubstring("\"gradient_norm\"") ||
                      ContainsSubstring("was in no call")));
    }
  }
}

TEST_CASE("debug mode: in slots, a view that outlives its lease is NaN") {
  const auto ends = ends_of(2, [](Communicator& communicator) {
    SlotHost host(communicator);
    std::span<float> view;
    {
      const auto lease = host.parameter[0].gather();
      view = kept(lease["narrow.0"]);
    }
    host.context.barrier();
    if (!std::isnan(at(host.context, view, 5))) throw std::runtime_error("not NaN");
  });
  for (const auto& end : ends) CHECK(end == "");
}

TEST_CASE("debug mode: in slots, a write outside a lease is an error with a name on all ranks") {
  struct Case {
    const char* what;
    std::function<void(SlotHost&, bool writes)> wrong;
    std::string parameter;
  };
  const std::vector<Case> cases = {
      {"a released parameter's slot",
       [](SlotHost& host, bool writes) {
         std::span<float> view;
         {
           const auto lease = host.parameter[0].gather();
           view = kept(lease["wide.0"]);
         }
         host.context.barrier();
         if (writes) fill(host.context, view.subspan(5, 1), [](std::size_t) { return 1; });
       },
       "wrote to parameter 'layer.0' after it was released"},
      {"a reduced gradient's slot",
       [](SlotHost& host, bool writes) {
         auto lease = host.gradient[1].lease();
         const auto view = kept(lease["wide.1"]);
         std::move(lease).reduce();
         host.context.barrier();
         (void)host.gradient[1].shard();
         if (writes) fill(host.context, view.subspan(5, 1), [](std::size_t) { return 1; });
       },
       "wrote to the gradient of 'layer.1' after its lease had ended"},
  };
  for (const int world : worlds) {
    for (const Case& given : cases) {
      INFO(given.what);
      check_all_end(world, {"UsageError", given.parameter}, [&](Communicator& communicator) {
        SlotHost host(communicator);
        host.step();
        given.wrong(host, communicator.rank() == 0);
        host.step();
        host.step();
      });
    }
  }
}

#ifndef SHARDWISE_TEST_CUDA  // arenas are of the host

TEST_CASE(
    "debug mode: in place, leaving out a gather is an error with the tensor's name on all ranks") {
  for (const int world : worlds) {
    check_all_end(
        world,
        {"UsageError", "rank 0 read element 30000 of tensor 'wide.1' of parameter 'layer.1'",
         "while it was not gathered"},
        [](Communicator& communicator) {
          ArenaHost host(communicator);
          host.step();
          if (communicator.rank() == 0) {
            const float value = ArenaHost::wide_of(host.place.weights, 1)[30000];
            if (!std::isnan(value)) throw std::runtime_error("not NaN");
            sink = value;
          }
          host.step();
        });
    // Where no page can be taken away the values are NaN.
    const auto ends = ends_of(world, [](Communicator& communicator) {
      ArenaHost host(communicator);
      host.step();
      if (!std::isnan(ArenaHost::narrow_of(host.place.weights, 1)[7]))
        throw std::runtime_error("not NaN");
      host.step();
    });
    for (const auto& end : ends) CHECK(end == "");
  }
}

TEST_CASE("debug mode: in place, a write outside a lease is an error with a name on all ranks") {
  struct Case {
    const char* what;
    std::function<void(ArenaHost&)> wrong;
    std::string parameter;
  };
  const std::vector<Case> cases = {
      {"a released parameter's pages",
       [](ArenaHost& host) { ArenaHost::wide_of(host.place.weights, 0)[20000] = 1; },
       "wrote to element 20000 of tensor 'wide.0' of parameter 'layer.0'"},
      {"a released parameter's crumbs",
       [](ArenaHost& host) { ArenaHost::narrow_of(host.place.weights, 1)[3] = 1; },
       "wrote to element 3 of tensor 'narrow.1' of parameter 'layer.1'"},
      {"a released gradient's pages",
       [](ArenaHost& host) { ArenaHost::wide_of(host.place.gradients, 1)[10000] += 1; },
       "of parameter 'layer.1'"},
      {"a released gradient's crumbs",
       [](ArenaHost& host) { ArenaHost::narrow_of(host.place.gradients, 0)[3] = 1; },
       "wrote to element 3 of tensor 'narrow.0' of parameter 'layer.0'"},
      {"a gathered parameter",
       [](ArenaHost& host) {
         host.parameter[0].ensure_gathered();
         ArenaHost::wide_of(host.place.weights, 0)[20000] = 1;
         host.parameter[0].release();
       },
       "wrote to element 20000 of tensor 'wide.0' of parameter 'layer.0'"},
  };
  for (const int world : worlds) {
    for (const Case& wrong : cases) {
      INFO(wrong.what);
      check_all_end(world, {"UsageError", wrong.parameter}, [&](Communicator& communicator) {
        ArenaHost host(communicator);
        host.step();
        if (communicator.rank() == 0) {
          wrong.wrong(host);
        } else if (std::string(wrong.what) == "a gathered parameter") {
          host.parameter[0].ensure_gathered();
          host.parameter[0].release();
        }
        host.step();
        host.step();
      });
    }
  }
}

#endif
