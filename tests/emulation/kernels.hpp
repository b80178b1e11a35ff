#pragma once

#include <cstring>
#include <new>
#include <shardwise/device/cuda_error.hpp>
#include <shardwise/device/cuda_seam.hpp>
#include <shardwise/kernels/elements.hpp>
#include <shardwise/kernels/segments.hpp>
#include <shardwise/kernels/tiles.hpp>
#include <span>
#include <type_traits>

#include "control.hpp"

/// @file
/// The launchers of device/cuda_launch.cuh for a program without nvcc: the same pieces, blocks and
/// order, on the emulation's streams. Include device/cuda_operations.hpp behind it.
namespace shardwise::inline v0_1::detail::cuda {

namespace emulated {

inline constexpr unsigned block_threads = 256;

template <class Arguments>
void enqueue(cudaStream_t stream, const char* name, std::size_t threads, const Arguments& arguments,
             bool padding_is_clear, void (*body)(const void*, std::size_t)) {
  cuda_check(
      emulation_control::launch_body(stream, name, threads, arguments, padding_is_clear, body),
      "launch of a kernel for the host");
}

/// A count, or more, and a functor, with nothing but zeros between and behind them.
template <class Shape, class Functor>
struct Arguments {
  Shape shape;
  union {
    Functor functor;
  };
  bool padding_is_clear;

  Arguments(const Shape& its_shape, Functor its_functor) {
    const bool is_clear = emulation_control::clear_padding(its_functor);
    std::memset(static_cast<void*>(this), 0, sizeof *this);
    shape = its_shape;
    ::new (&functor) Functor(its_functor);
    padding_is_clear = is_clear;
  }
};

struct ElementShape {
  std::size_t pieces;
  ElementPlan plan;
};

template <class Functor>
void enqueue_segments(cudaStream_t stream, const SegmentTable<Functor>& table, const char* name,
                      bool padding_is_clear) {
  enqueue(stream, name, std::size_t{table.blocks()} * block_threads, table, padding_is_clear,
          [](const void* arguments, std::size_t) {
            run_segments(*static_cast<const SegmentTable<Functor>*>(arguments), block_threads);
          });
}

}  // namespace emulated

template <class Functor>
void launch_elements(cudaStream_t stream, std::size_t count, const Functor& functor) {
  static_assert(std::is_trivially_copyable_v<Functor>);
  if (count == 0) return;
  using Arguments = emulated::Arguments<emulated::ElementShape, Functor>;
  const ElementPlan plan = plan_elements(count, functor);
  const Arguments arguments({plan.pieces<Functor>(count), plan}, functor);
  emulated::enqueue(stream, __PRETTY_FUNCTION__, arguments.shape.pieces, arguments,
                    arguments.padding_is_clear, [](const void* copy, std::size_t) {
                      const auto& launch = *static_cast<const Arguments*>(copy);
                      run_pieces(launch.shape.pieces, launch.shape.plan, launch.functor);
                    });
}

template <class Functor>
void launch_segments(cudaStream_t stream, std::span<const ElementSegment<Functor>> segments) {
  SegmentTable<Functor> table;
  table.clear();
  bool is_clear = true;
  for (const auto& segment : segments) {
    if (segment.count == 0) continue;
    // of one functor: g++ 12 clears members, too, where it is given an array of structures
    Functor copy = segment.functor;
    is_clear = emulation_control::clear_padding(copy) && is_clear;
    table.add(segment.count, copy, emulated::block_threads);
    if (!table.is_full()) continue;
    emulated::enqueue_segments(stream, table, __PRETTY_FUNCTION__, is_clear);
    table.clear();
  }
  if (table.segments > 0) {
    emulated::enqueue_segments(stream, table, __PRETTY_FUNCTION__, is_clear);
  }
}

template <class Tiles>
void launch_tiles(cudaStream_t stream, std::size_t count, const Tiles& tiles) {
  static_assert(RunsTiles<Tiles> && std::is_trivially_copyable_v<Tiles>);
  if (count == 0) return;
  using Arguments = emulated::Arguments<std::size_t, Tiles>;
  const Arguments arguments(count, tiles);
  emulated::enqueue(stream, __PRETTY_FUNCTION__, count * Tiles::lanes, arguments,
                    arguments.padding_is_clear, [](const void* copy, std::size_t) {
                      const auto& launch = *static_cast<const Arguments*>(copy);
                      run_tiles(launch.shape, launch.functor);
                    });
}

}  // namespace shardwise::inline v0_1::detail::cuda
