#pragma once

#include <nccl.h>

#include <cstddef>
#include <memory>

#include "../core/error.hpp"
#include "../device/cuda_guard.hpp"
#include "communicator.hpp"
#include "nccl_api.hpp"
#include "nccl_communicator.hpp"
#include "nccl_options.hpp"

namespace shardwise::inline v0_1 {

/// Device memory that NCCL knows: one block, registered once, for everything that travels often.
/// Buffers at equal offsets on all ranks move without staging and by fewer SMs, or by the copy
/// engines (NcclOptions::copy_engine).
///
/// Made by all ranks of the communicator, in the same order and with the same size; goes before it,
/// when no call uses its memory any more.
class NcclArena {
 public:
  /// BackendError where the memory is not there, on all ranks.
  NcclArena(NcclCommunicator& communicator, std::size_t bytes, const CallInfo& info = {"arena"})
      : communicator_(communicator), bytes_(bytes) {
    if (bytes == 0) raise("NcclArena \"{}\": 0 bytes", info.name);
    void* data = nullptr;
    if (const ncclResult_t result = ncclMemAlloc(&data, bytes); result != ncclSuccess) {
      try {
        detail::nccl::raise_result(result, "ncclMemAlloc", communicator.rank());
      } catch (const BackendError& error) {
        communicator.abort(error.what());
        throw;
      }
    }
    data_.reset(data);
    registration_ = communicator.enroll(data, bytes, info);
  }
  NcclArena(const NcclArena&) = delete;
  NcclArena& operator=(const NcclArena&) = delete;
  ~NcclArena() { communicator_.withdraw(data_.get()); }

  [[nodiscard]] std::byte* data() const noexcept { return static_cast<std::byte*>(data_.get()); }
  [[nodiscard]] std::size_t size() const noexcept { return bytes_; }
  /// The same on all ranks.
  [[nodiscard]] NcclRegistration registration() const noexcept { return registration_; }

 private:
  struct Free {
    void operator()(void* data) const noexcept { static_cast<void>(ncclMemFree(data)); }
  };

  NcclCommunicator& communicator_;
  std::size_t bytes_;
  std::unique_ptr<void, Free> data_;
  NcclRegistration registration_ = NcclRegistration::none;
};

}  // namespace shardwise::inline v0_1
