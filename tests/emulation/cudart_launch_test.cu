// Launches as nvcc compiles them, <<<>>> and by the runtime's own call: plain CUDA, but for telling
// the emulation, where there is one, what the kernel does.

#include <cuda_runtime.h>
#include <dlfcn.h>

#include <catch2/catch_test_macros.hpp>
#include <cstddef>

#include "plain_cuda.hpp"

using plain::DeviceArray;
using plain::PinnedArray;
using plain::Stream;

namespace {

struct Shape {
  float factor;
  int offset;
};

__global__ void scale(float* values, std::size_t count, Shape shape) {
  const std::size_t i = static_cast<std::size_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i < count) values[i] = values[i] * shape.factor + static_cast<float>(shape.offset);
}
__global__ void unknown_to_the_emulation(float* values) { values[threadIdx.x] = 0; }

void scale_on_the_host(void** arguments, dim3 grid, dim3 block, std::size_t, void*) {
  float* const values = *static_cast<float**>(arguments[0]);
  const std::size_t count = *static_cast<std::size_t*>(arguments[1]);
  const Shape shape = *static_cast<Shape*>(arguments[2]);
  const std::size_t threads = std::size_t{grid.x} * block.x;
  for (std::size_t i = 0; i < threads && i < count; ++i) {
    values[i] = values[i] * shape.factor + static_cast<float>(shape.offset);
  }
}

bool is_emulated() {
  using Register = void (*)(const void*, void (*)(void**, dim3, dim3, std::size_t, void*),
                            const std::size_t*, std::size_t, const char*);
  const auto tell =
      reinterpret_cast<Register>(dlsym(RTLD_DEFAULT, "shardwise_emulation_register_kernel"));
  if (tell == nullptr) return false;
  const std::size_t sizes[] = {sizeof(float*), sizeof(std::size_t), sizeof(Shape)};
  tell(reinterpret_cast<const void*>(scale), scale_on_the_host, sizes, 3, nullptr);
  return true;
}

constexpr std::size_t count = 1000;

struct Fixture {
  bool emulated = is_emulated();
  Stream stream;
  DeviceArray<float> values{count};
  PinnedArray<float> host{count};

  Fixture() {
    for (std::size_t i = 0; i < count; ++i) host[i] = static_cast<float>(i);
    PLAIN_CUDA(
        cudaMemcpyAsync(values.data, host.data, values.bytes(), cudaMemcpyHostToDevice, stream));
    stream.synchronize();
  }
  /// Elements [0, changed) are 2 * i + 3, the others i.
  [[nodiscard]] bool holds(std::size_t changed) const {
    PLAIN_CUDA(
        cudaMemcpyAsync(host.data, values.data, values.bytes(), cudaMemcpyDeviceToHost, stream));
    stream.synchronize();
    for (std::size_t i = 0; i < count; ++i) {
      const auto before = static_cast<float>(i);
      if (host[i] != (i < changed ? before * 2 + 3 : before)) return false;
    }
    return true;
  }
};

}  // namespace

TEST_CASE("a launch runs in stream order with its arguments, grid and block") {
  const Fixture f;
  scale<<<4, 256, 0, f.stream>>>(f.values.data, count, Shape{2, 3});
  REQUIRE(cudaGetLastError() == cudaSuccess);
  CHECK(f.holds(count));
}

TEST_CASE("a launch reaches no further than its threads") {
  const Fixture f;
  scale<<<3, 100, 0, f.stream>>>(f.values.data, count, Shape{2, 3});
  REQUIRE(cudaGetLastError() == cudaSuccess);
  CHECK(f.holds(300));
}

TEST_CASE("arguments are read at the launch") {
  const Fixture f;
  float* values = f.values.data;
  std::size_t elements = count;
  Shape shape{2, 3};
  void* arguments[] = {&values, &elements, &shape};
  REQUIRE(cudaLaunchKernel(reinterpret_cast<const void*>(scale), dim3(4), dim3(256), arguments, 0,
                           f.stream) == cudaSuccess);
  values = nullptr;
  elements = 0;
  shape = {0, 0};
  CHECK(f.holds(count));
}

TEST_CASE("a launch that no device can run is refused") {
  const Fixture f;
  scale<<<1, 2048, 0, f.stream>>>(f.values.data, count, Shape{2, 3});
  CHECK(cudaGetLastError() == cudaErrorInvalidValue);
  scale<<<0, 32, 0, f.stream>>>(f.values.data, count, Shape{2, 3});
  CHECK(cudaGetLastError() == cudaErrorInvalidValue);
  scale<<<1, 32, 1 << 20, f.stream>>>(f.values.data, count, Shape{2, 3});
  CHECK(cudaGetLastError() == cudaErrorInvalidValue);
  CHECK(f.holds(0));
}

TEST_CASE("kernels have attributes and an occupancy") {
  cudaFuncAttributes attributes;
  REQUIRE(cudaFuncGetAttributes(&attributes, scale) == cudaSuccess);
  CHECK(attributes.maxThreadsPerBlock >= 256);
  int blocks = 0;
  REQUIRE(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, scale, 256, 0) == cudaSuccess);
  CHECK(blocks >= 1);
}

TEST_CASE("the emulation says which kernel it knows nothing of") {
  const Fixture f;
  if (!f.emulated) SKIP("a device runs every kernel");
  using Count = int();
  using Reset = void();
  const auto errors = reinterpret_cast<Count*>(dlsym(RTLD_DEFAULT, "shardwise_emulation_errors"));
  const auto reset = reinterpret_cast<Reset*>(dlsym(RTLD_DEFAULT, "shardwise_emulation_reset"));
  reset();
  unknown_to_the_emulation<<<1, 32, 0, f.stream>>>(f.values.data);
  CHECK(cudaGetLastError() == cudaErrorInvalidDeviceFunction);
  CHECK(errors() == 1);
  reset();
}
