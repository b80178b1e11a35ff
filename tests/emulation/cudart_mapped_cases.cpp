#include <atomic>
#include <chrono>
#include <string_view>
#include <thread>

#include "cudart_cases.hpp"
#include "plain_virtual.hpp"

using plain::Stream;

namespace cudart_cases {
namespace {

/// Memory below the first of two granules of reserved addresses.
struct Mapped {
  plain::VirtualMemory memory;
  plain::Reservation range{memory, 2 * memory.granule};
  CUmemGenericAllocationHandle handle = memory.make(memory.granule);
  explicit Mapped(int device = 0) : memory(device) {
    PLAIN_CUDA(memory.map(range.at, memory.granule, 0, handle, 0));
    PLAIN_CUDA(memory.let(range.at, memory.granule));
  }
  ~Mapped() { PLAIN_CUDA(memory.release(handle)); }
  [[nodiscard]] float* data() const { return static_cast<float*>(plain::pointer(range.at)); }
  void unmap() const { PLAIN_CUDA(memory.unmap(range.at, memory.granule)); }
};

// cuMemUnmap is of the host: it waits for no stream.
int unmapped_early(bool wrong) {
  std::atomic<bool> open{!wrong};
  const Mapped mapped;
  const Stream stream;
  PLAIN_CUDA(cudaLaunchHostFunc(
      stream,
      [](void* gate) {
        while (!*static_cast<std::atomic<bool>*>(gate)) std::this_thread::yield();
      },
      &open));
  fill(stream, mapped.data(), 2);
  if (!wrong) stream.synchronize();
  mapped.unmap();
  open = true;
  stream.synchronize();
  return 0;
}

// By the time the work is over, and nobody was told.
int unmapped_by_the_clock(bool wrong) {
  const Mapped mapped;
  const Stream stream;
  fill(stream, mapped.data(), 2);
  std::this_thread::sleep_for(std::chrono::milliseconds(100));
  if (!wrong) stream.synchronize();
  mapped.unmap();
  return 0;
}

int used_after_unmapped(bool wrong) {
  const Mapped mapped;
  const Stream stream;
  if (!wrong) fill(stream, mapped.data(), 2);
  stream.synchronize();
  mapped.unmap();
  if (wrong) fill(stream, mapped.data(), 2);
  stream.synchronize();
  return 0;
}

int copy_leaves_the_mapping(bool wrong) {
  const Mapped mapped;
  const Stream stream;
  const std::size_t all = mapped.memory.granule;
  PLAIN_CUDA(cudaMemsetAsync(mapped.data(), 0, wrong ? all + 4 : all, stream));
  stream.synchronize();
  mapped.unmap();
  return 0;
}

// Enabled peer access is not for mapped memory.
int kernel_gets_mapped_memory_of_another_device(bool wrong) {
  const Mapped mapped(1);
  PLAIN_CUDA(cudaSetDevice(0));
  PLAIN_CUDA(cudaDeviceEnablePeerAccess(1, 0));
  CUmemAccessDesc also{};
  also.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
  also.location.id = 0;
  also.flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
  if (!wrong) {
    PLAIN_CUDA(mapped.memory.set_access(mapped.range.at, mapped.memory.granule, &also, 1));
  }
  const Stream stream;
  fill(stream, mapped.data(), 2);
  stream.synchronize();
  mapped.unmap();
  return 0;
}

int mapped_memory_leaks(bool wrong) {
  const plain::VirtualMemory memory(0);
  const auto handle = memory.make(memory.granule);
  if (!wrong) PLAIN_CUDA(memory.release(handle));
  return 0;
}

int handle_released_twice(bool wrong) {
  const plain::VirtualMemory memory(0);
  const auto handle = memory.make(memory.granule);
  PLAIN_CUDA(memory.release(handle));
  if (wrong) static_cast<void>(memory.release(handle));
  return 0;
}

int addresses_freed_below_memory(bool wrong) {
  const plain::VirtualMemory memory(0);
  CUdeviceptr at = 0;
  PLAIN_CUDA(memory.reserve(&at, memory.granule, 0, 0, 0));
  const auto handle = memory.make(memory.granule);
  PLAIN_CUDA(memory.map(at, memory.granule, 0, handle, 0));
  PLAIN_CUDA(memory.release(handle));
  if (wrong) static_cast<void>(memory.free(at, memory.granule));
  PLAIN_CUDA(memory.unmap(at, memory.granule));
  PLAIN_CUDA(memory.free(at, memory.granule));
  return 0;
}

struct Case {
  std::string_view name;
  int (*run)(bool wrong);
};
constexpr Case cases[] = {
    {"unmapped_early", unmapped_early},
    {"unmapped_by_the_clock", unmapped_by_the_clock},
    {"used_after_unmapped", used_after_unmapped},
    {"copy_leaves_the_mapping", copy_leaves_the_mapping},
    {"kernel_gets_mapped_memory_of_another_device", kernel_gets_mapped_memory_of_another_device},
    {"mapped_memory_leaks", mapped_memory_leaks},
    {"handle_released_twice", handle_released_twice},
    {"addresses_freed_below_memory", addresses_freed_below_memory},
};

}  // namespace

std::optional<int> run_mapped_case(std::string_view name, bool wrong) {
  for (const Case& c : cases) {
    if (c.name == name) return c.run(wrong);
  }
  return std::nullopt;
}

}  // namespace cudart_cases
