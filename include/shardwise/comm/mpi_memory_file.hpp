#pragma once

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <charconv>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>

#include "../core/error.hpp"
#include "../core/format.hpp"

namespace shardwise::inline v0_1::detail::mpi {

/// Memory that has a file's descriptor and no name: other processes of the machine map it by way of
/// /proc, while this object is there. Not a window of MPI's: those are freed by all ranks together,
/// which a rank that fails cannot wait for. The kernel gives memory to a page when it is touched,
/// and takes all back when nobody has it mapped any more, however processes end.
class MemoryFile {
 public:
  /// New, and zero. BackendError.
  [[nodiscard]] static MemoryFile make(std::size_t bytes) {
    MemoryFile file(::memfd_create("shardwise", MFD_CLOEXEC), bytes);
    if (file.descriptor_ < 0 || ::ftruncate(file.descriptor_, static_cast<off_t>(bytes)) != 0) {
      raise<BackendError>("cannot make {} bytes of memory to share: {}", bytes,
                          std::generic_category().message(errno));
    }
    return file;
  }

  /// What another process finds it by; where it cannot, or is in another container, map() is null.
  [[nodiscard]] std::string address() const {
    const Identity mine = identity();
    return format("{} {} {} {}", ::getpid(), descriptor_, mine.device, mine.inode);
  }
  [[nodiscard]] static MemoryFile at(std::string_view address, std::size_t bytes) {
    std::array<std::uint64_t, 4> numbers{};
    const char* at = address.data();
    const char* const end = at + address.size();
    for (std::uint64_t& number : numbers) {
      at = std::from_chars(at, end, number).ptr;
      if (at != end) ++at;
    }
    // In another container the number is another process, or none.
    const std::string path = format("/proc/{}/fd/{}", numbers[0], numbers[1]);
    MemoryFile file(::open(path.c_str(), O_RDWR | O_CLOEXEC), bytes);
    const Identity found = file.identity();
    if (found.bytes == bytes && found.device == numbers[2] && found.inode == numbers[3]) {
      return file;
    }
    return MemoryFile(-1, bytes);
  }

  MemoryFile(MemoryFile&& other) noexcept
      : descriptor_(std::exchange(other.descriptor_, -1)), bytes_(other.bytes_) {}
  MemoryFile& operator=(MemoryFile&&) = delete;
  ~MemoryFile() {
    if (descriptor_ >= 0) ::close(descriptor_);
  }

  /// All of it, to read and write; munmap() ends it, the file may go before. Null: errno.
  [[nodiscard]] std::byte* map() const noexcept {
    void* const found = ::mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor_, 0);
    return found == MAP_FAILED ? nullptr : static_cast<std::byte*>(found);
  }

 private:
  struct Identity {
    std::uint64_t device = 0;
    std::uint64_t inode = 0;
    std::size_t bytes = 0;
  };

  MemoryFile(int descriptor, std::size_t bytes) noexcept : descriptor_(descriptor), bytes_(bytes) {}

  [[nodiscard]] Identity identity() const noexcept {
    struct stat status {};
    if (descriptor_ < 0 || ::fstat(descriptor_, &status) != 0) return {};
    return {status.st_dev, status.st_ino, static_cast<std::size_t>(status.st_size)};
  }

  int descriptor_;
  std::size_t bytes_;
};

}  // namespace shardwise::inline v0_1::detail::mpi
