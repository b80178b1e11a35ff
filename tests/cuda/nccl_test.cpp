#include <dlfcn.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <shardwise/comm/collectives.hpp>
#include <shardwise/comm/nccl.hpp>
#include <string>
#include <vector>

#include "../comm/results.hpp"
#include "../support/ranks.hpp"
#include "../support/sanitized.hpp"
#include "nccl_ranks.hpp"

namespace shardwise::test {
namespace {

using Catch::Matchers::ContainsSubstring;

std::atomic<int> modes_set{0};  // of threads, for captures by others

Results results_of(Communicator& comm, const std::vector<CollectiveCase>& cases) {
  CudaStream stream;
  Results results;
  for (const CollectiveCase& collective : cases) {
    CudaCall call(collective, comm, stream);
    call.issue();
    stream.synchronize();
    results.push_back(call.results());
  }
  comm.check();
  return results;
}

// The emulation keeps a thread for each stream: of the many cases some, others in each world.
std::vector<CollectiveCase> some_cases(int world) {
  std::vector<CollectiveCase> cases = all_collective_cases(world);
  const std::size_t step = sanitized ? 23 : 7;
  std::size_t index = static_cast<std::size_t>(world);
  std::erase_if(cases, [&](const CollectiveCase& collective) {
    return index++ % step != 0 && collective.items.size() == 1;
  });
  return cases;
}

TEST_CASE("every collective gives the bytes of the reference") {
  for (const int world : present_worlds()) {
    const std::vector<CollectiveCase> cases = some_cases(world);
    const auto all =
        on_cuda_ranks(world, [&](Communicator& comm) { return results_of(comm, cases); },
                      {.checked = world % 2 == 0, .separate_reductions = world > 3});
    for (int rank = 0; rank < world; ++rank) {
      check(all[static_cast<std::size_t>(rank)], cases, rank, world);
    }
  }
}

TEST_CASE("parts of an all_reduce that are large enough are shared out") {
  for (const int world : present_worlds()) {
    std::vector<CollectiveCase> cases;
    for (const std::size_t count : {64 * static_cast<std::size_t>(world), std::size_t{5003}}) {
      for (const bool accumulate : {false, true}) {
        for (const DType dtype : {DType::f32, DType::bf16}) {
          cases.push_back({Operation::all_reduce,
                           {{.dtype = dtype,
                             .count = count,
                             .output = DType::f32,
                             .in_place = !accumulate && dtype == DType::f32,
                             .accumulate = accumulate,
                             .scale = 0.125,
                             .weighted = accumulate}},
                           0});
        }
      }
    }
    const auto all =
        on_cuda_ranks(world, [&](Communicator& comm) { return results_of(comm, cases); });
    for (int rank = 0; rank < world; ++rank) {
      check(all[static_cast<std::size_t>(rank)], cases, rank, world);
    }
  }
}

TEST_CASE("NCCL's own order gives exact sums of integers and close ones of floats") {
  for (const int world : present_worlds()) {
    std::vector<CollectiveCase> exact;
    std::vector<CollectiveCase> close;
    for (const Operation operation : {Operation::reduce_scatter, Operation::all_reduce}) {
      for (const bool accumulate : {false, true}) {
        for (const bool in_place : {false, !accumulate}) {
          exact.push_back({operation,
                           {{.dtype = DType::i32,
                             .count = 129,
                             .output = DType::i32,
                             .in_place = in_place,
                             .accumulate = accumulate}},
                           0});
          close.push_back({operation,
                           {{.dtype = DType::f32,
                             .count = 129,
                             .output = in_place ? DType::f32 : DType::f64,
                             .in_place = in_place,
                             .accumulate = accumulate,
                             .scale = 0.5}},
                           0});
        }
      }
      exact.push_back({operation,
                       {{.dtype = DType::f32,
                         .count = 65,
                         .output = DType::bf16,
                         .scale = 0.5,
                         .weighted = true}},
                       0});
    }
    const auto run = [&](const std::vector<CollectiveCase>& cases) {
      return on_cuda_ranks(world, [&](Communicator& comm) { return results_of(comm, cases); },
                           {.order = NcclOrder::fast, .checked = true});
    };
    const auto all_exact = run(exact);
    const auto all_close = run(close);
    for (int rank = 0; rank < world; ++rank) {
      check(all_exact[static_cast<std::size_t>(rank)], exact, rank, world);
      for (std::size_t i = 0; i < close.size(); ++i) {
        const Bytes& found = all_close[static_cast<std::size_t>(rank)][i][0];
        const Bytes expected = RankCall::expected(close[i], rank, world)[0];
        REQUIRE(found.size() == expected.size());
        const bool wide = close[i].items[0].output == DType::f64;
        bool good = true;
        for (std::size_t k = 0; k < close[i].items[0].count; ++k) {
          const double a = wide ? element<double>(found, k) : element<float>(found, k);
          const double b = wide ? element<double>(expected, k) : element<float>(expected, k);
          good = good && std::abs(a - b) < 1e-4;
        }
        CHECK(good);
      }
    }
  }
}

// What helpers on host memory and scalars give, in whatever backend.
std::vector<double> numbers_of(Communicator& comm) {
  const auto size = static_cast<std::size_t>(comm.size());
  const int rank = comm.rank();
  std::vector<double> seen;
  const auto keep = [&](const auto& range) {
    for (const auto number : std::span(range)) seen.push_back(static_cast<double>(number));
  };
  const std::array<float, 3> mine{0.1f * static_cast<float>(rank), 1e6f, 1e-3f};
  std::vector<float> whole(3 * size);
  all_gather(comm, mine, whole);
  keep(whole);
  std::array<float, 3> part{};
  reduce_scatter(comm, whole, part, Reduce::mean);
  keep(part);
  std::int32_t integers[] = {rank, 1};
  all_reduce(comm, integers);
  keep(integers);
  std::vector<double> large(3000, 0.1 * rank);  // more than the first ones: memory grows
  all_reduce(comm, large, Reduce::mean);
  keep(large);
  bf16 half[1] = {bf16(static_cast<float>(rank))};
  broadcast(comm, half, comm.size() - 1);
  seen.push_back(static_cast<float>(half[0]));
  std::vector<std::int64_t> out(2 * size);
  std::vector<std::int64_t> in(2 * size);
  for (std::size_t r = 0; r < out.size(); ++r) out[r] = rank * 100 + static_cast<int>(r);
  all_to_all(comm, out, in);
  keep(in);
  barrier(comm);
  const double value = std::sin(1.0 + rank) * std::pow(10.0, rank);
  seen.insert(seen.end(),
              {sum(comm, value), mean(comm, value), weighted_mean(comm, value, 0.5 + rank),
               max(comm, value), min(comm, value), any(comm, rank == 1) ? 1.0 : 0.0,
               all(comm, rank > 0) ? 1.0 : 0.0});
  const std::array<float, 0> nothing{};
  std::array<float, 0> nowhere{};
  all_gather(comm, nothing, nowhere);
  std::array<double, 2> weighted{0, 0};
  const std::array<ReduceItem, 2> items{
      ReduceItem{&value, &weighted[0], 1, DType::f64, {DType::f64, 0.5, 1.0 + rank, false, true}},
      ReduceItem{&value, &weighted[1], 1, DType::f64, {DType::f64, 1, 1, true, false}}};
  comm.all_reduce(items, {"two"}, {});
  keep(weighted);
  return seen;
}

TEST_CASE("numbers in host memory give the bits of threads") {
  for (const int world : present_worlds()) {
    const auto expected = on_ranks(world, numbers_of);
    CHECK(on_cuda_ranks(world, numbers_of) == expected);
    CHECK(on_cuda_ranks(world, numbers_of, {.order = NcclOrder::fast}) == expected);
  }
}

TEST_CASE("split makes groups by color, ordered by key, that work beside the whole") {
  const auto parts_of = [](Communicator& comm) {
    std::vector<double> seen;
    const auto part = comm.split(comm.rank() % 2 - 5, -comm.rank(), {.name = "halves"});
    seen.insert(seen.end(), {double(part->size()), double(part->rank())});
    std::vector<int> members(static_cast<std::size_t>(part->size()));
    all_gather(*part, std::array<int, 1>{comm.rank()}, members);
    seen.insert(seen.end(), members.begin(), members.end());
    const auto alone = part->split(part->rank(), 0, {.name = "alone"});
    seen.push_back(alone->size() * 100 + alone->rank());
    seen.push_back(sum(*part, 0.1 + comm.rank()));
    seen.push_back(sum(comm, 0.1 + comm.rank()));
    return seen;
  };
  for (const int world : present_worlds()) {
    CHECK(on_cuda_ranks(world, parts_of) == on_ranks(world, parts_of));
  }
}

TEST_CASE("parts of a split reduce with the bits of their own ranks") {
  const auto cases =
      std::vector<CollectiveCase>{{Operation::reduce_scatter, {{.count = 70, .weighted = true}}, 0},
                                  {Operation::all_reduce, {{.count = 300, .in_place = true}}, 0},
                                  {Operation::all_gather, {{.count = 9, .in_place = true}}, 0}};
  for (const int world : present_worlds()) {
    const auto all = on_cuda_ranks(world, [&](Communicator& comm) {
      const auto part = comm.split(comm.rank() % 2, 0, {.name = "part"});
      return results_of(*part, cases);
    });
    for (int rank = 0; rank < world; ++rank) {
      const int members = (world + 1 - rank % 2) / 2;
      check(all[static_cast<std::size_t>(rank)], cases, rank / 2, members);
    }
  }
}

TEST_CASE("calls run in the order in which they were made, whatever their streams") {
  for (const int world : present_worlds()) {
    const auto all = on_cuda_ranks(world, [&](Communicator& comm) {
      CudaStream first;
      CudaStream second(CudaStream::Priority::high);
      CudaStream reader;
      std::vector<Bytes> seen;
      for (int round = 0; round < 30; ++round) {
        CudaStream& one = (comm.rank() + round) % 2 == 0 ? first : second;
        CudaStream& other = (comm.rank() + round) % 3 == 0 ? first : second;
        const CollectiveCase gather{Operation::all_gather, {{.count = 33, .in_place = true}}, 0};
        const CollectiveCase reduce{Operation::all_reduce, {{.count = 700}}, 0};
        CudaCall a(gather, comm, one);
        CudaCall b(reduce, comm, other);
        a.issue();
        b.issue();
        comm.barrier({"round"}, one.ref());
        first.synchronize();
        second.synchronize();
        seen.push_back(a.results()[0]);
        seen.push_back(b.results()[0]);
      }
      comm.check();
      return seen;
    });
    for (int rank = 0; rank < world; ++rank) {
      const auto& seen = all[static_cast<std::size_t>(rank)];
      const Bytes gathered = RankCall::expected(
          {Operation::all_gather, {{.count = 33, .in_place = true}}, 0}, rank, world)[0];
      const Bytes reduced =
          RankCall::expected({Operation::all_reduce, {{.count = 700}}, 0}, rank, world)[0];
      for (std::size_t i = 0; i < seen.size(); i += 2) {
        CHECK(seen[i] == gathered);
        CHECK(seen[i + 1] == reduced);
      }
    }
  }
}

TEST_CASE("more calls than are watched at once wait for the oldest") {
  const auto all = on_cuda_ranks(
      std::min(2, present_worlds().back()),
      [](Communicator& comm) {
        CudaStream stream;
        const CollectiveCase gather{Operation::all_gather, {{.count = 3, .in_place = true}}, 0};
        CudaCall call(gather, comm, stream);
        for (int i = 0; i < 300; ++i) call.issue();
        stream.synchronize();
        comm.check();
        return call.results()[0] == RankCall::expected(gather, comm.rank(), comm.size())[0] ? 1 : 0;
      },
      {});
  for (const int good : all) CHECK(good == 1);
}

TEST_CASE("wrong arguments are refused before a call is taken") {
  const auto all = on_cuda_ranks(std::min(2, present_worlds().back()), [](Communicator& comm) {
    CudaStream stream;
    const StreamRef ref = stream.ref();
    const DeviceBytes memory(Bytes(64), stream);
    std::array<float, 8> host{};
    std::string seen;
    const auto refused = [&](auto call) {
      try {
        call();
        seen += "accepted\n";
      } catch (const UsageError& error) {
        seen += std::string(error.what()) + "\n";
      }
    };
    const CallInfo info{.name = "wrong"};
    const GatherItem null{nullptr, memory.data(), 2, DType::f32};
    refused([&] { comm.all_gather({&null, 1}, info, ref); });
    const GatherItem fine{memory.data() + 32, memory.data(), 2, DType::f32};
    refused([&] { comm.all_gather({&fine, 1}, info, {MemoryKind::cuda, nullptr}); });
    refused([&] { comm.all_gather({&fine, 1}, info, {MemoryKind::host, &stream}); });
    const ReduceItem no_landing{memory.data(), memory.data() + 32, 2, DType::f32, {}};
    if (comm.size() > 1) refused([&] { comm.reduce_scatter({&no_landing, 1}, info, ref); });
    const ReduceItem narrow{memory.data(), memory.data(), 8, DType::f32, {DType::bf16}};
    refused([&] { comm.all_reduce({&narrow, 1}, info, ref); });
    const BroadcastItem one{memory.data(), 4, DType::f32};
    refused([&] { comm.broadcast({&one, 1}, comm.size(), info, ref); });
    const std::vector<Piece> pieces{{reinterpret_cast<std::byte*>(host.data()), 0, 2}};
    const GatherItem in_pieces{nullptr, nullptr, 1, DType::f32, pieces};
    refused([&] { comm.all_gather({&in_pieces, 1}, info, {}); });
    barrier(comm);  // the group is as good as before
    comm.check();
    return seen;
  });
  for (const std::string& seen : all) {
    CHECK_THAT(seen, !ContainsSubstring("accepted") && ContainsSubstring("send buffer is null") &&
                         ContainsSubstring("CUDA stream is null") && ContainsSubstring("overlap") &&
                         ContainsSubstring("null stream and without pieces") &&
                         ContainsSubstring("root"));
    CHECK(std::count(seen.begin(), seen.end(), '\n') >= 6);
  }
}

TEST_CASE("a communicator says what it is") {
  const int devices = require_devices(1);
  const auto all = on_cuda_ranks(1, [](Communicator& comm) {
    return comm.backend() == "nccl" && comm.accepts(MemoryKind::cuda) &&
                   !comm.accepts(MemoryKind::host)
               ? 1
               : 0;
  });
  CHECK(all[0] == 1);
  CHECK_THROWS_AS(run_cuda_ranks(devices + 1, [](Communicator&) {}), BackendError);
  CHECK_THROWS_AS(run_cuda_ranks(0, [](Communicator&) {}), UsageError);
}

TEST_CASE("who captures a graph is not disturbed by the watchdog's queries") {
  require_devices(1);
  const int before = modes_set.load();
  run_cuda_ranks(1, [](Communicator& comm) { barrier(comm, {"queried"}); });
  CHECK(modes_set.load() == before + 1);
}

}  // namespace
}  // namespace shardwise::test

/// CUDA's, counting threads that no longer break what others capture.
cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode* mode) {
  if (*mode != cudaStreamCaptureModeGlobal) shardwise::test::modes_set.fetch_add(1);
  using Call = cudaError_t(cudaStreamCaptureMode*);
  auto* const real =
      reinterpret_cast<Call*>(dlsym(RTLD_NEXT, "cudaThreadExchangeStreamCaptureMode"));
  return real(mode);
}
