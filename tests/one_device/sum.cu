#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "sum.hpp"

namespace one_device {
namespace {

template <class T, class Accumulator>
__global__ void sum_kernel(Pointers pointers, std::size_t count) {
  const std::size_t step = static_cast<std::size_t>(gridDim.x) * blockDim.x;
  for (std::size_t i = static_cast<std::size_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count;
       i += step) {
    Accumulator sum = static_cast<Accumulator>(static_cast<const T*>(pointers.in[0])[i]);
    for (int r = 1; r < pointers.inputs; ++r) {
      sum += static_cast<Accumulator>(static_cast<const T*>(pointers.in[r])[i]);
    }
    for (int r = 0; r < pointers.outputs; ++r) {
      static_cast<T*>(pointers.out[r])[i] = static_cast<T>(sum);
    }
  }
}

template <class T, class Accumulator = T>
void launch_sum(cudaStream_t stream, const Pointers& pointers, std::size_t count) {
  const std::size_t blocks = (count + 255) / 256;
  sum_kernel<T, Accumulator>
      <<<static_cast<unsigned>(blocks < 1024 ? blocks : 1024), 256, 0, stream>>>(pointers, count);
}

}  // namespace

bool sum(cudaStream_t stream, ncclDataType_t type, const Pointers& pointers, std::size_t count) {
  if (count == 0) return true;
  switch (type) {
    case ncclFloat64:
      launch_sum<double>(stream, pointers, count);
      break;
    case ncclFloat32:
      launch_sum<float>(stream, pointers, count);
      break;
    case ncclFloat16:
      launch_sum<__half, float>(stream, pointers, count);
      break;
    case ncclBfloat16:
      launch_sum<__nv_bfloat16, float>(stream, pointers, count);
      break;
    case ncclInt64:
      launch_sum<std::int64_t>(stream, pointers, count);
      break;
    case ncclInt32:
      launch_sum<std::int32_t>(stream, pointers, count);
      break;
    case ncclInt8:
      launch_sum<std::int8_t>(stream, pointers, count);
      break;
    case ncclUint8:
      launch_sum<std::uint8_t>(stream, pointers, count);
      break;
    default:
      return false;
  }
  return cudaGetLastError() == cudaSuccess;
}

}  // namespace one_device
