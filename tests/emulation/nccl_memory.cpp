#include <algorithm>
#include <map>

#include "nccl_clique.hpp"
#include "nccl_communicator.hpp"
#include "nccl_model.hpp"

namespace emulation {

namespace {

/// What ncclMemAlloc gave, by address, with the number of registrations that cover it. Guarded by
/// big_lock().
struct Block {
  std::size_t bytes = 0;
  int registrations = 0;
};

std::map<std::uintptr_t, Block>& blocks() {
  static auto* const all = new std::map<std::uintptr_t, Block>;
  return *all;
}

Block* block_of(std::uintptr_t address, std::size_t bytes) {
  auto found = blocks().upper_bound(address);
  if (found == blocks().begin()) {
    return nullptr;
  }
  --found;
  return address + bytes <= found->first + found->second.bytes ? &found->second : nullptr;
}

void count_registration(std::uintptr_t base, std::size_t bytes, int change) {
  if (Block* const block = block_of(base, bytes)) {
    block->registrations += change;
  }
}

bool overlaps(const std::map<std::uintptr_t, Registered>& registered, std::uintptr_t base,
              std::size_t bytes) {
  return std::ranges::any_of(registered, [&](const auto& entry) {
    return base < entry.first + entry.second.bytes && entry.first < base + bytes;
  });
}

ncclResult_t register_window(const std::shared_ptr<Communicator>& communicator, void* buffer,
                             std::size_t bytes, ncclWindow_t* window, int flags) {
  const auto base = reinterpret_cast<std::uintptr_t>(buffer);
  WindowRequest request{.bytes = bytes, .flags = flags};
  {
    const Guard guard(big_lock());
    request.ordinal = communicator->windows_made++;
  }
  switch (communicator->link->register_window(request)) {
    case Outcome::stopped:
      return ncclInternalError;
    case Outcome::lost:
      return ncclRemoteError;
    case Outcome::done:
      break;
  }
  // Without symmetric memory the real library succeeds; the window is then a local registration, or
  // stays as it was: the case that programs forget.
  if (!symmetric_supported()) {
    return ncclSuccess;
  }
  const Guard guard(big_lock());
  *window = new ncclWindow_vidmem;
  communicator->windows[base] = {.bytes = bytes,
                                 .flags = flags,
                                 .ordinal = static_cast<std::int64_t>(request.ordinal),
                                 .handle = *window};
  count_registration(base, bytes, +1);
  return ncclSuccess;
}

}  // namespace

void forget_registrations(Communicator& communicator) {
  const Guard guard(big_lock());
  for (auto* const registered : {&communicator.registrations, &communicator.windows}) {
    for (const auto& [base, entry] : *registered) {
      count_registration(base, entry.bytes, -1);
      delete entry.handle;
    }
    registered->clear();
  }
}

}  // namespace emulation

using namespace emulation;

ncclResult_t ncclMemAlloc(void** pointer, std::size_t bytes) {
  if (pointer == nullptr || bytes == 0) {
    return refuse(ncclInvalidArgument, "ncclMemAlloc: no bytes or no place");
  }
  // Windows are aligned to pages; the fake runtime aligns the end of what it gives.
  constexpr std::size_t page = NCCL_WIN_REQUIRED_ALIGNMENT;
  const std::size_t rounded = (bytes + page - 1) / page * page;
  if (cudaMalloc(pointer, rounded) != cudaSuccess) {
    return refuse(ncclUnhandledCudaError, "ncclMemAlloc: cudaMalloc failed");
  }
  const Guard guard(big_lock());
  blocks()[reinterpret_cast<std::uintptr_t>(*pointer)] = {.bytes = rounded};
  return ncclSuccess;
}
SHARDWISE_NCCL_ALIAS(MemAlloc);

ncclResult_t ncclMemFree(void* pointer) {
  if (pointer == nullptr) {
    return ncclSuccess;
  }
  int registrations = 0;
  {
    const Guard guard(big_lock());
    const auto found = blocks().find(reinterpret_cast<std::uintptr_t>(pointer));
    if (found == blocks().end()) {
      report("ncclMemFree: %p was not given by ncclMemAlloc, or was freed before", pointer);
      return refuse(ncclInvalidArgument, "ncclMemFree: not memory of ncclMemAlloc");
    }
    registrations = found->second.registrations;
    blocks().erase(found);
  }
  if (registrations > 0) {
    report("ncclMemFree: %p has %d registrations: deregister before", pointer, registrations);
  }
  return cudaFree(pointer) == cudaSuccess
             ? ncclSuccess
             : refuse(ncclUnhandledCudaError, "ncclMemFree: cudaFree failed");
}
SHARDWISE_NCCL_ALIAS(MemFree);

ncclResult_t ncclCommRegister(const ncclComm_t handle, void* buffer, std::size_t bytes,
                              void** registration) {
  const auto communicator = find(handle, "ncclCommRegister", Use::issue);
  if (!communicator || registration == nullptr) {
    return ncclInvalidArgument;
  }
  if (const auto result = ensure_ready(*communicator, "ncclCommRegister"); result != ncclSuccess) {
    return result;
  }
  check_range("ncclCommRegister", buffer, bytes, communicator->device, true);
  const auto base = reinterpret_cast<std::uintptr_t>(buffer);
  const Guard guard(big_lock());
  if (overlaps(communicator->registrations, base, bytes)) {
    report("ncclCommRegister: %p is registered already with %s: register each range once", buffer,
           label(*communicator).c_str());
  }
  communicator->registrations[base] = {.bytes = bytes};
  count_registration(base, bytes, +1);
  *registration = buffer;
  return ncclSuccess;
}
SHARDWISE_NCCL_ALIAS(CommRegister);

ncclResult_t ncclCommDeregister(const ncclComm_t handle, void* registration) {
  const auto communicator = find(handle, "ncclCommDeregister", Use::issue);
  if (!communicator) {
    return ncclInvalidArgument;
  }
  const Guard guard(big_lock());
  const auto found =
      communicator->registrations.find(reinterpret_cast<std::uintptr_t>(registration));
  if (found == communicator->registrations.end()) {
    report(
        "ncclCommDeregister: %p is no registration of %s (a window is ended by "
        "ncclCommWindowDeregister)",
        registration, label(*communicator).c_str());
    return refuse(ncclInvalidArgument, "ncclCommDeregister: no such registration");
  }
  count_registration(found->first, found->second.bytes, -1);
  communicator->registrations.erase(found);
  return ncclSuccess;
}
SHARDWISE_NCCL_ALIAS(CommDeregister);

ncclResult_t ncclCommWindowRegister(ncclComm_t handle, void* buffer, std::size_t bytes,
                                    ncclWindow_t* window, int flags) {
  const auto communicator = find(handle, "ncclCommWindowRegister", Use::issue);
  if (!communicator || window == nullptr) {
    return ncclInvalidArgument;
  }
  if (const auto result = ensure_ready(*communicator, "ncclCommWindowRegister");
      result != ncclSuccess) {
    return result;
  }
  if (buffer == nullptr || bytes == 0) {
    return ncclSuccess;  // the real library does nothing then
  }
  check_range("ncclCommWindowRegister", buffer, bytes, communicator->device, true);
  const auto base = reinterpret_cast<std::uintptr_t>(buffer);
  if (base % NCCL_WIN_REQUIRED_ALIGNMENT != 0) {
    return refuse(ncclInvalidArgument,
                  "ncclCommWindowRegister: the buffer is not aligned to 4096 bytes");
  }
  {
    const Guard guard(big_lock());
    // The real library asks the driver for the memory's handle, which cudaMalloc's has not.
    if (symmetric_supported() && block_of(base, bytes) == nullptr) {
      return refuse(ncclUnhandledCudaError,
                    "ncclCommWindowRegister: the buffer was not given by ncclMemAlloc");
    }
    if (overlaps(communicator->windows, base, bytes)) {
      report("ncclCommWindowRegister: %p is in a window of %s already: register each range once",
             buffer, label(*communicator).c_str());
    }
  }
  const ncclResult_t result = schedule(
      {communicator, [=] { return register_window(communicator, buffer, bytes, window, flags); }});
  return result == ncclInProgress ? ncclSuccess : result;  // it is polled all the same
}
SHARDWISE_NCCL_ALIAS(CommWindowRegister);

ncclResult_t ncclCommWindowDeregister(ncclComm_t handle, ncclWindow_t window) {
  if (window == nullptr) {
    return ncclSuccess;
  }
  const auto communicator = find(handle, "ncclCommWindowDeregister", Use::issue);
  if (!communicator) {
    return ncclInvalidArgument;
  }
  const Guard guard(big_lock());
  const auto found = std::ranges::find_if(
      communicator->windows, [&](const auto& entry) { return entry.second.handle == window; });
  if (found == communicator->windows.end()) {
    report("ncclCommWindowDeregister: no window of %s", label(*communicator).c_str());
    return refuse(ncclInvalidArgument, "ncclCommWindowDeregister: no such window");
  }
  if (found->second.in_flight > 0) {
    report(
        "ncclCommWindowDeregister: window %lld of %s is used by %d operations that have not "
        "ended: synchronise their stream before",
        static_cast<long long>(found->second.ordinal), label(*communicator).c_str(),
        found->second.in_flight);
  }
  count_registration(found->first, found->second.bytes, -1);
  communicator->windows.erase(found);
  delete window;
  return ncclSuccess;
}
SHARDWISE_NCCL_ALIAS(CommWindowDeregister);
