#pragma once

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <new>
#include <span>
#include <thread>
#include <type_traits>

#include "../core/dtype.hpp"
#include "../core/stream_ref.hpp"
#include "../kernels/cast_elements.hpp"
#include "../kernels/norm.hpp"
#include "../kernels/segments.hpp"
#include "../kernels/vectors.hpp"
#include "host_stream.hpp"
#include "host_timeline.hpp"

namespace shardwise::inline v0_1 {

struct Adam;
struct AdamW;

/// The CPU as a device: where buffers come from, what a stream is, how a functor runs over
/// elements. Every device has these members.
struct HostDevice {
  using Stream = HostStream;
  using Event = HostEvent;
  using Timeline = HostTimeline;

  static constexpr MemoryKind memory = MemoryKind::host;
  /// Every buffer starts on such a boundary.
  static constexpr std::size_t alignment = 128;

  /// Whether steps of this optimizer write what leases see, too, where that is a copy in bf16: for
  /// those whose step memory limits, so that a second pass costs more than what it saves others in
  /// loops to compile.
  template <class Optimizer, class T, class G>
  static constexpr bool fuses_cast = (std::is_same_v<Optimizer, AdamW> ||
                                      std::is_same_v<Optimizer, Adam>)&&std::is_same_v<T, float> &&
                                     (std::is_same_v<G, float> || std::is_same_v<G, bf16>);

  /// The stream of the host's compute: inline. UsageError where the host names another.
  [[nodiscard]] static Stream compute_stream(StreamRef adopted) {
    if (adopted.memory == MemoryKind::host && adopted.native == nullptr) return Stream();
    raise("ContextOptions::stream: on the CPU the compute stream is inline and none is adopted");
  }
  /// The stream of collectives; `overlap`: beside the compute stream.
  [[nodiscard]] static Stream communication_stream(bool overlap, Stream& /*compute*/) {
    return Stream(overlap ? Stream::Mode::worker : Stream::Mode::inline_calls);
  }

  /// ContextOptions::overlap_from where the host does not say, for so many ranks that are threads
  /// of this process and copy from each other. Without a second core for each of them handing a
  /// collective over to a thread of its own, and back, costs about what copying 8 MiB does
  /// (measured: benchmarks/README.md, bench_step).
  [[nodiscard]] static std::size_t overlap_from(std::size_t ranks) noexcept {
    const std::size_t cores = std::thread::hardware_concurrency();  // 0: not known
    return cores == 0 || cores >= 2 * ranks ? 0 : (std::size_t{8} << 20) + 1;
  }

  /// Uninitialised memory; std::bad_alloc where there is none.
  [[nodiscard]] static void* allocate(std::size_t bytes) {
    return ::operator new (bytes, std::align_val_t{alignment});
  }
  static void deallocate(void* pointer, std::size_t /*bytes*/) noexcept {
    // clang has no sized form by default
    ::operator delete (pointer, std::align_val_t{alignment});
  }

  /// Zeroes `bytes` at `destination` in stream order.
  static void zero(Stream& stream, void* destination, std::size_t bytes) {
    if (bytes == 0) return;
    stream.enqueue([destination, bytes] { std::memset(destination, 0, bytes); });
  }

  /// Debug mode: fills with bytes of 0xff, a NaN in every floating type, in stream order.
  static void poison(Stream& stream, void* destination, std::size_t bytes) {
    if (bytes == 0) return;
    stream.enqueue([destination, bytes] { std::memset(destination, 0xff, bytes); });
  }
  /// Whether memory holds what poison() left; the caller waits for the stream.
  [[nodiscard]] static bool is_poisoned(Stream& stream, const void* values, std::size_t bytes) {
    stream.synchronize();
    const auto* const begin = static_cast<const unsigned char*>(values);
    return std::all_of(begin, begin + bytes, [](unsigned char byte) { return byte == 0xff; });
  }

  /// Copies `bytes` in stream order; the ranges do not overlap.
  static void copy(Stream& stream, void* destination, const void* source, std::size_t bytes) {
    if (bytes == 0 || destination == source) return;
    stream.enqueue([=] { std::memcpy(destination, source, bytes); });
  }

  /// Converts `count` elements in stream order. The ranges are the same (in place, also where the
  /// types differ in size) or do not overlap.
  static void convert(Stream& stream, void* destination, DType to, const void* source, DType from,
                      std::size_t count) {
    if (count == 0 || (destination == source && to == from)) return;
    stream.enqueue([=] { cast_elements(source, from, destination, to, count); });
  }

  /// Copies from the host's memory, or to it, in stream order; the caller waits for the stream.
  static void upload(Stream& stream, void* destination, const void* host_source,
                     std::size_t bytes) {
    stream.synchronize();
    if (bytes > 0) std::memcpy(destination, host_source, bytes);
  }
  static void download(Stream& stream, void* host_destination, const void* source,
                       std::size_t bytes) {
    upload(stream, host_destination, source, bytes);
  }

  /// results[i] = the sum of the squares of ranges[i], in the order of kernels/norm.hpp; the caller
  /// waits for the stream. `results` is in the host's memory.
  static void sums_of_squares(Stream& stream, std::span<const NormRange> ranges, double* results) {
    stream.synchronize();
    for (const NormRange& range : ranges) {
      *results++ = sum_of_squares(range.values, range.type, range.count);
    }
  }

  /// Runs `functor` over elements [0, count) in stream order. A functor handles Width elements from
  /// `first` in functor.template run<Width>(first); it reads all of them before it writes any, so
  /// that the compiler vectorises without checks for aliasing. Calls run in ascending order.
  template <class Functor>
  static void launch(Stream& stream, std::size_t count, Functor functor) {
    if (count == 0) return;
    stream.enqueue([count, functor] { run(count, functor); });
  }

  /// Runs each segment's functor over its elements. A device may run them at once: none touches
  /// what another writes.
  template <class Functor>
  static void launch_segments(Stream& stream,
                              std::span<const detail::ElementSegment<Functor>> segments) {
    for (const auto& segment : segments) launch(stream, segment.count, segment.functor);
  }

  /// What launch does, at once.
  template <class Functor>
  static void run(std::size_t count, const Functor& functor) {
    constexpr std::size_t width = 16;
    std::size_t first = 0;
    if constexpr (requires { requires Functor::in_tiles; }) {
      const detail::Vectors vectors = detail::widest_vectors();
      if (vectors != detail::Vectors::baseline) {
        for (; first + Functor::tile <= count; first += Functor::tile) {
          functor.run_tile(first, vectors);
        }
      }
    }
    for (; first + width <= count; first += width) functor.template run<width>(first);
    for (; first < count; ++first) functor.template run<1>(first);
  }
};

}  // namespace shardwise::inline v0_1
