#pragma once

#include <sys/mman.h>

#include <algorithm>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <span>

#include "../core/dtype.hpp"
#include "../core/error.hpp"
#include "../core/observer.hpp"
#include "../core/stream_ref.hpp"
#include "../kernels/norm.hpp"
#include "../kernels/segments.hpp"
#include "../kernels/update.hpp"
#include "simulated_clock.hpp"

namespace shardwise::inline v0_1 {

/// A point in a SimulatedStream: when it is reached. A default-made event always is.
struct SimulatedEvent {
  const SimulatedClock* clock = nullptr;
  double time = 0;
};

/// A stream in virtual time: work takes its place in a timeline and is not done.
class SimulatedStream {
 public:
  explicit SimulatedStream(SimulatedTimeline& line) noexcept : line_(&line) {}

  [[nodiscard]] bool is_inline() const noexcept { return line_->clock->is_inline(*line_); }
  [[nodiscard]] StreamRef ref() const noexcept { return {MemoryKind::simulated, line_}; }
  [[nodiscard]] SimulatedClock& clock() const noexcept { return *line_->clock; }

  void enqueue(double seconds, SimulatedWork work) { line_->clock->enqueue(*line_, seconds, work); }
  /// A task of the library's: at once, and for no time.
  template <std::invocable Task>
  void enqueue(Task task) {
    task();
  }
  [[nodiscard]] SimulatedEvent record() const noexcept { return {line_->clock, line_->free}; }
  void wait(const SimulatedEvent& event) noexcept { line_->clock->wait(*line_, event.time); }
  [[nodiscard]] static bool reached(const SimulatedEvent& event) noexcept {
    return event.clock == nullptr || event.time <= event.clock->now();
  }
  void synchronize() noexcept { line_->clock->host_waits(line_->free); }
  [[nodiscard]] bool idle() const noexcept { return line_->free <= line_->clock->now(); }
  void drain() const noexcept {}
  /// Until end_inline() calls complete before they return, unless earlier ones are on their way.
  void begin_inline() noexcept { line_->in_caller = idle(); }
  void end_inline() noexcept { line_->in_caller = false; }

 private:
  SimulatedTimeline* line_;
};

/// What runs in virtual time is told to nobody.
class UnobservedTimeline {
 public:
  UnobservedTimeline(Observer* /*observer*/, SimulatedStream& /*compute*/,
                     SimulatedStream& /*communication*/) noexcept {}

  static constexpr bool asynchronous = true;

  void begin_run(std::uint64_t /*sequence*/, Activity /*activity*/,
                 SubjectId /*subject*/) noexcept {}
  void end_run() noexcept {}
  void begin_wait() noexcept {}
  void end_wait(const WaitRecord& /*record*/) noexcept {}
  void begin_update() noexcept {}
  void end_update(SubjectId /*subject*/) noexcept {}
  void mark(Mark /*mark*/, SubjectId /*subject*/) noexcept {}
  void end_step(const StepResult& /*result*/) noexcept {}
  void poll() noexcept {}
  void flush() noexcept {}
};

namespace detail {

/// Bytes that a functor reads and writes for each element; 0 where it is not one of the library's.
template <class Functor>
inline constexpr std::size_t touched_bytes = 0;
template <class Optimizer, class Parameter, class Gradient, class... States>
inline constexpr std::size_t touched_bytes<Update<Optimizer, Parameter, Gradient, States...>> =
    2 * sizeof(Parameter) + sizeof(Gradient) + (std::size_t{0} + ... + (2 * sizeof(States)));
template <class Step, class Out>
inline constexpr std::size_t touched_bytes<UpdateAndCast<Step, Out>> = touched_bytes<Step> +
                                                                       sizeof(Out);

}  // namespace detail

/// A device that has addresses and no memory, and streams and events in virtual time, so that the
/// library's own schedule runs where neither the devices nor the memory are there: what it would
/// hold, send and take is then known. Its Context needs ContextOptions::stream =
/// SimulatedClock::ref(), and a SimulatedCommunicator. Reading or writing what it lends faults.
struct SimulatedDevice {
  using Stream = SimulatedStream;
  using Event = SimulatedEvent;
  using Timeline = UnobservedTimeline;

  static constexpr MemoryKind memory = MemoryKind::simulated;
  static constexpr std::size_t alignment = 256;

  /// As a CUDA device does.
  template <class Optimizer, class T, class G>
  static constexpr bool fuses_cast = true;

  [[nodiscard]] static Stream compute_stream(StreamRef adopted) {
    if (adopted.memory != MemoryKind::simulated || adopted.native == nullptr) {
      raise("ContextOptions::stream: a simulated device needs SimulatedClock::ref()");
    }
    return Stream(*static_cast<SimulatedTimeline*>(adopted.native));
  }
  [[nodiscard]] static Stream communication_stream(bool overlap, Stream& compute) {
    return overlap ? Stream(compute.clock().communication_line()) : compute;
  }

  /// Addresses that nothing is below. UsageError where there are not so many.
  [[nodiscard]] static void* allocate(std::size_t bytes) {
    void* const address =
        ::mmap(nullptr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (address == MAP_FAILED) {
      raise(
          "a simulated buffer of {} bytes does not fit into this process's address space; a plan "
          "of the bytes alone (plan_memory) needs none",
          bytes);
    }
    return address;
  }
  static void deallocate(void* pointer, std::size_t bytes) noexcept { ::munmap(pointer, bytes); }

  static void zero(Stream& stream, void* /*destination*/, std::size_t bytes) {
    move(stream, bytes);
  }
  static void poison(Stream& stream, void* /*destination*/, std::size_t bytes) {
    move(stream, bytes);
  }
  [[nodiscard]] static bool is_poisoned(Stream& stream, const void* /*values*/, std::size_t bytes) {
    move(stream, bytes);
    stream.synchronize();
    return true;
  }
  static void copy(Stream& stream, void* destination, const void* source, std::size_t bytes) {
    if (destination != source) move(stream, 2 * bytes);
  }
  static void convert(Stream& stream, void* destination, DType to, const void* source, DType from,
                      std::size_t count) {
    if (count == 0 || (destination == source && to == from)) return;
    take(stream, count * (size_of(to) + size_of(from)), stream.clock().processor().cast_rate(),
         SimulatedWork::memory);
  }
  static void upload(Stream& stream, void* /*destination*/, const void* /*host_source*/,
                     std::size_t bytes) {
    move(stream, 2 * bytes);
    stream.synchronize();
  }
  /// Gives zeros.
  static void download(Stream& stream, void* host_destination, const void* /*source*/,
                       std::size_t bytes) {
    move(stream, 2 * bytes);
    std::fill_n(static_cast<std::byte*>(host_destination), bytes, std::byte{0});
    stream.synchronize();
  }

  /// Gives zeros; takes as long as reading the ranges.
  static void sums_of_squares(Stream& stream, std::span<const NormRange> ranges, double* results) {
    std::size_t bytes = 0;
    for (const NormRange& range : ranges) bytes += range.count * size_of(range.type);
    take(stream, bytes, stream.clock().processor().norm_rate(), SimulatedWork::update);
    std::fill_n(results, ranges.size(), 0.0);
    stream.synchronize();
  }

  template <class Functor>
  static void launch(Stream& stream, std::size_t count, const Functor&) {
    if (count == 0) return;
    take(stream, count * detail::touched_bytes<Functor>, stream.clock().processor().update_rate(),
         SimulatedWork::update);
  }
  template <class Functor>
  static void launch_segments(Stream& stream,
                              std::span<const detail::ElementSegment<Functor>> segments) {
    std::size_t count = 0;
    for (const auto& segment : segments) count += segment.count;
    launch(stream, count, segments.front().functor);
  }

 private:
  static void move(Stream& stream, std::size_t bytes) {
    take(stream, bytes, stream.clock().processor().memory_bandwidth, SimulatedWork::memory);
  }
  static void take(Stream& stream, std::size_t bytes, double rate, SimulatedWork work) {
    if (bytes > 0) stream.enqueue(static_cast<double>(bytes) / rate, work);
  }
};

}  // namespace shardwise::inline v0_1
