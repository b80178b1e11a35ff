#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <nccl.h>

#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <shardwise/comm/nccl.hpp>
#include <shardwise/device/cuda.hpp>
#include <string>

/// What the real CUDA runtime and NCCL say on a machine without a device, and what becomes of it.
/// Run with LD_BIND_NOW, so that every function that the backend calls is looked up.
namespace shardwise::test {
namespace {

using Catch::Matchers::ContainsSubstring;

bool has_device() {
  int devices = 0;
  return cudaGetDeviceCount(&devices) == cudaSuccess && devices > 0;
}

template <class F>
std::string refusal(const F& f) {
  try {
    f();
  } catch (const BackendError& error) {
    return error.what();
  }
  return "accepted";
}

TEST_CASE("the libraries are real, and of the headers' versions") {
  CHECK(dlsym(RTLD_DEFAULT, "shardwise_emulation_errors") == nullptr);
  const char* const now = std::getenv("LD_BIND_NOW");
  CHECK((now != nullptr && *now != '\0'));
  int version = 0;
  REQUIRE(ncclGetVersion(&version) == ncclSuccess);
  CHECK(version / 100 >= NCCL_VERSION_CODE / 100);  // of another patch, perhaps
  REQUIRE(cudaRuntimeGetVersion(&version) == cudaSuccess);
  CHECK(version / 1000 == CUDART_VERSION / 1000);
}

TEST_CASE("unique ids are made without a device, and differ") {
  ncclUniqueId first;
  ncclUniqueId second;
  REQUIRE(ncclGetUniqueId(&first) == ncclSuccess);
  REQUIRE(ncclGetUniqueId(&second) == ncclSuccess);
  CHECK(std::memcmp(&first, &second, sizeof first) != 0);
}

TEST_CASE("without a device every door says why and what to do") {
  if (has_device()) SKIP("there is a device");
  const std::string none = refusal([] { run_cuda_ranks(1, [](Communicator&) {}); });
  CHECK_THAT(none, ContainsSubstring("cudaGetDeviceCount") && ContainsSubstring("cudaError"));
  CHECK_THAT(none, ContainsSubstring("driver") || ContainsSubstring("GPU"));
  CHECK_THAT(refusal([] { static_cast<void>(CudaMemory::allocate(64)); }),
             ContainsSubstring("cudaMalloc") && ContainsSubstring("64 bytes"));
  CHECK_THAT(refusal([] { const CudaStream stream; }), ContainsSubstring("cudaError"));
  CHECK_THAT(refusal([] { NcclCommunicator(LocalRendezvous::make(1).front()); }),
             ContainsSubstring("cudaError") || ContainsSubstring("nccl"));
}

TEST_CASE("NCCL's own refusals carry its texts") {
  if (has_device()) SKIP("there is a device");
  ncclUniqueId id;
  REQUIRE(ncclGetUniqueId(&id) == ncclSuccess);
  const std::string refused =
      refusal([&] { static_cast<void>(detail::nccl::Handle::make(1, 0, id, {}, [] {})); });
  CHECK_THAT(refused, ContainsSubstring("ncclCommInitRankConfig on rank 0") &&
                          ContainsSubstring("unhandled cuda error") &&
                          ContainsSubstring("device with a driver"));
  void* memory = nullptr;
  const ncclResult_t result = ncclMemAlloc(&memory, 1 << 20);
  REQUIRE(result != ncclSuccess);
  CHECK_THAT(refusal([&] { detail::nccl::raise_result(result, "ncclMemAlloc", 0); }),
             ContainsSubstring("ncclMemAlloc on rank 0"));
}

}  // namespace
}  // namespace shardwise::test
