// Times the collectives in the form of nccl-tests: for every power of two the time of a call out of
// place, the algorithm bandwidth (size / time) and the bus bandwidth (what a ring would move over
// one link: the same number for any count of ranks). `bytes` is the whole buffer. `limit_us` is
// what memory takes at the least: as many ranks at once, on the same buffers, which only copy what
// the collective copies and add what it adds, by memcpy or past the caches, whichever is faster.
// limit_ratio, limit / time, is the median over samples in which both take turns. Results are
// checked. Over MPI the MPI call that a program would make otherwise takes turns with ours.

#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <memory>
#include <new>
#include <shardwise/comm/thread.hpp>
#include <string>
#include <string_view>
#include <thread>

#include "collective.hpp"
#include "collective_cases.hpp"
#include "program.hpp"

#ifdef BENCH_WITH_MPI
#include "raw_mpi.hpp"
#else
#include "no_mpi.hpp"
#endif

namespace {

using namespace benchmarks;
using shardwise::Communicator;

struct Options {
  std::string backend = "threads";
  int ranks = 2;
  CollectiveCases cases;
  bool arena = false;
  bool check = false;
};

/// One rank's memory, touched once. Neither buffer begins where the other does modulo the size of a
/// page: memcpy is slow there.
class Memory {
 public:
  explicit Memory(std::size_t most, std::byte* shared = nullptr)
      : own_(shared == nullptr ? new (std::align_val_t(4096)) std::byte[size(most)] : nullptr) {
    std::byte* const begin = shared == nullptr ? own_.get() : shared;
    std::memset(begin, 0, size(most));
    operands = {begin, begin + most + 2048};
  }

  [[nodiscard]] static std::size_t size(std::size_t most) { return 2 * most + 4096; }

  Operands operands{};

 private:
  struct Free {
    void operator()(std::byte* memory) const {
      ::operator delete[](memory, std::align_val_t(4096));
    }
  };
  std::unique_ptr<std::byte[], Free> own_;
};

/// Measures every case on one rank; false where --check finds too much.
class Rank {
 public:
  Rank(Communicator& comm, const Options& options, const Sampling& sampling, Results& results,
       const Operands& own, std::span<const Operands> all)
      : comm_(comm),
        options_(options),
        sampling_(sampling),
        results_(results),
        operands_(own),
        all_(all) {
    sampling_.barrier = [this] { shardwise::barrier(comm_); };
    sampling_.agree = [this](double seconds) { return shardwise::max(comm_, seconds); };
  }

  bool run() {
    return options_.cases.for_each(
        static_cast<std::size_t>(comm_.size()),
        [&](shardwise::DType dtype) {
          fill({operands_.send, options_.cases.max}, dtype, comm_.rank());
        },
        [&](const Collective& call) { return measure(call); });
  }

 private:
  bool measure(const Collective& call) {
    const std::size_t errors = wrong(call, comm_, operands_);
    const std::vector<MemoryWork> works = works_of(call);
    const auto work = [&](bool streaming) {
      for (const MemoryWork& each : works) each(streaming);
    };
    std::vector<std::function<void()>> functions{[&] { call(comm_, operands_); },
                                                 [&] { work(false); }, [&] { work(true); }};
    const bool raw = options_.backend == "mpi";
    if (raw) functions.emplace_back([&] { raw_mpi::call(call, operands_); });
    const std::vector<Series> times = in_turns(sampling_, functions);
    const Series& limit = times[1].middle() < times[2].middle() ? times[1] : times[2];
    Results::Json row = row_of(call, times[0], limit, errors);
    bool fine = errors == 0;
    if (raw) {
      row["mpi_us"] = times[3].middle() * 1e6;
      row["mpi_ratio"] = (times[0] / times[3]).middle();
      if (options_.check && !call.is_reduction()) fine = adds_little(call, times) && fine;
    }
    results_.add(std::move(row));
    return fine;
  }

  // Ranks that share a core do their work one after the other, call by call. If the system let them
  // take turns, each would repeat its own for milliseconds, on data that stay in the caches: no
  // call could keep up, as it needs all ranks' data.
  [[nodiscard]] std::vector<MemoryWork> works_of(const Collective& call) const {
    const auto rank = static_cast<std::size_t>(comm_.rank());
    std::size_t cores = std::max(1u, std::thread::hardware_concurrency());
    if (all_.size() <= cores) cores = call.ranks;
    std::vector<MemoryWork> works;
    if (rank >= cores) return works;
    for (std::size_t r = rank; r < call.ranks; r += cores) works.emplace_back(call, r, all_);
    return works;
  }

  /// What MPI does in one call costs less than 1 us more up to 64 KiB, 3 % above. Whatever else
  /// runs on the machine only adds: the least of several rounds counts.
  bool adds_little(const Collective& call, std::vector<Series> times) {
    double ours = 1;
    double theirs = 1;
    for (int round = 0; round < 5; ++round) {
      if (round > 0) {
        times = in_turns(sampling_, {[&] { call(comm_, operands_); }, [] {}, [] {},
                                     [&] { raw_mpi::call(call, operands_); }});
      }
      ours = std::min(ours, shardwise::max(comm_, times[0].least()));
      theirs = std::min(theirs, shardwise::max(comm_, times[3].least()));
      if (call.bytes() <= 65536 ? ours < theirs + 1e-6 : ours < theirs * 1.03) return true;
    }
    if (comm_.rank() == 0) {
      std::printf("%s of %zu bytes takes %.2f us, the MPI call %.2f us: too much\n",
                  call.name().c_str(), call.bytes(), ours * 1e6, theirs * 1e6);
    }
    return false;
  }

  Communicator& comm_;
  const Options& options_;
  Sampling sampling_;
  Results& results_;
  Operands operands_;
  std::span<const Operands> all_;
};

bool between_threads(const Options& options, Program& program) {
  program.results.describe("ranks", options.ranks);
  std::vector<Operands> all(static_cast<std::size_t>(options.ranks));
  bool good = true;
  shardwise::run_ranks(options.ranks, [&](Communicator& comm) {
    const Memory memory(options.cases.max);
    all[static_cast<std::size_t>(comm.rank())] = memory.operands;
    shardwise::barrier(comm);
    Results others;
    others.silence();
    Results& results = comm.rank() == 0 ? program.results : others;
    const bool fine = Rank(comm, options, program.sampling, results, memory.operands, all).run();
    if (comm.rank() == 0) good = fine;
    shardwise::barrier(comm);
  });
  return good;
}

bool over_mpi(const Options& options, Program& program) {
  bool good = true;
  raw_mpi::run(options.arena ? Memory::size(options.cases.max) : 0,
               [&](Communicator& comm, std::byte* shared) {
                 program.results.describe("ranks", comm.size());
                 if (comm.rank() != 0) program.results.silence();
                 const Memory memory(options.cases.max, shared);
                 good = Rank(comm, options, program.sampling, program.results, memory.operands,
                             {&memory.operands, 1})
                            .run();
               });
  return good;
}

/// Whether the command line says `--backend cuda`.
bool wants_cuda(int count, char** arguments) {
  for (int i = 1; i < count; ++i) {
    const std::string_view word = arguments[i];
    if (word == "--backend=cuda") return true;
    if (word == "--backend" && i + 1 < count) return arguments[i + 1] == std::string_view("cuda");
  }
  return false;
}

/// Devices have a program beside this one, of the same options, so that nobody else needs CUDA's
/// libraries. Returns where it is not there.
int become_cuda_program(char** arguments) {
  const auto beside = std::filesystem::read_symlink("/proc/self/exe").parent_path();
  const std::string program = beside / "bench_cuda_collectives";
  execv(program.c_str(), arguments);
  std::fprintf(
      stderr,
      "bench_collectives: --backend cuda: cannot run %s (%s): it is built where CMake finds "
      "CUDA and NCCL\n",
      program.c_str(), std::strerror(errno));
  return EXIT_FAILURE;
}

}  // namespace

int main(int count, char** arguments) {
  if (wants_cuda(count, arguments)) return become_cuda_program(arguments);
  Options options;
  Program program(
      "bench_collectives",
      "Times shardwise's collectives in the form of nccl-tests, against the memory's limit");
  CLI::App& app = program.options;
  app.add_option(
         "--backend", options.backend,
         "mpi: started by mpirun, which says how many ranks; cuda: by bench_cuda_collectives, "
         "whose --help lists the options")
      ->check(CLI::IsMember({"threads", "mpi", "cuda"}));
  app.add_option("--ranks", options.ranks, "of backend threads")->check(CLI::PositiveNumber);
  options.cases.add_to(program);
  app.add_flag("--arena", options.arena, "over MPI: buffers in memory that the ranks share");
  app.add_flag("--check", options.check, "over MPI: fail where ours adds too much to the MPI call");
  return program.run(count, arguments, [&] {
    program.results.describe("backend", options.backend);
    program.results.describe("samples", program.sampling.samples);
    return options.backend == "mpi" ? over_mpi(options, program)
                                    : between_threads(options, program);
  });
}
