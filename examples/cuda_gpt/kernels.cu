// The program's device code, compiled by nvcc: the model's functors for both types of leases, and
// what the library runs on a device. The other units are plain C++ and launch functors by
// CudaDevice::launch; one that is not listed here does not link.

// The library's own kernels; a program without functors compiles that file alone.
#include <shardwise/device/cuda_kernels.cu>

#include "functors.hpp"

#define CUDA_GPT_KERNEL(functor)                                                   \
  template void shardwise::detail::cuda::launch_elements(                          \
      cudaStream_t, std::size_t, const cuda_gpt::Each<cuda_gpt::functor<float>>&); \
  template void shardwise::detail::cuda::launch_elements(                          \
      cudaStream_t, std::size_t, const cuda_gpt::Each<cuda_gpt::functor<shardwise::bf16>>&);

CUDA_GPT_KERNEL(Embed)
CUDA_GPT_KERNEL(OneHot)
CUDA_GPT_KERNEL(NormForward)
CUDA_GPT_KERNEL(NormBackward)
CUDA_GPT_KERNEL(SplitHeads)
CUDA_GPT_KERNEL(MergeHeads)
CUDA_GPT_KERNEL(SoftmaxCausal)
CUDA_GPT_KERNEL(SoftmaxBackward)
CUDA_GPT_KERNEL(AddResidual)
CUDA_GPT_KERNEL(Gelu)
CUDA_GPT_KERNEL(GeluBackward)
CUDA_GPT_KERNEL(CrossEntropy)
