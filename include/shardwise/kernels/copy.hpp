#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "wide.hpp"

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace shardwise::inline v0_1 {

namespace detail {

/// Bytes that travel together.
inline constexpr std::size_t cache_line = 64;

/// Bytes from `at` to the next line's begin; 0 where one begins.
[[nodiscard]] inline std::size_t bytes_to_line(const void* at) noexcept {
  return (cache_line - reinterpret_cast<std::uintptr_t>(at) % cache_line) % cache_line;
}

/// The line `ahead` bytes further on, which may be past the end: loops over several streams, and
/// streaming stores, see too few loads ahead by themselves.
inline void prefetch_line(const void* from, std::size_t ahead) noexcept {
  __builtin_prefetch(reinterpret_cast<const void*>(reinterpret_cast<std::uintptr_t>(from) + ahead));
}

// Whole lines as far as wide vectors go; how many bytes. `streaming`: `to` begins a line.
template <bool streaming>
[[nodiscard]] inline std::size_t copy_wide(std::byte* to, const std::byte* from, std::size_t bytes,
                                           Vectors vectors) noexcept {
  const std::size_t words = bytes / cache_line * cache_line / sizeof(float);
  return sizeof(float) * run_wide<float>(vectors, words, [&]<class Wide>(std::size_t whole) {
           Wide::template copy_lines<streaming>(to, from, whole * sizeof(float));
         });
}

// glibc's memcpy uses `rep movsb` on many x86 cores, which is more than ten times slower where the
// target lies a little behind the source modulo 4096 (glibc bug 30994), as neighbouring buffers do.
// Blocks of registers are as fast as memcpy at its best.
inline void copy_blocks(std::byte* __restrict to, const std::byte* __restrict from,
                        std::size_t bytes, Vectors vectors = widest_vectors()) noexcept {
  constexpr std::size_t block = cache_line;
  // Targets in a host's own layout begin anywhere: stores that straddle lines cost twice.
  const std::size_t head = bytes_to_line(to);
  if (head > 0 && bytes >= 16 * block) {
    std::memcpy(to, from, head);
    to += head;
    from += head;
    bytes -= head;
  }
  if (bytes >= 16 * block) {
    const std::size_t done = copy_wide<false>(to, from, bytes, vectors);
    to += done;
    from += done;
    bytes -= done;
  }
  for (; bytes >= block; bytes -= block, to += block, from += block) {
    std::memcpy(to, from, block);
  }
  if (bytes > 0) std::memcpy(to, from, bytes);
}

/// Copies to two places that do not overlap with each other either, and reads once where wide
/// vectors are.
inline void copy_twice(std::byte* __restrict to, std::byte* __restrict also,
                       const std::byte* __restrict from, std::size_t bytes,
                       Vectors vectors = widest_vectors()) noexcept {
  const auto copy_both = [&](std::size_t count) {
    copy_blocks(to, from, count, vectors);
    copy_blocks(also, from, count, vectors);
    to += count;
    also += count;
    from += count;
    bytes -= count;
  };
  const std::size_t head = bytes_to_line(to);
  if (head > 0 && bytes > head) copy_both(head);
  const std::size_t words = bytes / cache_line * cache_line / sizeof(float);
  const std::size_t done =
      sizeof(float) * run_wide<float>(vectors, words, [&]<class Wide>(std::size_t whole) {
        Wide::copy_lines_twice(to, also, from, whole * sizeof(float));
      });
  to += done;
  also += done;
  from += done;
  bytes -= done;
  copy_both(bytes);
}

/// By memcpy, which does not read what it overwrites, but for where it is slow (see copy_blocks).
inline void copy_by_memcpy(void* to, const void* from, std::size_t bytes) noexcept {
  const std::uintptr_t behind =
      (reinterpret_cast<std::uintptr_t>(to) - reinterpret_cast<std::uintptr_t>(from)) % 4096;
  if (behind > 0 && behind < 512) {
    return copy_blocks(static_cast<std::byte*>(to), static_cast<const std::byte*>(from), bytes);
  }
  std::memcpy(to, from, bytes);
}

/// Copies past the caches where the machine can, up to end_streaming(), before which nobody else
/// may look.
inline void stream_bytes(std::byte* __restrict to, const std::byte* __restrict from,
                         std::size_t bytes, Vectors vectors = widest_vectors()) noexcept {
#if defined(__SSE2__)
  const std::size_t head = bytes_to_line(to);
  if (bytes < head + cache_line) return copy_blocks(to, from, bytes, vectors);
  if (head > 0) std::memcpy(to, from, head);
  const std::size_t done = copy_wide<true>(to + head, from + head, bytes - head, vectors);
  to += head + done;
  from += head + done;
  bytes -= head + done;
  for (; bytes >= cache_line; bytes -= cache_line, to += cache_line, from += cache_line) {
    prefetch_line(from, 2048);
    __m128i part[4];
    std::memcpy(part, from, cache_line);
    for (int k = 0; k < 4; ++k) _mm_stream_si128(reinterpret_cast<__m128i*>(to) + k, part[k]);
  }
  if (bytes > 0) std::memcpy(to, from, bytes);
#else
  copy_blocks(to, from, bytes, vectors);
#endif
}

inline void end_streaming() noexcept {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

}  // namespace detail

/// Copies between buffers that do not overlap, or are the same. `streaming`: past the caches, for
/// more data than they hold (where the machine can; else as usual). Null is fine for 0 bytes.
inline void copy_bytes(void* to, const void* from, std::size_t bytes,
                       bool streaming = false) noexcept {
  if (bytes == 0 || to == from) return;
  auto* target = static_cast<std::byte*>(to);
  const auto* source = static_cast<const std::byte*>(from);
  if (!streaming) return detail::copy_blocks(target, source, bytes);
  detail::stream_bytes(target, source, bytes);
  detail::end_streaming();
}

}  // namespace shardwise::inline v0_1
