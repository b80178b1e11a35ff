#pragma once

#include <cuda.h>
#include <cudaTypedefs.h>
#include <cuda_runtime_api.h>

#include <cstddef>
#include <string>
#include <vector>

#include "../core/error.hpp"
#include "../core/format.hpp"
#include "cuda_error.hpp"

namespace shardwise::inline v0_1 {

/// Addresses and memory of the host thread's current device, apart from each other: the virtual
/// memory management of the driver, which is asked for through the runtime, so that programs are
/// linked with no more than that. All calls are of the host and in no stream's order: what uses
/// memory has run before it is unmapped.
class CudaVirtualMemory {
 public:
  using Handle = CUmemGenericAllocationHandle;

  /// BackendError where the driver, or the device, has no such thing.
  CudaVirtualMemory() {
    cuda_check(cudaFree(nullptr), "cudaFree");  // the device has its context
    PFN_cuCtxGetDevice_v2000 current = nullptr;
    find(current, "cuCtxGetDevice");
    check(current(&device_), "cuCtxGetDevice");
    find(granularity_, "cuMemGetAllocationGranularity");
    find(reserve_, "cuMemAddressReserve");
    find(free_, "cuMemAddressFree");
    find(create_, "cuMemCreate");
    find(release_, "cuMemRelease");
    find(map_, "cuMemMap");
    find(unmap_, "cuMemUnmap");
    find(set_access_, "cuMemSetAccess");
    const CUmemAllocationProp wanted = properties();
    check(granularity_(&granule_, &wanted, CU_MEM_ALLOC_GRANULARITY_MINIMUM),
          "cuMemGetAllocationGranularity");
    list_accessors();
  }

  /// Bytes of each piece of memory; addresses are multiples of it, too. 2 MiB on today's devices.
  [[nodiscard]] std::size_t granule() const noexcept { return granule_; }

  /// `bytes` of addresses without memory, in whole granules.
  [[nodiscard]] std::byte* reserve(std::size_t bytes) const {
    CUdeviceptr address = 0;
    check(reserve_(&address, bytes, granule_, 0, 0), "cuMemAddressReserve", bytes);
    return reinterpret_cast<std::byte*>(address);
  }
  /// Nothing is mapped there any more.
  void free(std::byte* address, std::size_t bytes) const noexcept {
    static_cast<void>(free_(number(address), bytes));
  }

  /// A granule of memory, uninitialised.
  [[nodiscard]] Handle create() const {
    Handle handle = 0;
    const CUmemAllocationProp wanted = properties();
    check(create_(&handle, granule_, &wanted, 0), "cuMemCreate", granule_);
    return handle;
  }
  /// It goes with its last mapping.
  void release(Handle handle) const noexcept { static_cast<void>(release_(handle)); }

  /// Puts memory below a granule of addresses that has none. It cannot be used before allow().
  void map(std::byte* address, Handle handle) const {
    check(map_(number(address), granule_, 0, handle, 0), "cuMemMap", granule_);
  }
  /// The device, and those that have peer access to it, may use what is mapped there.
  void allow(std::byte* address, std::size_t bytes) const {
    check(set_access_(number(address), bytes, accessors_.data(), accessors_.size()),
          "cuMemSetAccess", bytes);
  }
  /// Takes the memory of one granule of addresses away; it keeps what it holds. False where the
  /// driver refuses.
  [[nodiscard]] bool unmap(std::byte* address) const noexcept {
    return unmap_(number(address), granule_) == CUDA_SUCCESS;
  }

 private:
  [[nodiscard]] static CUdeviceptr number(const std::byte* address) noexcept {
    return reinterpret_cast<CUdeviceptr>(address);
  }

  [[nodiscard]] static CUmemLocation location(CUdevice device) noexcept {
    CUmemLocation result{};
    result.type = CU_MEM_LOCATION_TYPE_DEVICE;
    result.id = device;
    return result;
  }
  [[nodiscard]] CUmemAllocationProp properties() const noexcept {
    CUmemAllocationProp wanted{};
    wanted.type = CU_MEM_ALLOCATION_TYPE_PINNED;
    wanted.location = location(device_);
    return wanted;
  }

  // Mapped memory knows nothing of cudaDeviceEnablePeerAccess: NCCL's kernels on other devices of
  // this process may reach into it.
  void list_accessors() {
    PFN_cuDeviceGetCount_v2000 count_devices = nullptr;
    PFN_cuDeviceCanAccessPeer_v4000 can_access_peer = nullptr;
    find(count_devices, "cuDeviceGetCount");
    find(can_access_peer, "cuDeviceCanAccessPeer");
    int count = 0;
    check(count_devices(&count), "cuDeviceGetCount");
    for (CUdevice device = 0; device < count; ++device) {
      int can = device == device_ ? 1 : 0;
      if (can == 0) {
        check(can_access_peer(&can, device, device_), "cuDeviceCanAccessPeer");
      }
      if (can == 0) continue;
      CUmemAccessDesc access{};
      access.location = location(device);
      access.flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
      accessors_.push_back(access);
    }
  }

  template <class Function>
  static void find(Function& function, const char* name) {
    void* address = nullptr;
    cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
    constexpr unsigned since = 10020;
#if CUDART_VERSION >= 12050
    cuda_check(cudaGetDriverEntryPointByVersion(name, &address, since, cudaEnableDefault, &found),
               "cudaGetDriverEntryPointByVersion");
#else
    static_cast<void>(since);
    cuda_check(cudaGetDriverEntryPoint(name, &address, cudaEnableDefault, &found),
               "cudaGetDriverEntryPoint");
#endif
    if (found != cudaDriverEntryPointSuccess || address == nullptr) {
      raise<BackendError>(
          "the CUDA driver has no {}, which an arena on a device needs: install a newer driver, or "
          "use Residency::slots",
          name);
    }
    function = reinterpret_cast<Function>(address);
  }

  // The driver's numbers are the runtime's, too.
  static void check(CUresult result, const char* call, std::size_t bytes = 0) {
    if (result == CUDA_SUCCESS) return;
    detail::cuda::raise_status(static_cast<cudaError_t>(result), call,
                               bytes > 0 ? detail::format("of {} bytes", bytes) : std::string());
  }

  CUdevice device_ = 0;  // the driver's number
  std::size_t granule_ = 0;
  std::vector<CUmemAccessDesc> accessors_;
  PFN_cuMemGetAllocationGranularity_v10020 granularity_ = nullptr;
  PFN_cuMemAddressReserve_v10020 reserve_ = nullptr;
  PFN_cuMemAddressFree_v10020 free_ = nullptr;
  PFN_cuMemCreate_v10020 create_ = nullptr;
  PFN_cuMemRelease_v10020 release_ = nullptr;
  PFN_cuMemMap_v10020 map_ = nullptr;
  PFN_cuMemUnmap_v10020 unmap_ = nullptr;
  PFN_cuMemSetAccess_v10020 set_access_ = nullptr;
};

}  // namespace shardwise::inline v0_1
