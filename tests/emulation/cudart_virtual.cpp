#include <cuda.h>
#include <cudaTypedefs.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

#include "world.hpp"

// Virtual memory: reserved addresses, memory that is made for itself, and mappings of one below the
// other. Made memory is a part of one file, so that it keeps what it holds wherever it is mapped. A
// mapping is an allocation like others, without guard pages.
namespace emulation {
namespace {

struct Reserved {
  std::size_t bytes = 0;
  std::uintptr_t map = 0;  ///< what the system gave, from which the aligned range was cut
  std::size_t map_bytes = 0;
};

/// What cuMemCreate made. It lives until its handle and its last mapping are gone.
struct Physical {
  int device = 0;
  std::size_t bytes = 0;
  off_t offset = 0;  ///< in the file
  int mappings = 0;
  bool released = false;
};

/// Guarded by big_lock().
struct Virtual {
  int file = -1;
  off_t file_bytes = 0;
  std::map<std::uintptr_t, Reserved> reserved;
  std::map<CUmemGenericAllocationHandle, Physical> made;
  std::map<std::uintptr_t, CUmemGenericAllocationHandle> mapped;  ///< by begin
  CUmemGenericAllocationHandle last = 0;
};

Virtual& state() {
  static auto* const instance = new Virtual;
  return *instance;
}

std::size_t granule() {
  static const auto bytes = [] {
    const long kilobytes = option("granule_kb", 2048L);
    const auto size = static_cast<std::size_t>(kilobytes) << 10;
    if (kilobytes <= 0 || size % page_size() != 0 || (size & (size - 1)) != 0) {
      fatal("option granule_kb: expected a power of two of at least 4, found %ld", kilobytes);
    }
    return size;
  }();
  return bytes;
}

void* pointer(std::uintptr_t address) { return reinterpret_cast<void*>(address); }

/// What a device leaves of a call that fails there, where a fault is injected. 0: it runs.
CUresult fault(const char* api) {
  if (world().devices.empty()) return CUDA_ERROR_NO_DEVICE;
  return static_cast<CUresult>(injected_failure(api));
}

bool valid(const CUmemLocation& location) {
  return location.type == CU_MEM_LOCATION_TYPE_DEVICE && location.id >= 0 &&
         static_cast<std::size_t>(location.id) < world().devices.size();
}

bool valid(const CUmemAllocationProp* wanted) {
  return wanted != nullptr && wanted->type == CU_MEM_ALLOCATION_TYPE_PINNED &&
         valid(wanted->location);
}

/// The reservation that holds all of the range; null where there is none.
const Reserved* reservation_of(std::uintptr_t begin, std::size_t bytes) {
  const auto& all = state().reserved;
  auto found = all.upper_bound(begin);
  if (found == all.begin()) return nullptr;
  --found;
  const std::size_t inside = begin - found->first;
  return inside < found->second.bytes && bytes <= found->second.bytes - inside ? &found->second
                                                                               : nullptr;
}

Allocation& mapping_at(std::uintptr_t begin) { return world().allocations.at(begin); }

/// Whether some of the range is mapped.
bool is_taken(std::uintptr_t begin, std::size_t bytes) {
  const auto& all = state().mapped;
  const auto next = all.lower_bound(begin);
  if (next != all.end() && next->first < begin + bytes) return true;
  return next != all.begin() &&
         std::prev(next)->first + mapping_at(std::prev(next)->first).bytes > begin;
}

/// The begins of the mappings that make up exactly this range; none where they do not.
std::vector<std::uintptr_t> mappings_of(std::uintptr_t begin, std::size_t bytes) {
  std::vector<std::uintptr_t> result;
  std::uintptr_t at = begin;
  while (at < begin + bytes) {
    if (state().mapped.count(at) == 0) return {};
    result.push_back(at);
    at += mapping_at(at).bytes;
  }
  return at == begin + bytes ? result : std::vector<std::uintptr_t>();
}

void forget_if_unused(CUmemGenericAllocationHandle handle) {
  Virtual& v = state();
  const Physical& physical = v.made.at(handle);
  if (!physical.released || physical.mappings > 0) return;
  world().devices.at(static_cast<std::size_t>(physical.device)).used -= physical.bytes;
  fallocate(v.file, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, physical.offset,
            static_cast<off_t>(physical.bytes));
  v.made.erase(handle);
}

/// Ends the process where work that was enqueued uses the range and has not run: the call does not
/// wait for it.
void check_unused(std::uintptr_t begin, std::size_t bytes) {
  const auto check = [&](const Stream* stream, const std::string& label,
                         const std::vector<Use>& uses) {
    for (const Use& use : uses) {
      if (use.begin >= begin + bytes || begin >= use.begin + use.bytes) continue;
      fatal(
          "cuMemUnmap of %zu bytes at %p: '%s' on stream %llu of device %d uses them and has not "
          "run: let the host wait for it before",
          bytes, pointer(begin), label.c_str(), static_cast<unsigned long long>(stream->number),
          stream->device);
    }
  };
  const auto check_all = [&](const Stream* stream) {
    if (stream->running) check(stream, stream->current, stream->current_uses);
    for (const auto& task : stream->queue) check(stream, task->label, task->uses);
  };
  for (const Stream* stream : world().streams) check_all(stream);
  for (const auto& stream : world().retired) check_all(stream.get());
}

CUresult get_granularity(std::size_t* bytes, const CUmemAllocationProp* wanted,
                         CUmemAllocationGranularity_flags) {
  if (const CUresult failed = fault("cuMemGetAllocationGranularity")) return failed;
  if (bytes == nullptr || !valid(wanted)) return CUDA_ERROR_INVALID_VALUE;
  *bytes = granule();
  return CUDA_SUCCESS;
}

CUresult address_reserve(CUdeviceptr* address, std::size_t bytes, std::size_t alignment,
                         CUdeviceptr, unsigned long long flags) {
  if (const CUresult failed = fault("cuMemAddressReserve")) return failed;
  if (address == nullptr || bytes == 0 || bytes % page_size() != 0 || flags != 0 ||
      (alignment & (alignment - 1)) != 0) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  const std::size_t aligned = std::max(alignment, granule());
  Reserved reserved;
  reserved.bytes = bytes;
  reserved.map_bytes = bytes + aligned;
  void* const map = mmap(nullptr, reserved.map_bytes, PROT_NONE,
                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (map == MAP_FAILED) return CUDA_ERROR_OUT_OF_MEMORY;
  reserved.map = reinterpret_cast<std::uintptr_t>(map);
  const std::uintptr_t begin = (reserved.map + aligned - 1) / aligned * aligned;
  asan_poison(begin, bytes);
  const Guard guard(big_lock());
  state().reserved[begin] = reserved;
  *address = begin;
  return CUDA_SUCCESS;
}

CUresult address_free(CUdeviceptr address, std::size_t bytes) {
  if (const CUresult failed = fault("cuMemAddressFree")) return failed;
  const Guard guard(big_lock());
  Virtual& v = state();
  const auto found = v.reserved.find(address);
  if (found == v.reserved.end() || found->second.bytes != bytes) {
    report("cuMemAddressFree: %zu bytes at %p were not reserved so", bytes, pointer(address));
    return CUDA_ERROR_INVALID_VALUE;
  }
  if (is_taken(address, bytes)) {
    report("cuMemAddressFree: memory is mapped below %p: unmap it before", pointer(address));
    return CUDA_ERROR_INVALID_VALUE;
  }
  // The addresses never come back, so that whoever still uses them faults.
  v.reserved.erase(found);
  return CUDA_SUCCESS;
}

CUresult create(CUmemGenericAllocationHandle* handle, std::size_t bytes,
                const CUmemAllocationProp* wanted, unsigned long long flags) {
  if (const CUresult failed = fault("cuMemCreate")) return failed;
  if (handle == nullptr || !valid(wanted) || bytes == 0 || bytes % granule() != 0 || flags != 0) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  const Guard guard(big_lock());
  Virtual& v = state();
  Device& device = world().devices.at(static_cast<std::size_t>(wanted->location.id));
  if (device.used + bytes > world().options.device_bytes) return CUDA_ERROR_OUT_OF_MEMORY;
  if (v.file < 0) v.file = memfd_create("device memory", MFD_CLOEXEC);
  if (v.file < 0 || ftruncate(v.file, v.file_bytes + static_cast<off_t>(bytes)) != 0) {
    return CUDA_ERROR_OUT_OF_MEMORY;
  }
  // All bits set, as other memory of a device: what reads it before it writes shows.
  void* const map = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, v.file, v.file_bytes);
  if (map == MAP_FAILED) return CUDA_ERROR_OUT_OF_MEMORY;
  std::memset(map, 0xff, bytes);
  munmap(map, bytes);
  *handle = ++v.last;
  v.made[*handle] = {wanted->location.id, bytes, v.file_bytes, 0, false};
  v.file_bytes += static_cast<off_t>(bytes);
  device.used += bytes;
  device.peak = std::max(device.peak, device.used);
  return CUDA_SUCCESS;
}

CUresult release(CUmemGenericAllocationHandle handle) {
  if (const CUresult failed = fault("cuMemRelease")) return failed;
  const Guard guard(big_lock());
  Virtual& v = state();
  const auto found = v.made.find(handle);
  if (found == v.made.end() || found->second.released) {
    report("cuMemRelease: %llu is no handle that lives", static_cast<unsigned long long>(handle));
    return CUDA_ERROR_INVALID_VALUE;
  }
  found->second.released = true;
  forget_if_unused(handle);
  return CUDA_SUCCESS;
}

CUresult map_memory(CUdeviceptr address, std::size_t bytes, std::size_t offset,
                    CUmemGenericAllocationHandle handle, unsigned long long flags) {
  if (const CUresult failed = fault("cuMemMap")) return failed;
  if (bytes == 0 || address % granule() != 0 || bytes % granule() != 0 || offset != 0 ||
      flags != 0) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  const Guard guard(big_lock());
  Virtual& v = state();
  const auto found = v.made.find(handle);
  if (found == v.made.end() || found->second.released || bytes != found->second.bytes) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  if (reservation_of(address, bytes) == nullptr || is_taken(address, bytes)) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  Physical& physical = found->second;
  if (mmap(pointer(address), bytes, PROT_NONE, MAP_SHARED | MAP_FIXED, v.file, physical.offset) ==
      MAP_FAILED) {
    fatal("cuMemMap: the system has no mapping left");
  }
  ++physical.mappings;
  v.mapped[address] = handle;
  Allocation a;
  a.base = address;
  a.bytes = a.capacity = bytes;
  a.map = address - page_size();
  a.map_bytes = bytes + 2 * page_size();
  a.device = physical.device;
  a.kind = Memory::device;
  a.is_mapping = true;
  world().allocations[address] = a;
  return CUDA_SUCCESS;
}

CUresult unmap_memory(CUdeviceptr address, std::size_t bytes) {
  if (const CUresult failed = fault("cuMemUnmap")) return failed;
  std::vector<Allocation> gone;
  {
    const Guard guard(big_lock());
    const auto begins = mappings_of(address, bytes);
    if (begins.empty()) return CUDA_ERROR_INVALID_VALUE;
    check_unused(address, bytes);
    for (const std::uintptr_t begin : begins) gone.push_back(mapping_at(begin));
  }
  // Who used it happens before: ThreadSanitizer is told of a write to it, outside of the lock.
  for (const Allocation& a : gone) {
    if (a.has_access) access_open(a);
    hb_write(a.base, a.bytes);
  }
  asan_poison(address, bytes);
  const Guard guard(big_lock());
  if (mmap(pointer(address), bytes, PROT_NONE,
           MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0) == MAP_FAILED) {
    fatal("cuMemUnmap: the system has no mapping left");
  }
  Virtual& v = state();
  for (const Allocation& a : gone) {
    Allocation& known = mapping_at(a.base);
    known.freed = true;
    known.freed_by = "cuMemUnmap";
    const CUmemGenericAllocationHandle handle = v.mapped.at(a.base);
    v.mapped.erase(a.base);
    --v.made.at(handle).mappings;
    forget_if_unused(handle);
  }
  return CUDA_SUCCESS;
}

CUresult set_access(CUdeviceptr address, std::size_t bytes, const CUmemAccessDesc* wanted,
                    std::size_t count) {
  if (const CUresult failed = fault("cuMemSetAccess")) return failed;
  if (wanted == nullptr || count == 0) return CUDA_ERROR_INVALID_VALUE;
  const Guard guard(big_lock());
  const auto begins = mappings_of(address, bytes);
  if (begins.empty()) return CUDA_ERROR_INVALID_VALUE;
  for (std::size_t i = 0; i < count; ++i) {
    if (!valid(wanted[i].location)) return CUDA_ERROR_INVALID_DEVICE;
    for (const std::uintptr_t begin : begins) {
      Allocation& a = mapping_at(begin);
      // A peer may use it where it is told so here; that it enabled access changes nothing.
      if (wanted[i].location.id != a.device) {
        a.accessors.insert(wanted[i].location.id);
        continue;
      }
      const bool writes = wanted[i].flags == CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
      a.has_access = wanted[i].flags != CU_MEM_ACCESS_FLAGS_PROT_NONE;
      a.is_read_only = a.has_access && !writes;
      mprotect(pointer(begin), a.bytes,
               writes         ? PROT_READ | PROT_WRITE
               : a.has_access ? PROT_READ
                              : PROT_NONE);
      if (!a.has_access) continue;
      asan_unpoison(begin, a.bytes);
      if (writes) access_protect(a);
    }
  }
  return CUDA_SUCCESS;
}

CUresult get_access(unsigned long long* flags, const CUmemLocation* location, CUdeviceptr address) {
  if (const CUresult failed = fault("cuMemGetAccess")) return failed;
  const Guard guard(big_lock());
  const Allocation* const a = find_allocation(pointer(address));
  if (flags == nullptr || location == nullptr || !valid(*location) || a == nullptr ||
      !a->is_mapping || a->freed) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  const bool own = location->id == a->device ? a->has_access : a->accessors.count(location->id) > 0;
  *flags = !own              ? CU_MEM_ACCESS_FLAGS_PROT_NONE
           : a->is_read_only ? CU_MEM_ACCESS_FLAGS_PROT_READ
                             : CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
  return CUDA_SUCCESS;
}

CUresult current_device(CUdevice* device) {
  if (world().devices.empty()) return CUDA_ERROR_NO_DEVICE;
  *device = this_thread().device;
  return CUDA_SUCCESS;
}

CUresult count_devices(int* count) {
  *count = static_cast<int>(world().devices.size());
  return CUDA_SUCCESS;
}

CUresult can_access_peer(int* can, CUdevice device, CUdevice peer) {
  return static_cast<CUresult>(cudaDeviceCanAccessPeer(can, device, peer));
}

struct Entry {
  const char* name;
  void* function;
};

void* find_driver(const char* name) {
  // The conversions check each signature against the driver's own.
  const PFN_cuMemGetAllocationGranularity_v10020 granularity = get_granularity;
  const PFN_cuMemAddressReserve_v10020 reserve = address_reserve;
  const PFN_cuMemAddressFree_v10020 free_addresses = address_free;
  const PFN_cuMemCreate_v10020 make = create;
  const PFN_cuMemRelease_v10020 give_up = release;
  const PFN_cuMemMap_v10020 map = map_memory;
  const PFN_cuMemUnmap_v10020 unmap = unmap_memory;
  const PFN_cuMemSetAccess_v10020 let = set_access;
  const PFN_cuMemGetAccess_v10020 ask = get_access;
  const PFN_cuCtxGetDevice_v2000 current = current_device;
  const PFN_cuDeviceGetCount_v2000 count = count_devices;
  const PFN_cuDeviceCanAccessPeer_v4000 can_access = can_access_peer;
  const Entry entries[] = {
      {"cuCtxGetDevice", reinterpret_cast<void*>(current)},
      {"cuDeviceGetCount", reinterpret_cast<void*>(count)},
      {"cuDeviceCanAccessPeer", reinterpret_cast<void*>(can_access)},
      {"cuMemGetAllocationGranularity", reinterpret_cast<void*>(granularity)},
      {"cuMemAddressReserve", reinterpret_cast<void*>(reserve)},
      {"cuMemAddressFree", reinterpret_cast<void*>(free_addresses)},
      {"cuMemCreate", reinterpret_cast<void*>(make)},
      {"cuMemRelease", reinterpret_cast<void*>(give_up)},
      {"cuMemMap", reinterpret_cast<void*>(map)},
      {"cuMemUnmap", reinterpret_cast<void*>(unmap)},
      {"cuMemSetAccess", reinterpret_cast<void*>(let)},
      {"cuMemGetAccess", reinterpret_cast<void*>(ask)},
  };
  for (const Entry& entry : entries) {
    if (std::strcmp(entry.name, name) == 0) return entry.function;
  }
  return nullptr;
}

}  // namespace

bool is_reserved(const void* address) {
  return reservation_of(reinterpret_cast<std::uintptr_t>(address), 1) != nullptr;
}

std::size_t virtual_leaks() { return state().reserved.size() + state().made.size(); }

}  // namespace emulation

using namespace emulation;

SHARDWISE_EMULATED cudaError_t
cudaGetDriverEntryPointByVersion(const char* symbol, void** function, unsigned version,
                                 unsigned long long, cudaDriverEntryPointQueryResult* result) {
  if (const cudaError_t failed = entry("cudaGetDriverEntryPointByVersion")) return failed;
  if (symbol == nullptr || function == nullptr || version > CUDART_VERSION) {
    return status(cudaErrorInvalidValue);
  }
  *function = find_driver(symbol);
  constexpr unsigned introduced = 10020;  // all of them
  cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSuccess;
  if (*function == nullptr) {
    found = cudaDriverEntryPointSymbolNotFound;
  } else if (version < introduced) {
    *function = nullptr;
    found = cudaDriverEntryPointVersionNotSufficent;
  }
  if (result != nullptr) *result = found;
  return cudaSuccess;
}

SHARDWISE_EMULATED cudaError_t cudaGetDriverEntryPoint(const char* symbol, void** function,
                                                       unsigned long long flags,
                                                       cudaDriverEntryPointQueryResult* result) {
  return cudaGetDriverEntryPointByVersion(symbol, function, CUDART_VERSION, flags, result);
}
