#include <algorithm>
#include <array>
#include <catch2/catch_test_macros.hpp>
#include <cstddef>
#include <cstdlib>
#include <memory>
#include <shardwise/comm/collectives.hpp>
#include <shardwise/comm/nccl.hpp>
#include <shardwise/device/cuda.hpp>
#include <shardwise/shardwise.hpp>
#include <string>
#include <thread>
#include <vector>

#include "../emulation/control.hpp"
#include "nccl_ranks.hpp"

namespace shardwise::test {
namespace {

/// How many calls NCCL would carry in each way, by its own rules for one machine.
struct Paths {
  long generic = 0;
  long symmetric = 0;
  long copy_engine = 0;
};

Paths paths_of(ncclComm_t comm) {
  long counts[3] = {};
  using Query = void(ncclComm_t, long*);
  if (auto* const query = emulation_control::find<Query>("shardwise_emulation_nccl_paths")) {
    query(comm, counts);
  }
  return {counts[0], counts[1], counts[2]};
}

/// Runs f(communicator, its ncclComm_t) on ranks whose communicators belong to the host.
template <class F>
std::vector<std::string> on_adopted(int world, const NcclOptions& options, const F& f) {
  std::vector<std::string> texts(static_cast<std::size_t>(world));
  const auto meeting = LocalRendezvous::make(world);
  ncclUniqueId id;
  REQUIRE(ncclGetUniqueId(&id) == ncclSuccess);
  std::vector<std::thread> threads;
  for (int r = 0; r < world; ++r) {
    threads.emplace_back([&, r] {
      const auto index = static_cast<std::size_t>(r);
      try {
        cuda_check(cudaSetDevice(r), "cudaSetDevice");
        ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
        if (options.copy_engine) config.CTAPolicy = NCCL_CTA_POLICY_ZERO;
        ncclComm_t comm = nullptr;
        if (ncclCommInitRankConfig(&comm, world, id, r, &config) != ncclSuccess) {
          throw std::runtime_error("the host's communicator was not made");
        }
        {
          NcclCommunicator adopted(meeting[index], comm, options);
          texts[index] = f(adopted, comm);
        }
        if (ncclCommDestroy(comm) != ncclSuccess) texts[index] += " not destroyed";
      } catch (const std::exception& error) {
        texts[index] = error.what();
        meeting[index]->fail({r, error.what()});
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  return texts;
}

std::string gather_in(NcclCommunicator& comm, std::byte* memory) {
  CudaStream stream;
  const auto rank = static_cast<std::size_t>(comm.rank());
  constexpr std::size_t count = 512;
  const Bytes mine = contribution(DType::f32, rank, 0, count);
  std::byte* const part = memory + rank * mine.size();
  cuda_check(
      cudaMemcpyAsync(part, mine.data(), mine.size(), cudaMemcpyHostToDevice, stream.native()),
      "cudaMemcpyAsync");
  const GatherItem item{part, memory, count, DType::f32};
  comm.all_gather({&item, 1}, {"gather"}, stream.ref());
  Bytes all(mine.size() * static_cast<std::size_t>(comm.size()));
  cuda_check(
      cudaMemcpyAsync(all.data(), memory, all.size(), cudaMemcpyDeviceToHost, stream.native()),
      "cudaMemcpyAsync");
  stream.synchronize();
  comm.check();
  Bytes expected;
  for (std::size_t r = 0; r < static_cast<std::size_t>(comm.size()); ++r) {
    const Bytes part_of_r = contribution(DType::f32, r, 0, count);
    expected.insert(expected.end(), part_of_r.begin(), part_of_r.end());
  }
  return all == expected ? "" : "wrong bytes";
}

constexpr std::size_t arena_bytes = std::size_t{1} << 18;

TEST_CASE("an arena is memory that NCCL knows on all ranks") {
  for (const int world : present_worlds()) {
    for (const bool separate : {false, true}) {
      const auto texts = on_cuda_ranks(world,
                                       [](Communicator& made) {
                                         auto& comm = dynamic_cast<NcclCommunicator&>(made);
                                         NcclArena arena(comm, arena_bytes);
                                         NcclArena second(comm, 100);
                                         std::string text = gather_in(comm, arena.data());
                                         if (arena.size() != arena_bytes || second.size() != 100)
                                           return std::string("size");
                                         if (!shardwise_emulation_present()) return text;
                                         return arena.registration() == NcclRegistration::window
                                                    ? text
                                                    : std::string("no window");
                                       },
                                       {.checked = true, .separate_reductions = separate});
      for (const std::string& text : texts) CHECK(text == "");
    }
  }
}

TEST_CASE("gathers in an arena take the copy engines where that is asked for") {
  if (!shardwise_emulation_present()) SKIP("how NCCL carries calls is seen in the emulation alone");
  const int world = std::min(4, require_devices(2));
  for (const bool copy_engine : {false, true}) {
    const auto texts = on_adopted(
        world, {.copy_engine = copy_engine}, [&](NcclCommunicator& comm, ncclComm_t raw) {
          const NcclArena arena(comm, arena_bytes);
          const Paths before = paths_of(raw);
          std::string text = gather_in(comm, arena.data());
          const Paths after = paths_of(raw);
          if (after.copy_engine - before.copy_engine != (copy_engine ? 1 : 0))
            text += "copy engine";
          if (after.symmetric - before.symmetric != (copy_engine ? 0 : 1)) text += "symmetric";
          const DeviceBytes other = [] {
            CudaStream stream;
            return DeviceBytes(Bytes(arena_bytes), stream);
          }();
          text += gather_in(comm, other.data());
          if (paths_of(raw).generic <= after.generic) text += "outside is not generic";
          return text;
        });
    for (const std::string& text : texts) CHECK(text == "");
  }
}

/// Gathers and reduces three parameters in turn, with slots in an arena, and counts how NCCL
/// carried the gathers.
template <FloatingElement L>
std::string use_slots_in_an_arena(NcclCommunicator& comm, ncclComm_t raw) {
  constexpr std::size_t count = 5000;
  NcclArena arena(comm, std::size_t{1} << 20);
  Strategy strategy = Strategy::zero3();
  strategy.lease = dtype_of<L>;
  strategy.gradient_lease = DType::f32;
  ContextOptions options;
  options.slot_memory = &arena;
  Context<CudaDevice> context(comm, strategy, options);
  std::vector<ShardedParameter<float, CudaDevice>> parameters;
  std::vector<ShardedGradient<float, CudaDevice>> gradients;
  for (int i = 0; i < 3; ++i) {
    parameters.emplace_back(context, std::vector<TensorSpec>{{"w", {count}}});
    parameters.back().initialize([&](const auto&, std::size_t element) {
      return static_cast<float>(element % 64 + 1) * static_cast<float>(i + 1);
    });
  }
  for (auto& parameter : parameters) gradients.emplace_back(parameter);
  context.prepare();
  if (context.held() != context.plan().bytes) return "held is not planned";
  const Paths before = paths_of(raw);
  long gathers = 0;
  for (int round = 0; round < 2; ++round) {
    for (std::size_t i = 0; i < parameters.size(); ++i) {
      auto lease = parameters[i].template gather<L>();
      ++gathers;
      const auto* const begin = reinterpret_cast<const std::byte*>(lease.data());
      if (begin < arena.data() || begin >= arena.data() + arena.size()) return "outside the arena";
      std::vector<L> values(count);
      CudaDevice::download(context.stream(), values.data(), lease.data(), count * sizeof(L));
      for (std::size_t k = 0; k < count; ++k) {
        if (static_cast<float>(values[k]) !=
            static_cast<float>(k % 64 + 1) * static_cast<float>(i + 1))
          return "wrong value";
      }
    }
  }
  const Paths after = paths_of(raw);
  std::string text;
  const bool shows_paths = shardwise_emulation_present() && comm.size() > 1;
  if (shows_paths && after.copy_engine - before.copy_engine != gathers) {
    text = fmt::format("{} of {} gathers by copy engines", after.copy_engine - before.copy_engine,
                       gathers);
  }
  for (auto& gradient : gradients) {
    auto lease = gradient.lease();
    std::move(lease).reduce();
    static_cast<void>(gradient.shard());  // zeros
  }
  return text;
}

TEST_CASE("slots in an arena: every gather of a context takes the copy engines") {
  const int world = std::min(4, present_worlds().back());
  for (const std::string& text :
       on_adopted(world, {.copy_engine = true}, use_slots_in_an_arena<float>)) {
    CHECK(text == "");
  }
  for (const std::string& text :
       on_adopted(world, {.copy_engine = true}, use_slots_in_an_arena<bf16>)) {
    CHECK(text == "");
  }
}

TEST_CASE("an arena gives the first gap that fits, and says when there is none") {
  require_devices(1);
  const auto texts = on_cuda_ranks(
      1,
      [](Communicator& made) {
        NcclArena arena(dynamic_cast<NcclCommunicator&>(made), 4096);
        auto* const first = static_cast<std::byte*>(arena.allocate(1));
        auto* const second = static_cast<std::byte*>(arena.allocate(1000));
        auto* const third = static_cast<std::byte*>(arena.allocate(256));
        if (first != arena.data() || second != first + 256 || third != second + 1024) {
          return std::string("not one behind the other");
        }
        arena.deallocate(second, 1000);
        if (arena.allocate(1025) != third + 256) return std::string("too large for the gap");
        if (arena.allocate(1024) != second) return std::string("not the gap");
        try {
          static_cast<void>(arena.allocate(4096));
        } catch (const UsageError& error) {
          const std::string text = error.what();
          return text.find("4096 bytes has no 4096 bytes left") != text.npos ? std::string() : text;
        }
        return std::string("no error");
      },
      {});
  CHECK(texts[0] == "");
}

TEST_CASE("a host's communicator is adopted, not destroyed, and refused where it is another's") {
  const int world = std::min(3, present_worlds().back());
  const auto texts = on_adopted(world, {.checked = true}, [&](NcclCommunicator& comm, ncclComm_t) {
    CudaStream stream;
    const CollectiveCase collective{Operation::reduce_scatter, {{.count = 70}}, 0};
    CudaCall call(collective, comm, stream);
    call.issue();
    const auto part = comm.split(0, -comm.rank(), {"part"});
    const double total = sum(*part, 1.0);
    const bool good = call.results() == RankCall::expected(collective, comm.rank(), comm.size());
    return std::string(good && total == comm.size() ? "" : "wrong");
  });
  for (const std::string& text : texts) CHECK(text == "");

  ncclComm_t alone = nullptr;
  int device = 0;
  REQUIRE(cudaSetDevice(0) == cudaSuccess);
  REQUIRE(ncclCommInitAll(&alone, 1, &device) == ncclSuccess);
  const auto two = LocalRendezvous::make(2);
  two[1]->put("nccl.world.here.1", text_of_card());
  CHECK_THROWS_AS(NcclCommunicator(two[0], alone), UsageError);
  CHECK(ncclCommDestroy(alone) == ncclSuccess);
}

TEST_CASE(
    "an arena on a host's communicator leaves nothing registered there, also after a failure") {
  const int world = present_worlds().back();
  const auto texts = on_adopted(world, {}, [](NcclCommunicator& comm, ncclComm_t) {
    try {
      const NcclArena arena(comm, 4096);
      if (comm.rank() == 0) comm.abort("stop");
      CudaStream stream;
      for (;;) {
        comm.barrier({"until the abort"}, stream.ref());
        stream.synchronize();
      }
    } catch (const PeerFailed&) {
      return std::string();
    }
  });
  for (const std::string& text : texts) CHECK(text == "");
  CHECK(emulation_control::errors() == 0);
}

TEST_CASE("an arena without bytes is refused") {
  require_devices(1);
  run_cuda_ranks(1, [](Communicator& comm) {
    CHECK_THROWS_AS(NcclArena(dynamic_cast<NcclCommunicator&>(comm), 0), UsageError);
  });
}

}  // namespace
}  // namespace shardwise::test
