#include <sys/resource.h>

#include <algorithm>
#include <array>
#include <catch2/catch_test_macros.hpp>
#include <cinttypes>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <memory>
#include <random>
#include <set>
#include <shardwise/shardwise.hpp>
#include <string>
#include <utility>
#include <vector>

#include "support/device.hpp"
#include "support/flat_layers.hpp"
#include "support/ranks.hpp"
#include "support/sanitized.hpp"

using namespace shardwise;
using namespace shardwise::test;

namespace {

/// What /proc/self/smaps says of the memory in [begin, begin + bytes) that is not private.
struct CommonMemory {
  std::vector<std::string> mappings;  ///< addresses, file and offset of each
  std::set<unsigned long> files;      ///< their inodes: one for each pool of pages
  std::size_t proportional = 0;       ///< bytes (Pss): what lies below several ranges counts once
};
CommonMemory common_memory(const std::byte* begin, std::size_t bytes) {
  const auto first = reinterpret_cast<std::uintptr_t>(begin);
  CommonMemory found;
  std::ifstream smaps("/proc/self/smaps");
  bool within = false;
  for (std::string line; std::getline(smaps, line);) {
    std::uintptr_t from = 0;
    std::uintptr_t to = 0;
    char shared = 0;
    unsigned long file = 0;
    if (std::sscanf(line.c_str(), "%" SCNxPTR "-%" SCNxPTR " %*c%*c%*c%c %*x %*s %lu", &from, &to,
                    &shared, &file) == 4) {
      within = shared == 's' && from >= first && to <= first + bytes;
      if (within) {
        found.mappings.push_back(line);
        found.files.insert(file);
      }
    }
    std::size_t kib = 0;
    if (within && std::sscanf(line.c_str(), "Pss: %zu", &kib) == 1) found.proportional += kib << 10;
  }
  return found;
}

/// Of this thread: pages that the system put below its addresses.
long page_faults() {
  rusage usage{};
  getrusage(RUSAGE_THREAD, &usage);
  return usage.ru_minflt;
}

/// The layers of a FlatHost in an arena whose pages stay below their ranges.
struct AliasedLayers {
  explicit AliasedLayers(Communicator& communicator, ContextOptions options = {},
                         Strategy strategy = Strategy::zero3())
      : context(communicator, strategy, options),
        arena(context, FlatHost::elements * sizeof(float), "weights",
              {.recycling = ArenaRecycling::alias}),
        host(arena.as<float>()) {
    for (const auto& tensors : host.blocks()) add(tensors);
  }
  void add(const std::vector<HostTensor>& tensors) {
    const auto value = static_cast<float>(blocks.size() + 1);
    blocks.push_back(std::make_unique<ShardedParameter<float>>(context, tensors));
    blocks.back()->initialize([&](const auto&, std::size_t i) { return value + offset(i); });
  }
  static float offset(std::size_t i) { return static_cast<float>(i % 64) / 64; }
  /// Whether the host sees this layer's values where it expects them.
  [[nodiscard]] bool holds(std::size_t l) const {
    const float* const big = host.big + l * FlatHost::wide;
    const float* const small = host.small + l * FlatHost::narrow;
    for (std::size_t i = 0; i < FlatHost::wide; ++i) {
      if (big[i] != static_cast<float>(l + 1) + offset(i)) return false;
      if (i < FlatHost::narrow && small[i] != static_cast<float>(l + 1) + offset(i)) return false;
    }
    return true;
  }
  void visit(std::size_t l, Seen& seen) {
    blocks[l]->ensure_gathered();
    seen.expect(holds(l), fmt::format("layer {} is where the host expects it", l));
    blocks[l]->release();
  }
  /// Forward, backward, update.
  void step(Seen& seen) {
    for (std::size_t l = 0; l < blocks.size(); ++l) {
      if (l + 1 < blocks.size()) blocks[l + 1]->prefetch();
      visit(l, seen);
    }
    for (std::size_t l = blocks.size(); l-- > 0;) {
      if (l > 0) blocks[l - 1]->prefetch();
      visit(l, seen);
    }
    for (auto& block : blocks) block->update([](std::span<float>) {});
  }
  // Alone: the system's list is not of one moment while others change their mappings.
  [[nodiscard]] CommonMemory memory(const Arena* other = nullptr) const {
    shardwise::barrier(context.communicator());
    CommonMemory found = common_memory(arena.data(), arena.size());
    if (other != nullptr) found.files.merge(common_memory(other->data(), other->size()).files);
    shardwise::barrier(context.communicator());
    return found;
  }

  Context<> context;
  Arena arena;
  FlatHost host;
  std::vector<std::unique_ptr<ShardedParameter<float>>> blocks;
};

void check_seen(const std::vector<Seen>& all, int world) {
  INFO("world " << world);
  for (const Seen& seen : all) CHECK(seen.wrong == std::vector<std::string>());
}

}  // namespace

TEST_CASE("aliased pages: a step asks the system for nothing, and the memory is that of slots") {
  for (const int world : worlds) {
    const auto all = on_ranks(world, [](Communicator& communicator) {
      Seen seen;
      AliasedLayers layers(communicator);
      for (int step = 0; step < 3; ++step) layers.step(seen);
      const CommonMemory before = layers.memory();
      seen.expect(before.mappings.size() == FlatHost::layers, "each layer has a mapping");
      const std::size_t most = 2 * FlatHost::wide * sizeof(float);
      seen.expect(before.proportional > most / 2 && before.proportional <= most,
                  fmt::format("{} bytes are there, {} may be", before.proportional, most));
      const long faults = page_faults();
      for (int step = 0; step < 3; ++step) layers.step(seen);
      const long more = page_faults() - faults;
      seen.expect(sanitized || more < 50, fmt::format("{} pages were put below addresses", more));
      seen.expect(layers.memory().mappings == before.mappings, "mappings are as they were");
      seen.expect(layers.context.held() == layers.context.plan().bytes, "planned bytes");
      return seen;
    });
    check_seen(all, world);
  }
}

TEST_CASE("aliased pages: parameters that come, go and grow take their memory along") {
  for (const int world : worlds) {
    const auto all = on_ranks(world, [](Communicator& communicator) {
      Seen seen;
      AliasedLayers layers(communicator);
      layers.step(seen);
      // One that goes leaves zeros, and the next one in its place finds no old pages.
      layers.blocks.back().reset();
      const float* const big = layers.host.big + (FlatHost::layers - 1) * FlatHost::wide;
      seen.expect(std::all_of(big + 2048, big + FlatHost::wide - 2048,
                              [](float value) { return value == 0; }),
                  "zeros are left");
      layers.blocks.pop_back();
      layers.add(layers.host.blocks().back());
      layers.step(seen);
      // A larger one makes the slots grow, one by one.
      const std::vector<HostTensor> table = {{"wte", layers.host.wte, {FlatHost::table}}};
      Arena second(layers.context, std::size_t{1} << 20, "second",
                   {.recycling = ArenaRecycling::alias});
      ShardedParameter<float> wte(layers.context, table);
      ShardedParameter<float> larger(
          layers.context, std::vector<HostTensor>{{"larger", second.as<float>(), {200000}}});
      larger.initialize([](const auto&, std::size_t i) { return static_cast<float>(i); });
      for (int round = 0; round < 2; ++round) {
        layers.step(seen);
        larger.ensure_gathered();
        const float* const at = second.as<float>();
        bool equal = true;
        for (std::size_t i = 0; i < 200000; ++i) equal = equal && at[i] == static_cast<float>(i);
        seen.expect(equal, "the larger one");
        larger.release();
      }
      const std::size_t most = 2 * FlatHost::wide * sizeof(float);
      const std::size_t pools = layers.memory(&second).files.size();
      seen.expect(pools == 2, fmt::format("{} pools are below two arenas, not two", pools));
      // All at once is memory of its own, and it goes with the scope.
      {
        const auto everything = full_parameters(layers.context);
        for (std::size_t l = 0; l < FlatHost::layers; ++l) {
          seen.expect(layers.holds(l), fmt::format("layer {} beside all others", l));
        }
      }
      const std::size_t left = layers.memory().proportional;
      seen.expect(left <= most, fmt::format("scope: {} bytes are there, {} may be", left, most));
      layers.step(seen);
      seen.expect(layers.context.held() == layers.context.plan().bytes, "planned bytes");
      return seen;
    });
    check_seen(all, world);
  }
}

TEST_CASE(
    "aliased pages: parameters that take turns have pages of one kind, and debug mode moves them") {
  const auto all = on_ranks(2, [](Communicator& communicator) {
    Seen seen;
    AliasedLayers layers(communicator);
    seen.expect(layers.arena.recycling() == ArenaRecycling::alias, "pages stay");
    Arena moving(layers.context, 400000, "moving");
    const std::vector<HostTensor> other = {{"other", moving.as<float>(), {100000}}};
    const auto refused = [&] {
      try {
        const ShardedParameter<float> parameter(layers.context, other);
        return std::string("made");
      } catch (const UsageError& error) {
        return std::string(error.what());
      }
    };
    const std::string complaint = refused();
    seen.expect(
        complaint.find("'other' lies in arena 'moving' with pages that move, but parameters "
                       "of this context have been in arenas with pages that stay") !=
            std::string::npos,
        complaint);
    layers.step(seen);
    layers.blocks.clear();  // their slots stay
    seen.expect(refused() == complaint, "refused when the others have gone");

    AliasedLayers watched(communicator, {.debug = true});
    seen.expect(watched.arena.recycling() == ArenaRecycling::move, "debug mode moves pages");
    watched.visit(0, seen);

    // What is not sharded takes no turns.
    AliasedLayers whole(communicator, {}, Strategy::ddp());
    Arena beside(whole.context, 400000, "beside");
    const ShardedParameter<float> also(
        whole.context, std::vector<HostTensor>{{"also", beside.as<float>(), {100000}}});
    for (std::size_t l = 0; l < FlatHost::layers; ++l) whole.visit(l, seen);
    return seen;
  });
  check_seen(all, 2);
}

TEST_CASE("aliased pages: a tensor without elements has no arena to agree with") {
  const auto all = on_ranks(2, [](Communicator& communicator) {
    Seen seen;
    Context<> context(communicator, Strategy::zero3());
    Arena arena(context, 400000, "weights", {.recycling = ArenaRecycling::alias});
    ShardedParameter<float> none(context,
                                 std::vector<HostTensor>{{"none", arena.as<float>(), {0}}});
    none.ensure_gathered();
    none.release();
    ShardedParameter<float> some(context,
                                 std::vector<HostTensor>{{"some", arena.as<float>(), {99999}}});
    some.initialize([](const auto&, std::size_t) { return 3.0f; });
    some.ensure_gathered();
    seen.expect(arena.as<float>()[50000] == 3, "the other one");
    return seen;
  });
  check_seen(all, 2);
}

TEST_CASE("aliased pages: slots are taken as buffers are, wherever a rank's tensors lie") {
  // On rank 1 the two tensors of X are apart and too small to move: all crumbs. In each order as
  // many gathers travel as where pages move.
  const std::vector<std::vector<int>> orders = {
      {0, 1, 2, 0, 2}, {0, 1, 2, 0, 2, 0, 2, 0, 2}, {1, 0, 1, 2, 1, 0, 1, 2, 1, 2, 2, 0}};
  for (const std::vector<int>& order : orders) {
    std::vector<std::uint64_t> calls;
    for (const ArenaRecycling recycling : {ArenaRecycling::move, ArenaRecycling::alias}) {
      const auto all = on_ranks(2, [&](Communicator& communicator) {
        Context<> context(communicator, Strategy::zero3());
        Arena arena(context, std::size_t{2} << 20, "weights", {.recycling = recycling});
        constexpr std::size_t half = 12000;
        constexpr std::size_t wide = 100000;
        const std::size_t second = communicator.rank() == 0 ? half : half + 1000;
        std::vector<ShardedParameter<float>> parameters;
        parameters.emplace_back(
            context, std::vector<HostTensor>{{"x0", arena.as<float>(), {half}},
                                             {"x1", arena.as<float>(second * 4), {half}}});
        for (const std::size_t at : {std::size_t{200000}, std::size_t{800000}}) {
          parameters.emplace_back(context,
                                  std::vector<HostTensor>{{"wide", arena.as<float>(at), {wide}}});
        }
        for (const int i : order) {
          parameters[static_cast<std::size_t>(i)].ensure_gathered();
          parameters[static_cast<std::size_t>(i)].release();
        }
        barrier(communicator);
        return context.statistics().traffic.all_gather_calls;
      });
      CHECK(all[0] == all[1]);
      calls.push_back(all[0]);
    }
    CHECK(calls[0] == calls[1]);
  }
}

namespace {

/// A parameter of a random host: where its tensors are, and what they hold.
struct Placed {
  std::unique_ptr<ShardedParameter<float>> parameter;
  std::vector<HostTensor> tensors;
  std::size_t place = 0;
  float base = 0;
  bool open = false;

  [[nodiscard]] float value(std::size_t tensor, std::size_t i) const {
    return base * 1000 + static_cast<float>(tensor) * 100 + static_cast<float>(i % 89);
  }
  void fill(float to) {
    base = to;
    parameter->initialize([&](const Layout::Tensor& tensor, std::size_t i) {
      return value(static_cast<std::size_t>(tensor.name[0] - '0'), i);
    });
  }
  [[nodiscard]] bool holds() const {
    for (std::size_t t = 0; t < tensors.size(); ++t) {
      const auto* const data = reinterpret_cast<const float*>(tensors[t].data);
      for (std::size_t i = 0; i < tensors[t].bytes() / sizeof(float); ++i) {
        if (data[i] != value(t, i)) return false;
      }
    }
    return true;
  }
};

/// Makes, gathers, prefetches, writes and destroys parameters at random, and reads all of what is
/// open after each call.
class RandomHost {
 public:
  RandomHost(Communicator& communicator, unsigned seed)
      : random_(seed),
        context_(communicator, strategy(), options()),
        arena_(context_, places * room, "weights",
               {.recycling = ArenaRecycling::alias,
                .release = pick(2) == 0 ? ArenaRelease::lazy : ArenaRelease::eager}) {}

  Seen run(int calls) {
    for (int i = 0; i < 8; ++i) add();
    for (int call = 0; call < calls && seen_.wrong.empty(); ++call) {
      if (parameters_.empty()) add();
      if (!parameters_.empty()) act(parameters_[pick(parameters_.size())]);
      check("an open parameter");
      if (pick(20) == 0) release_all();
    }
    release_all();
    while (!parameters_.empty()) remove(pick(parameters_.size()));
    barrier(context_.communicator());
    seen_.expect(common_memory(arena_.data(), arena_.size()).mappings.empty(),
                 "nothing is left below the arena");
    barrier(context_.communicator());
    return seen_;
  }

 private:
  static constexpr std::size_t places = 12;
  static constexpr std::size_t room = 900000;  // bytes of each

  std::size_t pick(std::size_t below) { return random_() % below; }

  Strategy strategy() {
    Strategy strategy = Strategy::zero3();
    strategy.prefetch = static_cast<int>(pick(4));
    strategy.overlap = pick(2) == 0;
    if (pick(3) == 0) strategy.bucket_bytes = 400000 + pick(1500000);
    if (pick(4) == 0) strategy.keep_resident_bytes = pick(3000000);
    return strategy;
  }
  ContextOptions options() {
    ContextOptions options;
    options.open_parameters = 1 + pick(3);
    if (pick(2) == 0) options.overlap_from = 0;
    return options;
  }

  void add() {
    const std::size_t place = pick(places);
    if (std::exchange(used_[place], true)) return;
    Placed made;
    made.place = place;
    std::size_t at = place * room + sizeof(float) * pick(500);
    const std::size_t tensors = 1 + pick(3);
    for (std::size_t t = 0; t < tensors; ++t) {
      const std::size_t count = pick(5) == 0 ? 1 + pick(3000) : 17000 + pick(50000);
      made.tensors.emplace_back(std::to_string(t), arena_.as<float>(at),
                                std::vector<Dimension>{count});
      at += (count + pick(3000)) * sizeof(float);
    }
    ParameterOptions how;
    how.name = fmt::format("place {}", place);
    how.tied = pick(8) == 0;
    if (pick(8) == 0) {
      how.strategy = context_.strategy();
      how.strategy->reshard_after_forward = false;
    }
    made.parameter = std::make_unique<ShardedParameter<float>>(context_, made.tensors, how);
    made.fill(next_++);
    parameters_.push_back(std::move(made));
  }
  void remove(std::size_t index) {
    used_[parameters_[index].place] = false;
    parameters_.erase(parameters_.begin() + static_cast<std::ptrdiff_t>(index));
  }
  void act(Placed& one) {
    switch (pick(16)) {
      case 0:
      case 1:
      case 2:
      case 3:
      case 4:
      case 5:
        open(one);
        break;
      case 6:
      case 7:
      case 8:
      case 9:
        if (std::exchange(one.open, false)) {
          one.parameter->release();
        } else {
          one.parameter->prefetch();
        }
        break;
      case 10:
      case 11:
        one.parameter->prefetch();
        break;
      case 12:
        if (!one.open) one.fill(next_++);
        break;
      case 13:
        if (pick(4) == 0) {
          const auto everything = full_parameters(context_);
          for (const Placed& each : parameters_) seen_.expect(each.holds(), "a scope of all");
          if (pick(2) == 0) open(one);  // and it stays open behind the scope
        }
        break;
      case 14:
        if (pick(3) == 0) add();
        break;
      default:
        if (pick(3) == 0) remove(static_cast<std::size_t>(&one - parameters_.data()));
    }
  }
  void open(Placed& one) {
    if (one.open) return;
    try {
      one.parameter->ensure_gathered();
      one.open = true;
    } catch (const UsageError&) {  // as many are open as may be, on all ranks
    }
  }
  void check(const char* what) {
    for (const Placed& each : parameters_) {
      if (each.open) seen_.expect(each.holds(), what);
    }
  }
  void release_all() {
    for (Placed& each : parameters_) {
      if (std::exchange(each.open, false)) each.parameter->release();
    }
  }

  std::mt19937 random_;
  Context<> context_;
  Arena arena_;
  std::vector<Placed> parameters_;
  std::array<bool, places> used_{};
  float next_ = 1;
  Seen seen_;
};

}  // namespace

TEST_CASE("aliased pages: whatever a host does, what is open holds its values") {
  for (const int world : {1, 2, 3}) {
    const unsigned seeds = sanitized ? 2 : 8;
    for (unsigned seed = 0; seed < seeds; ++seed) {
      INFO("seed " << seed);
      check_seen(on_ranks(world,
                          [&](Communicator& communicator) {
                            return RandomHost(communicator, 100 * seed + 7).run(150);
                          }),
                 world);
    }
  }
}
