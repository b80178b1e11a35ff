// bench_collectives --backend cuda: the collectives on CUDA devices, one rank a device, with the
// columns of the other backends. Times are CUDA events', of the slowest rank, of calls in a row.
// `limit_us` is what copies inside one device take for as many bytes as a rank reads and writes at
// the least. `nccl_us` is the call of NCCL's that a program would make otherwise, in turns with
// ours, and nccl_ratio ours / NCCL's. Results are checked. Exits with 77 where there is no device;
// on the emulation times are of its model, and say nothing.

#include <nccl.h>

#include <algorithm>
#include <cstddef>
#include <cstdlib>
#include <functional>
#include <memory>
#include <optional>
#include <shardwise/comm/nccl.hpp>
#include <shardwise/device/cuda.hpp>
#include <string>
#include <vector>

#include "collective.hpp"
#include "collective_cases.hpp"
#include "cuda_timing.hpp"
#include "program.hpp"
#include "raw_nccl.hpp"

namespace {

using namespace benchmarks;
using shardwise::Communicator;
using shardwise::CudaDevice;
using shardwise::CudaStream;
using shardwise::NcclOrder;

struct Options {
  std::string backend = "cuda";
  int ranks = 0;  // all devices
  CollectiveCases cases;
  std::string order = "canonical";
  bool arena = false;
  bool copy_engine = false;
};

/// Measures every case on one rank.
class Rank {
 public:
  Rank(shardwise::NcclCommunicator& comm, const ncclUniqueId& id, const Options& options,
       const Sampling& sampling, Results& results)
      : comm_(comm),
        raw_(id, comm.size(), comm.rank()),
        options_(options),
        sampling_(sampling),
        results_(results) {
    const std::size_t most = options.cases.max;
    if (options.arena) {
      arena_.emplace(comm, 3 * (most + 256), shardwise::CallInfo{"arena"});
      send_ = arena_->allocate(most);
      recv_ = arena_->allocate(most);
    } else {
      memory_.push_back(std::make_unique<bench::Memory>(most));
      memory_.push_back(std::make_unique<bench::Memory>(most));
      send_ = memory_[0]->data;
      recv_ = memory_[1]->data;
    }
    operands_ = {static_cast<std::byte*>(send_), static_cast<std::byte*>(recv_)};
    sampling_.agree = [this](double seconds) { return shardwise::max(comm_, seconds); };
    sampling_.clock = [this](const std::function<void()>& f, std::size_t calls) {
      return seconds_of_calls(f, calls);
    };
  }

  bool run() {
    return options_.cases.for_each(
        static_cast<std::size_t>(comm_.size()),
        [&](shardwise::DType dtype) {
          std::vector<std::byte> values(options_.cases.max);
          fill(values, dtype, comm_.rank());
          CudaDevice::upload(stream_, send_, values.data(), values.size());
        },
        [&](const Collective& call) { return measure(call); });
  }

 private:
  bool measure(const Collective& call) {
    landing_.reset();
    void* const landing = landing_for(call);
    const auto ours = [&] { call(comm_, operands_, stream_.ref(), landing); };
    const std::size_t errors = count_errors(call, ours);
    const std::vector<Series> times = in_turns(
        sampling_,
        {ours, [&] { copy_as_much(call); }, [&] { raw_(call, operands_, stream_.native()); }});
    comm_.check();
    Results::Json row = row_of(call, times[0], times[1], errors);
    row["nccl_us"] = times[2].middle() * 1e6;
    row["nccl_ratio"] = (times[0] / times[2]).middle();
    results_.add(std::move(row));
    return errors == 0;
  }

  // Where the contributions of a canonical sum land.
  void* landing_for(const Collective& call) {
    if (!call.is_reduction()) return nullptr;
    const bool scatter = call.op == Op::reduce_scatter;
    const shardwise::ReduceItem item{send_, recv_, call.part * (scatter ? 1 : call.ranks),
                                     call.dtype, shardwise::ReduceSpec{.output = call.dtype}};
    const std::size_t bytes = comm_.landing_bytes(item, scatter);
    if (bytes == 0) return nullptr;
    landing_ = std::make_unique<bench::Memory>(bytes);
    return landing_->data;
  }

  template <class Ours>
  std::size_t count_errors(const Collective& call, const Ours& ours) {
    const auto rank = static_cast<std::size_t>(comm_.rank());
    const bool root = call.op == Op::broadcast && rank == 0;
    const std::size_t bytes = call.op == Op::reduce_scatter ? call.part_bytes() : call.bytes();
    if (!root) CudaDevice::poison(stream_, recv_, bytes);
    ours();
    std::vector<std::byte> result(bytes);
    CudaDevice::download(stream_, result.data(), root ? send_ : recv_, bytes);
    const std::size_t errors = count_wrong(call, rank, result.data());
    return static_cast<std::size_t>(shardwise::sum(comm_, static_cast<std::int64_t>(errors)));
  }

  // A scattered sum reads every part of the buffer and writes one; the others write as many bytes
  // as they read.
  void copy_as_much(const Collective& call) {
    const std::size_t bytes =
        call.op == Op::reduce_scatter ? call.part_bytes() * (call.ranks + 1) / 2 : call.bytes();
    CudaDevice::copy(stream_, recv_, send_, std::min(bytes, options_.cases.max));
  }

  double seconds_of_calls(const std::function<void()>& f, std::size_t calls) {
    shardwise::barrier(comm_);
    begin_.record(stream_);
    for (std::size_t i = 0; i < calls; ++i) f();
    end_.record(stream_);
    stream_.synchronize();
    comm_.check();
    float milliseconds = 0;
    shardwise::cuda_check(cudaEventElapsedTime(&milliseconds, begin_.event, end_.event),
                          "cudaEventElapsedTime");
    // One rank's copies may be done before another's; a clock has its least step.
    return shardwise::max(comm_, std::max(1e-3 * static_cast<double>(milliseconds), 1e-9));
  }

  shardwise::NcclCommunicator& comm_;
  RawNccl raw_;
  const Options& options_;
  Sampling sampling_;
  Results& results_;
  CudaStream stream_;
  bench::Event begin_;
  bench::Event end_;
  std::vector<std::unique_ptr<bench::Memory>> memory_;
  std::optional<shardwise::NcclArena> arena_;
  std::unique_ptr<bench::Memory> landing_;
  void* send_ = nullptr;
  void* recv_ = nullptr;
  Operands operands_{};
};

bool run(const Options& options, Program& program, int devices) {
  const int ranks = options.ranks > 0 ? options.ranks : devices;
  program.results.describe("ranks", ranks);
  program.results.describe("order", options.order);
  program.results.describe("device", bench::device_name());
  program.results.describe("emulated", bench::emulated());
  shardwise::NcclOptions communicator;
  communicator.order = options.order == "fast" ? NcclOrder::fast : NcclOrder::canonical;
  communicator.copy_engine = options.copy_engine;
  const ncclUniqueId id = RawNccl::new_id();
  bool good = true;
  shardwise::run_cuda_ranks(
      ranks,
      [&](Communicator& any) {
        auto& comm = static_cast<shardwise::NcclCommunicator&>(any);
        Results others;
        others.silence();
        Results& results = comm.rank() == 0 ? program.results : others;
        Rank rank(comm, id, options, program.sampling, results);
        const bool fine = rank.run();
        if (comm.rank() == 0) good = fine;
        shardwise::barrier(comm);  // memory goes when nobody uses it any more
      },
      communicator);
  return good;
}

}  // namespace

int main(int count, char** arguments) {
  Options options;
  Program program(
      "bench_collectives --backend cuda",
      "Times shardwise's collectives on CUDA devices in the form of nccl-tests, against "
      "copies on the device and NCCL's own calls");
  CLI::App& app = program.options;
  app.add_option("--backend", options.backend, "this program's")->check(CLI::IsMember({"cuda"}));
  app.add_option("--ranks", options.ranks, "as threads, one device each; 0: all devices")
      ->check(CLI::NonNegativeNumber);
  options.cases.add_to(program);
  app.add_option("--order", options.order, "of sums: the library's, or NCCL's own")
      ->check(CLI::IsMember({"canonical", "fast"}));
  app.add_flag("--arena", options.arena, "buffers in memory that NCCL was told of");
  app.add_flag("--copy-engine", options.copy_engine, "gathers by the copy engines, where NCCL can");
  int skip = 0;
  const int status = program.run(count, arguments, [&] {
    program.results.describe("backend", options.backend);
    program.results.describe("samples", program.sampling.samples);
    const int devices = bench::devices_or_skip();
    if (devices == 0) skip = bench::skipped;
    return devices == 0 || run(options, program, devices);
  });
  return skip != 0 ? skip : status;
}
