// Times the collectives in the form of nccl-tests: for each size the time of a call, the algorithm
// bandwidth (size / time) and the bus bandwidth (what a ring would move over one link, the same
// number for any count of ranks), out of place and in place, with results checked. `size` is the
// whole buffer as in nccl-tests. The last columns compare with memory: one memcpy of `size` bytes
// on every rank at once, measured in the same run, and its time divided by the collective's.
// Over MPI (mpirun -n 2 bench_collectives --backend mpi) the MPI call that a program would make
// otherwise takes the memcpy's place, in turns with ours.

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdio>
#include <cstring>
#include <optional>
#include <shardwise/comm/collectives.hpp>
#include <shardwise/comm/self.hpp>
#include <shardwise/comm/thread.hpp>
#include <span>
#include <string>
#include <vector>

#ifdef BENCH_WITH_MPI
#include "raw_mpi.hpp"
#else
#include "no_mpi.hpp"
#endif

namespace {

using shardwise::Communicator;
using shardwise::DType;
using Clock = std::chrono::steady_clock;

struct Options {
  std::string backend = "threads";
  int ranks = 2;
  std::vector<std::string> sizes{"4K", "64K", "1M", "16M", "64M"};
  std::vector<std::string> operations{"all_gather", "reduce_scatter", "all_reduce", "broadcast",
                                      "all_to_all"};
  std::string dtype = "f32";
  int samples = 7;
  double seconds = 0.02;  // of one sample
  bool arena = false;     // over MPI: buffers in memory that ranks share
  bool check = false;     // over MPI: the price of what maps one to one on an MPI call is bounded
};

/// One rank's buffers of one size. Part r of the send buffer is what goes to, or belongs to, rank
/// r.
struct Buffers {
  /// `shared`: memory of twice the size to use, or null.
  Buffers(std::size_t bytes, std::size_t part, std::byte* shared)
      : own(shared == nullptr ? 2 * bytes : 0),
        send(shared == nullptr ? own.data() : shared, bytes),
        recv(send.data() + bytes, bytes),
        part_bytes(part) {}
  std::vector<std::byte> own;
  std::span<std::byte> send;
  std::span<std::byte> recv;
  std::size_t part_bytes;
};

struct Timing {
  double microseconds = 0;
  std::size_t wrong = 0;
};

DType dtype_named(const std::string& name) {
  for (int i = 0; i <= static_cast<int>(DType::u8); ++i) {
    if (shardwise::name_of(static_cast<DType>(i)) == name) return static_cast<DType>(i);
  }
  throw CLI::ValidationError("--dtype", name + " is not one of f64 f32 bf16 f16 i64 i32 i8 u8");
}

std::size_t parse_size(const std::string& text) {
  std::size_t end = 0;
  const double number = std::stod(text, &end);
  const std::string unit = text.substr(end, 1);
  const double scale = unit == "K" ? 1 << 10 : unit == "M" ? 1 << 20 : unit == "G" ? 1 << 30 : 1;
  return static_cast<std::size_t>(number * scale);
}

class Bench {
 public:
  /// `shared`: memory for all buffers, or null.
  Bench(Communicator& comm, const Options& options, std::byte* shared = nullptr)
      : comm_(comm),
        shared_(shared),
        options_(options),
        ranks_(static_cast<std::size_t>(comm.size())),
        rank_(static_cast<std::size_t>(comm.rank())),
        dtype_(dtype_named(options.dtype)) {}

  /// False where a bound was missed.
  bool run() {
    if (rank_ == 0) print_head();
    for (const std::string& operation : options_.operations) {
      for (const std::string& size : options_.sizes) {
        const std::size_t width = shardwise::size_of(dtype_);
        const std::size_t part = std::max<std::size_t>(1, parse_size(size) / width / ranks_);
        Buffers buffers(part * ranks_ * width, part * width, shared_);
        line(operation, buffers, part);
      }
    }
    return good_;
  }

 private:
  [[nodiscard]] bool is_reduction(const std::string& operation) const {
    return operation == "reduce_scatter" || operation == "all_reduce";
  }

  void call(const std::string& operation, Buffers& b, std::size_t part, bool in_place) {
    const shardwise::ReduceSpec spec{.output = dtype_};
    const std::size_t own = rank_ * b.part_bytes;
    const shardwise::CallInfo info{.name = "bench"};
    if (operation == "all_gather") {
      const shardwise::GatherItem item{in_place ? b.recv.data() + own : b.send.data(),
                                       b.recv.data(), part, dtype_};
      comm_.all_gather({&item, 1}, info, {});
    } else if (operation == "reduce_scatter") {
      const shardwise::ReduceItem item{
          b.send.data(), in_place ? b.send.data() + own : b.recv.data(), part, dtype_, spec};
      comm_.reduce_scatter({&item, 1}, info, {});
    } else if (operation == "all_reduce") {
      const shardwise::ReduceItem item{b.send.data(), in_place ? b.send.data() : b.recv.data(),
                                       part * ranks_, dtype_, spec};
      comm_.all_reduce({&item, 1}, info, {});
    } else if (operation == "broadcast") {
      const shardwise::BroadcastItem item{b.send.data(), part * ranks_, dtype_};
      comm_.broadcast({&item, 1}, 0, info, {});
    } else {
      const shardwise::ExchangeItem item{b.send.data(), b.recv.data(), part, dtype_};
      comm_.all_to_all({&item, 1}, info, {});
    }
  }

  // Small whole numbers, whose sums are exact in every type.
  [[nodiscard]] static int value(std::size_t rank, std::size_t index) {
    return static_cast<int>((rank * 3 + index) % 5);
  }

  void fill(std::span<std::byte> bytes, std::size_t first) const {
    shardwise::dispatch(dtype_, [&]<class T>() {
      for (std::size_t i = 0; i < bytes.size() / sizeof(T); ++i) {
        const T number = static_cast<T>(static_cast<float>(value(rank_, first + i)));
        std::memcpy(bytes.data() + i * sizeof(T), &number, sizeof(T));
      }
    });
  }

  // One call with known contents; elements of this rank's result that are wrong.
  std::size_t wrong(const std::string& operation, Buffers& b, std::size_t part, bool in_place) {
    fill(b.send, 0);
    std::fill(b.recv.begin(), b.recv.end(), std::byte{0});
    if (operation == "all_gather" && in_place) {
      std::memcpy(b.recv.data() + rank_ * b.part_bytes, b.send.data(), b.part_bytes);
    }
    call(operation, b, part, in_place);
    const bool scatter = operation == "reduce_scatter";
    const std::byte* found = b.recv.data();
    if (operation == "broadcast" || (in_place && operation == "all_reduce")) found = b.send.data();
    if (in_place && scatter) found = b.send.data() + rank_ * b.part_bytes;
    std::size_t count = 0;
    shardwise::dispatch(dtype_, [&]<class T>() {
      for (std::size_t i = 0; i < part * (scatter ? 1 : ranks_); ++i) {
        int expected = 0;
        if (operation == "all_gather") {
          expected = value(i / part, i % part);
        } else if (operation == "all_to_all") {
          expected = value(i / part, rank_ * part + i % part);
        } else if (operation == "broadcast") {
          expected = value(0, i);
        } else {
          for (std::size_t r = 0; r < ranks_; ++r) {
            expected += value(r, i + (scatter ? rank_ * part : 0));
          }
        }
        T number;
        std::memcpy(&number, found + i * sizeof(T), sizeof(T));
        count += static_cast<float>(number) !=
                 static_cast<float>(static_cast<T>(static_cast<float>(expected)));
      }
    });
    return static_cast<std::size_t>(shardwise::sum(comm_, static_cast<std::int64_t>(count)));
  }

  /// The median over samples of the time of one f(), the same on all ranks.
  template <class F>
  double time_of(const F& f) {
    f();
    shardwise::barrier(comm_);
    Clock::time_point begin = Clock::now();
    f();
    const double once = std::chrono::duration<double>(Clock::now() - begin).count();
    const int wanted = static_cast<int>(options_.seconds / std::max(once, 1e-9));
    const int iterations = shardwise::max(comm_, std::clamp(wanted, 1, 20000));
    std::vector<double> samples;
    for (int s = 0; s < options_.samples; ++s) {
      shardwise::barrier(comm_);
      begin = Clock::now();
      for (int i = 0; i < iterations; ++i) f();
      shardwise::barrier(comm_);
      samples.push_back(std::chrono::duration<double>(Clock::now() - begin).count() / iterations);
    }
    std::sort(samples.begin(), samples.end());
    return shardwise::max(comm_, samples[samples.size() / 2]) * 1e6;
  }

  /// The least time of one f() and of one g(), in turns.
  template <class F, class G>
  std::pair<double, double> times_of(const F& f, const G& g) {
    const double once = time_of(f) * 1e-6;
    const int wanted = static_cast<int>(options_.seconds / std::max(once, 1e-9));
    const int iterations = shardwise::max(comm_, std::clamp(wanted, 1, 20000));
    const auto sample = [&](const auto& run) {
      shardwise::barrier(comm_);
      const Clock::time_point begin = Clock::now();
      for (int i = 0; i < iterations; ++i) run();
      shardwise::barrier(comm_);
      const double took = std::chrono::duration<double>(Clock::now() - begin).count();
      return shardwise::max(comm_, took / iterations * 1e6);
    };
    std::pair<double, double> least(1e30, 1e30);
    for (int s = 0; s < 3 * options_.samples; ++s) {
      least.first = std::min(least.first, sample(f));
      least.second = std::min(least.second, sample(g));
    }
    return least;
  }

  void line_against_mpi(const std::string& operation, Buffers& b, std::size_t part) {
    const std::size_t errors = wrong(operation, b, part, false);
    std::fill(b.send.begin(), b.send.end(), std::byte{0});
    double ours = 1e30;
    double raw = 1e30;
    const bool small = b.send.size() <= 65536;
    // What MPI does not do in one call, the canonical order, has no such bound.
    const auto is_fine = [&] {
      return is_reduction(operation) || (small ? ours < raw + 1 : ours < raw * 1.03);
    };
    for (int round = 0; round == 0 || (options_.check && round < 5 && !is_fine()); ++round) {
      const auto [one, other] =
          times_of([&] { call(operation, b, part, false); },
                   [&] { raw_mpi::call(operation, b.send.data(), b.recv.data(), part, dtype_); });
      ours = std::min(ours, one);  // others on the machine only add
      raw = std::min(raw, other);
    }
    const bool fine = is_fine();
    good_ = good_ && fine && errors == 0;
    if (rank_ != 0) return;
    const double size = static_cast<double>(b.send.size());
    std::printf("%12zu %11zu %5s %-14s %10.2f %7.2f %6zu %10.2f %7.2f %8.3f %10.2f%s\n",
                b.send.size(), part * ranks_, std::string(shardwise::name_of(dtype_)).c_str(),
                operation.c_str(), ours, size / ours * 1e-3, errors, raw, size / raw * 1e-3,
                ours / raw, ours - raw, fine ? "" : "  <- too much");
    std::fflush(stdout);
  }

  void line(const std::string& operation, Buffers& b, std::size_t part) {
    if (options_.backend == "mpi") return line_against_mpi(operation, b, part);
    const auto timed = [&](bool in_place) -> Timing {
      const std::size_t errors = wrong(operation, b, part, in_place);
      // Sums of sums grow without bound; zeros stay, and cost the same.
      std::fill(b.send.begin(), b.send.end(), std::byte{0});
      return {time_of([&] { call(operation, b, part, in_place); }), errors};
    };
    std::optional<Timing> out;
    std::optional<Timing> in;
    if (operation != "broadcast") out = timed(false);
    if (operation != "all_to_all") in = timed(true);
    const double copy = time_of([&] { std::memcpy(b.recv.data(), b.send.data(), b.send.size()); });
    if (rank_ != 0) return;
    const double n = static_cast<double>(ranks_);
    const double bus = operation == "broadcast"    ? 1
                       : operation == "all_reduce" ? 2 * (n - 1) / n
                                                   : (n - 1) / n;
    const double size = static_cast<double>(b.send.size());
    std::printf("%12zu %11zu %5s %5s %-14s", b.send.size(), part * ranks_,
                std::string(shardwise::name_of(dtype_)).c_str(),
                is_reduction(operation) ? "sum" : "none", operation.c_str());
    for (const std::optional<Timing>& timing : {out, in}) {
      if (!timing) {
        std::printf(" %10s %7s %7s %6s", "-", "-", "-", "-");
        continue;
      }
      const double rate = size / timing->microseconds * 1e-3;
      std::printf(" %10.2f %7.2f %7.2f %6zu", timing->microseconds, rate, rate * bus,
                  timing->wrong);
    }
    std::printf(" %10.2f %7.2f\n", copy, copy / (out ? *out : *in).microseconds);
    std::fflush(stdout);
  }

  void print_head() const {
    if (options_.backend == "mpi") {
      std::printf(
          "# backend mpi, %zu ranks, least of %d samples, out of place; bandwidths in GB/s\n",
          ranks_, 3 * options_.samples);
      std::printf("#%11s %11s %5s %-14s %10s %7s %6s %10s %7s %8s %10s\n", "size (B)", "count",
                  "type", "operation", "time (us)", "algbw", "#wrong", "MPI (us)", "algbw", "ratio",
                  "more (us)");
      return;
    }
    std::printf("# backend %s, %zu ranks, median of %d samples; bandwidths in GB/s\n",
                options_.backend.c_str(), ranks_, options_.samples);
    std::printf("#%11s %11s %5s %5s %-14s %33s %33s %18s\n", "", "", "", "", "", "out of place",
                "in place", "memcpy, all ranks");
    std::printf("#%11s %11s %5s %5s %-14s", "size (B)", "count", "type", "redop", "operation");
    for (int i = 0; i < 2; ++i) {
      std::printf(" %10s %7s %7s %6s", "time (us)", "algbw", "busbw", "#wrong");
    }
    std::printf(" %10s %7s\n", "time (us)", "ratio");
  }

  Communicator& comm_;
  std::byte* shared_;
  const Options& options_;
  std::size_t ranks_;
  std::size_t rank_;
  DType dtype_;
  bool good_ = true;
};

}  // namespace

int main(int argc, char** argv) {
  Options options;
  CLI::App app("Times shardwise's collectives in the form of nccl-tests");
  app.option_defaults()->always_capture_default();
  app.add_option("--backend", options.backend)->check(CLI::IsMember({"threads", "mpi", "self"}));
  app.add_option("--ranks", options.ranks)->check(CLI::PositiveNumber);
  app.add_option("--sizes", options.sizes, "bytes of the whole buffer: 4096, 64K, 1M, 1G")
      ->delimiter(',');
  app.add_option("--operations", options.operations)
      ->delimiter(',')
      ->check(CLI::IsMember(options.operations));
  app.add_option("--dtype", options.dtype, "f64 f32 bf16 f16 i64 i32 i8 u8");
  app.add_option("--samples", options.samples)->check(CLI::PositiveNumber);
  app.add_option("--seconds", options.seconds, "of one sample");
  app.add_flag("--arena", options.arena, "over MPI: buffers in memory that the ranks share");
  app.add_flag("--check", options.check, "over MPI: fail where ours takes more than it may");
  CLI11_PARSE(app, argc, argv);
  try {
    if (options.backend == "mpi") {
      bool good = true;
      std::size_t largest = 0;
      for (const std::string& size : options.sizes) largest = std::max(largest, parse_size(size));
      raw_mpi::run(options.arena ? 2 * largest + 4096 : 0,
                   [&](Communicator& comm, std::byte* shared) {
                     good = Bench(comm, options, shared).run();
                   });
      return options.check && !good ? 1 : 0;
    }
    if (options.backend == "self") {
      shardwise::SelfCommunicator self;
      Bench(self, options).run();
    } else {
      shardwise::run_ranks(options.ranks, [&](Communicator& comm) { Bench(comm, options).run(); });
    }
  } catch (const std::exception& error) {
    std::fprintf(stderr, "bench_collectives: %s\n", error.what());
    return 1;
  }
}
