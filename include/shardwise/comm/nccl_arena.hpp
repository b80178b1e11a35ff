#pragma once

#include <nccl.h>

#include <cstddef>
#include <memory>
#include <vector>

#include "../core/error.hpp"
#include "../device/cuda_guard.hpp"
#include "../memory.hpp"
#include "communicator.hpp"
#include "nccl_api.hpp"
#include "nccl_communicator.hpp"
#include "nccl_options.hpp"

namespace shardwise::inline v0_1 {

/// Device memory that NCCL knows: one block, registered once, for everything that travels often.
/// Buffers at equal offsets on all ranks move without staging and by fewer SMs, or by the copy
/// engines (NcclOptions::copy_engine). As ContextOptions::slot_memory it holds all slots of a
/// Context.
///
/// Made by all ranks of the communicator, in the same order and with the same size; goes before it,
/// when no call uses its memory any more.
class NcclArena final : public SlotMemory {
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
    try {
      registration_ = communicator.enroll(data, bytes, info);
    } catch (...) {
      communicator.withdraw(data);
      throw;
    }
  }
  NcclArena(const NcclArena&) = delete;
  NcclArena& operator=(const NcclArena&) = delete;
  ~NcclArena() override { communicator_.withdraw(data_.get()); }

  /// A part of the block, at a boundary of 256 bytes: the first gap that is large enough.
  [[nodiscard]] void* allocate(std::size_t bytes) override {
    const std::size_t size = rounded(bytes);
    std::size_t offset = 0;
    auto next = parts_.begin();
    for (; next != parts_.end() && next->offset - offset < size; ++next) {
      offset = next->offset + next->bytes;
    }
    if (next == parts_.end() && bytes_ - offset < size) {
      raise(
          "the NcclArena of {} bytes has no {} bytes left in one piece: make it larger; "
          "Context::plan() says what slots take",
          bytes_, size);
    }
    parts_.insert(next, {offset, size});
    return data() + offset;
  }
  void deallocate(void* memory, std::size_t /*bytes*/) noexcept override {
    const auto offset = static_cast<std::size_t>(static_cast<std::byte*>(memory) - data());
    std::erase_if(parts_, [&](const Part& part) { return part.offset == offset; });
  }

  [[nodiscard]] std::byte* data() const noexcept { return static_cast<std::byte*>(data_.get()); }
  [[nodiscard]] std::size_t size() const noexcept { return bytes_; }
  /// The same on all ranks.
  [[nodiscard]] NcclRegistration registration() const noexcept { return registration_; }

 private:
  struct Part {
    std::size_t offset;
    std::size_t bytes;
  };
  struct Free {
    void operator()(void* data) const noexcept { static_cast<void>(ncclMemFree(data)); }
  };

  static std::size_t rounded(std::size_t bytes) noexcept {
    constexpr std::size_t boundary = 256;
    return (bytes + boundary - 1) / boundary * boundary;
  }

  NcclCommunicator& communicator_;
  std::size_t bytes_;
  std::unique_ptr<void, Free> data_;
  NcclRegistration registration_ = NcclRegistration::none;
  std::vector<Part> parts_;  // in use, by offset
};

}  // namespace shardwise::inline v0_1
