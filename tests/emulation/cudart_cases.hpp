#pragma once

#include <cuda_runtime_api.h>

#include <chrono>
#include <cstddef>
#include <optional>
#include <string_view>
#include <thread>

#include "control.hpp"
#include "plain_cuda.hpp"

/// What the programs of cudart_cases share.
namespace cudart_cases {

/// Elements of a buffer.
inline constexpr std::size_t count = 1000;

/// Makes a stream late, so that what does not wait for it is early every time.
inline void delay(cudaStream_t stream) {
  PLAIN_CUDA(cudaLaunchHostFunc(
      stream, [](void*) { std::this_thread::sleep_for(std::chrono::milliseconds(30)); }, nullptr));
}

struct Fill {
  float* to;
  float value;
  void operator()(std::size_t i) const { to[i] = value; }
};

inline void fill(cudaStream_t stream, float* to, float value, std::size_t elements = count) {
  PLAIN_CUDA(emulation_control::launch(stream, "fill", elements, Fill{to, value}));
}

/// Those that map memory below reserved addresses; none where the name is another's.
std::optional<int> run_mapped_case(std::string_view name, bool wrong);

}  // namespace cudart_cases
