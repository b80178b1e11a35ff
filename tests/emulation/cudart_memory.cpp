#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

#include "world.hpp"

namespace emulation {

std::uintptr_t Allocation::pages() const { return map + page_size(); }
std::size_t Allocation::page_bytes() const { return map_bytes - 2 * page_size(); }

namespace {

constexpr std::size_t granule = 256;  // every allocation of the runtime is a multiple of it
constexpr unsigned char slack_byte = 0xca;

std::size_t round_up(std::size_t bytes, std::size_t to) { return (bytes + to - 1) / to * to; }

/// A fill that sanitizers do not see: memory of cudaMalloc is written by nobody.
void fill_unseen(std::uintptr_t begin, std::size_t bytes, unsigned char value) {
  const std::uintptr_t end = begin + bytes;
  const auto store_bytes = [&](std::uintptr_t until) {
    for (; begin < until; ++begin) *reinterpret_cast<volatile unsigned char*>(begin) = value;
  };
  constexpr std::size_t wide = sizeof(std::uint64_t);
  const std::uint64_t word = 0x0101010101010101u * value;
  store_bytes(std::min<std::uintptr_t>(round_up(begin, wide), end));
  for (; end - begin >= wide; begin += wide)
    *reinterpret_cast<volatile std::uint64_t*>(begin) = word;
  store_bytes(end);
}

/// The first byte of [begin, end) that is not slack any more; `end` where all are.
std::uintptr_t first_damage(std::uintptr_t begin, std::uintptr_t end) {
  while (begin < end && *reinterpret_cast<const volatile unsigned char*>(begin) == slack_byte) {
    ++begin;
  }
  return begin;
}

void check_slack(const Allocation& a) {
  const std::uintptr_t end = a.base + a.bytes;
  if (const auto at = first_damage(end, a.base + a.capacity); at < a.base + a.capacity) {
    report("allocation of %zu bytes of device %d was overrun: byte %zu was written", a.bytes,
           a.device, static_cast<std::size_t>(at - a.base));
  }
  if (const auto at = first_damage(a.pages(), a.base); at < a.base) {
    report("allocation of %zu bytes of device %d was underrun: byte -%zu was written", a.bytes,
           a.device, static_cast<std::size_t>(a.base - at));
  }
}

/// With the big lock held. Null: the device, or the machine, has no such memory left.
void* allocate(std::size_t bytes, int device, Memory kind, bool pooled) {
  World& w = world();
  Allocation a;
  a.bytes = bytes;
  a.capacity = round_up(std::max<std::size_t>(bytes, 1), granule);
  a.map_bytes = round_up(a.capacity, page_size()) + 2 * page_size();
  a.device = device;
  a.kind = kind;
  a.pooled = pooled;
  Device& owner = w.devices.at(static_cast<std::size_t>(device));
  if (kind == Memory::device && owner.used + a.capacity > w.options.device_bytes) return nullptr;
  void* const map =
      mmap(nullptr, a.map_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (map == MAP_FAILED) return nullptr;
  a.map = reinterpret_cast<std::uintptr_t>(map);
  if (mprotect(reinterpret_cast<void*>(a.pages()), a.page_bytes(), PROT_READ | PROT_WRITE) != 0) {
    munmap(map, a.map_bytes);
    return nullptr;
  }
  a.base = a.map + a.map_bytes - page_size() - a.capacity;
  // all bits set is a NaN in every floating type: what reads it before it writes shows
  fill_unseen(a.base, bytes, 0xff);
  fill_unseen(a.pages(), a.base - a.pages(), slack_byte);
  fill_unseen(a.base + bytes, a.capacity - bytes, slack_byte);
  asan_poison(a.pages(), a.base - a.pages());
  asan_poison(a.base + bytes, a.capacity - bytes);
  if (kind == Memory::device) {
    owner.used += a.capacity;
    owner.peak = std::max(owner.peak, owner.used);
    access_protect(a);
  }
  w.allocations[a.base] = a;
  return reinterpret_cast<void*>(a.base);
}

/// The call that frees: what is allowed, what is counted. Null where there is nothing to free.
Allocation* begin_free(const char* api, void* pointer, Memory kind) {
  World& w = world();
  const auto found = w.allocations.find(reinterpret_cast<std::uintptr_t>(pointer));
  if (found == w.allocations.end() || found->second.kind != kind || found->second.registered) {
    report("%s: %p is not the start of such an allocation", api, pointer);
    return nullptr;
  }
  Allocation& a = found->second;
  if (a.freed) {
    report("%s: %p was freed before, by %s", api, pointer, a.freed_by.c_str());
    return nullptr;
  }
  a.freed = true;
  a.freed_by = api;
  if (kind == Memory::device) w.devices.at(static_cast<std::size_t>(a.device)).used -= a.capacity;
  return &a;
}

/// Takes the pages away; the address never comes back, so whoever still uses it faults. For
/// ThreadSanitizer the fill and the mapping are accesses that it compares with all others. Without
/// the big lock.
void end_free(const Allocation& a) {
  access_open(a);
  std::memset(reinterpret_cast<void*>(a.base), 0xff, a.bytes);
  check_slack(a);
  asan_poison(a.pages(), a.page_bytes());
  if (mmap(reinterpret_cast<void*>(a.map), a.map_bytes, PROT_NONE,
           MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0) == MAP_FAILED) {
    fatal("pages of a freed allocation could not be taken away");
  }
}

cudaError_t allocate_host(void** pointer, std::size_t bytes) {
  if (pointer == nullptr) return status(cudaErrorInvalidValue);
  *pointer = nullptr;
  if (bytes == 0) return cudaSuccess;
  const Guard guard(big_lock());
  *pointer = allocate(bytes, this_thread().device, Memory::host_pinned, false);
  return status(*pointer != nullptr ? cudaSuccess : cudaErrorMemoryAllocation);
}

cudaError_t allocate_async(const char* api, void** pointer, std::size_t bytes,
                           cudaStream_t stream) {
  if (const cudaError_t failed = entry(api)) return failed;
  if (pointer == nullptr) return status(cudaErrorInvalidValue);
  *pointer = nullptr;
  if (bytes == 0) return cudaSuccess;
  const Guard guard(big_lock());
  Stream* const target = resolve(api, stream);
  if (target == nullptr) return status(cudaErrorInvalidResourceHandle);
  void* const memory = allocate(bytes, target->device, Memory::device, true);
  if (memory == nullptr) return status(cudaErrorMemoryAllocation);
  *pointer = memory;
  // a write in stream order: a stream that uses the memory without waiting for this one races
  push(
      target, "allocation of " + std::to_string(bytes) + " bytes",
      [memory, bytes] { std::memset(memory, 0xff, bytes); }, 0);
  return cudaSuccess;
}

}  // namespace

std::size_t page_size() {
  static const auto bytes = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  return bytes;
}

Allocation* find_allocation(const void* pointer) {
  auto& allocations = world().allocations;
  const auto address = reinterpret_cast<std::uintptr_t>(pointer);
  auto found = allocations.upper_bound(address);
  if (found == allocations.begin()) return nullptr;
  --found;
  Allocation& a = found->second;
  return address < a.base + a.capacity ? &a : nullptr;
}

PointerInfo classify(const void* pointer) {
  const Guard guard(big_lock());
  const Allocation* const a = find_allocation(pointer);
  if (a == nullptr) return {};
  return {a->kind, a->device, a->base, a->bytes, a->freed};
}

bool can_reach(int device, const Allocation& a) {
  if (device < 0 || a.device == device) return true;
  if (a.is_mapping) return a.accessors.count(device) > 0;
  return world().devices.at(static_cast<std::size_t>(device)).peers.count(a.device) > 0;
}

void note_use(const void* pointer, std::size_t bytes) {
  this_thread().noted.push_back({reinterpret_cast<std::uintptr_t>(pointer), bytes});
}

namespace {

/// A range of mapped memory may go on in the next mapping. With the big lock held.
void check_mappings(const char* api, const void* pointer, std::size_t bytes, int device) {
  note_use(pointer, bytes);
  auto at = reinterpret_cast<std::uintptr_t>(pointer);
  const std::uintptr_t end = at + bytes;
  while (at < end) {
    const Allocation* const a = find_allocation(reinterpret_cast<const void*>(at));
    const auto where = reinterpret_cast<void*>(at);
    if (a == nullptr || !a->is_mapping || a->freed) {
      fatal("%s: no memory is mapped at %p, byte %zu of a range of %zu bytes%s", api, where,
            bytes - (end - at), bytes, a != nullptr && a->freed ? ": cuMemUnmap took it away" : "");
    }
    if (!can_reach(device, *a)) {
      fatal("%s: memory of device %d on device %d, to which cuMemSetAccess gave no access", api,
            a->device, device);
    }
    at = a->base + a->bytes;
  }
}

}  // namespace

void check_range(const char* api, const void* pointer, std::size_t bytes, int device,
                 bool need_device) {
  if (bytes == 0) return;
  const Guard guard(big_lock());
  if (is_reserved(pointer)) return check_mappings(api, pointer, bytes, device);
  const Allocation* const a = find_allocation(pointer);
  if (a == nullptr) {
    if (need_device)
      fatal("%s: %p is not memory of a device (pageable host memory?)", api, pointer);
    return;
  }
  if (a->freed) fatal("%s: %p was freed before, by %s", api, pointer, a->freed_by.c_str());
  const std::size_t offset = reinterpret_cast<std::uintptr_t>(pointer) - a->base;
  if (bytes > a->bytes || offset > a->bytes - bytes) {
    fatal("%s: %zu bytes at offset %zu overrun an allocation of %zu bytes", api, bytes, offset,
          a->bytes);
  }
  if (need_device && a->kind == Memory::device && !can_reach(device, *a)) {
    fatal("%s: memory of device %d on device %d, which has no peer access to it", api, a->device,
          device);
  }
}

}  // namespace emulation

using namespace emulation;

SHARDWISE_EMULATED cudaError_t cudaMalloc(void** pointer, std::size_t bytes) {
  if (const cudaError_t failed = entry("cudaMalloc")) return failed;
  if (pointer == nullptr) return status(cudaErrorInvalidValue);
  *pointer = nullptr;
  if (bytes == 0) return cudaSuccess;
  const Guard guard(big_lock());
  *pointer = allocate(bytes, this_thread().device, Memory::device, false);
  return status(*pointer != nullptr ? cudaSuccess : cudaErrorMemoryAllocation);
}

// Waits for the device where the memory is cudaMalloc's; memory of a pool goes at once, as
// documented, whatever still uses it.
SHARDWISE_EMULATED cudaError_t cudaFree(void* pointer) {
  if (const cudaError_t failed = entry("cudaFree")) return failed;
  if (pointer == nullptr) return cudaSuccess;
  Allocation copy;
  {
    const Guard guard(big_lock());
    const Allocation* const a = begin_free("cudaFree", pointer, Memory::device);
    if (a == nullptr) return status(cudaErrorInvalidValue);
    copy = *a;
    if (!a->pooled) synchronize_device(a->device, "cudaFree");
  }
  end_free(copy);
  return cudaSuccess;
}

SHARDWISE_EMULATED cudaError_t cudaMallocAsync(void** pointer, std::size_t bytes,
                                               cudaStream_t stream) {
  return allocate_async("cudaMallocAsync", pointer, bytes, stream);
}

SHARDWISE_EMULATED cudaError_t cudaMallocFromPoolAsync(void** pointer, std::size_t bytes,
                                                       cudaMemPool_t, cudaStream_t stream) {
  return allocate_async("cudaMallocFromPoolAsync", pointer, bytes, stream);
}

SHARDWISE_EMULATED cudaError_t cudaFreeAsync(void* pointer, cudaStream_t stream) {
  if (const cudaError_t failed = entry("cudaFreeAsync")) return failed;
  if (pointer == nullptr) return cudaSuccess;
  const Guard guard(big_lock());
  Stream* const target = resolve("cudaFreeAsync", stream);
  if (target == nullptr) return status(cudaErrorInvalidResourceHandle);
  const Allocation* const a = begin_free("cudaFreeAsync", pointer, Memory::device);
  if (a == nullptr) return status(cudaErrorInvalidValue);
  push(
      target, "free of " + std::to_string(a->bytes) + " bytes", [copy = *a] { end_free(copy); }, 0);
  return cudaSuccess;
}

SHARDWISE_EMULATED cudaError_t cudaHostAlloc(void** pointer, std::size_t bytes, unsigned) {
  if (const cudaError_t failed = entry("cudaHostAlloc")) return failed;
  return allocate_host(pointer, bytes);
}

SHARDWISE_EMULATED cudaError_t cudaMallocHost(void** pointer, std::size_t bytes) {
  if (const cudaError_t failed = entry("cudaMallocHost")) return failed;
  return allocate_host(pointer, bytes);
}

// Does not wait for copies that are under way: nothing promises it.
SHARDWISE_EMULATED cudaError_t cudaFreeHost(void* pointer) {
  if (const cudaError_t failed = entry("cudaFreeHost")) return failed;
  if (pointer == nullptr) return cudaSuccess;
  Allocation copy;
  {
    const Guard guard(big_lock());
    const Allocation* const a = begin_free("cudaFreeHost", pointer, Memory::host_pinned);
    if (a == nullptr) return status(cudaErrorInvalidValue);
    copy = *a;
  }
  end_free(copy);
  return cudaSuccess;
}

SHARDWISE_EMULATED cudaError_t cudaHostRegister(void* pointer, std::size_t bytes, unsigned) {
  if (const cudaError_t failed = entry("cudaHostRegister")) return failed;
  if (pointer == nullptr || bytes == 0) return status(cudaErrorInvalidValue);
  const Guard guard(big_lock());
  if (find_allocation(pointer) != nullptr) return status(cudaErrorHostMemoryAlreadyRegistered);
  Allocation a;
  a.base = reinterpret_cast<std::uintptr_t>(pointer);
  a.bytes = a.capacity = bytes;
  a.device = this_thread().device;
  a.kind = Memory::host_pinned;
  a.registered = true;
  world().allocations[a.base] = a;
  return cudaSuccess;
}

SHARDWISE_EMULATED cudaError_t cudaHostUnregister(void* pointer) {
  if (const cudaError_t failed = entry("cudaHostUnregister")) return failed;
  const Guard guard(big_lock());
  auto& allocations = world().allocations;
  const auto found = allocations.find(reinterpret_cast<std::uintptr_t>(pointer));
  if (found == allocations.end() || !found->second.registered) {
    return status(cudaErrorHostMemoryNotRegistered);
  }
  allocations.erase(found);
  return cudaSuccess;
}

SHARDWISE_EMULATED cudaError_t cudaHostGetDevicePointer(void** device, void* host, unsigned) {
  if (classify(host).kind != Memory::host_pinned) return status(cudaErrorInvalidValue);
  *device = host;
  return cudaSuccess;
}

SHARDWISE_EMULATED cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes,
                                                        const void* pointer) {
  if (attributes == nullptr) return status(cudaErrorInvalidValue);
  const PointerInfo info = classify(pointer);
  *attributes = {};
  if (info.kind == Memory::none || info.freed) {
    attributes->type = cudaMemoryTypeUnregistered;
    attributes->device = cudaInvalidDeviceId;
    attributes->hostPointer = const_cast<void*>(pointer);
    return cudaSuccess;
  }
  const bool host = info.kind == Memory::host_pinned;
  attributes->type = host ? cudaMemoryTypeHost : cudaMemoryTypeDevice;
  attributes->device = info.device;
  attributes->devicePointer = const_cast<void*>(pointer);
  attributes->hostPointer = host ? const_cast<void*>(pointer) : nullptr;
  return cudaSuccess;
}

SHARDWISE_EMULATED cudaError_t cudaMemGetInfo(std::size_t* free, std::size_t* total) {
  const Guard guard(big_lock());
  *total = world().options.device_bytes;
  *free = *total - world().devices.at(static_cast<std::size_t>(this_thread().device)).used;
  return cudaSuccess;
}

// Pools: one a device, which never reuses memory, so its settings change nothing.
SHARDWISE_EMULATED cudaError_t cudaDeviceGetDefaultMemPool(cudaMemPool_t* pool, int device) {
  const Guard guard(big_lock());
  if (device < 0 || static_cast<std::size_t>(device) >= world().devices.size()) {
    return status(cudaErrorInvalidDevice);
  }
  *pool = reinterpret_cast<cudaMemPool_t>(&world().devices[static_cast<std::size_t>(device)]);
  return cudaSuccess;
}

SHARDWISE_EMULATED cudaError_t cudaDeviceGetMemPool(cudaMemPool_t* pool, int device) {
  return cudaDeviceGetDefaultMemPool(pool, device);
}

SHARDWISE_EMULATED cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t, cudaMemPoolAttr, void*) {
  return cudaSuccess;
}

SHARDWISE_EMULATED cudaError_t cudaMemPoolTrimTo(cudaMemPool_t, std::size_t) { return cudaSuccess; }
