#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace shardwise::inline v0_1 {

namespace detail {

// glibc's memcpy uses `rep movsb` on many x86 cores, which is more than ten times slower where the
// target lies a little behind the source modulo 4096 (glibc bug 30994), as neighbouring buffers do.
// Blocks of registers are as fast as memcpy at its best.
inline void copy_blocks(std::byte* __restrict to, const std::byte* __restrict from,
                        std::size_t bytes) noexcept {
  constexpr std::size_t block = 64;
  // Targets in a host's own layout begin anywhere: stores that straddle lines cost twice.
  const std::size_t head = (block - reinterpret_cast<std::uintptr_t>(to) % block) % block;
  if (head > 0 && bytes >= 16 * block) {
    std::memcpy(to, from, head);
    to += head;
    from += head;
    bytes -= head;
  }
  for (; bytes >= block; bytes -= block, to += block, from += block) {
    std::memcpy(to, from, block);
  }
  if (bytes > 0) std::memcpy(to, from, bytes);
}

#if defined(__SSE2__)
inline void copy_streaming(std::byte* __restrict to, const std::byte* __restrict from,
                           std::size_t bytes) noexcept {
  constexpr std::size_t line = 64;
  const std::size_t head = (line - reinterpret_cast<std::uintptr_t>(to) % line) % line;
  if (bytes < head + line) return copy_blocks(to, from, bytes);
  copy_blocks(to, from, head);
  to += head;
  from += head;
  bytes -= head;
  for (; bytes >= line; bytes -= line, to += line, from += line) {
    __m128i part[4];
    std::memcpy(part, from, line);
    for (int k = 0; k < 4; ++k) _mm_stream_si128(reinterpret_cast<__m128i*>(to) + k, part[k]);
  }
  _mm_sfence();
  copy_blocks(to, from, bytes);
}
#endif

}  // namespace detail

/// Copies between buffers that do not overlap, or are the same. `streaming`: past the caches, for
/// more data than they hold (where the machine can; else as usual). Null is fine for 0 bytes.
inline void copy_bytes(void* to, const void* from, std::size_t bytes,
                       bool streaming = false) noexcept {
  if (bytes == 0 || to == from) return;
  auto* target = static_cast<std::byte*>(to);
  const auto* source = static_cast<const std::byte*>(from);
#if defined(__SSE2__)
  if (streaming) return detail::copy_streaming(target, source, bytes);
#else
  static_cast<void>(streaming);
#endif
  detail::copy_blocks(target, source, bytes);
}

}  // namespace shardwise::inline v0_1
