// A consumer's program: two ranks, a device each, gather what they have shards of.
#include <cstdio>
#include <shardwise/comm/nccl.hpp>
#include <shardwise/device/cuda.hpp>
#include <shardwise/shardwise.hpp>
#include <vector>

int main() {
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices < 2) {
    std::printf("skipped: %d CUDA devices\n", devices);
    return 77;
  }
  shardwise::run_cuda_ranks(2, [](shardwise::Communicator& comm) {
    shardwise::Context<shardwise::CudaDevice> context(comm);
    shardwise::ShardedParameter<float, shardwise::CudaDevice> parameter(context,
                                                                        {{"weight", {3, 5}}});
    parameter.initialize(
        [](const auto&, std::size_t element) { return static_cast<float>(element); });
    const auto lease = parameter.gather();
    std::vector<float> weight(15);
    shardwise::CudaDevice::download(context.stream(), weight.data(), lease["weight"].data(),
                                    weight.size() * sizeof(float));
    float sum = 0;
    for (const float value : weight) sum += value;
    if (comm.rank() == 0) std::printf("sum %g\n", static_cast<double>(sum));
  });
}
