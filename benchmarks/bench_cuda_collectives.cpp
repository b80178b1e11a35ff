// Times the collectives on CUDA devices, one rank for each, in the form of nccl-tests: for each
// size the time of a call by CUDA events, the algorithm bandwidth (size / time) and the bus
// bandwidth (what a ring would move over one link, the same number for any count of ranks). `size`
// is the whole buffer. `canonical` takes sums in the library's order, `fast` as NCCL does. Exits
// with 77 where there is no device; on the emulation the numbers are of its model of time.

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstddef>
#include <cstdio>
#include <memory>
#include <shardwise/comm/nccl.hpp>
#include <shardwise/device/cuda.hpp>
#include <string>
#include <vector>

#include "cuda_timing.hpp"

namespace {

using bench::Memory;
using shardwise::Communicator;
using shardwise::CudaDevice;
using shardwise::CudaStream;
using shardwise::DType;
using shardwise::NcclOrder;

struct Options {
  int ranks = 0;  // all devices
  std::vector<std::size_t> mebibytes{1, 4, 16, 64, 256};
  int calls = 20;
  int samples = 5;
};

/// Microseconds of one call, the median of the samples.
template <class Call>
double time_of(const Options& options, Communicator& comm, CudaStream& stream, const Call& call) {
  call();
  return bench::median_time(
      options.samples, options.calls, stream, call, [&] { comm.barrier({"start"}, {}); },
      [&] { comm.check(); });
}

void measure(const Options& options, Communicator& comm, const char* order, bool gathers) {
  const auto ranks = static_cast<std::size_t>(comm.size());
  const auto rank = static_cast<std::size_t>(comm.rank());
  const double ring = static_cast<double>(ranks - 1) / static_cast<double>(ranks);
  CudaStream stream;
  for (const std::size_t size : options.mebibytes) {
    const std::size_t count = (size << 20) / sizeof(float) / ranks;
    const std::size_t bytes = count * ranks * sizeof(float);
    const Memory whole(bytes);
    const Memory part(count * sizeof(float));
    CudaDevice::zero(stream, whole.data, bytes);
    auto* const own = static_cast<float*>(whole.data) + rank * count;
    const auto report = [&](const char* operation, double factor, double time) {
      if (rank != 0) return;
      const double algorithm = static_cast<double>(bytes) / time / 1e3;
      std::printf("%-15s %-10s %8zu %12.1f %9.2f %9.2f\n", operation, order, size, time, algorithm,
                  algorithm * factor);
    };
    if (gathers) {
      const shardwise::GatherItem item{own, whole.data, count, DType::f32};
      report("all_gather", ring, time_of(options, comm, stream, [&] {
               comm.all_gather({&item, 1}, {"bandwidth"}, stream.ref());
             }));
    }
    const auto reduction = [&](bool scatter) {
      shardwise::ReduceItem item{whole.data,
                                 scatter ? part.data : whole.data,
                                 scatter ? count : count * ranks,
                                 DType::f32,
                                 {}};
      const std::size_t landing = comm.landing_bytes(item, scatter);
      const auto scratch = landing > 0 ? std::make_unique<Memory>(landing) : nullptr;
      if (scratch) item.landing = scratch->data;
      return time_of(options, comm, stream, [&] {
        if (scatter) {
          comm.reduce_scatter({&item, 1}, {"bandwidth"}, stream.ref());
        } else {
          comm.all_reduce({&item, 1}, {"bandwidth"}, stream.ref());
        }
      });
    };
    report("reduce_scatter", ring, reduction(true));
    report("all_reduce", 2 * ring, reduction(false));
  }
}

int run(const Options& options, int devices) {
  const int ranks = options.ranks > 0 ? options.ranks : devices;
  std::printf("%d ranks%s; f32, in place gathers; us a call, GB/s\n", ranks,
              bench::emulated() ? bench::emulated_note : "");
  std::printf("%-15s %-10s %8s %12s %9s %9s\n", "operation", "order", "MiB", "time", "algbw",
              "busbw");
  for (const NcclOrder order : {NcclOrder::canonical, NcclOrder::fast}) {
    const bool canonical = order == NcclOrder::canonical;
    shardwise::NcclOptions communicator;
    communicator.order = order;
    shardwise::run_cuda_ranks(
        ranks,
        [&](Communicator& comm) {
          measure(options, comm, canonical ? "canonical" : "fast", canonical);
        },
        communicator);
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  Options options;
  CLI::App app("Bandwidths of the collectives on CUDA devices");
  app.add_option("--ranks", options.ranks, "ranks, one device each (0: all devices)");
  app.add_option("--sizes", options.mebibytes, "MiB of the whole buffer");
  app.add_option("--calls", options.calls, "calls in one sample")->check(CLI::PositiveNumber);
  app.add_option("--samples", options.samples, "samples; the median counts")
      ->check(CLI::PositiveNumber);
  CLI11_PARSE(app, argc, argv);

  const int devices = bench::devices_or_skip();
  if (devices == 0) return bench::skipped;
  try {
    return run(options, devices);
  } catch (const shardwise::Error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
