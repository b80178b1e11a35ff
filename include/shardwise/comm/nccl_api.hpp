#pragma once

#include <nccl.h>

#include <string>
#include <string_view>

#include "../core/dtype.hpp"
#include "../core/error.hpp"

/// @file
/// What the communicator needs to know of NCCL's versions and words. Compiles with the headers of
/// NCCL 2.22 and later; what came later is used where the header has it.

#if NCCL_VERSION_CODE < NCCL_VERSION(2, 22, 0)
#error "shardwise needs NCCL 2.22 or later"
#endif

#if NCCL_VERSION_CODE >= NCCL_VERSION(2, 28, 7)
// Weak: null where the library that is loaded is of an earlier patch than the header.
extern "C" [[gnu::weak]] ncclResult_t ncclCommRevoke(ncclComm_t comm, int revokeFlags);
#endif

namespace shardwise::inline v0_1::detail::nccl {

/// ncclConfig_t has commName; windows and shrinking exist.
inline constexpr bool has_windows = NCCL_VERSION_CODE >= NCCL_VERSION(2, 27, 0);
/// ncclAlltoAll, and gathers by the copy engines (NCCL_CTA_POLICY_ZERO), exist.
inline constexpr bool has_all_to_all = NCCL_VERSION_CODE >= NCCL_VERSION(2, 28, 3);
/// ncclCommRevoke exists: in-flight work of a communicator ends, its owner may still destroy it.
inline constexpr bool has_revoke = NCCL_VERSION_CODE >= NCCL_VERSION(2, 28, 7);
/// And whether the library that is loaded has it.
[[nodiscard]] inline bool can_revoke() noexcept {
#if NCCL_VERSION_CODE >= NCCL_VERSION(2, 28, 7)
  return ncclCommRevoke != nullptr;
#else
  return false;
#endif
}

[[nodiscard]] constexpr ncclDataType_t type_of(DType type) noexcept {
  switch (type) {
    case DType::f64:
      return ncclFloat64;
    case DType::bf16:
      return ncclBfloat16;
    case DType::f16:
      return ncclFloat16;
    case DType::i64:
      return ncclInt64;
    case DType::i32:
      return ncclInt32;
    case DType::i8:
      return ncclInt8;
    case DType::u8:
      return ncclUint8;
    case DType::f32:
      break;
  }
  return ncclFloat32;
}

/// What whoever reads the message can do about it.
[[nodiscard]] inline const char* advice_on(ncclResult_t result) noexcept {
  switch (result) {
    case ncclUnhandledCudaError:
      return "CUDA refused what NCCL asked for: is there a device with a driver that is new "
             "enough, "
             "one for each rank, and memory left on it?";
    case ncclSystemError:
      return "a socket, a file or shared memory failed: look at NCCL_SOCKET_IFNAME and at the size "
             "of /dev/shm";
    case ncclRemoteError:
      return "a peer's process or the link to it has failed: look at the other ranks' messages";
    case ncclInvalidUsage:
    case ncclInvalidArgument:
      return "do two ranks use one device, or do all ranks make the same calls?";
    default:
      return "NCCL_DEBUG=INFO says more";
  }
}

[[noreturn]] inline void raise_result(ncclResult_t result, std::string_view call, int rank) {
  const char* const last = ncclGetLastError(nullptr);
  const std::string details = last == nullptr ? "" : last;
  raise<BackendError>("{} on rank {}: {} ({}){}{}; {}", call, rank, ncclGetErrorString(result),
                      static_cast<int>(result), details.empty() ? "" : ": ", details,
                      advice_on(result));
}

}  // namespace shardwise::inline v0_1::detail::nccl
