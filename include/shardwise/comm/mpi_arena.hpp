#pragma once

#include <algorithm>
#include <cstddef>
#include <memory>
#include <vector>

#include "../core/error.hpp"
#include "../memory.hpp"
#include "communicator.hpp"
#include "mpi_communicator.hpp"
#include "mpi_shared_memory.hpp"

namespace shardwise::inline v0_1 {

/// Memory of ranks on one machine that all of them have mapped, for what travels often. Gathers
/// into it and sums from it, in the canonical order, move each byte once and without MPI; all
/// buffers of a call must be in it, on all ranks, or it travels as other calls do. As
/// ContextOptions::slot_memory it holds all slots of a Context.
///
/// A page takes memory when it is touched, so that a size that is too large costs nothing. Where
/// the ranks are on several machines, or cannot map one another's memory (containers), it is this
/// rank's own and everything works as without it; is_shared() tells.
///
/// Made by all ranks of the communicator, one at a time, in the same order and with the same size;
/// goes before it, when no call uses its memory any more. Destroying it waits for nobody.
class MpiArena final : public SlotMemory {
 public:
  /// UsageError, BackendError, and as the communicator's calls.
  MpiArena(MpiCommunicator& communicator, std::size_t bytes, const CallInfo& info = {"arena"})
      : communicator_(communicator) {
    if (bytes == 0) raise("MpiArena \"{}\": 0 bytes", info.name);
    memory_ = communicator.share((bytes + boundary - 1) / boundary * boundary, info);
  }
  MpiArena(const MpiArena&) = delete;
  MpiArena& operator=(const MpiArena&) = delete;
  ~MpiArena() override { communicator_.unshare(); }

  /// A part of it, at a boundary of 256 bytes: the first gap that is large enough.
  [[nodiscard]] void* allocate(std::size_t bytes) override {
    const std::size_t size = (bytes + boundary - 1) / boundary * boundary;
    std::size_t offset = 0;
    auto next = parts_.begin();
    for (; next != parts_.end() && next->offset - offset < size; ++next) {
      offset = next->offset + next->bytes;
    }
    if (next == parts_.end() && memory_->size() - offset < size) {
      raise(
          "the MpiArena of {} bytes has no {} bytes left in one piece: make it larger; "
          "Context::plan() says what slots take",
          memory_->size(), size);
    }
    parts_.insert(next, {offset, size});
    return data() + offset;
  }
  void deallocate(void* memory, std::size_t /*bytes*/) noexcept override {
    const auto offset = static_cast<std::size_t>(static_cast<std::byte*>(memory) - data());
    std::erase_if(parts_, [&](const Part& part) { return part.offset == offset; });
  }

  [[nodiscard]] std::byte* data() const noexcept { return memory_->data(); }
  [[nodiscard]] std::size_t size() const noexcept { return memory_->size(); }
  /// The same on all ranks.
  [[nodiscard]] bool is_shared() const noexcept { return memory_->is_shared(); }

 private:
  struct Part {
    std::size_t offset;
    std::size_t bytes;
  };

  static constexpr std::size_t boundary = 256;

  MpiCommunicator& communicator_;
  std::shared_ptr<detail::mpi::SharedMemory> memory_;
  std::vector<Part> parts_;  // in use, by offset
};

}  // namespace shardwise::inline v0_1
