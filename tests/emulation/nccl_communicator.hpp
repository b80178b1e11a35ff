#pragma once

#include <nccl.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "internal.hpp"
#include "nccl_link.hpp"

namespace emulation {

/// Memory that a program registered with a communicator.
struct Registered {
  std::size_t bytes = 0;
  int flags = 0;
  std::int64_t ordinal = -1;  // of a window, in order of registration
  int in_flight = 0;          // operations that use it and have not ended
  ncclWindow_t handle = nullptr;
};

/// A pre-multiplied sum: the factor, or where it lies.
struct UserReduction {
  ncclDataType_t type = ncclFloat32;
  std::uint64_t scalar = 0;
  const void* on_device = nullptr;
  bool alive = true;
};

/// One rank of a communicator. Handles and operations in flight share it. Guarded by big_lock()
/// after construction, but for `link`, which is set once, before `state` becomes ncclSuccess.
struct Communicator {
  Communicator() = default;
  ~Communicator();
  Communicator(const Communicator&) = delete;
  Communicator& operator=(const Communicator&) = delete;

  std::shared_ptr<Link> link;
  int device = 0;
  bool blocking = true;
  int cta_policy = NCCL_CTA_POLICY_DEFAULT;
  std::string name;

  ncclResult_t state = ncclSuccess;
  int polls = 0;  // a non-blocking operation shows success only after so many looks
  bool finalized = false;
  bool revoked = false;
  bool stopped = false;  // no operation waits any more
  std::uint64_t issued = 0;
  std::uint64_t splits = 0;
  std::uint64_t windows_made = 0;
  int outstanding = 0;
  std::map<std::uintptr_t, Registered> registrations;
  std::map<std::uintptr_t, Registered> windows;
  std::vector<UserReduction> reductions;
  std::array<long, 3> paths{};  // generic kernel, symmetric kernel, copy engine
  char ready_edge = 0;
};

}  // namespace emulation

/// What programs hold. It stays allocated for ever, so that a use after its end is seen.
struct ncclComm {
  std::uint64_t magic = 0;
  std::shared_ptr<emulation::Communicator> communicator;
  // ThreadSanitizer sees these as read by every call and written by the end; written by every call
  // that issues: what the program must order, it sees unordered.
  char lifetime = 0;
  char issue = 0;
};

/// Only its address counts.
struct ncclWindow_vidmem {};

namespace emulation {

enum class Use { query, issue, end };

/// Handles from their making to their end; afterwards only find() looks at them.
ncclComm_t make_handle(std::shared_ptr<Communicator> communicator);
void end(ncclComm_t handle);
int living_handles();

/// The communicator of a handle that lives, or null with the last error set.
std::shared_ptr<Communicator> find(ncclComm_t handle, const char* api, Use use);

/// Remembers the message for ncclGetLastError and returns `result`.
ncclResult_t refuse(ncclResult_t result, const std::string& message);

const char* last_error_text();

/// ncclSuccess where the last operation is over; else its error, or ncclInvalidArgument where it
/// was not polled to its end. An error here breaks a non-blocking communicator, as in the real
/// library.
ncclResult_t ensure_ready(Communicator& communicator, const char* api);

/// The result of a call that succeeded: ncclInProgress on a non-blocking communicator.
ncclResult_t in_progress(Communicator& communicator);

std::string label(const Communicator& communicator);

/// Waits until no other call on a communicator that does not block is at work.
void wait_until_idle(Communicator& communicator, const char* api);

/// Waits until no operation is in flight.
void wait_until_quiet(Communicator& communicator, const char* api);

/// Ends the waits of this rank's operations.
void stop(Communicator& communicator, Stop why);

/// The calling thread's device, for the duration.
class DeviceScope {
 public:
  explicit DeviceScope(int device);
  ~DeviceScope();
  DeviceScope(const DeviceScope&) = delete;
  DeviceScope& operator=(const DeviceScope&) = delete;

 private:
  int before_ = 0;
};

/// Device bytes into staging and back: ThreadSanitizer and AddressSanitizer see the device's side.
void read_device(std::byte* to, const void* from, std::size_t bytes);
void write_device(void* to, const std::byte* from, std::size_t bytes);

/// Puts the library's function on ThreadSanitizer's stack, so that its reports name the operation.
class NamedFrame {
 public:
  explicit NamedFrame(Operation operation);
  ~NamedFrame();
  NamedFrame(const NamedFrame&) = delete;
  NamedFrame& operator=(const NamedFrame&) = delete;
};

/// ThreadSanitizer takes it for an access of the calling thread.
void note_access(char& byte, bool write);

/// What runs at once, or at the end of the group that is open; returns when it is over, or on a
/// non-blocking communicator at once.
struct Job {
  std::shared_ptr<Communicator> communicator;
  std::function<ncclResult_t()> run;
  /// On a non-blocking communicator it goes on beside it: whoever polls that sees nothing of it.
  bool beside = false;
};
ncclResult_t schedule(Job job);

/// Checks the call as strictly as any device would need it, and issues it.
ncclResult_t submit(ncclComm_t handle, Call call, cudaStream_t stream);

/// Fills in the call's places in windows and counts the path that the real library takes.
ncclResult_t check_call(Communicator& communicator, const char* api, Call& call,
                        cudaStream_t stream);
/// What an abort does with memory that is registered still.
void forget_registrations(Communicator& communicator);
/// Counts the operations in flight on the windows of a call.
void use_windows(Communicator& communicator, const Call& call, int change);

}  // namespace emulation

/// Every function of the library has a second name, for tools that wrap the first.
#define SHARDWISE_NCCL_ALIAS(name) \
  extern "C" __attribute__((alias("nccl" #name))) decltype(nccl##name) pnccl##name
