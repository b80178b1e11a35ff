// What NCCL promises of communicators, windows and failures, as plain programs.

#include <catch2/catch_test_macros.hpp>
#include <set>

#include "nccl_control.hpp"
#include "plain_nccl.hpp"

using emulation_control::nccl_communicators;
using plain::Check;
using plain::Communicator;
using plain::DeviceArray;
using plain::on_ranks;
using plain::on_threads;
using plain::Rank;
using plain::Stream;
using plain::worlds;

namespace {

using Wrong = std::vector<std::string>;

int rank_in(ncclComm_t communicator) {
  int rank = -1;
  PLAIN_NCCL(ncclCommUserRank(communicator, &rank));
  return rank;
}

int size_of(ncclComm_t communicator) {
  int size = -1;
  PLAIN_NCCL(ncclCommCount(communicator, &size));
  return size;
}

/// The sum over the communicator of what each rank gives.
int sum(const Rank& own, ncclComm_t communicator, int value) {
  const DeviceArray<int> number(1);
  own.upload(number, std::vector<int>{value});
  PLAIN_NCCL(
      ncclAllReduce(number.data, number.data, 1, ncclInt32, ncclSum, communicator, own.stream));
  return own.download(number).front();
}

}  // namespace

TEST_CASE("the library says who it is, and every id is another") {
  int version = 0;
  REQUIRE(ncclGetVersion(&version) == ncclSuccess);
  CHECK(version / 100 >= NCCL_VERSION_CODE / 100);  // of another patch, perhaps
  std::set<std::string> ids;
  for (int i = 0; i < 20; ++i) {
    const ncclUniqueId id = plain::unique_id();
    ids.insert(std::string(id.internal, sizeof id.internal));
  }
  CHECK(ids.size() == 20);
  CHECK(std::string(ncclGetErrorString(ncclSuccess)) == "no error");
  CHECK(std::string(ncclGetErrorString(ncclRemoteError)) != ncclGetErrorString(ncclInvalidUsage));
}

TEST_CASE("wrong arguments are refused with a reason") {
  CHECK(ncclAllGather(nullptr, nullptr, 1, ncclFloat32, nullptr, nullptr) == ncclInvalidArgument);
  ncclComm_t communicator = nullptr;
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  config.magic = 1;
  CHECK(ncclCommInitRankConfig(&communicator, 1, plain::unique_id(), 0, &config) ==
        ncclInvalidArgument);
  CHECK(ncclCommInitRank(&communicator, 2, plain::unique_id(), 2) == ncclInvalidArgument);
  CHECK(ncclCommInitRank(&communicator, 0, plain::unique_id(), 0) == ncclInvalidArgument);
  CHECK(ncclGroupEnd() == ncclInvalidUsage);
  CHECK(ncclCommDestroy(nullptr) == ncclSuccess);
  CHECK(on_ranks(1, [](Rank& own, const Check& check) {
          const DeviceArray<float> data(1);
          check(ncclBroadcast(data.data, data.data, 1, ncclFloat32, 1, own.world, own.stream) ==
                    ncclInvalidArgument,
                "a root out of range");
          check(std::string(ncclGetLastError(own.world)) != "", "without a reason");
          check(ncclAllReduce(data.data, data.data, 1, ncclNumTypes, ncclSum, own.world,
                              own.stream) == ncclInvalidArgument,
                "an unknown type");
          const auto unknown = static_cast<ncclRedOp_t>(ncclNumOps + 1);
          check(ncclAllReduce(data.data, data.data, 1, ncclFloat32, unknown, own.world,
                              own.stream) == ncclInvalidArgument,
                "an unknown reduction");
          // A group with an error does nothing.
          PLAIN_NCCL(ncclGroupStart());
          check(ncclAllReduce(data.data, data.data, 1, ncclFloat32, unknown, own.world,
                              own.stream) == ncclInvalidArgument,
                "an unknown reduction in a group");
          check(ncclGroupEnd() == ncclInvalidArgument, "the end of a group with an error");
          check(sum(own, own.world, 3) == 3, "the communicator still works");
        }) == Wrong{});
}

TEST_CASE("ranks, sizes and devices") {
  for (const int ranks : worlds()) {
    CHECK(on_ranks(ranks, [](Rank& own, const Check& check) {
            int device = -1;
            PLAIN_NCCL(ncclCommCuDevice(own.world, &device));
            check(device == own.rank, "device");
            check(rank_in(own.world) == own.rank, "rank");
            check(size_of(own.world) == own.ranks, "size");
          }) == Wrong{});
  }
}

TEST_CASE("several ids make one communicator") {
  for (const int ranks : worlds()) {
    std::vector<ncclUniqueId> ids{plain::unique_id(), plain::unique_id()};
    CHECK(on_threads(ranks, [&](int rank, const Check& check) {
            std::vector<ncclUniqueId> mine = ids;
            Communicator communicator;
            PLAIN_NCCL(ncclCommInitRankScalable(&communicator.handle, ranks, rank,
                                                ranks == 1 ? 1 : 2, mine.data(), nullptr));
            check(size_of(communicator) == ranks, "size");
          }) == Wrong{});
  }
}

TEST_CASE("a split orders by key, then by rank, and leaves out who has no color") {
  for (const int ranks : worlds()) {
    CHECK(on_ranks(ranks, [](Rank& own, const Check& check) {
            Communicator reversed;
            PLAIN_NCCL(ncclCommSplit(own.world, 0, -own.rank, &reversed.handle, nullptr));
            check(rank_in(reversed) == own.ranks - 1 - own.rank, "rank by key");
            Communicator even;
            PLAIN_NCCL(ncclCommSplit(own.world, own.rank % 2 == 0 ? 7 : NCCL_SPLIT_NOCOLOR, 0,
                                     &even.handle, nullptr));
            check((even.handle != nullptr) == (own.rank % 2 == 0), "who has a communicator");
            if (even.handle != nullptr) {
              check(rank_in(even) == own.rank / 2, "rank by rank");
              check(sum(own, even, 1) == size_of(even), "a collective of the split");
              Communicator single;
              PLAIN_NCCL(ncclCommSplit(even, own.rank, 0, &single.handle, nullptr));
              check(size_of(single) == 1 && sum(own, single, 5) == 5, "a split of a split");
            }
            check(sum(own, own.world, 1) == own.ranks, "the parent still works");
          }) == Wrong{});
  }
  CHECK(nccl_communicators() == 0);
}

TEST_CASE("a non-blocking communicator is polled") {
  for (const int ranks : worlds()) {
    const ncclUniqueId id = plain::unique_id();
    CHECK(on_threads(ranks, [&](int rank, const Check& check) {
            ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
            config.blocking = 0;
            config.commName = "polled";
            ncclComm_t communicator = nullptr;
            const ncclResult_t made =
                ncclCommInitRankConfig(&communicator, ranks, id, rank, &config);
            check(made == ncclSuccess || made == ncclInProgress, "init");
            check(plain::poll(communicator, made) == ncclSuccess, "init, polled");
            const Stream stream;
            const DeviceArray<float> data(64);
            PLAIN_CUDA(cudaMemsetAsync(data.data, 0, data.bytes(), stream));
            for (int i = 0; i < 3; ++i) {
              check(plain::poll(communicator, ncclAllReduce(data.data, data.data, 64, ncclFloat32,
                                                            ncclSum, communicator, stream)) ==
                        ncclSuccess,
                    "all-reduce");
            }
            // The call says ncclSuccess, its communicator nothing; the child comes when it is
            // complete.
            ncclComm_t part = nullptr;
            check(ncclCommSplit(communicator, rank / 2, rank, &part, nullptr) == ncclSuccess,
                  "split");
            check(plain::poll(communicator, ncclInProgress) == ncclSuccess, "the parent, polled");
            check(plain::poll(plain::await(part), ncclInProgress) == ncclSuccess,
                  "the child, polled");
            stream.synchronize();
            for (ncclComm_t one : {part, communicator}) {
              check(plain::poll(one, ncclCommFinalize(one)) == ncclSuccess, "finalize");
              check(ncclCommDestroy(one) == ncclSuccess, "destroy");
            }
          }) == Wrong{});
  }
}

TEST_CASE("an abort ends an operation whose peer never comes") {
  if (plain::device_count() < 2) SKIP("needs 2 devices");
  const ncclUniqueId id = plain::unique_id();
  CHECK(on_threads(2, [&](int rank, const Check& check) {
          ncclComm_t communicator = nullptr;
          PLAIN_NCCL(ncclCommInitRank(&communicator, 2, id, rank));
          const Stream stream;
          const DeviceArray<float> data(8);
          if (rank == 0) {
            PLAIN_NCCL(
                ncclAllReduce(data.data, data.data, 8, ncclFloat32, ncclSum, communicator, stream));
            std::this_thread::sleep_for(std::chrono::milliseconds(50));
            check(cudaStreamQuery(stream) == cudaErrorNotReady, "it waits");
            std::thread watchdog([&] {
              PLAIN_CUDA(cudaSetDevice(0));
              PLAIN_NCCL(ncclCommAbort(communicator));
            });
            watchdog.join();
          } else {
            std::this_thread::sleep_for(std::chrono::milliseconds(100));
            PLAIN_NCCL(ncclCommAbort(communicator));
          }
          stream.synchronize();
        }) == Wrong{});
  CHECK(nccl_communicators() == 0);
}

TEST_CASE("an abort ends an init whose peers never come") {
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  config.blocking = 0;
  ncclComm_t lonely = nullptr;
  REQUIRE(ncclCommInitRankConfig(&lonely, 2, plain::unique_id(), 0, &config) == ncclInProgress);
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  ncclResult_t state = ncclSuccess;
  REQUIRE(ncclCommGetAsyncError(lonely, &state) == ncclSuccess);
  CHECK(state == ncclInProgress);
  int size = 0;
  CHECK(ncclCommCount(lonely, &size) == ncclInvalidArgument);
  CHECK(ncclCommAbort(lonely) == ncclSuccess);
  CHECK(nccl_communicators() == 0);
}

TEST_CASE("the survivors of a lost rank revoke, shrink and go on") {
  if (plain::device_count() < 3) SKIP("needs 3 devices");
  const ncclUniqueId id = plain::unique_id();
  CHECK(on_threads(3, [&](int rank, const Check& check) {
          ncclComm_t world = nullptr;
          PLAIN_NCCL(ncclCommInitRank(&world, 3, id, rank));
          const Stream stream;
          const DeviceArray<int> data(1);
          PLAIN_CUDA(cudaMemsetAsync(data.data, 0, data.bytes(), stream));
          if (rank == 1) {
            PLAIN_NCCL(ncclCommAbort(world));
            return;
          }
          PLAIN_NCCL(ncclAllReduce(data.data, data.data, 1, ncclInt32, ncclSum, world, stream));
          if (rank == 0) {
            PLAIN_NCCL(ncclCommRevoke(world, NCCL_REVOKE_DEFAULT));
            check(ncclCommRevoke(world, NCCL_REVOKE_DEFAULT) == ncclInvalidArgument, "twice");
            check(ncclAllReduce(data.data, data.data, 1, ncclInt32, ncclSum, world, stream) ==
                      ncclInvalidUsage,
                  "an operation after revoke");
          }
          int excluded = 1;
          ncclComm_t rest = nullptr;
          PLAIN_NCCL(ncclCommShrink(world, &excluded, 1, &rest, nullptr,
                                    rank == 0 ? NCCL_SHRINK_DEFAULT : NCCL_SHRINK_ABORT));
          stream.synchronize();
          check(size_of(rest) == 2 && rank_in(rest) == rank / 2, "size and rank of the rest");
          const std::vector<int> one{1};
          PLAIN_CUDA(cudaMemsetAsync(data.data, 1, data.bytes(), stream));
          PLAIN_NCCL(ncclAllReduce(data.data, data.data, 1, ncclInt32, ncclSum, rest, stream));
          stream.synchronize();
          PLAIN_NCCL(ncclCommDestroy(rest));
          check(rank == 0 ? ncclCommDestroy(world) == ncclSuccess
                          : ncclCommAbort(world) == ncclSuccess,
                "the old world ends");
        }) == Wrong{});
  CHECK(nccl_communicators() == 0);
}

TEST_CASE("memory of ncclMemAlloc is registered once and used at equal offsets") {
  for (const int ranks : worlds()) {
    CHECK(on_ranks(ranks, [](Rank& own, const Check& check) {
            constexpr std::size_t bytes = 1 << 16;
            void* arena = nullptr;
            PLAIN_NCCL(ncclMemAlloc(&arena, bytes));
            ncclWindow_t window = nullptr;
            PLAIN_NCCL(
                ncclCommWindowRegister(own.world, arena, bytes, &window, NCCL_WIN_COLL_SYMMETRIC));
            auto* const all = static_cast<std::uint8_t*>(arena) + 1024;
            const std::size_t part = 2048;
            auto* const mine = all + static_cast<std::size_t>(own.rank) * part;
            PLAIN_CUDA(cudaMemsetAsync(mine, own.rank + 1, part, own.stream));
            PLAIN_NCCL(ncclAllGather(mine, all, part, ncclUint8, own.world, own.stream));
            const auto gathered = own.download(all, part * static_cast<std::size_t>(own.ranks));
            for (std::size_t i = 0; i < gathered.size(); ++i) {
              check(gathered[i] == i / part + 1, "byte " + std::to_string(i));
            }
            if (window != nullptr) PLAIN_NCCL(ncclCommWindowDeregister(own.world, window));
            void* registration = nullptr;
            PLAIN_NCCL(ncclCommRegister(own.world, arena, bytes, &registration));
            PLAIN_NCCL(ncclAllGather(mine, all, part, ncclUint8, own.world, own.stream));
            own.stream.synchronize();
            PLAIN_NCCL(ncclCommDeregister(own.world, registration));
            PLAIN_NCCL(ncclMemFree(arena));
          }) == Wrong{});
  }
}

TEST_CASE("two communicators used in the same order on all ranks do not block each other") {
  for (const int ranks : worlds()) {
    CHECK(on_ranks(ranks, [](Rank& own, const Check& check) {
            Communicator second;
            PLAIN_NCCL(ncclCommSplit(own.world, 0, own.rank, &second.handle, nullptr));
            const Stream other;
            const DeviceArray<float> a(256);
            const DeviceArray<float> b(256);
            PLAIN_CUDA(cudaMemsetAsync(a.data, 0, a.bytes(), own.stream));
            PLAIN_CUDA(cudaMemsetAsync(b.data, 0, b.bytes(), other));
            for (int i = 0; i < 20; ++i) {
              PLAIN_NCCL(
                  ncclAllReduce(a.data, a.data, 256, ncclFloat32, ncclSum, own.world, own.stream));
              PLAIN_NCCL(ncclAllReduce(b.data, b.data, 256, ncclFloat32, ncclSum, second, other));
            }
            own.stream.synchronize();
            other.synchronize();
            check(true, "");
          }) == Wrong{});
  }
}
