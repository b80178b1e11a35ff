#pragma once

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <charconv>
#include <cstddef>
#include <cstdint>
#include <new>
#include <random>
#include <string>
#include <system_error>
#include <vector>

#include "../core/error.hpp"
#include "../core/format.hpp"

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

/// Equally large blocks of memory, one of each rank, that all ranks of one machine have mapped. Not
/// a window of MPI's: those are freed by all ranks together, which a rank that fails cannot wait
/// for. The kernel gives memory to a page when it is touched, and takes all back when the last
/// process has gone, however it ends.
class SharedMemory {
 public:
  /// `exchange` gathers one text of each rank. Where ranks cannot map one another's memory,
  /// is_shared() is false on all, and the block is this rank's own.
  template <class Exchange>
  SharedMemory(std::size_t rank, std::size_t bytes, const std::string& machine,
               const Exchange& exchange)
      : rank_(rank), head_((sizeof(Head) + page - 1) / page * page), bytes_(bytes) {
    std::random_device random;
    const std::uint64_t token = std::uint64_t{random()} << 32 | random();
    File own{::memfd_create("shardwise", MFD_CLOEXEC)};
    if (own.descriptor < 0 || ::ftruncate(own.descriptor, static_cast<off_t>(whole())) != 0) {
      raise<BackendError>("cannot make {} bytes of memory to share: {}", whole(), error_text());
    }
    std::byte* const mine = map(own.descriptor);
    if (mine == nullptr) raise<BackendError>("cannot map {} bytes: {}", whole(), error_text());
    blocks_.push_back(mine);
    new (mine) Head{token, {}};
    const std::vector<std::string> texts =
        exchange(format("{} {} {} {} {}", bytes, token, ::getpid(), own.descriptor, machine));
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
    return std::launder(reinterpret_cast<Head*>(block(rank)))->calls[number % 2];
  }

  /// Whether the bytes are in this rank's block.
  [[nodiscard]] bool holds(const void* from, std::size_t bytes) const noexcept {
    const auto begin = reinterpret_cast<std::uintptr_t>(data());
    const auto first = reinterpret_cast<std::uintptr_t>(from);
    return first >= begin && first - begin <= bytes_ && bytes <= bytes_ - (first - begin);
  }

 private:
  struct Head {
    std::uint64_t token;  // tells whether a mapping is what it should be
    std::array<SharedCall, 2> calls;
  };
  struct File {
    int descriptor;
    explicit File(int given) noexcept : descriptor(given) {}
    File(const File&) = delete;
    File& operator=(const File&) = delete;
    ~File() {
      if (descriptor >= 0) ::close(descriptor);
    }
  };

  static constexpr std::size_t page = 4096;

  [[nodiscard]] std::size_t whole() const noexcept { return head_ + bytes_; }
  // The first is this rank's own, the others are by rank, without it.
  [[nodiscard]] std::byte* block(std::size_t rank) const noexcept {
    return rank == rank_ ? blocks_.front() : blocks_[rank < rank_ ? rank + 1 : rank];
  }

  [[nodiscard]] static std::string error_text() { return std::generic_category().message(errno); }

  [[nodiscard]] std::byte* map(int descriptor) const noexcept {
    void* const found = ::mmap(nullptr, whole(), PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0);
    return found == MAP_FAILED ? nullptr : static_cast<std::byte*>(found);
  }

  // False where not all others could be mapped.
  [[nodiscard]] bool map_all(const std::vector<std::string>& texts, const std::string& machine) {
    for (std::size_t r = 0; r < texts.size(); ++r) {
      if (r == rank_) continue;
      std::array<std::uint64_t, 4> numbers{};  // bytes, token, process, descriptor
      const char* at = texts[r].data();
      const char* const end = at + texts[r].size();
      for (std::uint64_t& number : numbers) {
        at = std::from_chars(at, end, number).ptr;
        if (at != end) ++at;
      }
      if (numbers[0] != bytes_) {
        raise("ranks ask for different sizes of shared memory: {} and {} bytes", bytes_,
              numbers[0]);
      }
      if (std::string(at, end) != machine) return false;
      // In another container the number is another process, or none.
      const std::string path = format("/proc/{}/fd/{}", numbers[2], numbers[3]);
      const File theirs{::open(path.c_str(), O_RDWR | O_CLOEXEC)};
      struct stat status {};
      if (theirs.descriptor < 0 || ::fstat(theirs.descriptor, &status) != 0) return false;
      if (!S_ISREG(status.st_mode) || status.st_size != static_cast<off_t>(whole())) return false;
      std::byte* const block = map(theirs.descriptor);
      if (block == nullptr) return false;
      blocks_.push_back(block);
      if (std::launder(reinterpret_cast<Head*>(block))->token != numbers[1]) return false;
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
