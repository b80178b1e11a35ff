#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <random>
#include <set>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "internal.hpp"

/// The state of the fake CUDA runtime. Everything here is guarded by big_lock() unless said
/// otherwise.
namespace emulation {

/// One call of cudaEventRecord. It outlives its event: a wait binds to the record at the call.
struct Record {
  bool done = false;
  double time = 0;  ///< modelled microseconds
  std::string where;
  Condition reached;
};

/// Memory that a task uses, as far as its call tells: a kernel's pointer says where it begins.
struct Use {
  std::uintptr_t begin = 0;
  std::size_t bytes = 0;
};

struct Task {
  std::string label;
  std::vector<Use> uses;  ///< of mapped memory
  std::function<void()> run;
  double microseconds = 0;
  double issued = 0;               ///< the host thread's modelled time at the call
  bool bookkeeping = false;        ///< a record or a wait: runs on a broken device too
  std::shared_ptr<Record> record;  ///< done when the task is
};

}  // namespace emulation

struct CUstream_st {
  int device = 0;
  bool blocking = false;  ///< ordered against the legacy stream
  bool legacy = false;
  int priority = 0;
  unsigned flags = 0;
  std::uint64_t number = 0;  ///< on its device, in order of creation
  std::deque<std::unique_ptr<emulation::Task>> queue;
  bool closing = false;
  bool running = false;
  std::string current, blocked;
  std::vector<emulation::Use> current_uses;
  std::uint64_t enqueued = 0, finished = 0;
  double time = 0;       ///< modelled; belongs to the worker while a task runs
  double published = 0;  ///< `time` after the last task
  emulation::Condition work;
  std::shared_ptr<emulation::Record> after_legacy;  ///< what it last waited for
  std::shared_ptr<emulation::Record> last;          ///< of the legacy stream: its last operation
  std::minstd_rand random;
  char finished_edge = 0;  ///< address for hb_release
};

struct CUevent_st {
  int device = 0;
  bool timing = true;
  bool noted = false;
  std::shared_ptr<emulation::Record> record;
};

namespace emulation {

using Stream = CUstream_st;
using Event = CUevent_st;

[[nodiscard]] std::size_t page_size();

/// Memory that a call of the runtime gave. It lies right-aligned against a guard page:
///   guard | slack | base ... base + bytes | slack to 256 bytes | guard
/// Both slacks hold a pattern that is compared at the free.
struct Allocation {
  std::uintptr_t map = 0;  ///< first guard page
  std::size_t map_bytes = 0;
  std::uintptr_t base = 0;
  std::size_t bytes = 0;
  std::size_t capacity = 0;
  int device = -1;
  Memory kind = Memory::none;
  bool pooled = false;      ///< by cudaMallocAsync
  bool registered = false;  ///< the program's own memory
  bool freed = false;       ///< the call that frees it was made; pages go in stream order
  std::string freed_by;
  bool is_mapping = false;    ///< by cuMemMap: others may lie next to it, without a guard
  bool has_access = false;    ///< of a mapping: cuMemSetAccess gave its device access
  bool is_read_only = false;  ///< to read alone
  std::set<int> accessors;    ///< other devices that it gave access to
  [[nodiscard]] std::uintptr_t pages() const;
  [[nodiscard]] std::size_t page_bytes() const;
};

struct Kernel {
  std::string name;
  void (*body)(void** arguments, dim3 grid, dim3 block, std::size_t shared, void* stream) = nullptr;
  std::vector<std::size_t> sizes;
  std::size_t dynamic_shared_limit = 48 << 10;
};

struct Device {
  std::size_t used = 0, peak = 0;  ///< counted in the order of the host's calls
  std::uint64_t next_stream = 1;
  Stream* legacy = nullptr;
  std::set<int> peers;  ///< whose memory it may touch
  cudaError_t sticky = cudaSuccess;
};

/// Options that are looked at often; see control.hpp for their meaning.
struct Options {
  int jitter_us = 0;
  std::uint64_t seed = 1;
  int watchdog_ms = 10000;
  std::size_t device_bytes = std::size_t{1} << 30;
  bool legacy_stream_is_error = false;
  bool pageable_is_error = false;
  bool unrecorded_wait_is_error = false;
  std::string leaks = "note";
  double kernel_us = 5, threads_per_us = 100e3, copy_bytes_per_us = 25e3, memory_bytes_per_us = 1e6;
};

/// "api:k:status": the k-th call from now fails with that status.
struct Fault {
  std::string name;
  long countdown = 0;
  int status = 0;
};

struct World {
  World();  ///< reads the options
  void read_options();

  Lock lock;
  Condition changed;
  std::map<std::string, std::string, std::less<>> set_options;
  Options options;
  std::vector<Fault> call_faults, task_faults;
  std::vector<Device> devices;
  std::vector<Stream*> streams;  ///< that live
  /// Destroyed ones: their addresses must not come back, and queued work still runs.
  std::vector<std::unique_ptr<Stream>> retired;
  std::unordered_set<Event*> events;
  std::map<std::uintptr_t, Allocation> allocations;  ///< by base; freed ones stay, for messages
  std::unordered_map<const void*, Kernel> kernels;
  std::uint64_t progress = 0;            ///< tasks that ended
  std::atomic<int> errors{0}, notes{0};  ///< counted with and without the lock
};
[[nodiscard]] World& world();

/// The calling thread's: the device that cudaSetDevice chose, the last error, its modelled time,
/// the stream whose worker it is.
struct ThreadState {
  int device = 0;
  cudaError_t last_error = cudaSuccess;
  double time = 0;
  Stream* worker_of = nullptr;
  cudaStreamCaptureMode capture_mode = cudaStreamCaptureModeGlobal;
  std::vector<Use> noted;
};
[[nodiscard]] ThreadState& this_thread();

/// Remembers a failure for cudaGetLastError.
cudaError_t status(cudaError_t error);
/// Every call that does work begins with it: a status to return at once where a fault is injected
/// or an earlier operation broke the device.
[[nodiscard]] cudaError_t entry(const char* api);

/// The rest is called with the big lock held.
/// What an earlier operation did to the device.
[[nodiscard]] cudaError_t device_status(int device);
/// Null where there is no such stream (after a report).
[[nodiscard]] Stream* resolve(const char* api, cudaStream_t stream);
[[nodiscard]] Stream* make_stream(int device, bool blocking, int priority);
void push(Stream* stream, std::string label, std::function<void()> run, double microseconds);
[[nodiscard]] std::shared_ptr<Record> record(Stream* stream, std::string where);
/// The same as an operation of the program: the legacy stream's order holds for it.
[[nodiscard]] std::shared_ptr<Record> record_operation(Stream* stream);
/// Makes what is pushed to `stream` from now on wait for `target`.
void push_wait(Stream* stream, std::shared_ptr<Record> target);
/// The host waits; the work happens before what it does next.
void host_wait(const std::shared_ptr<Record>& target, const std::string& what);
void synchronize_device(int device, const std::string& what);
[[nodiscard]] Allocation* find_allocation(const void* pointer);
/// Whether the address was reserved by cuMemAddressReserve, with memory below it or without.
[[nodiscard]] bool is_reserved(const void* address);
/// Reservations and memory of cuMemCreate that live.
[[nodiscard]] std::size_t virtual_leaks();
/// What the next task that this thread pushes uses of mapped memory.
void note_use(const void* pointer, std::size_t bytes);
/// Whether `device` may touch the memory.
[[nodiscard]] bool can_reach(int device, const Allocation& allocation);
/// Also counts a fault of `task_faults` that matches the label.
[[nodiscard]] int injected_task_failure(const std::string& label);

/// Protection of devices' memory from the host (cudart_access.cpp).
void install_access();
void access_begin_task(int device);  ///< not under the big lock
void access_end_task();
void access_protect(const Allocation& allocation);  ///< newly made
void access_open(const Allocation& allocation);     ///< for good: it is about to be freed
/// "keys", "lockout" or "none"
[[nodiscard]] const char* access_kind();

/// From now on a fault at an address of the emulation is named before the process ends. Done before
/// each task again: test frameworks take the signal for each of their cases.
void install_fault_handler();

}  // namespace emulation

#define SHARDWISE_EMULATED extern "C" __attribute__((visibility("default")))
