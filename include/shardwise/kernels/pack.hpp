#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "../core/host_device.hpp"

namespace shardwise::inline v0_1 {

namespace detail {

/// Bytes of the widest access to memory by one instruction.
inline constexpr std::size_t access_bytes = 16;

/// Elements that are read and written by one access.
template <class T, std::size_t Count>
struct alignas(sizeof(T) * Count) Pack {
  T values[Count];
};

#if defined(__CUDA_ARCH__)
/// Stores by one instruction. Left to itself nvcc shares stores between branches, and then they
/// come apart into elements; loads stay whole. `to` is in global memory.
template <class Access>
__device__ inline void store_whole(Access* to, const Access& pack) {
  const auto address = __cvta_generic_to_global(to);
  unsigned w[sizeof(Access) / 4];
  std::memcpy(w, &pack, sizeof(pack));
  if constexpr (sizeof(Access) == 4) {
    asm volatile("st.global.b32 [%0], %1;" ::"l"(address), "r"(w[0]) : "memory");
  } else if constexpr (sizeof(Access) == 8) {
    asm volatile("st.global.v2.b32 [%0], {%1, %2};" ::"l"(address), "r"(w[0]), "r"(w[1])
                 : "memory");
  } else {
    static_assert(sizeof(Access) == 16);
    asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(address), "r"(w[0]), "r"(w[1]),
                 "r"(w[2]), "r"(w[3])
                 : "memory");
  }
}
#endif

/// Width elements of T in registers.
template <class T, std::size_t Width>
struct Block {
  static constexpr std::size_t per_access =
      Width * sizeof(T) < access_bytes ? Width : access_bytes / sizeof(T);
  using Access = Pack<T, per_access>;

  T values[Width];

  /// From memory that is aligned by is_aligned_for.
  SHARDWISE_HOST_DEVICE void load(const T* from) {
    const auto* const packs = reinterpret_cast<const Access*>(from);
    for (std::size_t i = 0; i < Width / per_access; ++i) {
      const Access pack = packs[i];
      for (std::size_t k = 0; k < per_access; ++k) values[i * per_access + k] = pack.values[k];
    }
  }
  SHARDWISE_HOST_DEVICE void store(T* to) const {
    auto* const packs = reinterpret_cast<Access*>(to);
    for (std::size_t i = 0; i < Width / per_access; ++i) {
      Access pack;
      for (std::size_t k = 0; k < per_access; ++k) pack.values[k] = values[i * per_access + k];
#if defined(__CUDA_ARCH__)
      if constexpr (sizeof(Access) >= 4 && per_access > 1) {
        store_whole(packs + i, pack);
        continue;
      }
#endif
      packs[i] = pack;
    }
  }
};

/// Whether blocks of Width elements may be read and written from `pointer` on.
template <std::size_t Width, class T>
[[nodiscard]] bool is_aligned_for(const T* pointer) noexcept {
  constexpr std::size_t bytes = Width * sizeof(T) < access_bytes ? Width * sizeof(T) : access_bytes;
  return reinterpret_cast<std::uintptr_t>(pointer) % bytes == 0;
}

/// Elements of a block: one access to the largest of them, so that what neighbouring threads access
/// lies side by side in all arrays. (With 16 bytes of the smallest, AdamW in fp32 with a bf16 copy
/// took 9 % longer on an H200.)
template <class... Elements>
[[nodiscard]] constexpr std::size_t block_width() noexcept {
  std::size_t largest = 1;
  ((largest = sizeof(Elements) > largest ? sizeof(Elements) : largest), ...);
  return access_bytes / largest;
}

}  // namespace detail
}  // namespace shardwise::inline v0_1
