// What the driver promises of virtual memory, as one plain program: it runs on a device and on the
// emulation, and needs nothing but the CUDA runtime.
//
// virtual_memory_program        all checks; status 1 where one does not hold
// virtual_memory_program time   what the calls cost, in microseconds of the host
// virtual_memory_program CASE   one wrong access; the device, or the emulation, must stop it
//
// Lines "observed" say what is not promised and may differ between drivers.

#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstring>
#include <functional>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "plain_virtual.hpp"

using plain::pointer;
using plain::Reservation;
using plain::Stream;
using plain::VirtualMemory;
using Clock = std::chrono::steady_clock;

namespace {

int failures = 0;

void check(bool holds, const char* what) {
  std::printf("%s: %s\n", holds ? "ok" : "FAILED", what);
  if (!holds) ++failures;
}

void observe(const char* what, const std::string& found) {
  std::printf("observed: %s: %s\n", what, found.c_str());
}

std::string name_of(CUresult status) { return cudaGetErrorName(static_cast<cudaError_t>(status)); }

std::size_t free_bytes() {
  std::size_t available = 0;
  std::size_t total = 0;
  PLAIN_CUDA(cudaMemGetInfo(&available, &total));
  return available;
}

void set(cudaStream_t stream, CUdeviceptr at, int byte, std::size_t bytes) {
  PLAIN_CUDA(cudaMemsetAsync(pointer(at), byte, bytes, stream));
}

/// Whether all bytes there are `byte`; the host waits.
bool holds(cudaStream_t stream, CUdeviceptr at, int byte, std::size_t bytes) {
  const plain::PinnedArray<unsigned char> copy(bytes);
  PLAIN_CUDA(cudaMemcpyAsync(copy.data, pointer(at), bytes, cudaMemcpyDeviceToHost, stream));
  PLAIN_CUDA(cudaStreamSynchronize(stream));
  for (std::size_t i = 0; i < bytes; ++i) {
    if (copy[i] != byte) return false;
  }
  return true;
}

/// Holds a stream up until it is opened, or for two seconds.
struct Gate {
  std::atomic<bool> is_open{false};
  void close_in(cudaStream_t stream) {
    PLAIN_CUDA(cudaLaunchHostFunc(
        stream,
        [](void* gate) {
          const auto begin = Clock::now();
          auto& open = static_cast<Gate*>(gate)->is_open;
          while (!open && Clock::now() - begin < std::chrono::seconds(2)) {
            std::this_thread::sleep_for(std::chrono::microseconds(50));
          }
          open = true;
        },
        this));
  }
};

void check_entry_points() {
  void* function = &failures;
  cudaDriverEntryPointQueryResult found{};
  const cudaError_t status = cudaGetDriverEntryPointByVersion("cuMemNoSuchThing", &function, 10020,
                                                              cudaEnableDefault, &found);
  check(status == cudaSuccess && function == nullptr && found == cudaDriverEntryPointSymbolNotFound,
        "a function that the driver does not have is null, and no error");
  check(plain::driver_function("cuMemCreate") != nullptr, "one that it has is there");
}

void check_sizes(const VirtualMemory& memory) {
  const std::size_t granule = memory.granule;
  check(granule >= 4096 && (granule & (granule - 1)) == 0, "the granularity is a power of two");
  const CUmemAllocationProp wanted = memory.properties();
  std::size_t recommended = 0;
  PLAIN_CUDA(memory.granularity(&recommended, &wanted, CU_MEM_ALLOC_GRANULARITY_RECOMMENDED));
  check(recommended % granule == 0, "the recommended one is a multiple of it");
  observe("granularity, and the recommended one",
          std::to_string(granule) + ", " + std::to_string(recommended));
  CUmemGenericAllocationHandle handle = 0;
  check(memory.create(&handle, granule + 4096, &wanted, 0) == CUDA_ERROR_INVALID_VALUE,
        "memory is made in whole granules");
  CUdeviceptr at = 0;
  check(memory.reserve(&at, 100, 0, 0, 0) == CUDA_ERROR_INVALID_VALUE,
        "addresses are reserved in whole pages");
  check(memory.reserve(&at, granule, 3, 0, 0) == CUDA_ERROR_INVALID_VALUE,
        "an alignment is a power of two");
}

void check_reservation(const VirtualMemory& memory) {
  const std::size_t before = free_bytes();
  const Reservation much(memory, 1000 * memory.granule);
  check(much.at % memory.granule == 0, "reserved addresses begin at a granule");
  check(free_bytes() == before, "reserved addresses take no memory");
}

void check_use(const VirtualMemory& memory, cudaStream_t stream) {
  const std::size_t granule = memory.granule;
  const Reservation range(memory, 8 * granule);
  const std::size_t before = free_bytes();
  const auto a = memory.make(granule);
  const auto b = memory.make(granule);
  check(before - free_bytes() >= 2 * granule, "made memory is taken");
  check(memory.map(range.granule(1), granule, 0, a, 0) == CUDA_SUCCESS, "memory goes below");
  check(memory.map(range.granule(2), granule, 0, b, 0) == CUDA_SUCCESS, "and next to it");
  check(memory.let(range.granule(1), 2 * granule) == CUDA_SUCCESS,
        "access is given to two mappings at once");
  unsigned long long access = 0;
  CUmemLocation here{};
  here.type = CU_MEM_LOCATION_TYPE_DEVICE;
  here.id = memory.device;
  check(memory.get_access(&access, &here, range.granule(2)) == CUDA_SUCCESS &&
            access == CU_MEM_ACCESS_FLAGS_PROT_READWRITE,
        "which access there is can be asked");
  set(stream, range.granule(1), 17, 2 * granule);
  check(holds(stream, range.granule(1), 17, 2 * granule), "one operation covers both");
  cudaPointerAttributes attributes{};
  PLAIN_CUDA(cudaPointerGetAttributes(&attributes, pointer(range.granule(1) + 100)));
  check(attributes.type == cudaMemoryTypeDevice && attributes.device == memory.device,
        "it is memory of the device");

  set(stream, range.granule(2), 18, granule);
  PLAIN_CUDA(cudaStreamSynchronize(stream));
  check(memory.unmap(range.granule(2), granule) == CUDA_SUCCESS, "memory is taken away");
  check(memory.map(range.granule(7), granule, 0, b, 0) == CUDA_SUCCESS &&
            memory.let(range.granule(7), granule) == CUDA_SUCCESS,
        "and goes elsewhere");
  check(holds(stream, range.granule(7), 18, granule), "with what it held");
  check(holds(stream, range.granule(1), 17, granule), "others keep theirs");

  check(memory.release(b) == CUDA_SUCCESS, "its handle may go while it is mapped");
  set(stream, range.granule(7), 19, granule);
  check(holds(stream, range.granule(7), 19, granule), "and it stays");
  check(memory.unmap(range.granule(7), granule) == CUDA_SUCCESS &&
            memory.unmap(range.granule(1), granule) == CUDA_SUCCESS &&
            memory.release(a) == CUDA_SUCCESS,
        "all of it goes");
  check(free_bytes() == before, "memory is given back with its last mapping and its handle");
}

void check_refusals(const VirtualMemory& memory) {
  const std::size_t granule = memory.granule;
  const Reservation range(memory, 4 * granule);
  const auto handle = memory.make(2 * granule);
  PLAIN_CUDA(memory.map(range.at, 2 * granule, 0, handle, 0));
  const auto other = memory.make(granule);
  const auto other_pair = memory.make(2 * granule);
  check(memory.map(range.at, granule, 0, other, 0) != CUDA_SUCCESS,
        "nothing is mapped where something is");
  check(memory.map(range.granule(2) + 4096, granule, 0, other, 0) != CUDA_SUCCESS,
        "nor where no granule begins");
  // A driver may have reserved more than it was asked for.
  const CUresult beyond = memory.map(range.granule(3), 2 * granule, 0, other_pair, 0);
  observe("memory is mapped beyond the reserved addresses", name_of(beyond));
  if (beyond == CUDA_SUCCESS) PLAIN_CUDA(memory.unmap(range.granule(3), 2 * granule));
  PLAIN_CUDA(memory.release(other_pair));
  check(memory.let(range.granule(1), 2 * granule) != CUDA_SUCCESS,
        "access is given to what is mapped alone");
  observe("a part of a mapping is unmapped", name_of(memory.unmap(range.at, granule)));
  observe("addresses without memory are unmapped",
          name_of(memory.unmap(range.granule(3), granule)));
  PLAIN_CUDA(memory.unmap(range.at, 2 * granule));
  PLAIN_CUDA(memory.release(handle));

  const auto first = memory.make(granule);
  PLAIN_CUDA(memory.map(range.granule(0), granule, 0, first, 0));
  PLAIN_CUDA(memory.map(range.granule(1), granule, 0, other, 0));
  const CUresult both = memory.unmap(range.at, 2 * granule);
  observe("two mappings are unmapped at once", name_of(both));
  if (both != CUDA_SUCCESS) {
    PLAIN_CUDA(memory.unmap(range.granule(0), granule));
    PLAIN_CUDA(memory.unmap(range.granule(1), granule));
  }
  PLAIN_CUDA(memory.release(first));
  PLAIN_CUDA(memory.release(other));
}

void check_aliases(const VirtualMemory& memory, cudaStream_t stream) {
  const std::size_t granule = memory.granule;
  const Reservation range(memory, 2 * granule);
  const auto handle = memory.make(granule);
  PLAIN_CUDA(memory.map(range.granule(0), granule, 0, handle, 0));
  check(memory.map(range.granule(1), granule, 0, handle, 0) == CUDA_SUCCESS,
        "one memory lies below two addresses");
  PLAIN_CUDA(memory.let(range.at, 2 * granule));
  set(stream, range.granule(0), 23, granule);
  check(holds(stream, range.granule(1), 23, granule), "both see it");
  const CUresult only = memory.let(range.granule(1), granule, CU_MEM_ACCESS_FLAGS_PROT_READ);
  observe("access to read alone", name_of(only));
  if (only == CUDA_SUCCESS) {
    check(holds(stream, range.granule(1), 23, granule), "what may only be read is read");
  }
  PLAIN_CUDA(memory.unmap(range.granule(0), granule));
  PLAIN_CUDA(memory.unmap(range.granule(1), granule));
  PLAIN_CUDA(memory.release(handle));
}

/// Whether the calls wait for work that has nothing to do with their addresses.
void check_beside_work(const VirtualMemory& memory, cudaStream_t stream) {
  const std::size_t granule = memory.granule;
  const Reservation range(memory, 2 * granule);
  const auto handle = memory.make(granule);
  const auto busy = memory.make(granule);
  PLAIN_CUDA(memory.map(range.granule(1), granule, 0, busy, 0));
  PLAIN_CUDA(memory.let(range.granule(1), granule));
  Gate gate;
  set(stream, range.granule(1), 1, granule);
  gate.close_in(stream);
  set(stream, range.granule(1), 2, granule);
  PLAIN_CUDA(memory.map(range.granule(0), granule, 0, handle, 0));
  PLAIN_CUDA(memory.let(range.granule(0), granule));
  const bool mapped = !gate.is_open;
  PLAIN_CUDA(memory.unmap(range.granule(0), granule));
  const bool unmapped = !gate.is_open;
  gate.is_open = true;
  observe("mapping while other work is under way", mapped ? "does not wait" : "WAITS for it");
  observe("unmapping while other work is under way", unmapped ? "does not wait" : "WAITS for it");
  check(holds(stream, range.granule(1), 2, granule), "that work is right");
  PLAIN_CUDA(memory.unmap(range.granule(1), granule));
  PLAIN_CUDA(memory.release(handle));
  PLAIN_CUDA(memory.release(busy));
}

// Each of these must not succeed: a process of its own.

/// Uses `at`; the status of what the device says.
int use(CUdeviceptr at, std::size_t bytes) {
  const Stream stream;
  if (cudaMemsetAsync(pointer(at), 1, bytes, stream) != cudaSuccess) return 7;
  return cudaStreamSynchronize(stream) == cudaSuccess ? 0 : 7;
}

int reserved_only(const VirtualMemory& memory) {
  const Reservation range(memory, memory.granule);
  std::_Exit(use(range.at, 4096));
}
int no_access(const VirtualMemory& memory) {
  const Reservation range(memory, memory.granule);
  PLAIN_CUDA(memory.map(range.at, memory.granule, 0, memory.make(memory.granule), 0));
  std::_Exit(use(range.at, 4096));
}
int unmapped(const VirtualMemory& memory) {
  const Reservation range(memory, memory.granule);
  PLAIN_CUDA(memory.map(range.at, memory.granule, 0, memory.make(memory.granule), 0));
  PLAIN_CUDA(memory.let(range.at, memory.granule));
  PLAIN_CUDA(memory.unmap(range.at, memory.granule));
  std::_Exit(use(range.at, 4096));
}
int mapped_again(const VirtualMemory& memory) {
  const Reservation range(memory, memory.granule);
  const auto handle = memory.make(memory.granule);
  for (int i = 0; i < 2; ++i) {
    PLAIN_CUDA(memory.map(range.at, memory.granule, 0, handle, 0));
    if (i == 1) std::_Exit(use(range.at, 4096));
    PLAIN_CUDA(memory.let(range.at, memory.granule));
    PLAIN_CUDA(memory.unmap(range.at, memory.granule));
  }
  return 0;
}
int past_the_end(const VirtualMemory& memory) {
  const Reservation range(memory, 2 * memory.granule);
  PLAIN_CUDA(memory.map(range.at, memory.granule, 0, memory.make(memory.granule), 0));
  PLAIN_CUDA(memory.let(range.at, memory.granule));
  std::_Exit(use(range.at, memory.granule + 4096));
}
int written_read_only(const VirtualMemory& memory) {
  const Reservation range(memory, memory.granule);
  PLAIN_CUDA(memory.map(range.at, memory.granule, 0, memory.make(memory.granule), 0));
  if (memory.let(range.at, memory.granule, CU_MEM_ACCESS_FLAGS_PROT_READ) != CUDA_SUCCESS) {
    std::_Exit(7);
  }
  std::_Exit(use(range.at, 4096));
}

struct Case {
  const char* name;
  const char* what;
  int (*run)(const VirtualMemory& memory);
};
constexpr Case cases[] = {
    {"reserved_only", "reserved addresses without memory cannot be used", reserved_only},
    {"no_access", "nor mapped ones before access is set", no_access},
    {"unmapped", "nor those whose memory was taken away", unmapped},
    {"mapped_again", "access is set anew for each mapping", mapped_again},
    {"past_the_end", "a mapping ends where its memory does", past_the_end},
    {"written_read_only", "what may only be read is not written", written_read_only},
};

/// Each in a process of its own: what stops it breaks the whole process.
void check_cases(const char* program) {
  for (const Case& wrong : cases) {
    std::fflush(stdout);
    const pid_t child = fork();
    if (child == 0) {
      // What stops it says so; that is not for the reader of this program's output.
      if (std::freopen("/dev/null", "w", stderr) == nullptr) std::_Exit(9);
      execl(program, program, wrong.name, static_cast<char*>(nullptr));
      std::_Exit(9);
    }
    int status = 0;
    waitpid(child, &status, 0);
    const bool is_stopped = WIFSIGNALED(status) || (WIFEXITED(status) && WEXITSTATUS(status) != 0 &&
                                                    WEXITSTATUS(status) != 9);
    check(is_stopped, wrong.what);
  }
}

// What the calls cost.

template <class F>
double microseconds(const F& f) {
  const auto begin = Clock::now();
  f();
  return std::chrono::duration<double, std::micro>(Clock::now() - begin).count();
}

void measure(const VirtualMemory& memory, std::size_t count, std::size_t each, const char* beside) {
  const std::size_t bytes = each * memory.granule;
  const Reservation range(memory, count * bytes);
  std::vector<CUmemGenericAllocationHandle> handles;
  const double made = microseconds([&] {
    for (std::size_t i = 0; i < count; ++i) handles.push_back(memory.make(bytes));
  });
  double best[3] = {1e30, 1e30, 1e30};
  for (int round = 0; round < 5; ++round) {
    const double mapped = microseconds([&] {
      for (std::size_t i = 0; i < count; ++i) {
        PLAIN_CUDA(memory.map(range.at + i * bytes, bytes, 0, handles[i], 0));
      }
    });
    const double let = microseconds([&] { PLAIN_CUDA(memory.let(range.at, count * bytes)); });
    const double gone = microseconds([&] {
      for (std::size_t i = 0; i < count; ++i) {
        PLAIN_CUDA(memory.unmap(range.at + i * bytes, bytes));
      }
    });
    const double all[3] = {mapped, let, gone};
    for (int i = 0; i < 3; ++i) best[i] = all[i] < best[i] ? all[i] : best[i];
  }
  const auto n = static_cast<double>(count);
  std::printf(
      "%4zu handles of %3zu granules%s: create %7.1f, map %6.2f, unmap %6.2f us each; access to "
      "all %8.1f us\n",
      count, each, beside, made / n, best[0] / n, best[2] / n, best[1]);
  for (const auto handle : handles) PLAIN_CUDA(memory.release(handle));
}

void measure_all(const VirtualMemory& memory) {
  measure(memory, 4, 1, "");
  measure(memory, 64, 1, "");
  measure(memory, 16, 4, "");
  measure(memory, 1, 64, "");
  const Stream stream;
  const plain::DeviceArray<char> some(std::size_t{64} << 20);
  std::atomic<bool> is_over{false};
  std::thread worker([&] {
    PLAIN_CUDA(cudaSetDevice(memory.device));
    while (!is_over) {
      for (int i = 0; i < 50; ++i) {
        PLAIN_CUDA(cudaMemsetAsync(some.data, i, some.bytes(), stream));
      }
      stream.synchronize();
    }
  });
  measure(memory, 64, 1, ", device busy");
  is_over = true;
  worker.join();
}

}  // namespace

int main(int argc, char** argv) {
  if (argc > 2) {
    std::fprintf(stderr, "usage: virtual_memory_program [time|CASE]\n");
    return 2;
  }
  const std::string_view wish = argc == 2 ? argv[1] : "";
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess || count == 0) {
    std::printf("skipped: no CUDA device\n");
    return 77;
  }
  if (wish.empty()) check_cases(argv[0]);
  const VirtualMemory memory(0);
  for (const Case& wrong : cases) {
    if (wish == wrong.name) return wrong.run(memory);
  }
  if (wish == "time") {
    measure_all(memory);
    return 0;
  }
  {
    const Stream stream;
    check_entry_points();
    check_sizes(memory);
    check_reservation(memory);
    check_use(memory, stream);
    check_refusals(memory);
    check_aliases(memory, stream);
    check_beside_work(memory, stream);
  }
  std::printf(failures == 0 ? "all hold\n" : "%d do not hold\n", failures);
  return failures == 0 ? 0 : 1;
}
