#pragma once

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <vector>

#include "../comm/collectives.hpp"
#include "../comm/communicator.hpp"
#include "../core/dtype.hpp"
#include "../core/state_kind.hpp"
#include "../memory.hpp"
#include "engine.hpp"

namespace shardwise::inline v0_1 {

/// What measure_overlap has measured of one size: a few layers whose collectives are of so many
/// bytes, with compute. Seconds of the slowest rank, the median of several runs.
struct OverlapSample {
  std::size_t bytes;
  double in_caller;  ///< one after the other
  double beside;     ///< the collectives on the communication stream, beside compute
  bool gains;        ///< beside compute takes less, by more than runs differ
};

namespace detail {

/// Keeps a core busy without memory, for a time that does not pass while others have the core.
class BusyLoop {
 public:
  /// Calibrates: the least time counts, others on the machine only add.
  BusyLoop() noexcept {
    using Clock = std::chrono::steady_clock;
    constexpr std::uint64_t turns = 20000;
    auto least = Clock::duration::max();
    for (int i = 0; i < 10; ++i) {
      const auto begin = Clock::now();
      turn(turns);
      least = std::min(least, Clock::now() - begin);
    }
    const double seconds = std::chrono::duration<double>(least).count();
    turns_a_second_ = static_cast<double>(turns) / std::max(seconds, 1e-9);
  }

  void run(double seconds) const noexcept {
    turn(static_cast<std::uint64_t>(seconds * turns_a_second_));
  }

 private:
  static void turn(std::uint64_t turns) noexcept {
    std::uint64_t value = turns | 1;
    for (std::uint64_t i = 0; i < turns; ++i) {
      value ^= value << 13;
      value ^= value >> 7;
      value ^= value << 17;
    }
    volatile std::uint64_t kept = value;  // else the compiler sees that nobody reads it
    static_cast<void>(kept);
  }

  double turns_a_second_ = 0;
};

/// Times collectives as steps make them, in the caller and beside compute, with memory of its own,
/// which the ledger counts as slots. All ranks make the same calls.
template <class Device>
class OverlapMeter {
 public:
  /// For collectives of `sizes` bytes, ascending. `compute`: beside each layer's, in times of what
  /// these take. `gathers`: layers do, and not only reduce.
  OverlapMeter(Engine<Device>& engine, std::span<const std::size_t> sizes, double compute,
               bool gathers)
      : engine_(engine),
        world_(static_cast<std::size_t>(engine.world())),
        compute_(compute),
        gathers_(gathers),
        part_(engine.ledger, StateKind::slots, part_of(sizes.back()) * sizeof(float)),
        whole_(engine.ledger, StateKind::slots, world_ * part_.size()),
        landing_(engine.ledger, StateKind::slots, landing_bytes(sizes)) {
    for (const auto* buffer : {&part_, &whole_}) {
      Device::zero(engine.compute, buffer->data(), buffer->size());
    }
  }
  OverlapMeter(const OverlapMeter&) = delete;
  OverlapMeter& operator=(const OverlapMeter&) = delete;
  /// No collective may still use the memory, also where an exception unwinds.
  ~OverlapMeter() { engine_.quiesce(); }

  /// Takes about `budget`, or the fewest runs that say something, however long they take.
  [[nodiscard]] OverlapSample measure(std::size_t bytes, std::chrono::nanoseconds budget) {
    count_ = part_of(bytes);
    busy_ = 0;
    double alone = std::numeric_limits<double>::infinity();
    for (int i = 0; i < 3; ++i) {
      const double taken = time(false);
      if (i > 0) alone = std::min(alone, taken);  // the first one warms up
    }
    alone = std::max(shardwise::max(engine_.comm, alone, info()), 1e-6);
    busy_ = compute_ * alone / layers;
    const double wanted =
        std::chrono::duration<double>(budget).count() / (2 * (1 + compute_) * alone);
    const auto rounds =
        static_cast<std::size_t>(std::clamp<double>(wanted, 2 * wanted < 1 ? 3 : 5, 25));

    std::vector<double> mine(2 * rounds);  // in the caller, then beside
    for (std::size_t round = 0; round < rounds; ++round) {
      const bool swaps = round % 2 == 1;
      for (const bool second : {false, true}) {
        const bool beside = second != swaps;
        mine[(beside ? rounds : 0) + round] = time(beside);
      }
    }
    std::vector<double> all(mine.size() * world_);
    shardwise::all_gather(engine_.comm, mine, all, info());
    for (std::size_t i = 0; i < all.size(); ++i) {
      double& slowest = mine[i % mine.size()];
      slowest = std::max(slowest, all[i]);
    }
    std::vector<double> ratios(rounds);  // of one round: others on the machine disturb both
    for (std::size_t i = 0; i < rounds; ++i) ratios[i] = mine[rounds + i] / mine[i];
    const std::span<double> times(mine);
    const double in_caller = median(times.first(rounds));
    const double beside = median(times.last(rounds));
    const bool gains = median(ratios) < worth_it && beside < worth_it * in_caller;
    return {bytes, in_caller, beside, gains};
  }

 private:
  using Clock = std::chrono::steady_clock;
  using Stream = typename Device::Stream;

  /// Of one run; each gathers once and reduces once.
  static constexpr int layers = 4;
  /// Less than this of the time in the caller.
  static constexpr double worth_it = 0.98;

  [[nodiscard]] CallInfo info() const noexcept { return engine_.info("measure_overlap"); }
  [[nodiscard]] std::size_t part_of(std::size_t bytes) const noexcept {
    return std::max<std::size_t>(bytes / sizeof(float) / world_, 1);
  }
  [[nodiscard]] ReduceItem reduction(std::size_t count, void* landing) const noexcept {
    return {whole_.data(),
            part_.data(),
            count,
            DType::f32,
            {.scale = 1.0 / static_cast<double>(world_)},
            landing};
  }
  [[nodiscard]] std::size_t landing_bytes(std::span<const std::size_t> sizes) const noexcept {
    std::size_t most = 0;
    for (const std::size_t bytes : sizes) {
      most = std::max(most, engine_.comm.landing_bytes(reduction(part_of(bytes), nullptr), true));
    }
    return most;
  }

  void gather() {
    if (!gathers_) return;
    const GatherItem item{part_.data(), whole_.data(), count_, DType::f32};
    engine_.comm.all_gather({&item, 1}, info(), engine_.communication.ref());
  }
  void reduce() {
    const ReduceItem item = reduction(count_, landing_.data());
    engine_.comm.reduce_scatter({&item, 1}, info(), engine_.communication.ref());
  }

  /// Seconds of one run on this rank, from when all ranks are there.
  [[nodiscard]] double time(bool beside) {
    engine_.comm.barrier(info(), {});
    const auto begin = Clock::now();
    if (beside) {
      run_beside();
    } else {
      run_in_caller();
    }
    return std::chrono::duration<double>(Clock::now() - begin).count();
  }

  void run_in_caller() {
    const InCaller in_caller(engine_.communication);
    for (int layer = 0; layer < layers; ++layer) {
      gather();
      loop_.run(busy_);
      reduce();
    }
  }

  /// What comes next is gathered, and what came before is reduced, beside the compute of each.
  void run_beside() {
    Stream& stream = engine_.communication;
    gather();
    auto gathered = stream.record();
    for (int layer = 0; layer < layers; ++layer) {
      engine_.compute.wait(gathered);
      if (layer + 1 < layers) {
        gather();
        gathered = stream.record();
      }
      loop_.run(busy_);
      reduce();
    }
    stream.synchronize();
  }

  struct InCaller {
    Stream& stream;
    explicit InCaller(Stream& of) noexcept : stream(of) { stream.begin_inline(); }
    InCaller(const InCaller&) = delete;
    InCaller& operator=(const InCaller&) = delete;
    ~InCaller() { stream.end_inline(); }
  };

  template <class Values>
  [[nodiscard]] static double median(Values&& values) {
    const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
    std::nth_element(values.begin(), middle, values.end());
    return *middle;
  }

  Engine<Device>& engine_;
  const std::size_t world_;
  const double compute_;
  const bool gathers_;
  Buffer<Device> part_;   // this rank's; results of reductions come here, too
  Buffer<Device> whole_;  // what is gathered, and then reduced
  Buffer<Device> landing_;
  BusyLoop loop_;
  std::size_t count_ = 0;  // elements of a part
  double busy_ = 0;        // seconds a layer
};

}  // namespace detail
}  // namespace shardwise::inline v0_1
