// What NCCL promises of collectives, groups and streams, as plain programs: they hold on devices
// and on the emulation.

#include <catch2/catch_test_macros.hpp>
#include <cmath>
#include <numeric>

#include "control.hpp"
#include "plain_nccl.hpp"

using plain::Check;
using plain::DeviceArray;
using plain::Event;
using plain::on_ranks;
using plain::PinnedArray;
using plain::Rank;
using plain::Stream;
using plain::worlds;

namespace {

using Wrong = std::vector<std::string>;

/// Element `i` of rank `rank`: small, so that sums are exact in every type.
int element(int rank, std::size_t i) { return (rank * 5 + static_cast<int>(i)) % 7 - 3; }

template <class T>
std::vector<T> elements(int rank, std::size_t count, std::size_t from = 0) {
  std::vector<T> values(count);
  for (std::size_t i = 0; i < count; ++i) values[i] = static_cast<T>(element(rank, from + i));
  return values;
}

template <class T>
std::vector<T> sum_of(int ranks, std::size_t count, std::size_t from = 0) {
  std::vector<T> sums(count);
  for (std::size_t i = 0; i < count; ++i) {
    int sum = 0;
    for (int rank = 0; rank < ranks; ++rank) sum += element(rank, from + i);
    sums[i] = static_cast<T>(sum);
  }
  return sums;
}

template <class T>
void check_sums(Rank& own, const Check& check, ncclDataType_t type, const char* name) {
  const std::size_t count = 1001;
  const DeviceArray<T> in(count);
  const DeviceArray<T> out(count);
  own.upload(in, elements<T>(own.rank, count));
  PLAIN_NCCL(ncclAllReduce(in.data, out.data, count, type, ncclSum, own.world, own.stream));
  check(own.download(out) == sum_of<T>(own.ranks, count), std::string("all-reduce of ") + name);
  check(own.download(in) == elements<T>(own.rank, count), std::string("its input, ") + name);
}

std::size_t each(const Rank& own) { return static_cast<std::size_t>(own.ranks); }
std::size_t place(const Rank& own) { return static_cast<std::size_t>(own.rank); }

}  // namespace

TEST_CASE("sums of every type, in worlds of all sizes") {
  for (const int ranks : worlds()) {
    INFO("ranks " << ranks);
    CHECK(on_ranks(ranks, [](Rank& own, const Check& check) {
            check_sums<std::int8_t>(own, check, ncclInt8, "int8");
            check_sums<std::int32_t>(own, check, ncclInt32, "int32");
            check_sums<std::int64_t>(own, check, ncclInt64, "int64");
            check_sums<float>(own, check, ncclFloat32, "float32");
            check_sums<double>(own, check, ncclFloat64, "float64");
          }) == Wrong{});
  }
}

TEST_CASE("short floating-point sums are exact where they fit") {
  for (const int ranks : worlds()) {
    CHECK(on_ranks(ranks, [](Rank& own, const Check& check) {
            const std::size_t count = 333;
            const DeviceArray<__half> short_values(count);
            const DeviceArray<__nv_bfloat16> brain_values(count);
            std::vector<__half> halves(count);
            std::vector<__nv_bfloat16> brains(count);
            for (std::size_t i = 0; i < count; ++i) {
              halves[i] = __float2half(static_cast<float>(element(own.rank, i)));
              brains[i] = __float2bfloat16(static_cast<float>(element(own.rank, i)));
            }
            own.upload(short_values, halves);
            own.upload(brain_values, brains);
            PLAIN_NCCL(ncclGroupStart());
            PLAIN_NCCL(ncclAllReduce(short_values.data, short_values.data, count, ncclFloat16,
                                     ncclSum, own.world, own.stream));
            PLAIN_NCCL(ncclAllReduce(brain_values.data, brain_values.data, count, ncclBfloat16,
                                     ncclSum, own.world, own.stream));
            PLAIN_NCCL(ncclGroupEnd());
            const auto sums = sum_of<float>(own.ranks, count);
            const auto half_sums = own.download(short_values);
            const auto brain_sums = own.download(brain_values);
            for (std::size_t i = 0; i < count; ++i) {
              check(__half2float(half_sums[i]) == sums[i], "float16 " + std::to_string(i));
              check(__bfloat162float(brain_sums[i]) == sums[i], "bfloat16 " + std::to_string(i));
            }
          }) == Wrong{});
  }
}

TEST_CASE("product, extremes, average and pre-multiplied sums") {
  for (const int ranks : worlds()) {
    CHECK(on_ranks(ranks, [](Rank& own, const Check& check) {
            const DeviceArray<float> in(4);
            const DeviceArray<float> out(4);
            own.upload(in, std::vector<float>{1.F, 2.F, -1.F, static_cast<float>(own.rank)});
            const auto result = [&](ncclRedOp_t reduction) {
              PLAIN_NCCL(ncclAllReduce(in.data, out.data, 4, ncclFloat32, reduction, own.world,
                                       own.stream));
              return own.download(out);
            };
            const auto n = static_cast<float>(own.ranks);
            check(result(ncclProd)[1] == std::exp2(n), "product");
            check(result(ncclMax)[3] == n - 1, "maximum");
            check(result(ncclMin)[3] == 0, "minimum");
            check(std::abs(result(ncclAvg)[3] - (n - 1) / 2) < 1e-5F, "average");

            float factor = .5F * static_cast<float>(own.rank + 1);
            ncclRedOp_t scaled{};
            PLAIN_NCCL(ncclRedOpCreatePreMulSum(&scaled, &factor, ncclFloat32,
                                                ncclScalarHostImmediate, own.world));
            factor = 0;  // it was read at the call
            check(result(scaled)[1] == n * (n + 1) / 2, "factor in host memory");
            PLAIN_NCCL(ncclRedOpDestroy(scaled, own.world));

            const DeviceArray<float> on_device(1);
            own.upload(on_device, std::vector<float>{2.F});
            PLAIN_NCCL(ncclRedOpCreatePreMulSum(&scaled, on_device.data, ncclFloat32,
                                                ncclScalarDevice, own.world));
            PLAIN_NCCL(
                ncclAllReduce(in.data, out.data, 4, ncclFloat32, scaled, own.world, own.stream));
            PLAIN_NCCL(ncclRedOpDestroy(scaled, own.world));  // while the sum may still run
            check(own.download(out)[0] == 2 * n, "factor in device memory");
            check(ncclRedOpDestroy(scaled, own.world) == ncclInvalidArgument, "destroyed twice");
          }) == Wrong{});
  }
}

TEST_CASE("gathers and reduce-scatters, beside and in place") {
  for (const int ranks : worlds()) {
    CHECK(on_ranks(ranks, [](Rank& own, const Check& check) {
            const std::size_t part = 129;
            const std::size_t whole = part * each(own);
            std::vector<float> gathered;
            for (int rank = 0; rank < own.ranks; ++rank) {
              const auto values = elements<float>(rank, part);
              gathered.insert(gathered.end(), values.begin(), values.end());
            }
            const DeviceArray<float> own_part(part);
            const DeviceArray<float> all(whole);
            own.upload(own_part, elements<float>(own.rank, part));
            PLAIN_NCCL(
                ncclAllGather(own_part.data, all.data, part, ncclFloat32, own.world, own.stream));
            check(own.download(all) == gathered, "all-gather");
            PLAIN_CUDA(cudaMemsetAsync(all.data, 0, all.bytes(), own.stream));
            float* const own_place = all.data + place(own) * part;
            PLAIN_CUDA(cudaMemcpyAsync(own_place, own_part.data, own_part.bytes(),
                                       cudaMemcpyDeviceToDevice, own.stream));
            PLAIN_NCCL(
                ncclAllGather(own_place, all.data, part, ncclFloat32, own.world, own.stream));
            check(own.download(all) == gathered, "all-gather in place");

            own.upload(all, elements<float>(own.rank, whole));
            const auto sums = sum_of<float>(own.ranks, part, place(own) * part);
            PLAIN_NCCL(ncclReduceScatter(all.data, own_part.data, part, ncclFloat32, ncclSum,
                                         own.world, own.stream));
            check(own.download(own_part) == sums, "reduce-scatter");
            check(own.download(all) == elements<float>(own.rank, whole), "its input");
            PLAIN_NCCL(ncclReduceScatter(all.data, own_place, part, ncclFloat32, ncclSum, own.world,
                                         own.stream));
            check(own.download(own_place, part) == sums, "reduce-scatter in place");
          }) == Wrong{});
  }
}

TEST_CASE("broadcasts, reductions, gathers and scatters of every root") {
  for (const int ranks : worlds()) {
    CHECK(on_ranks(ranks, [](Rank& own, const Check& check) {
            const std::size_t part = 31;
            const DeviceArray<std::int32_t> one(part);
            const DeviceArray<std::int32_t> other(part);
            const DeviceArray<std::int32_t> whole(part * each(own));
            for (int root = 0; root < own.ranks; ++root) {
              own.upload(one, elements<std::int32_t>(own.rank, part));
              PLAIN_NCCL(ncclBroadcast(one.data, other.data, part, ncclInt32, root, own.world,
                                       own.stream));
              check(own.download(other) == elements<std::int32_t>(root, part), "broadcast");
              PLAIN_NCCL(ncclBcast(one.data, part, ncclInt32, root, own.world, own.stream));
              check(own.download(one) == elements<std::int32_t>(root, part), "bcast in place");

              own.upload(one, elements<std::int32_t>(own.rank, part));
              PLAIN_NCCL(ncclReduce(one.data, one.data, part, ncclInt32, ncclSum, root, own.world,
                                    own.stream));
              check(
                  own.download(one) == (own.rank == root ? sum_of<std::int32_t>(own.ranks, part)
                                                         : elements<std::int32_t>(own.rank, part)),
                  "reduce in place");

              own.upload(one, elements<std::int32_t>(own.rank, part));
              PLAIN_NCCL(ncclGather(one.data, own.rank == root ? whole.data : nullptr, part,
                                    ncclInt32, root, own.world, own.stream));
              if (own.rank == root) {
                const auto all = own.download(whole);
                for (int rank = 0; rank < own.ranks; ++rank) {
                  const auto begin = all.begin() + rank * static_cast<std::ptrdiff_t>(part);
                  check(std::equal(begin, begin + static_cast<std::ptrdiff_t>(part),
                                   elements<std::int32_t>(rank, part).begin()),
                        "gather of rank " + std::to_string(rank));
                }
              }
              own.upload(whole, elements<std::int32_t>(own.rank, part * each(own)));
              PLAIN_NCCL(
                  ncclScatter(whole.data, one.data, part, ncclInt32, root, own.world, own.stream));
              check(own.download(one) == elements<std::int32_t>(root, part, place(own) * part),
                    "scatter");
            }
          }) == Wrong{});
  }
}

TEST_CASE("all-to-all, as one call and as a group of sends and receives") {
  for (const int ranks : worlds()) {
    CHECK(on_ranks(ranks, [](Rank& own, const Check& check) {
            const std::size_t part = 17;
            const DeviceArray<float> in(part * each(own));
            const DeviceArray<float> out(part * each(own));
            own.upload(in, elements<float>(own.rank, in.count));
            std::vector<float> expected;
            for (int rank = 0; rank < own.ranks; ++rank) {
              const auto values = elements<float>(rank, part, place(own) * part);
              expected.insert(expected.end(), values.begin(), values.end());
            }
            PLAIN_NCCL(ncclAlltoAll(in.data, out.data, part, ncclFloat32, own.world, own.stream));
            check(own.download(out) == expected, "all-to-all");
            PLAIN_CUDA(cudaMemsetAsync(out.data, 0, out.bytes(), own.stream));
            PLAIN_NCCL(ncclGroupStart());
            for (int peer = 0; peer < own.ranks; ++peer) {
              const std::size_t at = static_cast<std::size_t>(peer) * part;
              PLAIN_NCCL(ncclRecv(out.data + at, part, ncclFloat32, peer, own.world, own.stream));
              PLAIN_NCCL(ncclSend(in.data + at, part, ncclFloat32, peer, own.world, own.stream));
            }
            PLAIN_NCCL(ncclGroupEnd());
            check(own.download(out) == expected, "sends and receives, to itself too");
          }) == Wrong{});
  }
}

TEST_CASE("a group may use several streams; its end is in the order of all of them") {
  if (plain::device_count() < 2) SKIP("needs 2 devices");
  CHECK(on_ranks(2, [](Rank& own, const Check& check) {
          const std::size_t count = 4096;
          const Stream second;
          const DeviceArray<float> a(count);
          const DeviceArray<float> b(count);
          const PinnedArray<float> host(count);
          own.upload(a, elements<float>(own.rank, count));
          own.upload(b, elements<float>(own.rank, count));
          // Who does not wait for the first stream is too early by far.
          PLAIN_CUDA(cudaLaunchHostFunc(
              own.stream, [](void*) { std::this_thread::sleep_for(std::chrono::milliseconds(30)); },
              nullptr));
          for (int i = 0; i < 10; ++i) {
            PLAIN_NCCL(ncclGroupStart());
            PLAIN_NCCL(
                ncclAllReduce(a.data, a.data, count, ncclFloat32, ncclMax, own.world, own.stream));
            PLAIN_NCCL(
                ncclAllReduce(b.data, b.data, count, ncclFloat32, ncclMax, own.world, second));
            PLAIN_NCCL(ncclGroupEnd());
          }
          // Either stream's order holds for both results.
          PLAIN_CUDA(cudaMemcpyAsync(host.data, a.data, a.bytes(), cudaMemcpyDeviceToHost, second));
          second.synchronize();
          float expected = 0;
          for (std::size_t i = 0; i < count; ++i) {
            expected = static_cast<float>(std::max(element(0, i), element(1, i)));
            check(host[i] == expected, "element " + std::to_string(i));
          }
          check(own.download(b)[count - 1] == expected, "the second stream's result");
        }) == Wrong{});
}

TEST_CASE("collectives follow the order of their stream and of events") {
  for (const int ranks : worlds()) {
    CHECK(on_ranks(ranks, [](Rank& own, const Check& check) {
            const std::size_t count = 50'000;
            const Stream compute;
            const Event filled;
            const Event reduced;
            const DeviceArray<std::uint8_t> data(count);
            const PinnedArray<std::uint8_t> host(count);
            for (int step = 1; step <= 20; ++step) {
              PLAIN_CUDA(cudaMemsetAsync(data.data, step, count, compute));
              PLAIN_CUDA(cudaEventRecord(filled, compute));
              PLAIN_CUDA(cudaStreamWaitEvent(own.stream, filled, 0));
              PLAIN_NCCL(ncclAllReduce(data.data, data.data, count, ncclUint8, ncclSum, own.world,
                                       own.stream));
              PLAIN_CUDA(cudaEventRecord(reduced, own.stream));
              PLAIN_CUDA(cudaStreamWaitEvent(compute, reduced, 0));
              PLAIN_CUDA(
                  cudaMemcpyAsync(host.data, data.data, count, cudaMemcpyDeviceToHost, compute));
              compute.synchronize();
              const auto expected = static_cast<std::uint8_t>(step * own.ranks);
              check(host[0] == expected && host[count - 1] == expected,
                    "step " + std::to_string(step));
            }
          }) == Wrong{});
  }
}

TEST_CASE("one host thread drives many devices by groups") {
  const int devices = std::min(plain::device_count(), 4);
  std::vector<ncclComm_t> world(static_cast<std::size_t>(devices));
  REQUIRE(ncclCommInitAll(world.data(), devices, nullptr) == ncclSuccess);
  std::vector<std::unique_ptr<Stream>> streams;
  std::vector<std::unique_ptr<DeviceArray<float>>> buffers;
  const std::size_t part = 100;
  for (int device = 0; device < devices; ++device) {
    PLAIN_CUDA(cudaSetDevice(device));
    streams.push_back(std::make_unique<Stream>());
    buffers.push_back(
        std::make_unique<DeviceArray<float>>(part * static_cast<std::size_t>(devices)));
    const PinnedArray<float> host(part);
    std::fill(host.data, host.data + part, static_cast<float>(device));
    PLAIN_CUDA(cudaMemcpyAsync(buffers.back()->data + static_cast<std::size_t>(device) * part,
                               host.data, host.bytes(), cudaMemcpyHostToDevice, *streams.back()));
    streams.back()->synchronize();
  }
  // Splits in a group too: each rank's call returns before the others are made.
  std::vector<ncclComm_t> halves(static_cast<std::size_t>(devices), nullptr);
  REQUIRE(ncclGroupStart() == ncclSuccess);
  for (std::size_t i = 0; i < world.size(); ++i) {
    REQUIRE(ncclCommSplit(world[i], static_cast<int>(i) % 2, 0, &halves[i], nullptr) ==
            ncclSuccess);
  }
  REQUIRE(ncclGroupEnd() == ncclSuccess);
  REQUIRE(ncclGroupStart() == ncclSuccess);
  for (std::size_t i = 0; i < world.size(); ++i) {
    REQUIRE(ncclAllGather(buffers[i]->data + i * part, buffers[i]->data, part, ncclFloat32,
                          world[i], *streams[i]) == ncclSuccess);
  }
  REQUIRE(ncclGroupEnd() == ncclSuccess);
  for (std::size_t i = 0; i < world.size(); ++i) {
    PLAIN_CUDA(cudaSetDevice(static_cast<int>(i)));
    const PinnedArray<float> host(buffers[i]->count);
    PLAIN_CUDA(cudaMemcpyAsync(host.data, buffers[i]->data, host.bytes(), cudaMemcpyDeviceToHost,
                               *streams[i]));
    streams[i]->synchronize();
    for (std::size_t k = 0; k < host.count; ++k) {
      REQUIRE(host[k] == static_cast<float>(k / part));
    }
    int size = 0;
    REQUIRE(ncclCommCount(halves[i], &size) == ncclSuccess);
    CHECK(size == (devices + 1 - static_cast<int>(i) % 2) / 2);
  }
  for (ncclComm_t one : halves) CHECK(ncclCommDestroy(one) == ncclSuccess);
  for (ncclComm_t one : world) CHECK(ncclCommDestroy(one) == ncclSuccess);
  buffers.clear();
  streams.clear();
  PLAIN_CUDA(cudaSetDevice(0));
}
