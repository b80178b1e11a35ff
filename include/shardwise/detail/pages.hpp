#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <string>
#include <string_view>

#include "../core/error.hpp"

namespace shardwise::inline v0_1::detail {

/// The operating system's side of residency in_place: pages come and go, addresses stay. Linux.
/// Addresses and sizes are multiples of page_size().

[[nodiscard]] inline std::size_t page_size() noexcept {
  return static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
}

/// Whole pages.
struct PageRange {
  std::byte* begin = nullptr;
  std::size_t bytes = 0;
};

/// What may be done with pages.
enum class Access : std::uint8_t { none, read, write };

[[nodiscard]] constexpr int protection(Access access) noexcept {
  if (access == Access::none) return PROT_NONE;
  return access == Access::read ? PROT_READ : PROT_READ | PROT_WRITE;
}

[[noreturn]] inline void raise_pages(std::string_view what, std::size_t bytes) {
  const int error = errno;
  const char* const advice =
      error == ENOMEM ? " (no memory, or more mappings than vm.max_map_count allows)" : "";
  throw BackendError(std::string(what) + " of " + std::to_string(bytes) +
                     " bytes failed: " + std::strerror(error) + advice);
}

/// Addresses without memory: pages appear, zeroed, when they are written.
[[nodiscard]] inline std::byte* reserve_pages(std::size_t bytes, int sharing = MAP_PRIVATE) {
  void* at =
      mmap(nullptr, bytes, PROT_READ | PROT_WRITE, sharing | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (at == MAP_FAILED) raise_pages("reserving an address range", bytes);
  return static_cast<std::byte*>(at);
}

/// The same, for memory that alias_pages puts below other addresses as well. A child process shares
/// it with its parent.
[[nodiscard]] inline std::byte* reserve_common_pages(std::size_t bytes) {
  return reserve_pages(bytes, MAP_SHARED);
}

inline void unmap_pages(PageRange range) noexcept { munmap(range.begin, range.bytes); }

/// Gives the memory of `range` back; its addresses stay reserved. False, with errno, where the
/// system refuses.
[[nodiscard]] inline bool empty_pages(PageRange range, Access access) noexcept {
  return mmap(range.begin, range.bytes, protection(access),
              MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0) != MAP_FAILED;
}

[[nodiscard]] inline bool protect_pages(PageRange range, Access access) noexcept {
  return mprotect(range.begin, range.bytes, protection(access)) == 0;
}

/// Moves the memory of `from` below `to`, whose own is lost; the addresses of `from` stay reserved,
/// without memory. DONTUNMAP is what keeps them: a hole could become another thread's mapping.
[[nodiscard]] inline bool move_pages(PageRange from, std::byte* to) noexcept {
#if defined(MREMAP_DONTUNMAP)
  constexpr int dont_unmap = MREMAP_DONTUNMAP;
#else
  constexpr int dont_unmap = 4;
#endif
  return mremap(from.begin, from.bytes, from.bytes, MREMAP_MAYMOVE | MREMAP_FIXED | dont_unmap,
                to) != MAP_FAILED;
}

/// Whether the system can move pages so (Linux 5.7 and later).
[[nodiscard]] inline bool can_move_pages() {
  const std::size_t page = page_size();
  const PageRange both{reserve_pages(2 * page), 2 * page};
  both.begin[0] = std::byte{42};
  const bool moved = move_pages({both.begin, page}, both.begin + page) &&
                     both.begin[page] == std::byte{42} && both.begin[0] == std::byte{0};
  unmap_pages(both);
  return moved;
}

/// Puts the memory of `from`, which reserve_common_pages made, below `to` as well, whose own is
/// lost.
[[nodiscard]] inline bool alias_pages(PageRange from, std::byte* to) noexcept {
  if (mremap(from.begin, 0, from.bytes, MREMAP_MAYMOVE | MREMAP_FIXED, to) == MAP_FAILED) {
    return false;
  }
#if defined(MADV_POPULATE_WRITE)
  // Where the system cannot, pages come one by one when they are written.
  static_cast<void>(madvise(to, from.bytes, MADV_POPULATE_WRITE));
#endif
  return true;
}

/// Whether the system can.
[[nodiscard]] inline bool can_alias_pages() {
  const std::size_t page = page_size();
  const PageRange memory{reserve_common_pages(page), page};
  const PageRange other{reserve_pages(page), page};
  memory.begin[0] = std::byte{42};
  const bool same = alias_pages(memory, other.begin) && other.begin[0] == std::byte{42};
  unmap_pages(memory);
  unmap_pages(other);
  return same;
}

/// vm.max_map_count; as good as none where it cannot be read.
[[nodiscard]] inline std::size_t most_mappings() noexcept {
  std::size_t most = SIZE_MAX;
  if (std::FILE* file = std::fopen("/proc/sys/vm/max_map_count", "re")) {
    if (std::fscanf(file, "%zu", &most) != 1) most = SIZE_MAX;
    std::fclose(file);
  }
  return most;
}

/// Whole pages within `bytes` from `begin` on; empty where there are none. So many as there are for
/// sure, wherever it begins: equal layers have equal ranges, and pages go from one to the next.
[[nodiscard]] inline PageRange inner_pages(std::byte* begin, std::size_t bytes) noexcept {
  const std::size_t page = page_size();
  const auto address = reinterpret_cast<std::uintptr_t>(begin);
  const std::size_t head = (page - address % page) % page;
  if (bytes < 2 * page - 1) return {};
  return {begin + head, (bytes - (page - 1)) / page * page};
}

}  // namespace shardwise::inline v0_1::detail
