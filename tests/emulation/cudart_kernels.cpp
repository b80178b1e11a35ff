#include <cxxabi.h>
#include <sys/mman.h>

#include <cstdlib>
#include <cstring>

#include "world.hpp"

// Kernels. nvcc's code registers a stub for each kernel and launches it by the stub's address; the
// launch seam registers the host body that runs here under the same address. Code without nvcc
// launches a host body by name.
namespace emulation {
namespace {

std::string demangled(const char* name) {
  int failed = 0;
  char* const text = abi::__cxa_demangle(name, nullptr, nullptr, &failed);
  std::string result = text != nullptr ? text : name;
  std::free(text);
  return result;
}

/// A launcher gives its own signature: "... launch_x(...) [with Functor = F; ...]", or, from clang,
/// "[Functor = F]". What tells kernels apart is "launch_x<F>".
std::string readable(const std::string& name) {
  const std::size_t arguments = name.find('(');
  const std::size_t first = name.find(" = ");
  if (arguments == std::string::npos || first == std::string::npos) return name;
  const std::size_t launcher = name.find_last_of(": ", arguments) + 1;
  // up to the next parameter or the end, outside of brackets
  int depth = 0;
  std::size_t end = first + 3;
  for (; end < name.size(); ++end) {
    const char c = name[end];
    if (depth == 0 && (c == ';' || c == ']' || c == ',')) break;
    depth += c == '<' || c == '(' || c == '[' ? 1 : 0;
    depth -= c == '>' || c == ')' || c == ']' ? 1 : 0;
  }
  return name.substr(launcher, arguments - launcher) + '<' +
         name.substr(first + 3, end - first - 3) + '>';
}

/// Whether something other than address space of a sanitizer is there: its page is in use.
bool is_mapped_host_memory(std::uintptr_t address) {
  unsigned char in_use = 0;
  void* const page = reinterpret_cast<void*>(address / page_size() * page_size());
  return mincore(page, 1, &in_use) == 0 && (in_use & 1) != 0;
}

/// Looks at each aligned word of a kernel's argument that could be a pointer. A sum of two halves
/// may look like one by chance: host addresses of a 64-bit program start well above 2^32, and the
/// page must be in use. Half of a word that is padding may be anything, so that only devices'
/// memory counts there. With the big lock held.
void audit(const char* kernel, int device, const void* argument, std::size_t bytes,
           std::size_t index, bool padding_is_clear) {
  constexpr std::uintptr_t lowest = 0x1000'0000'0000, end = std::uintptr_t{1} << 47;
  for (std::size_t offset = 0; offset + sizeof(std::uintptr_t) <= bytes;
       offset += sizeof(std::uintptr_t)) {
    std::uintptr_t word = 0;
    std::memcpy(&word, static_cast<const char*>(argument) + offset, sizeof word);
    if (word < lowest || word >= end) continue;
    const Allocation* const a = find_allocation(reinterpret_cast<const void*>(word));
    if (a == nullptr) {
      if (!padding_is_clear || !is_mapped_host_memory(word)) continue;
      fatal("kernel %s: argument %zu, byte %zu: %p is pageable host memory", kernel, index, offset,
            reinterpret_cast<void*>(word));
    }
    if (a->is_mapping) {
      // A base may be without memory where the kernel uses what comes behind it.
      note_use(reinterpret_cast<const void*>(word), 1);
      if (a->freed) continue;
    }
    if (a->freed) {
      fatal("kernel %s: argument %zu, byte %zu: %p was freed before, by %s", kernel, index, offset,
            reinterpret_cast<void*>(word), a->freed_by.c_str());
    }
    if (a->kind == Memory::device && !can_reach(device, *a)) {
      fatal(
          "kernel %s on device %d: argument %zu, byte %zu: memory of device %d, to which it has "
          "no peer access",
          kernel, device, index, offset, a->device);
    }
  }
}

/// With the big lock held.
double kernel_time(double threads) {
  const Options& o = world().options;
  return o.kernel_us + threads / o.threads_per_us;
}

/// A launch's arguments, copied at the call.
struct Arguments {
  std::vector<std::unique_ptr<char[]>> values;
  Arguments(void** from, const std::vector<std::size_t>& sizes) {
    for (std::size_t i = 0; i < sizes.size(); ++i) {
      values.push_back(std::make_unique<char[]>(sizes[i]));
      std::memcpy(values.back().get(), from[i], sizes[i]);
    }
  }
};

thread_local struct {
  dim3 grid, block;
  std::size_t shared = 0;
  cudaStream_t stream = nullptr;
  bool pushed = false;
} configuration;

bool valid(dim3 grid, dim3 block) {
  const auto threads = std::uint64_t{block.x} * block.y * block.z;
  return threads > 0 && threads <= 1024 && block.z <= 64 && grid.x > 0 && grid.y > 0 &&
         grid.z > 0 && grid.x <= 0x7fffffff && grid.y <= 65535 && grid.z <= 65535;
}

}  // namespace
}  // namespace emulation

using namespace emulation;

SHARDWISE_EMULATED void shardwise_emulation_register_kernel(
    const void* stub, void (*body)(void** arguments, dim3, dim3, std::size_t, void*),
    const std::size_t* sizes, std::size_t count, const char* name) {
  const Guard guard(big_lock());
  Kernel& kernel = world().kernels[stub];
  kernel.body = body;
  kernel.sizes.assign(sizes, sizes + count);
  if (name != nullptr) kernel.name = readable(name);
}

SHARDWISE_EMULATED cudaError_t shardwise_emulation_launch(
    cudaStream_t stream, const char* signature,
    void (*body)(const void* functor, std::size_t count), const void* functor,
    std::size_t functor_bytes, std::size_t count, int padding_is_clear) {
  if (const cudaError_t failed = entry("cudaLaunchKernel")) return failed;
  const Guard guard(big_lock());
  const std::string name = readable(signature);
  Stream* const target = resolve(name.c_str(), stream);
  if (target == nullptr || target->device != this_thread().device) {
    return status(cudaErrorInvalidResourceHandle);
  }
  audit(name.c_str(), target->device, functor, functor_bytes, 0, padding_is_clear != 0);
  void* from = const_cast<void*>(functor);
  auto arguments = std::make_shared<Arguments>(&from, std::vector{functor_bytes});
  constexpr std::size_t block = 256;
  push(
      target, std::string("kernel ") + name,
      [arguments = std::move(arguments), body, count] { body(arguments->values[0].get(), count); },
      kernel_time(static_cast<double>((count + block - 1) / block * block)));
  return cudaSuccess;
}

SHARDWISE_EMULATED cudaError_t cudaLaunchKernel(const void* stub, dim3 grid, dim3 block,
                                                void** arguments, std::size_t shared,
                                                cudaStream_t stream) {
  if (const cudaError_t failed = entry("cudaLaunchKernel")) return failed;
  const Guard guard(big_lock());
  const auto found = world().kernels.find(stub);
  if (found == world().kernels.end()) return status(cudaErrorInvalidDeviceFunction);
  const Kernel& kernel = found->second;
  if (kernel.body == nullptr) {
    report("kernel %s has no host body: launch it through the seam", kernel.name.c_str());
    return status(cudaErrorInvalidDeviceFunction);
  }
  if (!valid(grid, block)) return status(cudaErrorInvalidValue);  // as a device does
  if (shared > kernel.dynamic_shared_limit) return status(cudaErrorInvalidValue);
  Stream* const target = resolve(kernel.name.c_str(), stream);
  // a kernel runs only where its stream is of the current device
  if (target == nullptr || target->device != this_thread().device) {
    return status(cudaErrorInvalidResourceHandle);
  }
  for (std::size_t i = 0; i < kernel.sizes.size(); ++i) {
    audit(kernel.name.c_str(), target->device, arguments[i], kernel.sizes[i], i, true);
  }
  const double time =
      kernel_time(static_cast<double>(grid.x) * grid.y * grid.z * block.x * block.y * block.z);
  auto copies = std::make_shared<Arguments>(arguments, kernel.sizes);
  push(
      target, "kernel " + kernel.name,
      [copies = std::move(copies), body = kernel.body, grid, block, shared, target] {
        std::vector<void*> pointers;
        for (const auto& value : copies->values) pointers.push_back(value.get());
        body(pointers.data(), grid, block, shared, target);
      },
      time);
  return cudaSuccess;
}

SHARDWISE_EMULATED cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* config,
                                                   const void* stub, void** arguments) {
  return cudaLaunchKernel(stub, config->gridDim, config->blockDim, arguments,
                          config->dynamicSmemBytes, config->stream);
}

SHARDWISE_EMULATED cudaError_t cudaFuncSetAttribute(const void* stub, cudaFuncAttribute attribute,
                                                    int value) {
  if (const cudaError_t failed = entry("cudaFuncSetAttribute")) return failed;
  const Guard guard(big_lock());
  const auto found = world().kernels.find(stub);
  if (found == world().kernels.end()) return status(cudaErrorInvalidDeviceFunction);
  if (attribute == cudaFuncAttributeMaxDynamicSharedMemorySize) {
    if (value < 0 || value > 227 << 10) return status(cudaErrorInvalidValue);
    found->second.dynamic_shared_limit = static_cast<std::size_t>(value);
  }
  return cudaSuccess;
}

SHARDWISE_EMULATED cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes,
                                                     const void* stub) {
  if (const cudaError_t failed = entry("cudaFuncGetAttributes")) return failed;
  const Guard guard(big_lock());
  const auto found = world().kernels.find(stub);
  if (found == world().kernels.end()) return status(cudaErrorInvalidDeviceFunction);
  *attributes = {};
  attributes->maxThreadsPerBlock = 1024;
  attributes->maxDynamicSharedSizeBytes = static_cast<int>(found->second.dynamic_shared_limit);
  attributes->binaryVersion = attributes->ptxVersion = 90;
  return cudaSuccess;
}

SHARDWISE_EMULATED cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(
    int* blocks, const void* stub, int threads, std::size_t, unsigned) {
  const Guard guard(big_lock());
  if (world().kernels.count(stub) == 0) return status(cudaErrorInvalidDeviceFunction);
  if (threads < 1 || threads > 1024) return status(cudaErrorInvalidValue);
  *blocks = 2048 / threads;
  return cudaSuccess;
}

SHARDWISE_EMULATED cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks,
                                                                             const void* stub,
                                                                             int threads,
                                                                             std::size_t shared) {
  return cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(blocks, stub, threads, shared, 0);
}

SHARDWISE_EMULATED cudaError_t cudaOccupancyAvailableDynamicSMemPerBlock(std::size_t* bytes,
                                                                         const void*, int blocks,
                                                                         int) {
  if (blocks < 1) return status(cudaErrorInvalidValue);
  *bytes = (std::size_t{227} << 10) / static_cast<std::size_t>(blocks);
  return cudaSuccess;
}

// What nvcc's host code calls.
SHARDWISE_EMULATED void** __cudaRegisterFatBinary(void*) {
  static void* handle = nullptr;
  return &handle;
}
SHARDWISE_EMULATED void __cudaRegisterFatBinaryEnd(void**) {}
SHARDWISE_EMULATED void __cudaUnregisterFatBinary(void**) {}
SHARDWISE_EMULATED char __cudaInitModule(void**) { return 1; }
SHARDWISE_EMULATED void __cudaRegisterVar(void**, char*, char*, const char*, int, std::size_t, int,
                                          int) {}

SHARDWISE_EMULATED void __cudaRegisterFunction(void**, const char* stub, char*, const char* name,
                                               int, uint3*, uint3*, dim3*, dim3*, int*) {
  const Guard guard(big_lock());
  world().kernels[stub].name = demangled(name);
}

SHARDWISE_EMULATED unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, std::size_t shared,
                                                        cudaStream_t stream) {
  configuration = {grid, block, shared, stream, true};
  return 0;
}

SHARDWISE_EMULATED cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* block,
                                                          std::size_t* shared, void* stream) {
  if (!configuration.pushed) return status(cudaErrorMissingConfiguration);
  configuration.pushed = false;
  *grid = configuration.grid;
  *block = configuration.block;
  *shared = configuration.shared;
  *static_cast<cudaStream_t*>(stream) = configuration.stream;
  return cudaSuccess;
}

SHARDWISE_EMULATED cudaError_t __cudaGetKernel(cudaKernel_t* kernel, const void* stub) {
  *kernel = reinterpret_cast<cudaKernel_t>(const_cast<void*>(stub));
  return cudaSuccess;
}

SHARDWISE_EMULATED cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block,
                                                  void** arguments, std::size_t shared,
                                                  cudaStream_t stream) {
  return cudaLaunchKernel(kernel, grid, block, arguments, shared, stream);
}
