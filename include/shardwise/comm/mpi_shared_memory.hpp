#pragma once

#include <sys/mman.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <new>
#include <string>
#include <system_error>
#include <vector>

#include "../core/error.hpp"
#include "../core/format.hpp"
#include "mpi_memory_file.hpp"

namespace shardwise::inline v0_1::detail::mpi {

/// What a rank shows the others of the call that it is in.
struct alignas(128) SharedCall {
  /// Items of one call.
  static constexpr std::size_t most_items = 64;

  std::atomic<std::uint64_t> arrived{0};  // number of the last call that the rank has shown
  alignas(128) std::atomic<std::uint64_t> done{0};  // and of the last that it has finished
  bool usable = false;                              // its buffers are in its memory
  std::array<std::uint64_t, most_items> offsets{};
  std::array<double, most_items> weights{};
};
static_assert(std::atomic<std::uint64_t>::is_always_lock_free);

/// Equally large blocks of memory, one of each rank, that all ranks of one machine have mapped.
class SharedMemory {
 public:
  /// `exchange` gathers one text of each rank. Where ranks cannot map one another's memory,
  /// is_shared() is false on all, and the block is this rank's own.
  template <class Exchange>
  SharedMemory(std::size_t rank, std::size_t bytes, const std::string& machine,
               const Exchange& exchange)
      : rank_(rank), head_((sizeof(Calls) + page - 1) / page * page), bytes_(bytes) {
    const MemoryFile own = MemoryFile::make(whole());
    std::byte* const mine = own.map();
    if (mine == nullptr) {
      raise<BackendError>("cannot map {} bytes: {}", whole(),
                          std::generic_category().message(errno));
    }
    blocks_.push_back(mine);
    new (mine) Calls;
    const std::vector<std::string> texts =
        exchange(format("{}\n{}\n{}", bytes, own.address(), machine));
    const bool good = map_all(texts, machine);
    shared_ = true;
    for (const std::string& verdict : exchange(good ? "yes" : "no")) {
      shared_ = shared_ && verdict == "yes";
    }
  }
  SharedMemory(const SharedMemory&) = delete;
  SharedMemory& operator=(const SharedMemory&) = delete;
  ~SharedMemory() {
    for (std::byte* const block : blocks_) {
      if (block != nullptr) ::munmap(block, whole());
    }
  }

  [[nodiscard]] bool is_shared() const noexcept { return shared_; }
  [[nodiscard]] std::byte* data() const noexcept { return blocks_.front() + head_; }
  [[nodiscard]] std::size_t size() const noexcept { return bytes_; }

  /// Where is_shared(): `rank`'s block.
  [[nodiscard]] std::byte* data_of(std::size_t rank) const noexcept { return block(rank) + head_; }
  /// And its word, of every second call.
  [[nodiscard]] SharedCall& call_of(std::size_t rank, std::uint64_t number) const noexcept {
    return (*std::launder(reinterpret_cast<Calls*>(block(rank))))[number % 2];
  }

  /// Whether the bytes are in this rank's block.
  [[nodiscard]] bool holds(const void* from, std::size_t bytes) const noexcept {
    const auto begin = reinterpret_cast<std::uintptr_t>(data());
    const auto first = reinterpret_cast<std::uintptr_t>(from);
    return first >= begin && first - begin <= bytes_ && bytes <= bytes_ - (first - begin);
  }

 private:
  using Calls = std::array<SharedCall, 2>;

  static constexpr std::size_t page = 4096;

  [[nodiscard]] std::size_t whole() const noexcept { return head_ + bytes_; }
  // The first is this rank's own, the others are by rank, without it.
  [[nodiscard]] std::byte* block(std::size_t rank) const noexcept {
    return rank == rank_ ? blocks_.front() : blocks_[rank < rank_ ? rank + 1 : rank];
  }

  // False where not all others could be mapped.
  [[nodiscard]] bool map_all(const std::vector<std::string>& texts, const std::string& machine) {
    for (std::size_t r = 0; r < texts.size(); ++r) {
      if (r == rank_) continue;
      const std::string& text = texts[r];
      const std::size_t first = text.find('\n');
      const std::size_t second = text.find('\n', first + 1);
      if (const std::string size = std::to_string(bytes_); text.substr(0, first) != size) {
        raise("ranks ask for different sizes of shared memory: {} and {} bytes", size,
              text.substr(0, first));
      }
      if (text.substr(second + 1) != machine) return false;
      std::byte* const block =
          MemoryFile::at(text.substr(first + 1, second - first - 1), whole()).map();
      if (block == nullptr) return false;
      blocks_.push_back(block);
    }
    return true;
  }

  std::size_t rank_;
  std::size_t head_;
  std::size_t bytes_;
  bool shared_ = false;
  std::vector<std::byte*> blocks_;
};

}  // namespace shardwise::inline v0_1::detail::mpi
