// What the fake NCCL adds to the real one: modelled time, the path that the real one would take,
// injected failures.

#include <array>
#include <atomic>
#include <catch2/catch_approx.hpp>
#include <catch2/catch_test_macros.hpp>

#include "child_process.hpp"
#include "nccl_control.hpp"
#include "plain_nccl.hpp"

using Catch::Approx;
using emulation_control::nccl_paths;
using emulation_control::set_option;
using emulation_control::virtual_time;
using plain::Check;
using plain::Communicator;
using plain::DeviceArray;
using plain::on_ranks;
using plain::on_threads;
using plain::Rank;
using plain::Stream;

namespace {

using Wrong = std::vector<std::string>;

bool emulated(int devices = 4) {
  return plain::device_count() >= devices && shardwise_emulation_present();
}

/// An option for the life of the object.
class Option {
 public:
  Option(const char* name, const char* value) : name_(name) { set_option(name, value); }
  ~Option() { set_option(name_, nullptr); }
  Option(const Option&) = delete;
  Option& operator=(const Option&) = delete;

 private:
  const char* name_;
};

/// Microseconds of work on the stream.
void work(cudaStream_t stream, double& microseconds) {
  PLAIN_CUDA(cudaLaunchHostFunc(
      stream, [](void* time) { emulation_control::spend(*static_cast<double*>(time)); },
      &microseconds));
}

bool near(double found, double expected) { return found == Approx(expected).epsilon(1e-9); }

}  // namespace

TEST_CASE("a collective takes the latency and its bytes over the link") {
  if (!emulated()) SKIP("needs the emulation");
  const Option kernels("kernel_us", "0");
  for (const auto& [option, gbps] : {std::pair("50", 50.), std::pair("10", 10.)}) {
    const Option link("link_gbps", option);
    const Option latency("link_us", "7");
    const double us = 1 / (gbps * 1e3);  // a byte
    CHECK(on_ranks(4, [&](Rank& own, const Check& check) {
            const std::size_t count = 100'000;
            const DeviceArray<float> a(4 * count);
            const DeviceArray<float> b(4 * count);
            PLAIN_CUDA(cudaMemsetAsync(a.data, 0, a.bytes(), own.stream));
            double before = 0;
            const auto taken = [&](ncclResult_t issued) {
              own.stream.synchronize();
              const double now = virtual_time(own.stream);
              const double result = now - before;
              before = now;
              check(issued == ncclSuccess, "issued");
              return result;
            };
            taken(ncclSuccess);
            // Ranks may have come to this point at different times: the first one levels them.
            taken(ncclAllReduce(a.data, a.data, 1, ncclFloat32, ncclSum, own.world, own.stream));
            const auto bytes = static_cast<double>(4 * count);
            check(near(taken(ncclAllGather(a.data, b.data, count, ncclFloat32, own.world,
                                           own.stream)),
                       7 + 3 * bytes * us),
                  "all-gather");
            check(near(taken(ncclReduceScatter(a.data, b.data, count, ncclFloat32, ncclSum,
                                               own.world, own.stream)),
                       7 + 3 * bytes * us),
                  "reduce-scatter");
            check(near(taken(ncclAllReduce(a.data, b.data, count, ncclFloat32, ncclSum, own.world,
                                           own.stream)),
                       7 + 1.5 * bytes * us),
                  "all-reduce");
            check(near(taken(ncclBroadcast(a.data, b.data, count, ncclFloat32, 1, own.world,
                                           own.stream)),
                       7 + bytes * us),
                  "broadcast");
          }) == Wrong{});
  }
}

TEST_CASE("a collective starts with the latest rank and ends at one time for all") {
  if (!emulated()) SKIP("needs the emulation");
  const Option kernels("kernel_us", "0");
  std::array<double, 4> ends{};
  double late = 5000;
  CHECK(on_ranks(4, [&](Rank& own, const Check&) {
          const DeviceArray<float> data(1);
          PLAIN_CUDA(cudaMemsetAsync(data.data, 0, 4, own.stream));
          if (own.rank == 2) work(own.stream, late);
          PLAIN_NCCL(
              ncclAllReduce(data.data, data.data, 1, ncclFloat32, ncclSum, own.world, own.stream));
          own.stream.synchronize();
          ends[static_cast<std::size_t>(own.rank)] = virtual_time(own.stream);
        }) == Wrong{});
  CHECK(ends[0] > 5000);
  CHECK(ends[0] == ends[1]);
  CHECK(ends[0] == ends[2]);
  CHECK(ends[0] == ends[3]);
}

TEST_CASE("one communicator does one thing at a time, two overlap, and so does compute") {
  if (!emulated(2)) SKIP("needs the emulation");
  const Option kernels("kernel_us", "0");
  std::array<double, 2> apart{};
  std::array<double, 2> serial{};
  CHECK(on_ranks(2, [&](Rank& own, const Check& check) {
          const std::size_t count = 250'000;  // 20 microseconds
          Communicator second;
          PLAIN_NCCL(ncclCommSplit(own.world, 0, own.rank, &second.handle, nullptr));
          const DeviceArray<float> a(2 * count);
          const DeviceArray<float> b(2 * count);
          const Stream other;
          const auto gather = [&](const DeviceArray<float>& data, ncclComm_t communicator,
                                  cudaStream_t stream) {
            PLAIN_NCCL(ncclAllGather(data.data + static_cast<std::size_t>(own.rank) * count,
                                     data.data, count, ncclFloat32, communicator, stream));
          };
          const auto both = [&](ncclComm_t one, ncclComm_t two) {
            PLAIN_CUDA(cudaMemsetAsync(a.data, 0, a.bytes(), own.stream));
            PLAIN_CUDA(cudaMemsetAsync(b.data, 0, b.bytes(), other));
            PLAIN_CUDA(cudaDeviceSynchronize());
            // Level the streams of both ranks, then measure from there.
            gather(a, own.world, own.stream);
            const plain::Event level;
            PLAIN_CUDA(cudaEventRecord(level, own.stream));
            PLAIN_CUDA(cudaStreamWaitEvent(other, level, 0));
            PLAIN_CUDA(cudaDeviceSynchronize());
            const double begin = virtual_time(own.stream);
            gather(a, one, own.stream);
            gather(b, two, other);
            PLAIN_CUDA(cudaDeviceSynchronize());
            return std::max(virtual_time(own.stream), virtual_time(other)) - begin;
          };
          serial[static_cast<std::size_t>(own.rank)] = both(own.world, own.world);
          apart[static_cast<std::size_t>(own.rank)] = both(own.world, second);
          check(true, "");
        }) == Wrong{});
  for (const double time : serial) CHECK(time == Approx(2 * (5 + 20)));
  for (const double time : apart) CHECK(time == Approx(5 + 20));
}

TEST_CASE("the path is what NCCL 2.28.9 would take inside one NVLink domain") {
  if (!emulated()) SKIP("needs the emulation");
  const ncclUniqueId id = plain::unique_id();
  CHECK(on_threads(4, [&](int rank, const Check& check) {
          Communicator kernels(4, id, rank);
          ncclConfig_t zero = NCCL_CONFIG_INITIALIZER;
          zero.CTAPolicy = NCCL_CTA_POLICY_ZERO;
          Communicator engine;
          PLAIN_NCCL(ncclCommSplit(kernels, 0, rank, &engine.handle, &zero));
          const Stream stream;
          void* arena = nullptr;
          constexpr std::size_t bytes = 1 << 18;
          PLAIN_NCCL(ncclMemAlloc(&arena, bytes));
          PLAIN_CUDA(cudaMemsetAsync(arena, 0, bytes, stream));
          const DeviceArray<float> other(1 << 14);
          PLAIN_CUDA(cudaMemsetAsync(other.data, 0, other.bytes(), stream));
          auto* const base = static_cast<float*>(arena);
          float* const mine = base + 1024 * rank;
          for (ncclComm_t one : {kernels.handle, engine.handle}) {
            ncclWindow_t window = nullptr;
            PLAIN_NCCL(ncclCommWindowRegister(one, arena, bytes, &window, NCCL_WIN_COLL_SYMMETRIC));
            check(window != nullptr, "window");
            auto before = nccl_paths(one);
            const auto expect = [&](ncclResult_t issued, std::array<long, 3> of_kernels,
                                    std::array<long, 3> of_engine, const char* what) {
              const auto now = nccl_paths(one);
              const auto& expected = one == kernels.handle ? of_kernels : of_engine;
              for (std::size_t i = 0; i < 3; ++i) {
                check(now[i] - before[i] == expected[i] && issued == ncclSuccess, what);
              }
              before = now;
            };
            constexpr std::array<long, 3> generic{1, 0, 0}, symmetric{0, 1, 0}, copy{0, 0, 1};
            expect(ncclAllGather(mine, base, 1024, ncclFloat32, one, stream), symmetric, copy,
                   "all-gather");
            expect(ncclReduceScatter(base, mine, 1024, ncclFloat32, ncclSum, one, stream),
                   symmetric, symmetric, "sum");
            expect(ncclReduceScatter(base, mine, 1024, ncclFloat32, ncclAvg, one, stream), generic,
                   generic, "average");
            expect(ncclAllReduce(base, base, 512, ncclFloat64, ncclSum, one, stream), generic,
                   generic, "sum of float64");
            expect(ncclAlltoAll(base, base + 16384, 1024, ncclFloat32, one, stream), generic, copy,
                   "all-to-all");
            expect(ncclBroadcast(base, base, 1024, ncclFloat32, 0, one, stream), generic, generic,
                   "broadcast");
            expect(ncclAllGather(other.data, other.data + 4096, 1024, ncclFloat32, one, stream),
                   generic, generic, "all-gather of plain memory");
            expect(ncclAllGather(base + 8192, other.data, 1024, ncclFloat32, one, stream), generic,
                   generic, "all-gather into plain memory");
            stream.synchronize();
            PLAIN_NCCL(ncclCommWindowDeregister(one, window));
          }
          PLAIN_NCCL(ncclMemFree(arena));
        }) == Wrong{});
}

TEST_CASE("without symmetric memory the window stays as it was") {
  if (!emulated(2)) SKIP("needs the emulation");
  const Option off("nccl_symmetric", "0");
  CHECK(on_ranks(2, [&](Rank& own, const Check& check) {
          void* arena = nullptr;
          PLAIN_NCCL(ncclMemAlloc(&arena, 4096));
          ncclWindow_t window = nullptr;
          PLAIN_NCCL(
              ncclCommWindowRegister(own.world, arena, 4096, &window, NCCL_WIN_COLL_SYMMETRIC));
          check(window == nullptr, "a window");
          PLAIN_NCCL(ncclMemFree(arena));
        }) == Wrong{});
}

TEST_CASE("an injected failure shows on its rank; a lost operation shows nowhere") {
  if (!emulated(3)) SKIP("needs the emulation");
  for (const bool fails : {true, false}) {
    const Option fault("nccl_fault", fails ? "fail:1:2" : "lose:1:2");
    const ncclUniqueId id = plain::unique_id();
    CHECK(on_threads(3, [&](int rank, const Check& check) {
            ncclComm_t world = nullptr;
            PLAIN_NCCL(ncclCommInitRank(&world, 3, id, rank));
            const Stream stream;
            const DeviceArray<float> data(4);
            PLAIN_CUDA(cudaMemsetAsync(data.data, 0, data.bytes(), stream));
            const auto reduce = [&] {
              return ncclAllReduce(data.data, data.data, 4, ncclFloat32, ncclSum, world, stream);
            };
            check(reduce() == ncclSuccess && reduce() == ncclSuccess, "numbers 0 and 1");
            stream.synchronize();
            check(reduce() == ncclSuccess, "number 2 is issued");
            const bool shows = fails && rank == 1;
            ncclResult_t error = ncclSuccess;
            for (int i = 0; i < 100 && error == ncclSuccess; ++i) {
              std::this_thread::sleep_for(std::chrono::milliseconds(shows ? 10 : 1));
              PLAIN_NCCL(ncclCommGetAsyncError(world, &error));
            }
            check(error == (shows ? ncclSystemError : ncclSuccess), "the error shown");
            check(cudaStreamQuery(stream) == cudaErrorNotReady, "it does not end by itself");
            check(!shows || ncclCommDestroy(world) == ncclSystemError, "only abort ends it");
            PLAIN_NCCL(ncclCommAbort(world));
            stream.synchronize();
          }) == Wrong{});
  }
}

TEST_CASE("a device that broke runs no collective, and its peers can abort") {
  if (!emulated(2)) SKIP("needs the emulation");
  const ncclUniqueId id = plain::unique_id();
  std::atomic<bool> issued{false};
  CHECK(on_threads(2, [&](int rank, const Check& check) {
          ncclComm_t world = nullptr;
          PLAIN_NCCL(ncclCommInitRank(&world, 2, id, rank));
          cudaStream_t stream = nullptr;
          PLAIN_CUDA(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
          void* data = nullptr;
          PLAIN_CUDA(cudaMalloc(&data, 1024));
          if (rank == 1) {
            // cudaErrorLaunchFailure, of the next fill that runs
            set_option("fail_task", "fill:1:719");
            PLAIN_CUDA(cudaMemsetAsync(data, 0, 1024, stream));
            check(cudaStreamSynchronize(stream) == cudaErrorLaunchFailure, "the device breaks");
          }
          check(ncclAllReduce(data, data, 4, ncclFloat32, ncclSum, world, stream) == ncclSuccess,
                "a launch that nobody looked at");
          if (rank == 1) {
            issued = true;
            std::this_thread::sleep_for(std::chrono::milliseconds(50));
            check(ncclCommAbort(world) == ncclSuccess, "abort on the broken device");
            return;
          }
          while (!issued) std::this_thread::yield();
          std::this_thread::sleep_for(std::chrono::milliseconds(20));
          check(cudaStreamQuery(stream) == cudaErrorNotReady, "the peer waits");
          PLAIN_NCCL(ncclCommAbort(world));
          PLAIN_CUDA(cudaStreamSynchronize(stream));
          PLAIN_CUDA(cudaFree(data));
          PLAIN_CUDA(cudaStreamDestroy(stream));
        }) == Wrong{});
  set_option("fail_task", nullptr);
  emulation_control::reset();
}

TEST_CASE("sixty-four ranks") {
  if (!emulated()) SKIP("needs the emulation");
  const Finished finished =
      Child(std::string("env SHARDWISE_EMULATION_DEVICES=64 SHARDWISE_EMULATION_LEAKS=off ") +
            SHARDWISE_NCCL_PROGRAM + " overwrite correct 64")
          .finish();
  INFO(finished.output);
  CHECK(finished.status == 0);
  CHECK(finished.says("complete"));
}
