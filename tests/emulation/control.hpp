#pragma once

#include <cuda_runtime_api.h>
#include <dlfcn.h>

#include <cstddef>
#include <type_traits>

/// What tests may ask of the emulation. The functions are looked up when they are called, so that
/// the same program runs on a real device, where shardwise_emulation_present() is false and the
/// rest does nothing and returns zero.
///
/// Options, by set_option or, in upper case behind SHARDWISE_EMULATION_, by environment variable;
/// the first value is the one that holds without:
/// - devices (8; by environment only), device_mb (1024): how many, how large;
/// - granule_kb (2048; by environment only): what virtual memory is made and mapped in multiples
/// of;
/// - seed (1), jitter_us (0): two thirds of the tasks are late by up to twice the jitter;
/// - watchdog_ms (10000): a wait during which no task ended for so long and the process hardly
///   computed, or one of ten times as long in all: the state is printed, status 66;
/// - host_access (allow, fault, keys, lockout; by environment only): what the host's access to
///   memory of a device does. keys: it faults, by protection keys of the CPU. lockout: it faults
///   while no task of the device runs. fault: keys, or lockout where the CPU has none;
/// - legacy_stream (allow, error): each use of the default stream is an error;
/// - pageable (allow, error): so is pageable memory in an asynchronous copy;
/// - unrecorded_wait (note, error): a wait for an event that was never recorded;
/// - leaks (note, off, error): what is not given back at exit;
/// - fail ("call:k:status,..."): the k-th call from now of an API function ("*": any) returns the
///   status;
/// - fail_task ("label:k:status,..."): the k-th task from now whose label begins so ("kernel",
///   "copy", "fill", "host function") does not run, and its device returns the status from then on;
/// - kernel_us (5), threads_per_us (100000), copy_bytes_per_us (25000),
///   memory_bytes_per_us (1000000): the model of time.
///
/// Modelled time is in microseconds, the same in every run: a task takes what the model says, an
/// event carries its stream's time to who waits for it, and the host's calls take none.
/// cudaEventElapsedTime returns it.
namespace emulation_control {

template <class Function>
Function* find(const char* name) {
  return reinterpret_cast<Function*>(dlsym(RTLD_DEFAULT, name));
}

}  // namespace emulation_control

inline bool shardwise_emulation_present() {
  return dlsym(RTLD_DEFAULT, "shardwise_emulation_errors") != nullptr;
}

namespace emulation_control {

/// Errors reported so far. A process in which some were reported, and not reset, ends with 66.
inline int errors() {
  auto* const call = find<int()>("shardwise_emulation_errors");
  return call != nullptr ? call() : 0;
}
inline int notes() {
  auto* const call = find<int()>("shardwise_emulation_notes");
  return call != nullptr ? call() : 0;
}
/// Forgets errors, notes and broken devices; peaks start at what is used now.
inline void reset() {
  if (auto* const call = find<void()>("shardwise_emulation_reset")) call();
}
/// Device memory in bytes, in multiples of 256 an allocation. Counted in the order of the host's
/// calls, cudaFreeAsync included, so that it is the same in every run.
inline std::size_t peak_bytes(int device) {
  auto* const call = find<std::size_t(int)>("shardwise_emulation_peak_bytes");
  return call != nullptr ? call(device) : 0;
}
inline std::size_t used_bytes(int device) {
  auto* const call = find<std::size_t(int)>("shardwise_emulation_used_bytes");
  return call != nullptr ? call(device) : 0;
}
/// Modelled time of the stream after its last finished task; synchronise first.
inline double virtual_time(cudaStream_t stream) {
  auto* const call = find<double(cudaStream_t)>("shardwise_emulation_virtual_time");
  return call != nullptr ? call(stream) : 0;
}
/// Modelled time of the calling host thread: that of what it waited for last.
inline double host_time() {
  auto* const call = find<double()>("shardwise_emulation_host_time");
  return call != nullptr ? call() : 0;
}
/// From a host function or a kernel's body: it takes so much longer. Elsewhere: the host does.
inline void spend(double microseconds) {
  if (auto* const call = find<void(double)>("shardwise_emulation_spend")) call(microseconds);
}
/// "keys", "lockout" or "none": what happens when the host touches device memory.
inline const char* host_access() {
  auto* const call = find<const char*()>("shardwise_emulation_host_access");
  return call != nullptr ? call() : "none";
}
/// Null: back to the environment's value. A value that makes no sense ends the process.
inline void set_option(const char* name, const char* value) {
  if (auto* const call = find<void(const char*, const char*)>("shardwise_emulation_set_option")) {
    call(name, value);
  }
}

/// What lies between a functor's members is no pointer; false where the compiler cannot clear it.
template <class Functor>
bool clear_padding([[maybe_unused]] Functor& functor) {
#if __has_builtin(__builtin_clear_padding)
  __builtin_clear_padding(&functor);
  return true;
#else
  return false;
#endif
}

/// Runs body(copy of arguments) in stream order, as a kernel where there is no nvcc. The arguments
/// are trivially copyable; they are copied, and looked through for pointers to memory that the
/// stream's device cannot use: to pageable host memory only where `padding_is_clear`. The modelled
/// time is that of `threads` threads. Without the emulation: cudaErrorNotSupported.
template <class Arguments>
cudaError_t launch_body(cudaStream_t stream, const char* name, std::size_t threads,
                        const Arguments& arguments, bool padding_is_clear,
                        void (*body)(const void* arguments, std::size_t threads)) {
  static_assert(std::is_trivially_copyable_v<Arguments>);
  auto* const call =
      find<cudaError_t(cudaStream_t, const char*, void (*)(const void*, std::size_t), const void*,
                       std::size_t, std::size_t, int)>("shardwise_emulation_launch");
  if (call == nullptr) return cudaErrorNotSupported;
  return call(stream, name, body, &arguments, sizeof arguments, threads, padding_is_clear ? 1 : 0);
}

/// Runs functor(0) ... functor(count - 1) so.
template <class Functor>
cudaError_t launch(cudaStream_t stream, const char* name, std::size_t count, Functor functor) {
  const bool is_clear = clear_padding(functor);
  return launch_body(stream, name, count, functor, is_clear,
                     [](const void* copy, std::size_t elements) {
                       const auto& function = *static_cast<const Functor*>(copy);
                       for (std::size_t i = 0; i < elements; ++i) function(i);
                     });
}

}  // namespace emulation_control
