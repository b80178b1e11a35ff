#pragma once

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <type_traits>

#include "../core/dtype.hpp"
#include "../core/stream_ref.hpp"
#include "../kernels/norm.hpp"
#include "../kernels/segments.hpp"
#include "cuda_error.hpp"
#include "cuda_event.hpp"
#include "cuda_guard.hpp"
#include "cuda_memory.hpp"
#include "cuda_seam.hpp"
#include "cuda_stream.hpp"
#include "cuda_virtual_memory.hpp"

namespace shardwise::inline v0_1 {

struct Adam;
struct AdamW;

/// A CUDA GPU as a device: the host thread's current one, when a Context is made and while it is
/// used. Functions that take a Stream work on that stream's device. All enqueue and return unless
/// they say that the host waits: work enqueued on `stream` later sees the result, and memory stays
/// alive in stream order. BackendError where CUDA refuses. The program has device/cuda_kernels.cu
/// among its sources.
struct CudaDevice {
  using Stream = CudaStream;
  using Event = CudaEvent;
  /// How residency in_place brings memory below a host's addresses.
  using VirtualMemory = CudaVirtualMemory;

  static constexpr MemoryKind memory = MemoryKind::cuda;
  /// Every buffer starts on such a boundary.
  static constexpr std::size_t alignment = 256;

  /// Whether steps of this optimizer write what leases see, too, where that is a copy in bf16:
  /// those that device/cuda_kernels.cu has.
  template <class Optimizer, class T, class G>
  static constexpr bool fuses_cast = (std::is_same_v<Optimizer, AdamW> ||
                                      std::is_same_v<Optimizer, Adam>)&&std::is_same_v<T, float> &&
                                     (std::is_same_v<G, float> || std::is_same_v<G, bf16>);

  /// The stream of the host's compute: the one that it names, or a new one. UsageError where that
  /// is a host's stream.
  [[nodiscard]] static Stream compute_stream(StreamRef adopted) {
    if (adopted.native == nullptr) return Stream();
    if (adopted.memory != MemoryKind::cuda) {
      raise(
          "ContextOptions::stream: a stream of the CPU was given to a Context of a CUDA device; "
          "pass {{MemoryKind::cuda, stream}} with a cudaStream_t");
    }
    return Stream(static_cast<cudaStream_t>(adopted.native));
  }
  /// The stream of collectives; `overlap`: one beside the compute stream, of high priority, else
  /// that stream itself, which must outlive the result.
  [[nodiscard]] static Stream communication_stream(bool overlap, Stream& compute) {
    const CudaDeviceGuard guard(compute.device());
    return overlap ? Stream(Stream::Priority::high) : Stream(compute.native());
  }

  [[nodiscard]] static void* allocate(std::size_t bytes) { return CudaMemory::allocate(bytes); }
  static void deallocate(void* pointer, std::size_t bytes) noexcept {
    CudaMemory::deallocate(pointer, bytes);
  }

  /// Zeroes `bytes` at `destination`.
  static void zero(Stream& stream, void* destination, std::size_t bytes) {
    set(stream, destination, 0, bytes);
  }
  /// Debug mode: fills with bytes of 0xff, a NaN in every floating type.
  static void poison(Stream& stream, void* destination, std::size_t bytes) {
    set(stream, destination, 0xff, bytes);
  }
  /// Whether memory holds what poison() left; the host waits.
  [[nodiscard]] static bool is_poisoned(Stream& stream, const void* values, std::size_t bytes) {
    return !found(stream, [&](cudaStream_t native, std::uint32_t* flag) {
      detail::cuda::find_other_than_poison(native, values, bytes, flag);
    });
  }
  /// Whether all elements are finite; the host waits.
  [[nodiscard]] static bool is_finite(Stream& stream, const void* values, DType type,
                                      std::size_t count) {
    return !found(stream, [&](cudaStream_t native, std::uint32_t* flag) {
      detail::cuda::find_special(native, values, type, count, flag);
    });
  }

  /// Copies `bytes` within the device; the ranges do not overlap.
  static void copy(Stream& stream, void* destination, const void* source, std::size_t bytes) {
    if (destination == source) return;
    copy(stream, destination, source, bytes, cudaMemcpyDeviceToDevice);
  }

  /// Converts `count` elements. The ranges are the same (in place, also where the types differ in
  /// size) or do not overlap.
  static void convert(Stream& stream, void* destination, DType to, const void* source, DType from,
                      std::size_t count) {
    const CudaDeviceGuard guard(stream.device());
    detail::cuda::convert(stream.native(), destination, to, source, from, count);
  }

  /// Copies from the host's memory, or to it, in stream order; the host waits.
  static void upload(Stream& stream, void* destination, const void* host_source,
                     std::size_t bytes) {
    copy(stream, destination, host_source, bytes, cudaMemcpyHostToDevice);
    stream.synchronize();
  }
  static void download(Stream& stream, void* host_destination, const void* source,
                       std::size_t bytes) {
    copy(stream, host_destination, source, bytes, cudaMemcpyDeviceToHost);
    stream.synchronize();
  }

  /// results[i] = the sum of the squares of ranges[i], the bits of kernels/norm.hpp. `results` is
  /// in the host's memory; the host waits.
  static void sums_of_squares(Stream& stream, std::span<const NormRange> ranges, double* results) {
    if (ranges.empty()) return stream.synchronize();
    const CudaDeviceGuard guard(stream.device());
    const std::size_t partials = detail::cuda::square_sums_partials(ranges);
    const std::size_t bytes = ranges.size() * sizeof(double);
    auto* const device = static_cast<double*>(stream.scratch(partials * sizeof(double) + bytes));
    void* const pinned = stream.pinned_scratch(bytes);
    detail::cuda::square_sums(stream.native(), ranges, device, device + partials);
    download(stream, pinned, device + partials, bytes);
    std::memcpy(results, pinned, bytes);
  }

  /// Runs `functor` over elements [0, count); see kernels/elements.hpp. It is copied.
  template <class Functor>
  static void launch(Stream& stream, std::size_t count, const Functor& functor) {
    if (count == 0) return;
    const CudaDeviceGuard guard(stream.device());
    detail::cuda::launch_elements(stream.native(), count, functor);
  }
  /// Runs each segment's functor over its elements, all of them in as few launches as their
  /// arguments allow: none touches what another writes.
  template <class Functor>
  static void launch_segments(Stream& stream,
                              std::span<const detail::ElementSegment<Functor>> segments) {
    const CudaDeviceGuard guard(stream.device());
    detail::cuda::launch_segments(stream.native(), segments);
  }

 private:
  static void set(Stream& stream, void* destination, int byte, std::size_t bytes) {
    if (bytes == 0) return;
    const CudaDeviceGuard guard(stream.device());
    cuda_check(cudaMemsetAsync(destination, byte, bytes, stream.native()), "cudaMemsetAsync");
  }

  static void copy(Stream& stream, void* destination, const void* source, std::size_t bytes,
                   cudaMemcpyKind kind) {
    if (bytes == 0) return;
    const CudaDeviceGuard guard(stream.device());
    cuda_check(cudaMemcpyAsync(destination, source, bytes, kind, stream.native()),
               "cudaMemcpyAsync");
  }

  // What `find` wrote to its flag, which is 0 before.
  template <class Find>
  static bool found(Stream& stream, const Find& find) {
    const CudaDeviceGuard guard(stream.device());
    auto* const flag = static_cast<std::uint32_t*>(stream.scratch(sizeof(std::uint32_t)));
    auto* const pinned = static_cast<std::uint32_t*>(stream.pinned_scratch(sizeof(std::uint32_t)));
    zero(stream, flag, sizeof(*flag));
    find(stream.native(), flag);
    download(stream, pinned, flag, sizeof(*flag));
    return *pinned != 0;
  }
};

}  // namespace shardwise::inline v0_1
