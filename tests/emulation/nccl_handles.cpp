#include <cstdio>
#include <cstring>

#include "nccl_clique.hpp"
#include "nccl_communicator.hpp"

extern "C" {
__attribute__((weak)) void __tsan_read_range(void* begin, std::size_t bytes);
__attribute__((weak)) void __tsan_write_range(void* begin, std::size_t bytes);
__attribute__((weak)) void __tsan_func_entry(void* caller);
__attribute__((weak)) void __tsan_func_exit();
}

namespace emulation {

namespace {

constexpr std::uint64_t living = 0x6e63636c2d6c6976;
constexpr std::uint64_t buried = 0x6e63636c2d656e64;

std::array<char, 1024>& last_error() {
  static thread_local std::array<char, 1024> text{};
  return text;
}

int handles_alive = 0;

}  // namespace

ncclComm_t make_handle(std::shared_ptr<Communicator> communicator) {
  auto* const handle = new ncclComm;
  handle->magic = living;
  const Guard guard(big_lock());
  handle->communicator = std::move(communicator);
  ++handles_alive;
  return handle;
}

// Living handles are nowhere but with the program, so that a leak is seen as one.
void end(ncclComm_t handle) {
  static auto* const graves = new std::vector<ncclComm_t>;
  const Guard guard(big_lock());
  if (handle->magic == living) {
    handle->magic = buried;
    handle->communicator.reset();
    graves->push_back(handle);
    --handles_alive;
  }
}

Communicator::~Communicator() {
  const Quiet quiet;
  link.reset();
  registrations.clear();
  windows.clear();
}

DeviceScope::DeviceScope(int device) {
  cudaGetDevice(&before_);
  cudaSetDevice(device);
}

DeviceScope::~DeviceScope() { cudaSetDevice(before_); }

void read_device(std::byte* to, const void* from, std::size_t bytes) {
  if (bytes == 0) {
    return;
  }
  if (__tsan_read_range != nullptr) {
    __tsan_read_range(const_cast<void*>(from), bytes);
  }
  const Quiet quiet;
  std::memcpy(to, from, bytes);
}

void write_device(void* to, const std::byte* from, std::size_t bytes) {
  if (bytes == 0) {
    return;
  }
  if (__tsan_write_range != nullptr) {
    __tsan_write_range(to, bytes);
  }
  const Quiet quiet;
  std::memcpy(to, from, bytes);
}

NamedFrame::NamedFrame(Operation operation) {
  if (__tsan_func_entry == nullptr) {
    return;
  }
  const std::array functions{reinterpret_cast<std::uintptr_t>(&ncclAllGather),
                             reinterpret_cast<std::uintptr_t>(&ncclReduceScatter),
                             reinterpret_cast<std::uintptr_t>(&ncclAllReduce),
                             reinterpret_cast<std::uintptr_t>(&ncclBroadcast),
                             reinterpret_cast<std::uintptr_t>(&ncclReduce),
                             reinterpret_cast<std::uintptr_t>(&ncclAlltoAll),
                             reinterpret_cast<std::uintptr_t>(&ncclGather),
                             reinterpret_cast<std::uintptr_t>(&ncclScatter),
                             reinterpret_cast<std::uintptr_t>(&ncclSend),
                             reinterpret_cast<std::uintptr_t>(&ncclRecv)};
  // As if called from the function's first bytes: a stack holds return addresses.
  __tsan_func_entry(reinterpret_cast<void*>(functions.at(static_cast<std::size_t>(operation)) + 1));
}

NamedFrame::~NamedFrame() {
  if (__tsan_func_exit != nullptr) {
    __tsan_func_exit();
  }
}

void note_access(char& byte, bool write) {
  if (write && __tsan_write_range != nullptr) {
    __tsan_write_range(&byte, 1);
  } else if (!write && __tsan_read_range != nullptr) {
    __tsan_read_range(&byte, 1);
  }
}

ncclResult_t refuse(ncclResult_t result, const std::string& message) {
  const Quiet quiet;
  std::snprintf(last_error().data(), last_error().size(), "%s", message.c_str());
  return result;
}

std::string label(const Communicator& communicator) {
  const Quiet quiet;
  return "rank " + std::to_string(communicator.link ? communicator.link->rank() : -1) +
         " of communicator '" + communicator.name + "'";
}

std::shared_ptr<Communicator> find(ncclComm_t handle, const char* api, Use use) {
  if (handle == nullptr) {
    refuse(ncclInvalidArgument, std::string(api) + ": the communicator is null");
    return nullptr;
  }
  note_access(handle->lifetime, use == Use::end);
  if (use == Use::issue) {
    note_access(handle->issue, true);
  }
  std::shared_ptr<Communicator> communicator;
  {
    const Guard guard(big_lock());
    if (handle->magic == living) {
      communicator = handle->communicator;
    }
  }
  if (!communicator) {
    report("%s: the communicator was destroyed or aborted before, or is none", api);
    refuse(ncclInvalidArgument, std::string(api) + ": no living communicator");
  }
  return communicator;
}

ncclResult_t ensure_ready(Communicator& communicator, const char* api) {
  ncclResult_t result = ncclSuccess;
  {
    const Guard guard(big_lock());
    if (communicator.revoked && communicator.polls == 0) {
      return ncclSuccess;
    }
    result = communicator.state;
    if (result == ncclInProgress || communicator.polls > 0) {
      result = ncclInvalidArgument;
    } else if (result == ncclSuccess) {
      return ncclSuccess;
    }
    if (result != ncclInvalidArgument) {
      return refuse(result, std::string(api) + ": an earlier operation of the communicator failed");
    }
  }
  return refuse(result, std::string(api) +
                            ": the communicator is used before its last operation was polled to "
                            "ncclSuccess by ncclCommGetAsyncError");
}

ncclResult_t in_progress(Communicator& communicator) {
  if (communicator.blocking) {
    return ncclSuccess;
  }
  const Guard guard(big_lock());
  communicator.polls = 2;
  return ncclInProgress;
}

void stop(Communicator& communicator, Stop why) {
  std::shared_ptr<Link> link;
  {
    const Guard guard(big_lock());
    communicator.stopped = true;
    link = communicator.link;
    changed().notify();
  }
  if (link) {
    link->stop(why);
  }
}

void wait_until_idle(Communicator& communicator, const char* api) {
  const Guard guard(big_lock());
  wait_for([&] { return label(communicator) + " waits in " + api + " for another call to end"; },
           [&] { return communicator.state != ncclInProgress; }, [] { return false; });
  // NCCL joins the thread of a call before it goes on; what that wrote is seen.
  hb_acquire(&communicator.ready_edge);
}

void wait_until_quiet(Communicator& communicator, const char* api) {
  const Guard guard(big_lock());
  wait_for(
      [&] {
        return label(communicator) + " waits in " + api + " for " +
               std::to_string(communicator.outstanding) + " operations";
      },
      [&] { return communicator.outstanding == 0; }, [] { return false; });
}

const char* last_error_text() { return last_error().data(); }

int living_handles() {
  const Guard guard(big_lock());
  return handles_alive;
}

}  // namespace emulation
