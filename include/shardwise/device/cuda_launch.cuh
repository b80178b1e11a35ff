#pragma once

#if !defined(__CUDACC__)
#error "shardwise/device/cuda_launch.cuh is for nvcc: compile this unit as a .cu file"
#endif

#include <cuda_runtime.h>
#include <dlfcn.h>

#include <cstddef>
#include <span>
#include <type_traits>

#include "../kernels/elements.hpp"
#include "../kernels/segments.hpp"
#include "../kernels/tiles.hpp"
#include "cuda_error.hpp"
#include "cuda_seam.hpp"

/// @file
/// The library's kernels: three ways to run a functor, and the only code that is for devices alone.
/// Compile units that include this with -fmad=false: the functors' sums and products are then
/// rounded one by one, as on the host.
namespace shardwise::inline v0_1::detail::cuda {

inline constexpr unsigned block_threads = 256;

template <class Functor>
__global__ void __launch_bounds__(block_threads)
    elements_kernel(std::size_t pieces, ElementPlan plan, Functor functor) {
  const std::size_t index = static_cast<std::size_t>(blockIdx.x) * block_threads + threadIdx.x;
  if (index < pieces) run_piece(plan, index, functor);
}

template <class Functor>
__global__ void __launch_bounds__(block_threads)
    segments_kernel(const __grid_constant__ SegmentTable<Functor> table) {
  table.run(blockIdx.x, threadIdx.x, block_threads);
}

template <class Tiles>
__global__ void __launch_bounds__(block_threads)
    tiles_kernel(std::size_t count, const __grid_constant__ Tiles tiles) {
  constexpr unsigned all_lanes = 0xffffffffu;
  const std::size_t index = static_cast<std::size_t>(blockIdx.x) * block_threads + threadIdx.x;
  const std::size_t tile = index / Tiles::lanes;
  const unsigned lane = threadIdx.x % Tiles::lanes;
  const bool is_used = tile < count;
  typename Tiles::State state;
  typename Tiles::Partial partial{};
  if (is_used) partial = tiles.load(tile, lane, state);
  // Lanes without a tile take part in the shuffles of their warp.
  for (unsigned bit = 1; bit < Tiles::lanes; bit *= 2) {
    partial = Tiles::combine(partial, __shfl_xor_sync(all_lanes, partial, bit));
  }
  __syncwarp();  // loads before stores, in memory too
  if (is_used) tiles.store(tile, lane, state, partial);
}

/// How an emulation of the runtime, where one is loaded, learns what a kernel does on the host:
/// `body` gets the arguments and the launch's shape, `sizes` are those of the arguments.
using KernelBody = void (*)(void** arguments, dim3 grid, dim3 block, std::size_t shared,
                            void* stream);
using RegisterKernel = void (*)(const void* kernel, KernelBody body, const std::size_t* sizes,
                                std::size_t count, const char* name);
[[nodiscard]] inline RegisterKernel emulation() {
  return reinterpret_cast<RegisterKernel>(
      dlsym(RTLD_DEFAULT, "shardwise_emulation_register_kernel"));
}

/// Tells the emulation of a kernel with these parameters, if there is one.
template <class... Parameters>
[[nodiscard]] bool introduce(void (*kernel)(Parameters...), KernelBody body, const char* name) {
  const RegisterKernel tell = emulation();
  if (tell == nullptr) return false;
  const std::size_t sizes[] = {sizeof(Parameters)...};
  tell(reinterpret_cast<const void*>(kernel), body, sizes, sizeof...(Parameters), name);
  return true;
}

/// An emulation looks for pointers in arguments: what lies between members is none. Of one functor
/// alone: in arrays of structures g++ 12 clears members, too. clang 14 cannot.
template <class Functor>
void clear_padding([[maybe_unused]] Functor& functor) {
#if __has_builtin(__builtin_clear_padding)
  __builtin_clear_padding(&functor);
#endif
}

/// Launches; the status is this launch's own, not what the host's code left behind. The arguments
/// have the parameters' types and are read at once.
template <class... Parameters, class... Arguments>
void enqueue(cudaStream_t stream, void (*kernel)(Parameters...), std::size_t blocks,
             Arguments&... arguments) {
  static_assert(
      (std::is_same_v<std::remove_const_t<Parameters>, std::remove_const_t<Arguments>> && ...));
  void* pointers[] = {const_cast<std::remove_const_t<Arguments>*>(&arguments)...};
  cuda_check(
      cudaLaunchKernel(reinterpret_cast<const void*>(kernel), dim3(static_cast<unsigned>(blocks)),
                       dim3(block_threads), pointers, 0, stream),
      "cudaLaunchKernel");
}

template <class Functor>
void launch_elements(cudaStream_t stream, std::size_t count, const Functor& functor) {
  static_assert(std::is_trivially_copyable_v<Functor>);
  if (count == 0) return;
  static const bool is_emulated = introduce(
      elements_kernel<Functor>,
      [](void** arguments, dim3, dim3, std::size_t, void*) {
        const auto& plan = *static_cast<const ElementPlan*>(arguments[1]);
        const auto& copy = *static_cast<const Functor*>(arguments[2]);
        run_pieces(*static_cast<const std::size_t*>(arguments[0]), plan, copy);
      },
      __PRETTY_FUNCTION__);
  const ElementPlan plan = plan_elements(count, functor);
  const std::size_t pieces = plan.pieces<Functor>(count);
  const std::size_t blocks = (pieces + block_threads - 1) / block_threads;
  Functor copy = functor;
  if (is_emulated) clear_padding(copy);
  enqueue(stream, elements_kernel<Functor>, blocks, pieces, plan, copy);
}

template <class Functor>
void launch_segments(cudaStream_t stream, std::span<const ElementSegment<Functor>> segments) {
  if (segments.size() == 1) {
    return launch_elements(stream, segments.front().count, segments.front().functor);
  }
  static const bool is_emulated = introduce(
      segments_kernel<Functor>,
      [](void** arguments, dim3, dim3, std::size_t, void*) {
        run_segments(*static_cast<const SegmentTable<Functor>*>(arguments[0]), block_threads);
      },
      __PRETTY_FUNCTION__);
  SegmentTable<Functor> table;
  table.clear();
  for (const auto& segment : segments) {
    if (segment.count == 0) continue;
    Functor copy = segment.functor;
    if (is_emulated) clear_padding(copy);
    table.add(segment.count, copy, block_threads);
    if (!table.is_full()) continue;
    enqueue(stream, segments_kernel<Functor>, table.blocks(), table);
    table.clear();
  }
  if (table.segments > 0) enqueue(stream, segments_kernel<Functor>, table.blocks(), table);
}

template <class Tiles>
void launch_tiles(cudaStream_t stream, std::size_t count, const Tiles& tiles) {
  static_assert(RunsTiles<Tiles> && std::is_trivially_copyable_v<Tiles>);
  if (count == 0) return;
  static const bool is_emulated = introduce(
      tiles_kernel<Tiles>,
      [](void** arguments, dim3, dim3, std::size_t, void*) {
        run_tiles(*static_cast<const std::size_t*>(arguments[0]),
                  *static_cast<const Tiles*>(arguments[1]));
      },
      __PRETTY_FUNCTION__);
  const std::size_t threads = count * Tiles::lanes;
  const std::size_t blocks = (threads + block_threads - 1) / block_threads;
  Tiles copy = tiles;
  if (is_emulated) clear_padding(copy);
  enqueue(stream, tiles_kernel<Tiles>, blocks, count, copy);
}

}  // namespace shardwise::inline v0_1::detail::cuda
