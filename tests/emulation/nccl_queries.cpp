#include <cstring>

#include "nccl_communicator.hpp"

using namespace emulation;

ncclResult_t ncclCommGetAsyncError(ncclComm_t handle, ncclResult_t* error) {
  const auto communicator = find(handle, "ncclCommGetAsyncError", Use::query);
  if (!communicator || error == nullptr) {
    return ncclInvalidArgument;
  }
  std::shared_ptr<Link> link;
  {
    const Guard guard(big_lock());
    link = communicator->revoked ? nullptr : communicator->link;
    *error = communicator->state;
    if (*error == ncclSuccess && communicator->polls > 0) {
      --communicator->polls;
      *error = ncclInProgress;
    }
  }
  // Not with the lock held: the answer may come from another process.
  const bool fine = *error == ncclSuccess || *error == ncclInProgress;
  if (fine && link && link->health() != ncclSuccess) {
    const Guard guard(big_lock());
    *error = communicator->state = ncclRemoteError;
  }
  if (*error == ncclSuccess) {
    hb_acquire(&communicator->ready_edge);
  }
  return ncclSuccess;
}
SHARDWISE_NCCL_ALIAS(CommGetAsyncError);

ncclResult_t ncclCommCount(const ncclComm_t handle, int* count) {
  const auto communicator = find(handle, "ncclCommCount", Use::query);
  if (!communicator || count == nullptr) {
    return ncclInvalidArgument;
  }
  if (const auto result = ensure_ready(*communicator, "ncclCommCount"); result != ncclSuccess) {
    return result;
  }
  *count = communicator->link->ranks();
  return ncclSuccess;
}
SHARDWISE_NCCL_ALIAS(CommCount);

ncclResult_t ncclCommUserRank(const ncclComm_t handle, int* rank) {
  const auto communicator = find(handle, "ncclCommUserRank", Use::query);
  if (!communicator || rank == nullptr) {
    return ncclInvalidArgument;
  }
  if (const auto result = ensure_ready(*communicator, "ncclCommUserRank"); result != ncclSuccess) {
    return result;
  }
  *rank = communicator->link->rank();
  return ncclSuccess;
}
SHARDWISE_NCCL_ALIAS(CommUserRank);

ncclResult_t ncclCommCuDevice(const ncclComm_t handle, int* device) {
  const auto communicator = find(handle, "ncclCommCuDevice", Use::query);
  if (!communicator || device == nullptr) {
    return ncclInvalidArgument;
  }
  if (const auto result = ensure_ready(*communicator, "ncclCommCuDevice"); result != ncclSuccess) {
    return result;
  }
  *device = communicator->device;
  return ncclSuccess;
}
SHARDWISE_NCCL_ALIAS(CommCuDevice);

const char* ncclGetErrorString(ncclResult_t result) {
  switch (result) {
    case ncclSuccess:
      return "no error";
    case ncclUnhandledCudaError:
      return "unhandled cuda error (emulated)";
    case ncclSystemError:
      return "unhandled system error (emulated)";
    case ncclInternalError:
      return "internal error (emulated)";
    case ncclInvalidArgument:
      return "invalid argument (emulated)";
    case ncclInvalidUsage:
      return "invalid usage (emulated)";
    case ncclRemoteError:
      return "remote process exited or there was a network error (emulated)";
    case ncclInProgress:
      return "NCCL operation in progress (emulated)";
    default:
      return "unknown result code";
  }
}
SHARDWISE_NCCL_ALIAS(GetErrorString);

const char* ncclGetLastError(ncclComm_t) { return last_error_text(); }
SHARDWISE_NCCL_ALIAS(GetLastError);

extern "C" void ncclResetDebugInit() {}
extern "C" void pncclResetDebugInit() {}

extern "C" int shardwise_emulation_nccl_communicators() { return living_handles(); }

extern "C" void shardwise_emulation_nccl_paths(ncclComm_t handle, long* paths) {
  if (const auto communicator = find(handle, "shardwise_emulation_nccl_paths", Use::query)) {
    const Guard guard(big_lock());
    std::memcpy(paths, communicator->paths.data(), sizeof communicator->paths);
  }
}
