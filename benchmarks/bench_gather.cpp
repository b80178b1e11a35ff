// Times gather and release of six parameters in turn, by where they live, what leases see, and with
// the next one prefetched or not. Every gather follows a write, so that none is free, but for rows
// "kept" (Strategy::keep_resident_bytes), whose point that is. All cases of a size take turns.
//   pages         in place: how memory comes below the host's addresses (ArenaOptions::recycling);
//                 "shared": the arena is of all ranks together
//   slots_ratio   the time over that of slots with the same leases, without prefetch
//   copy_us       what memory takes to copy the lease on as many ranks at once
//   spans         of the parameter: one, or twelve in layer-stacked arrays, as a transformer's
//   layer
// Ranks are threads, or by --backend mpi the processes of one launch: then slots are filled by MPI,
// and shared parameters are in memory that all processes have mapped. Fails where residency
// in_place takes above 1.5 times of slots from 4 MiB a parameter on, or, below, costs more than 60
// us a MiB and 10 us a recycled span beyond slots and is not kept. Pages that move make the system
// change a table entry a page and interrupt all cores that run the process, once for each 2 MiB
// that is touched. Several ranks that are threads are interrupted so by each other's moves: for
// them the bound is on pages that stay ("alias"), elsewhere on both.

#include <algorithm>
#include <array>
#include <map>
#include <memory>
#include <optional>
#include <shardwise/comm/thread.hpp>
#include <shardwise/shardwise.hpp>
#include <utility>

#include "memory_work.hpp"
#include "program.hpp"

#ifdef BENCH_WITH_MPI
#include "raw_mpi.hpp"
#else
#include "no_mpi.hpp"
#endif

namespace {

using namespace benchmarks;
using namespace shardwise;

constexpr std::size_t layers = 6;

struct Options {
  std::string backend = "threads";
  std::vector<int> ranks{1, 2};
  std::size_t min = std::size_t{256} << 10;
  std::size_t max = std::size_t{64} << 20;
};

/// How memory comes below the addresses of parameters in place.
enum class Pages : std::uint8_t { none, move, alias, shared };

const char* name_of(Pages pages) {
  return std::array{"", "move", "alias", "shared"}[static_cast<std::size_t>(pages)];
}

struct Case {
  Residency residency;
  DType lease = DType::f32;
  bool prefetch = false;
  std::size_t spans = 1;
  bool kept = false;
  Pages pages = Pages::none;

  [[nodiscard]] Strategy strategy() const {
    Strategy result = Strategy::zero3();
    result.overlap = prefetch;
    result.prefetch = prefetch ? 1 : 0;
    result.lease = lease;
    if (residency == Residency::shared) result.residency = residency;
    if (kept) result.keep_resident_bytes = std::size_t{1} << 30;
    return result;
  }
};

const std::vector<Case> cases{{Residency::slots},
                              {Residency::slots, DType::bf16},
                              {Residency::slots, DType::f32, true},
                              {Residency::slots, DType::bf16, true},
                              {Residency::host_buffer},
                              {Residency::shared},
                              {Residency::shared, DType::bf16},
                              {Residency::in_place, DType::f32, false, 12, false, Pages::move},
                              {Residency::in_place, DType::f32, false, 12, true, Pages::move},
                              {Residency::in_place, DType::f32, false, 12, false, Pages::alias},
                              {Residency::in_place, DType::f32, false, 12, false, Pages::shared},
                              {Residency::in_place, DType::f32, false, 1, false, Pages::move},
                              {Residency::in_place, DType::f32, true, 1, false, Pages::move},
                              {Residency::in_place, DType::f32, false, 1, true, Pages::move},
                              {Residency::in_place, DType::f32, false, 1, false, Pages::alias},
                              {Residency::in_place, DType::f32, true, 1, false, Pages::alias},
                              {Residency::in_place, DType::f32, false, 1, false, Pages::shared}};

/// Elements of the tensors of one layer: of a transformer's with about so many, or all in one.
std::vector<std::size_t> counts_of(std::size_t elements, std::size_t spans) {
  if (spans == 1) return {elements};
  std::size_t width = 1;
  while (12 * (width + 1) * (width + 1) + 13 * (width + 1) <= elements) ++width;
  const std::size_t square = width * width;
  return {width, width, 3 * square, 3 * width, square,     width,
          width, width, 4 * square, 4 * width, 4 * square, width};
}

/// One rank's parameters of one case.
class Parameters {
 public:
  Parameters(Communicator& comm, const Case& which, std::size_t elements)
      : case_(which), context_(comm, which.strategy()) {
    const std::vector<std::size_t> counts = counts_of(elements, which.spans);
    elements_ = 0;
    for (const std::size_t count : counts) elements_ += count;
    ParameterOptions options;
    if (which.residency == Residency::host_buffer) options.residency = Residency::host_buffer;
    if (which.residency == Residency::in_place) {
      place(counts);
    } else {
      for (std::size_t i = 0; i < layers; ++i) {
        parameters_.emplace_back(context_, std::vector<TensorSpec>{{"weight", {elements_}}},
                                 options);
      }
    }
    for (auto& parameter : parameters_) {
      parameter.initialize([](const auto&, std::size_t i) { return static_cast<float>(i % 100); });
    }
    if (which.residency == Residency::host_buffer)
      buffer_.resize(parameters_[0].flat().layout.size());
  }

  /// Gathers and releases every parameter once.
  void rotate() {
    if (!case_.kept) {
      for (auto& parameter : parameters_) {
        parameter.update_segments([](std::span<const ShardSegment<float>> shard) {
          if (!shard.empty()) shard[0].elements[0] += 1;
        });
      }
    }
    for (std::size_t i = 0; i < parameters_.size(); ++i) {
      if (case_.residency == Residency::host_buffer) {
        parameters_[i].gather_into(buffer_.data()).release();
      } else if (case_.lease == DType::bf16) {
        auto lease = parameters_[i].gather<bf16>();
        if (case_.prefetch && i + 1 < layers) parameters_[i + 1].prefetch();
        lease.release();
      } else {
        auto lease = parameters_[i].gather();
        if (case_.prefetch && i + 1 < layers) parameters_[i + 1].prefetch();
        lease.release();
      }
    }
  }

  [[nodiscard]] std::size_t lease_bytes() const { return elements_ * size_of(case_.lease); }
  [[nodiscard]] std::size_t recycled_spans() const {
    return parameters_[0].flat().placed.pages().size();
  }
  [[nodiscard]] std::size_t crumb_bytes() const {
    return parameters_[0].flat().placed.crumb_bytes();
  }

 private:
  void place(const std::vector<std::size_t>& counts) {
    std::size_t offset = 1000;  // the arrays do not begin at a page
    arena_.emplace(context_, (offset + layers * elements_) * sizeof(float), "weights",
                   ArenaOptions{.recycling = case_.pages == Pages::alias ? ArenaRecycling::alias
                                                                         : ArenaRecycling::move,
                                .shared = case_.pages == Pages::shared});
    std::vector<HostTensor> first;
    for (std::size_t i = 0; i < counts.size(); ++i) {
      first.emplace_back(std::to_string(i), arena_->as<float>() + offset,
                         std::vector<Dimension>{counts[i]});
      offset += layers * counts[i];
    }
    for (const auto& tensors : stacked(layers, first)) parameters_.emplace_back(context_, tensors);
  }

  Case case_;
  Context<> context_;
  std::optional<Arena> arena_;
  std::size_t elements_;
  std::vector<ShardedParameter<float>> parameters_;
  std::vector<float> buffer_;
};

constexpr std::size_t moves_well = std::size_t{4} << 20;

/// Whether residency in_place keeps its bound with parameters of about so many bytes.
bool holds(const Case& which, std::size_t bytes, std::size_t spans, const Series& time,
           const Series& slots) {
  if (bytes >= moves_well || which.kept) return (time / slots).middle() <= 1.5;
  const double more = (time - slots).middle() * 1e6 / layers;
  return more <= 60 * static_cast<double>(bytes) / (1 << 20) + 10 * static_cast<double>(spans);
}

/// Rows of one size, added by rank 0; false where a bound was missed in all of three measurements.
bool measure(Program& program, Communicator& comm, std::size_t bytes) {
  const bool small = bytes < moves_well;
  const bool threads = comm.shares_addresses() && comm.size() > 1;
  // Whether the bound is on this row; with small parameters it is enough that one of them keeps it.
  const auto counts = [&](const Case& which) {
    if (which.prefetch) return false;
    if (which.kept) return small;
    return which.pages == Pages::alias || (which.pages == Pages::move && !threads);
  };
  std::vector<std::unique_ptr<Parameters>> sides;
  std::vector<std::function<void()>> functions;
  for (const Case& which : cases) {
    sides.push_back(std::make_unique<Parameters>(comm, which, bytes / sizeof(float)));
    functions.emplace_back([side = sides.back().get()] { side->rotate(); });
  }
  std::vector<std::byte> from(bytes + 64, std::byte{1});
  std::vector<std::byte> to(bytes + 64, std::byte{1});
  std::byte* const target = to.data() + 64 - reinterpret_cast<std::uintptr_t>(to.data()) % 64;
  for (const auto copy : {copy_cached, copy_streaming}) {
    functions.emplace_back([&, copy] { copy(target, from.data(), bytes); });
  }
  Sampling sampling = program.sampling;
  sampling.barrier = [&] { shardwise::barrier(comm); };
  sampling.agree = [&](double here) { return shardwise::max(comm, here); };
  std::vector<Series> times;
  const auto slots_of = [&](const Case& which) -> const Series& {
    return times[which.lease == DType::f32 ? 0 : 1];
  };
  const auto keeps_bounds = [&] {
    std::map<std::pair<std::size_t, Pages>, bool> kept;  // by spans
    for (std::size_t i = 0; i < cases.size(); ++i) {
      const Case& which = cases[i];
      if (!counts(which)) continue;
      bool& one = kept[{which.spans, small ? Pages::none : which.pages}];
      one = one || holds(which, bytes, sides[i]->recycled_spans(), times[i], slots_of(which));
    }
    return std::ranges::all_of(kept, [](const auto& entry) { return entry.second; });
  };
  bool good = false;
  for (int measurement = 0; measurement < 3 && !good; ++measurement) {
    times = in_turns(sampling, functions);
    good = all(comm, comm.rank() != 0 || keeps_bounds());
  }
  if (comm.rank() != 0) return good;
  const double copy = std::min(times[cases.size()].middle(), times[cases.size() + 1].middle());
  for (std::size_t i = 0; i < cases.size(); ++i) {
    const Case& which = cases[i];
    const auto lease_bytes = static_cast<double>(sides[i]->lease_bytes());
    const bool in_place = which.residency == Residency::in_place;
    program.results.add({{"residency", name_of(which.residency)},
                         {"lease", name_of(which.lease)},
                         {"prefetch", which.prefetch},
                         {"kept", which.kept},
                         {"pages", name_of(which.pages)},
                         {"ranks", comm.size()},
                         {"bytes", sides[i]->lease_bytes()},
                         {"spans", which.spans},
                         {"recycled_spans", in_place ? sides[i]->recycled_spans() : 0},
                         {"crumb_bytes", in_place ? sides[i]->crumb_bytes() : 0},
                         {"gather_us", times[i].middle() * 1e6 / layers},
                         {"gather_us_min", times[i].least() * 1e6 / layers},
                         {"gather_us_max", times[i].most() * 1e6 / layers},
                         {"copy_us", copy * 1e6 * lease_bytes / static_cast<double>(bytes)},
                         {"slots_ratio", (times[i] / slots_of(which)).middle()}});
  }
  if (!good) std::printf("in_place is above its bound\n");
  return good;
}

bool measure_sizes(Program& program, Communicator& comm, const Options& options) {
  bool good = true;
  for (std::size_t bytes = options.min; bytes <= options.max; bytes *= 4) {
    good = measure(program, comm, bytes) && good;
  }
  return good;
}

bool between_threads(Program& program, const Options& options) {
  bool good = true;
  for (const int ranks : options.ranks) {
    run_ranks(ranks, [&](Communicator& comm) {
      const bool fine = measure_sizes(program, comm, options);
      if (comm.rank() == 0) good = good && fine;
    });
  }
  return good;
}

bool between_processes(Program& program, const Options& options) {
  bool good = true;
  raw_mpi::run(0, [&](Communicator& comm, std::byte*) {
    if (comm.rank() != 0) program.results.silence();
    good = measure_sizes(program, comm, options);
  });
  return good;
}

}  // namespace

int main(int count, char** arguments) {
  Options options;
  Program program("bench_gather", "Times gathers by residency, size, lease type and prefetch");
  program.options
      .add_option("--backend", options.backend, "mpi: started by mpirun, which says how many ranks")
      ->check(CLI::IsMember({"threads", "mpi"}));
  program.options.add_option("--ranks", options.ranks, "of backend threads")
      ->delimiter(',')
      ->check(CLI::PositiveNumber);
  program.add_bytes("--min", options.min, "bytes of the smallest parameter, in f32");
  program.add_bytes("--max", options.max, "bytes of the largest parameter, in f32");
  program.results.hide("recycled_spans");
  program.results.hide("crumb_bytes");
  return program.run(count, arguments, [&] {
    program.results.describe("backend", options.backend);
    return options.backend == "mpi" ? between_processes(program, options)
                                    : between_threads(program, options);
  });
}
