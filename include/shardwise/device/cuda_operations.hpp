#pragma once

#include <algorithm>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <span>

#include "../core/dtype.hpp"
#include "../kernels/canonical_reduce.hpp"
#include "../kernels/cast.hpp"
#include "../kernels/convert_tile.hpp"
#include "../kernels/find.hpp"
#include "../kernels/norm_tiles.hpp"
#include "../kernels/quantize.hpp"
#include "cuda_error.hpp"
#include "cuda_seam.hpp"

/// @file
/// The operations that device/cuda_seam.hpp declares, as plain C++ on top of its launchers: include
/// device/cuda_launch.cuh first. Weak and not inline: units that only see the declarations find
/// them in device/cuda_kernels.cu, and a program's own .cu files may include this, too.
namespace shardwise::inline v0_1::detail::cuda {

namespace operation {

// In place the elements are converted range by range, so that no launch writes what a later one
// reads; one tile is read whole before it is written.
template <class From, class To>
void convert_in_place(cudaStream_t stream, const From* from, To* to, std::size_t count) {
  using Tile = ConvertTile<From, To>;
  const auto convert_range = [&](std::size_t begin, std::size_t end) {
    if (begin < end) launch_elements(stream, end - begin, Cast<From, To>{from + begin, to + begin});
  };
  const std::size_t least = std::min(count, Tile::size);
  if constexpr (sizeof(To) > sizeof(From)) {
    // Elements [begin, end) are written behind the last that is read where begin * sizeof(To) >=
    // end * sizeof(From).
    constexpr std::size_t growth = sizeof(To) / sizeof(From);
    std::size_t end = count;
    while (end > least) {
      const std::size_t begin = std::max(least, (end + growth - 1) / growth);
      convert_range(begin, end);
      end = begin;
    }
    launch_tiles(stream, 1, Tile{from, to, end});
  } else if constexpr (sizeof(To) < sizeof(From)) {
    // Elements [begin, end) are written before the first that is read where end * sizeof(To) <=
    // begin * sizeof(From).
    constexpr std::size_t shrinkage = sizeof(From) / sizeof(To);
    launch_tiles(stream, 1, Tile{from, to, least});
    for (std::size_t begin = least; begin < count;) {
      const std::size_t end = count / shrinkage < begin ? count : begin * shrinkage;
      convert_range(begin, end);
      begin = end;
    }
  } else {
    convert_range(0, count);
  }
}

template <class In, class Out>
void reduce_as(cudaStream_t stream, const Reduction& r) {
  using Functor = CanonicalReduce<In, Out>;
  if (r.ranks < 1 || r.ranks > static_cast<int>(Functor::most_ranks)) {
    raise("canonical_reduce: {} ranks, but at least 1 and at most {} are added", r.ranks,
          static_cast<unsigned>(Functor::most_ranks));
  }
  launch_elements(
      stream, r.count,
      Functor{static_cast<const In*>(r.inputs), r.stride, static_cast<const In*>(r.own), r.weights,
              static_cast<Out*>(r.out), r.scale, static_cast<unsigned>(r.ranks),
              static_cast<unsigned>(r.own_rank), r.accumulate ? 1u : 0u});
}

}  // namespace operation

[[gnu::weak]] void convert(cudaStream_t stream, void* to, DType to_type, const void* from,
                           DType from_type, std::size_t count) {
  if (count == 0 || (to == from && to_type == from_type)) return;
  if (to_type == from_type) {
    cuda_check(
        cudaMemcpyAsync(to, from, count * size_of(to_type), cudaMemcpyDeviceToDevice, stream),
        "cudaMemcpyAsync");
    return;
  }
  dispatch_floating(from_type, [&]<class From>() {
    dispatch_floating(to_type, [&]<class To>() {
      if constexpr (!std::same_as<From, To>) {
        const auto* const source = static_cast<const From*>(from);
        auto* const target = static_cast<To*>(to);
        if (to == from) {
          operation::convert_in_place(stream, source, target, count);
        } else {
          launch_elements(stream, count, Cast<From, To>{source, target});
        }
      }
    });
  });
}

[[gnu::weak]] void canonical_reduce(cudaStream_t stream, const Reduction& reduction) {
  dispatch(reduction.dtype, [&]<class In>() {
    if constexpr (FloatingElement<In>) {
      dispatch_floating(reduction.output,
                        [&]<class Out>() { operation::reduce_as<In, Out>(stream, reduction); });
    } else {
      operation::reduce_as<In, In>(stream, reduction);
    }
  });
}

[[gnu::weak]] void scale_add(cudaStream_t stream, void* out, DType output, const void* in,
                             DType dtype, std::size_t count, double scale, bool accumulate) {
  Reduction reduction;
  reduction.inputs = in;
  reduction.dtype = dtype;
  reduction.count = count;
  reduction.out = out;
  reduction.output = output;
  reduction.scale = scale;
  reduction.accumulate = accumulate;
  canonical_reduce(stream, reduction);
}

[[gnu::weak]] std::size_t square_sums_partials(std::span<const NormRange> ranges) noexcept {
  std::size_t sums = 0;
  for (const NormRange& range : ranges) {
    const std::size_t tiles = NormTable::tiles_of(range.count);
    sums += tiles + NormTable::tiles_of(tiles);
  }
  return sums;
}

[[gnu::weak]] void square_sums(cudaStream_t stream, std::span<const NormRange> ranges,
                               double* partials, double* results) {
  NormTable table;
  NormTable groups;  // of the tiles' sums
  while (!ranges.empty()) {
    const DType type = ranges.front().type;
    table.clear();
    groups.clear();
    while (table.ranges < NormTable::capacity && table.ranges < ranges.size() &&
           ranges[table.ranges].type == type) {
      const NormRange& range = ranges[table.ranges];
      groups.add(partials + table.tiles(), NormTable::tiles_of(range.count));
      table.add(range.values, range.count);
    }
    dispatch_floating(type, [&]<class T>() {
      launch_tiles(stream, table.tiles(), NormTiles<T>{table, partials});
    });
    partials += table.tiles();
    launch_tiles(stream, groups.tiles(), NormTiles<double, false>{groups, partials});
    launch_elements(stream, table.ranges, NormSums{groups, partials, results});
    partials += groups.tiles();
    results += table.ranges;
    ranges = ranges.subspan(table.ranges);
  }
}

[[gnu::weak]] void find_special(cudaStream_t stream, const void* values, DType type,
                                std::size_t count, std::uint32_t* found) {
  dispatch_floating(type, [&]<class T>() {
    launch_elements(stream, count, Find<T, IsSpecial>{static_cast<const T*>(values), found});
  });
}
[[gnu::weak]] void find_other_than_poison(cudaStream_t stream, const void* values,
                                          std::size_t bytes, std::uint32_t* found) {
  launch_elements(stream, bytes,
                  Find<std::uint8_t, IsNotPoison>{static_cast<const std::uint8_t*>(values), found});
}

[[gnu::weak]] void quantize(cudaStream_t stream, const void* values, DType type, std::size_t count,
                            Quantized to, void* out, float* factors) {
  dispatch_floating(type, [&]<class In>() {
    dispatch_quantized(to, [&]<Quantized Type>() {
      launch_tiles(stream, quantized_factors(count),
                   Quantize<In, Type>::of(static_cast<const In*>(values),
                                          static_cast<std::uint8_t*>(out), factors, count));
    });
  });
}
[[gnu::weak]] void dequantize(cudaStream_t stream, const void* quantized, Quantized from,
                              const float* factors, std::size_t count, void* out, DType to) {
  dispatch_floating(to, [&]<class Out>() {
    dispatch_quantized(from, [&]<Quantized Type>() {
      launch_elements(stream, count,
                      Dequantize<Type, Out>{static_cast<const std::uint8_t*>(quantized), factors,
                                            static_cast<Out*>(out)});
    });
  });
}

}  // namespace shardwise::inline v0_1::detail::cuda
