#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <fmt/core.h>

#include <memory>
#include <shardwise/comm/file_rendezvous.hpp>
#include <shardwise/comm/nccl.hpp>
#include <vector>

#include "../train_gpt/sharding.hpp"
#include "trainer.hpp"

namespace cuda_gpt {
namespace {

shardwise::NcclOptions nccl_options_of(const Options& options) {
  return {.order = options.fast_reductions ? shardwise::NcclOrder::fast
                                           : shardwise::NcclOrder::canonical};
}

}  // namespace

Report train_in_threads(const Options& options) {
  train_gpt::validate(options);
  std::vector<Report> reports(options.ranks);
  shardwise::run_cuda_ranks(
      static_cast<int>(options.ranks),
      [&](shardwise::Communicator& communicator) {
        reports[static_cast<std::size_t>(communicator.rank())] = train(options, communicator);
      },
      nccl_options_of(options));
  for (const Report& other : reports) train_gpt::take_largest(reports[0], other);
  return reports[0];
}

Report train_as_process(const Options& options, shardwise::Launch launch,
                        const std::shared_ptr<shardwise::Rendezvous>& rendezvous) {
  shardwise::find_local_place(launch, *rendezvous);
  // Some launchers show each process its own device alone, which then is device 0.
  shardwise::cuda_check(cudaSetDevice(launch.local_rank % count_devices()), "cudaSetDevice");
  shardwise::NcclCommunicator communicator(rendezvous, nccl_options_of(options));
  try {
    return train(options, communicator);
  } catch (const std::exception& error) {
    communicator.abort(error.what());  // the others end with this message, and do not wait
    throw;
  }
}

Report train_over_files(const Options& options, const shardwise::Launch& launch) {
  return train_as_process(options, launch, shardwise::make_rendezvous(launch));
}

int count_devices() {
  int devices = 0;
  return cudaGetDeviceCount(&devices) == cudaSuccess ? devices : 0;
}

std::string describe_device() {
  if (dlsym(RTLD_DEFAULT, "shardwise_emulation_errors") != nullptr) {
    return "an EMULATION of CUDA on the CPU: no GPU is used, and times say nothing";
  }
  int device = 0;
  shardwise::cuda_check(cudaGetDevice(&device), "cudaGetDevice");
  cudaDeviceProp properties;
  shardwise::cuda_check(cudaGetDeviceProperties(&properties, device), "cudaGetDeviceProperties");
  return fmt::format("CUDA devices: {}", properties.name);
}

}  // namespace cuda_gpt
