// Residency in_place where a driver maps a device's memory.

#include <algorithm>
#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <chrono>
#include <cstddef>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "emulation/control.hpp"
#include "support/device.hpp"
#include "support/ranks.hpp"
#include "support/toy.hpp"

using namespace shardwise;
using namespace shardwise::test;
using Catch::Matchers::ContainsSubstring;

namespace {

/// A host with one flat allocation: five layers of two stacked arrays behind a table. The large
/// arrays have two or three granules inside, the others none.
struct FlatHost {
  static constexpr std::size_t layers = 5, narrow = 301;

  explicit FlatHost(std::size_t granule) : table(granule / 6), wide(granule / 4 * 7 / 2 + 1) {}

  [[nodiscard]] std::size_t elements() const { return table + layers * (wide + narrow); }
  void at(float* begin) {
    wte = begin;
    big = wte + table;
    small = big + layers * wide;
  }
  [[nodiscard]] std::vector<std::vector<HostTensor>> blocks() const {
    return stacked(layers, {{"big", big, {wide}}, {"small", small, {narrow}, {.weight_decay = 0}}});
  }
  [[nodiscard]] std::span<float> big_of(std::size_t layer) const {
    return {big + layer * wide, wide};
  }
  [[nodiscard]] std::span<float> small_of(std::size_t layer) const {
    return {small + layer * narrow, narrow};
  }

  std::size_t table;
  std::size_t wide;
  float* wte = nullptr;
  float* big = nullptr;
  float* small = nullptr;
};

std::size_t granule() {
  const CudaVirtualMemory memory;
  return memory.granule();
}

float value_of(std::size_t layer, std::size_t element) {
  return static_cast<float>(1000 * layer + element % 997);
}

struct Seen {
  std::vector<std::string> wrong;
  void expect(bool holds, const std::string& what) {
    if (!holds && wrong.size() < 6) wrong.push_back(what);
  }
};

void check(const std::vector<Seen>& all, int world) {
  for (const Seen& seen : all) {
    INFO("world " << world);
    CHECK(seen.wrong == std::vector<std::string>());
  }
}

/// The parameters of a FlatHost, with their values.
struct Trainer {
  Context<Device> context;
  FlatHost host{granule()};
  FlatHost gradient_host{granule()};
  DeviceArena<Device> arena;
  DeviceArena<Device> gradient_arena;
  std::vector<Parameter<float>> blocks;
  std::vector<Gradient<float>> gradients;

  Trainer(Communicator& communicator, const Strategy& strategy, const ContextOptions& options = {})
      : context(communicator, strategy, options),
        arena(context, host.elements() * sizeof(float), "weights"),
        gradient_arena(context, host.elements() * sizeof(float), "gradients") {
    host.at(arena.as<float>());
    gradient_host.at(gradient_arena.as<float>());
    for (const auto& tensors : host.blocks()) blocks.emplace_back(context, tensors);
    blocks.emplace_back(context, std::vector<HostTensor>{{"wte", host.wte, {host.table}}});
    arena.check_coverage();
    for (auto& block : blocks) gradients.emplace_back(block, gradient_arena);
    for (std::size_t l = 0; l < blocks.size(); ++l) {
      blocks[l].initialize([&](const auto&, std::size_t i) { return value_of(l, i); });
    }
  }

  [[nodiscard]] bool holds(std::span<float> elements, std::size_t layer) {
    const auto copy = to_host(context, elements);
    for (std::size_t i = 0; i < copy.size(); ++i) {
      if (copy[i] != value_of(layer, i)) return false;
    }
    return true;
  }
};

}  // namespace

TEST_CASE("a gather fills the host's own addresses, and gradients add up there") {
  for (const int world : {1, 2, 3, 4}) {
    for (const int ahead : {0, 1, 2}) {
      Strategy strategy = Strategy::zero3();
      strategy.prefetch = ahead;
      check(on_ranks(world,
                     [&](Communicator& communicator) {
                       Seen seen;
                       Trainer t(communicator, strategy);
                       for (int round = 0; round < 3; ++round) {
                         for (std::size_t l = 0; l < FlatHost::layers; ++l) {
                           t.blocks[l].ensure_gathered();
                           if (l + 1 < FlatHost::layers) t.blocks[l + 1].prefetch();
                           seen.expect(
                               t.holds(t.host.big_of(l), l) && t.holds(t.host.small_of(l), l),
                               fmt::format("layer {} is where the host expects it", l));
                           t.blocks[l].release();
                         }
                         for (std::size_t l = FlatHost::layers; l-- > 0;) {
                           t.gradients[l].ensure_open();
                           const auto big = t.gradient_host.big_of(l);
                           const auto small = t.gradient_host.small_of(l);
                           seen.expect(all_are(t.context, big, 0) && all_are(t.context, small, 0),
                                       "a gradient begins at zero");
                           add(t.context, big, 1);
                           add(t.context, small, 2);
                           t.gradients[l].reduce();
                           seen.expect(
                               all_are(t.context, t.gradients[l].segments()[0].elements,
                                       static_cast<float>(
                                           t.gradients[l].segments()[0].tensor->count == t.host.wide
                                               ? round + 1
                                               : 2 * (round + 1))),
                               "gradients add up");
                           // The host waited for the reduction, and nobody has needed the memory.
                           seen.expect(all_are(t.context, big, 0) && all_are(t.context, small, 0),
                                       "a released gradient reads as zero");
                         }
                       }
                       seen.expect(t.context.held() == t.context.plan().bytes, "planned bytes");
                       return seen;
                     }),
            world);
    }
  }
}

TEST_CASE("memory on the device is what the plan says, and crumbs in whole granules") {
  if (!shardwise_emulation_present()) SKIP("the emulation counts memory to the byte");
  for (const int world : {1, 2, 3}) {
    emulation_control::reset();
    std::vector<std::size_t> before;
    for (int rank = 0; rank < world; ++rank) {
      before.push_back(emulation_control::used_bytes(rank));
    }
    check(on_ranks(world,
                   [&](Communicator& communicator) {
                     Seen seen;
                     const int device = current_cuda_device();
                     const std::size_t used = emulation_control::used_bytes(device);
                     Trainer t(communicator, Strategy::zero3());
                     t.context.prepare();
                     const Bytes held = t.context.held();
                     const std::size_t resident =
                         t.arena.resident_bytes() + t.gradient_arena.resident_bytes();
                     seen.expect(t.arena.recycled_bytes() > t.arena.size() / 2, "most is recycled");
                     seen.expect(resident >= held.crumbs && resident < held.crumbs + 2 * granule(),
                                 fmt::format("{} bytes of crumbs are in {} bytes of granules",
                                             held.crumbs, resident));
                     // Other allocations are of multiples of 256 bytes, scalars are the host's.
                     const std::size_t expected =
                         held.total() - held.crumbs + resident - t.context.plan().scalars;
                     const std::size_t found = emulation_control::used_bytes(device) - used;
                     seen.expect(found >= expected && found < expected + 64 * 256,
                                 fmt::format("{} bytes are used, {} are planned", found, expected));
                     for (int round = 0; round < 2; ++round) {
                       for (auto& block : t.blocks) const auto lease = block.gather();
                       for (auto& gradient : t.gradients) gradient.lease().discard();
                     }
                     seen.expect(emulation_control::used_bytes(device) - used < found + 64 * 256,
                                 "steps take no more");
                     return seen;
                   }),
          world);
    for (int rank = 0; rank < world; ++rank) {
      CHECK(emulation_control::used_bytes(rank) == before[static_cast<std::size_t>(rank)]);
    }
  }
}

TEST_CASE("a gather waits on the host for those who read the memory that it takes") {
  if (!shardwise_emulation_present()) SKIP("the emulation says who uses memory that is unmapped");
  // Late streams; memory that is unmapped below work that has not run ends the process.
  emulation_control::set_option("jitter_us", "300");
  for (const int world : {1, 2}) {
    check(on_ranks(world,
                   [](Communicator& communicator) {
                     Seen seen;
                     Trainer t(communicator, Strategy::zero3());
                     for (std::size_t round = 0; round < 20; ++round) {
                       const auto other = t.blocks[round % 5].gather();
                       t.blocks[(round + 2) % 5].prefetch();  // never opened, and taken
                       for (const std::size_t l : {(round + 3) % 5, (round + 4) % 5}) {
                         auto gradient = t.gradients[l].lease();
                         const auto lease = t.blocks[l].gather();
                         // Read, and given back before it has run.
                         Device::launch(t.context.stream(), t.host.wide,
                                        AddElements<float>{t.gradient_host.big_of(l).data(),
                                                           t.host.big_of(l).data()});
                         std::move(gradient).reduce();
                       }
                     }
                     for (std::size_t i = 0; i < 15; ++i) {  // one after the other
                       auto gradient = t.gradients[i % 5].lease();
                       add(t.context, t.gradient_host.big_of(i % 5), 1);
                       std::move(gradient).reduce();
                     }
                     for (std::size_t l = 0; l < 5; ++l) {
                       const auto segments = t.gradients[l].segments();
                       if (segments.empty()) continue;
                       const auto sum = to_host(t.context, segments[0].elements);
                       bool equal = segments[0].tensor->count != t.host.wide;
                       for (std::size_t i = 0; i < sum.size() && !equal; ++i) {
                         const float once = value_of(l, segments[0].first + i);
                         if (sum[i] != 8 * once + 3) break;
                         equal = i + 1 == sum.size();
                       }
                       seen.expect(equal, fmt::format("the sum of layer {}", l));
                     }
                     return seen;
                   }),
          world);
  }
  emulation_control::set_option("jitter_us", nullptr);
}

TEST_CASE("a failure while the host waits for memory leaves nothing mapped") {
  if (!shardwise_emulation_present()) SKIP("the emulation says what is left");
  need_devices(2);
  emulation_control::reset();
  const std::size_t before[] = {emulation_control::used_bytes(0), emulation_control::used_bytes(1)};
  std::string said;
  try {
    run_on_ranks(2, [](Communicator& communicator) {
      Trainer t(communicator, Strategy::zero3());
      const auto other = t.blocks[0].gather();
      if (communicator.rank() == 1) {
        std::this_thread::sleep_for(std::chrono::milliseconds(30));
        throw std::runtime_error("no more data");
      }
      t.blocks[2].prefetch();  // which never ends
      static_cast<void>(t.blocks[3].gather());
    });
  } catch (const std::exception& error) {
    said = error.what();
  }
  CHECK(said == "no more data");
  CHECK(emulation_control::errors() == 0);
  for (const int rank : {0, 1}) CHECK(emulation_control::used_bytes(rank) == before[rank]);
}

TEST_CASE("parameters in place may go and come while others are lent") {
  check(on_ranks(2,
                 [](Communicator& communicator) {
                   Seen seen;
                   Trainer t(communicator, Strategy::zero3());
                   for (auto& block : t.blocks) const auto lease = block.gather();
                   const std::size_t resident = t.arena.resident_bytes();
                   {
                     const auto lease = t.blocks[0].gather();
                     for (int gone = 0; gone < 3; ++gone) {  // the table, and two layers
                       t.gradients.pop_back();
                       t.blocks.pop_back();
                     }
                     seen.expect(t.holds(t.host.big_of(0), 0), "a lease outlives others");
                   }
                   seen.expect(t.arena.resident_bytes() < resident, "granules of nobody go");
                   for (const std::size_t l : {std::size_t{3}, std::size_t{4}}) {
                     t.blocks.emplace_back(t.context, t.host.blocks()[l]);
                     t.blocks.back().initialize(
                         [&](const auto&, std::size_t i) { return value_of(l, i); });
                   }
                   for (std::size_t l = 0; l < 5; ++l) {
                     const auto lease = t.blocks[l].gather();
                     seen.expect(t.holds(t.host.big_of(l), l), fmt::format("layer {}", l));
                   }
                   const std::size_t held = t.context.held().total();
                   {
                     const auto all = full_parameters(t.context);
                     for (std::size_t l = 0; l < 5; ++l) {
                       seen.expect(t.holds(t.host.big_of(l), l), "all are there at once");
                     }
                   }
                   seen.expect(t.context.held().total() == held, "and go again");
                   for (std::size_t l = 0; l < 5; ++l) {
                     const auto lease = t.blocks[l].gather();
                     seen.expect(t.holds(t.host.big_of(l), l), fmt::format("layer {} again", l));
                   }
                   return seen;
                 }),
        2);
}

TEST_CASE("debug mode finds writes to what was released on the device") {
  const auto error_of = [](auto&& f) {
    try {
      f();
    } catch (const UsageError& error) {
      return std::string(error.what());
    }
    return std::string("nothing was thrown");
  };
  const auto all = on_ranks(1, [&](Communicator& communicator) {
    std::vector<std::string> said;
    {
      Trainer t(communicator, Strategy::zero3(), {.debug = true});
      { const auto lease = t.blocks[1].gather(); }
      fill(t.context, t.host.small_of(1).subspan(7, 2), [](std::size_t) { return 1; });  // a crumb
      said.push_back(error_of([&] { const auto lease = t.blocks[1].gather(); }));
    }
    {
      Trainer t(communicator, Strategy::zero3(), {.debug = true});
      { const auto lease = t.blocks[1].gather(); }
      fill(t.context, t.host.big_of(1).subspan(t.host.wide / 2, 4), [](std::size_t) { return 1; });
      said.push_back(error_of([&] { const auto lease = t.blocks[1].gather(); }));
    }
    {
      Trainer t(communicator, Strategy::zero3(), {.debug = true});
      t.gradients[2].lease().discard();
      t.context.barrier();  // what the discard left to do is done
      fill(t.context, t.gradient_host.big_of(2).subspan(t.host.wide / 2, 4),
           [](std::size_t) { return 1; });
      said.push_back(error_of([&] { t.gradients[2].lease().discard(); }));
    }
    return said;
  });
  CHECK_THAT(all[0][0], ContainsSubstring("of tensor 'small.1' of parameter 'big.1 (+1)'"));
  CHECK_THAT(all[0][1], ContainsSubstring("wrote to parameter 'big.1 (+1)' after it was released"));
  CHECK_THAT(all[0][2], ContainsSubstring("wrote to the gradient of 'big.2 (+1)'"));
}

TEST_CASE("an arena on a device has no options of the CPU, and says what its driver refuses") {
  const auto all = on_ranks(1, [](Communicator& communicator) {
    std::vector<std::string> said;
    Context<Device> context(communicator, Strategy::zero3());
    const auto note = [&](auto&& f) {
      try {
        f();
        said.emplace_back("nothing was thrown");
      } catch (const Error& error) {
        said.emplace_back(error.what());
      }
    };
    note([&] {
      DeviceArena<Device> arena(context, 1000, "weights", {.release = ArenaRelease::eager});
    });
    note([&] { DeviceArena<Device> arena(context, 0); });
    DeviceArena arena(context, 8 * granule());  // the device by deduction
    Parameter<float> p(context, std::vector<HostTensor>{{"p", arena.as<float>(), {2 * granule()}}});
    const std::size_t held = context.held().total();
    for (const char* fault : {"cuMemCreate:2:2", "cuMemMap:3:999", "cuMemSetAccess:1:999"}) {
      if (!shardwise_emulation_present()) continue;
      emulation_control::set_option("fail", fault);
      note([&] { const auto lease = p.gather(); });
      emulation_control::set_option("fail", nullptr);
      if (std::string(fault).substr(0, 11) == "cuMemCreate" && context.held().total() != held) {
        said.emplace_back("memory that was not made is counted");
      }
    }
    const auto lease = p.gather();  // and goes on
    const bool zeros = all_are(context, std::span(arena.as<float>(), 2 * granule()), 0);
    said.emplace_back(zeros ? "zeros" : "?");
    return said;
  });
  const auto& said = all[0];
  REQUIRE(said.size() >= 3);
  CHECK_THAT(said[0], ContainsSubstring("ArenaOptions are for arenas of the CPU"));
  CHECK_THAT(said[1], ContainsSubstring("has no bytes"));
  CHECK(said.back() == "zeros");
  if (!shardwise_emulation_present()) return;
  REQUIRE(said.size() == 6);
  CHECK_THAT(said[2], ContainsSubstring("cuMemCreate of ") &&
                          ContainsSubstring("cudaErrorMemoryAllocation (2)"));
  CHECK_THAT(said[3], ContainsSubstring("cuMemMap of "));
  CHECK_THAT(said[4], ContainsSubstring("cuMemSetAccess of "));
}
