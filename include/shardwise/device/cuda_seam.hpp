#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <span>

#include "../core/dtype.hpp"
#include "../kernels/norm.hpp"
#include "../kernels/quantize.hpp"
#include "../kernels/segments.hpp"

/// @file
/// What only device code can do, as plain C++ sees it: declared here, defined in
/// device/cuda_operations.hpp and device/cuda_launch.cuh, compiled by nvcc in
/// device/cuda_kernels.cu, which a program adds to its sources once. All functions enqueue on the
/// stream, which belongs to the host thread's current device, and return; pointers are to memory of
/// that device which stays alive in stream order. BackendError where CUDA refuses. Where the host's
/// bits are promised, a NaN is one on both; its own bits may differ.
namespace shardwise::inline v0_1::detail::cuda {

/// Runs `functor` (kernels/elements.hpp) over elements [0, count). Copied, trivially copyable.
/// Defined in device/cuda_launch.cuh; cuda_kernels.cu has what the library itself launches, with
/// the bundled optimizers. A host with functors of its own compiles them in a .cu file that
/// includes device/cuda_launch.cuh.
template <class Functor>
void launch_elements(cudaStream_t stream, std::size_t count, const Functor& functor);

template <class Functor>
using ElementSegment = detail::ElementSegment<Functor>;
/// Runs all of them, in as few launches as their arguments allow. Segments do not touch what others
/// write.
template <class Functor>
void launch_segments(cudaStream_t stream, std::span<const ElementSegment<Functor>> segments);

/// Runs a functor over tiles (kernels/tiles.hpp).
template <class Tiles>
void launch_tiles(cudaStream_t stream, std::size_t count, const Tiles& tiles);

/// Converts `count` elements between floating types by cast_element. The buffers do not overlap, or
/// begin at one address (in place; the buffer has room for the larger type).
void convert(cudaStream_t stream, void* to, DType to_type, const void* from, DType from_type,
             std::size_t count);

/// One rank's part of a reduction, as kernels/reduce.hpp describes it.
struct Reduction {
  const void* inputs = nullptr;  ///< rank r's contribution begins at element r * stride
  std::size_t stride = 0;        ///< elements
  const void* own = nullptr;  ///< where own_rank's contribution lies instead; null: with the rest
  int own_rank = 0;
  int ranks = 1;
  const double* weights = nullptr;  ///< device memory, one per rank; null: all 1
  DType dtype = DType::f32;
  std::size_t count = 0;
  void* out = nullptr;
  DType output = DType::f32;  ///< integers: equal to dtype
  double scale = 1;
  bool accumulate = false;
};
/// out = round(old + scale * sum over ranks of weight_r * in_r) in the canonical order, the bits of
/// shardwise::canonical_reduce. `out` may be one of the contributions where the types are equal.
void canonical_reduce(cudaStream_t stream, const Reduction& reduction);

/// out = round(old + scale * in); old is 0 unless `accumulate`. `out` may be `in` where the types
/// are equal. Integers: equal types, scale 1.
void scale_add(cudaStream_t stream, void* out, DType output, const void* in, DType dtype,
               std::size_t count, double scale, bool accumulate);

/// Doubles of device memory that square_sums needs for these ranges.
[[nodiscard]] std::size_t square_sums_partials(std::span<const NormRange> ranges) noexcept;
/// results[i] = sum_of_squares of ranges[i], the bits of kernels/norm.hpp. `partials` and `results`
/// are device memory; the span itself is read at once.
void square_sums(cudaStream_t stream, std::span<const NormRange> ranges, double* partials,
                 double* results);

/// *found = 1 where an element is infinite or NaN, else it stays; device memory.
void find_special(cudaStream_t stream, const void* values, DType type, std::size_t count,
                  std::uint32_t* found);
/// *found = 1 where a byte is not 0xff.
void find_other_than_poison(cudaStream_t stream, const void* values, std::size_t bytes,
                            std::uint32_t* found);

/// shardwise::quantize and shardwise::dequantize, bit by bit.
void quantize(cudaStream_t stream, const void* values, DType type, std::size_t count, Quantized to,
              void* out, float* factors);
void dequantize(cudaStream_t stream, const void* quantized, Quantized from, const float* factors,
                std::size_t count, void* out, DType to);

}  // namespace shardwise::inline v0_1::detail::cuda
