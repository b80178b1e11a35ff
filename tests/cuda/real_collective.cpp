#include <cuda_runtime_api.h>

#include <cstdio>
#include <exception>
#include <shardwise/comm/collectives.hpp>
#include <shardwise/comm/nccl.hpp>

/// A sum over all devices of this machine, through NCCL; 77 where there is none.
int main() {
  int devices = 0;
  const cudaError_t status = cudaGetDeviceCount(&devices);
  if (status != cudaSuccess || devices == 0) {
    std::printf("skipped: no CUDA device (%s)\n", cudaGetErrorString(status));
    return 77;
  }
  try {
    bool good = false;
    shardwise::run_cuda_ranks(devices, [&](shardwise::Communicator& comm) {
      const int total = shardwise::sum(comm, comm.rank() + 1);
      if (comm.rank() == 0) good = total == devices * (devices + 1) / 2;
    });
    std::printf("%d device(s): the sum is %s\n", devices, good ? "right" : "wrong");
    return good ? 0 : 1;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
