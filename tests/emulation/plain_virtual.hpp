#pragma once

#include <cuda.h>
#include <cudaTypedefs.h>
#include <cuda_runtime_api.h>

#include <cstddef>
#include <utility>

#include "plain_cuda.hpp"

/// The driver's virtual memory calls, through the runtime: nothing is linked with the driver.
namespace plain {

inline void expect(CUresult status, const char* call) {
  expect(static_cast<cudaError_t>(status), call);  // one list of numbers
}

inline void* driver_function(const char* name) {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found{};
  PLAIN_CUDA(cudaGetDriverEntryPointByVersion(name, &function, 10020, cudaEnableDefault, &found));
  return found == cudaDriverEntryPointSuccess ? function : nullptr;
}

template <class Function>
Function driver(const char* name) {
  auto* const function = reinterpret_cast<Function>(driver_function(name));
  if (function == nullptr) {
    std::fprintf(stderr, "the driver has no %s\n", name);
    std::exit(3);
  }
  return function;
}

struct VirtualMemory {
  PFN_cuMemGetAllocationGranularity_v10020 granularity =
      driver<PFN_cuMemGetAllocationGranularity_v10020>("cuMemGetAllocationGranularity");
  PFN_cuMemAddressReserve_v10020 reserve =
      driver<PFN_cuMemAddressReserve_v10020>("cuMemAddressReserve");
  PFN_cuMemAddressFree_v10020 free = driver<PFN_cuMemAddressFree_v10020>("cuMemAddressFree");
  PFN_cuMemCreate_v10020 create = driver<PFN_cuMemCreate_v10020>("cuMemCreate");
  PFN_cuMemRelease_v10020 release = driver<PFN_cuMemRelease_v10020>("cuMemRelease");
  PFN_cuMemMap_v10020 map = driver<PFN_cuMemMap_v10020>("cuMemMap");
  PFN_cuMemUnmap_v10020 unmap = driver<PFN_cuMemUnmap_v10020>("cuMemUnmap");
  PFN_cuMemSetAccess_v10020 set_access = driver<PFN_cuMemSetAccess_v10020>("cuMemSetAccess");
  PFN_cuMemGetAccess_v10020 get_access = driver<PFN_cuMemGetAccess_v10020>("cuMemGetAccess");

  int device = 0;
  std::size_t granule = 0;

  explicit VirtualMemory(int of_device) : device(of_device) {
    PLAIN_CUDA(cudaSetDevice(device));
    PLAIN_CUDA(cudaFree(nullptr));  // the driver is initialised
    const CUmemAllocationProp wanted = properties();
    PLAIN_CUDA(granularity(&granule, &wanted, CU_MEM_ALLOC_GRANULARITY_MINIMUM));
  }

  [[nodiscard]] CUmemAllocationProp properties() const {
    CUmemAllocationProp wanted{};
    wanted.type = CU_MEM_ALLOCATION_TYPE_PINNED;
    wanted.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
    wanted.location.id = device;
    return wanted;
  }
  [[nodiscard]] CUmemGenericAllocationHandle make(std::size_t bytes) const {
    CUmemGenericAllocationHandle handle = 0;
    const CUmemAllocationProp wanted = properties();
    PLAIN_CUDA(create(&handle, bytes, &wanted, 0));
    return handle;
  }
  CUresult let(CUdeviceptr at, std::size_t bytes,
               CUmemAccess_flags access = CU_MEM_ACCESS_FLAGS_PROT_READWRITE) const {
    CUmemAccessDesc description{};
    description.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
    description.location.id = device;
    description.flags = access;
    return set_access(at, bytes, &description, 1);
  }
};

/// Addresses without memory.
struct Reservation {
  const VirtualMemory& memory;
  CUdeviceptr at = 0;
  std::size_t bytes;
  Reservation(const VirtualMemory& of, std::size_t size) : memory(of), bytes(size) {
    PLAIN_CUDA(memory.reserve(&at, bytes, 0, 0, 0));
  }
  ~Reservation() { PLAIN_CUDA(memory.free(at, bytes)); }
  Reservation(const Reservation&) = delete;
  Reservation& operator=(const Reservation&) = delete;
  [[nodiscard]] CUdeviceptr granule(std::size_t index) const { return at + index * memory.granule; }
};

inline void* pointer(CUdeviceptr address) { return reinterpret_cast<void*>(address); }

}  // namespace plain
