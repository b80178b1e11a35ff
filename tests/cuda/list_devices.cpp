// Lists the CUDA devices and the libraries' versions; exits with 77 where there is no device.

#include <cuda_runtime_api.h>
#include <fmt/core.h>
#include <nccl.h>

namespace {

constexpr int skipped = 77;

}  // namespace

int main() {
  int runtime = 0;
  int driver = 0;
  int nccl = 0;
  cudaRuntimeGetVersion(&runtime);
  cudaDriverGetVersion(&driver);
  ncclGetVersion(&nccl);
  fmt::print("CUDA runtime {}.{}, driver for {}.{}, NCCL {}\n", runtime / 1000, runtime % 1000 / 10,
             driver / 1000, driver % 1000 / 10, nccl);
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (status == cudaErrorNoDevice || status == cudaErrorInsufficientDriver || count == 0) {
    fmt::print("skipped: no CUDA device ({})\n", cudaGetErrorString(status));
    return skipped;
  }
  if (status != cudaSuccess) {
    fmt::print(stderr, "cudaGetDeviceCount: {}\n", cudaGetErrorString(status));
    return 1;
  }
  for (int device = 0; device < count; ++device) {
    cudaDeviceProp properties{};
    if (cudaGetDeviceProperties(&properties, device) != cudaSuccess) return 1;
    fmt::print("device {}: {}, sm_{}{}, {:.1f} GiB\n", device, properties.name, properties.major,
               properties.minor, static_cast<double>(properties.totalGlobalMem) / (1 << 30));
  }
}
