#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "../core/host_device.hpp"

namespace shardwise::inline v0_1 {

namespace detail {

/// The widest access to memory of any chip that we know, in bytes: what is aligned to it, or as a
/// whole is smaller, is aligned for all of them.
inline constexpr std::size_t widest_access = 32;

/// The widest access of the chip that is compiled for: 32 bytes since compute capability 10.0.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
inline constexpr std::size_t access_bytes = widest_access;
#else
inline constexpr std::size_t access_bytes = 16;
#endif

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
  if constexpr (sizeof(Access) == 8) {
    asm volatile("st.global.v2.b32 [%0], {%1, %2};" ::"l"(address), "r"(w[0]), "r"(w[1])
                 : "memory");
  } else if constexpr (sizeof(Access) == 16) {
    asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(address), "r"(w[0]), "r"(w[1]),
                 "r"(w[2]), "r"(w[3])
                 : "memory");
  } else {
    static_assert(sizeof(Access) == 32);
    asm volatile("st.global.v8.b32 [%0], {%1, %2, %3, %4, %5, %6, %7, %8};" ::"l"(address),
                 "r"(w[0]), "r"(w[1]), "r"(w[2]), "r"(w[3]), "r"(w[4]), "r"(w[5]), "r"(w[6]),
                 "r"(w[7])
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
      if constexpr (sizeof(Access) >= 8 && per_access > 1) {
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
  constexpr std::size_t bytes =
      Width * sizeof(T) < widest_access ? Width * sizeof(T) : widest_access;
  return reinterpret_cast<std::uintptr_t>(pointer) % bytes == 0;
}

/// Elements of a block for functors whose smallest element is a Smallest: its accesses have 16
/// bytes, those of larger elements are as wide as the chip has them.
template <class... Elements>
[[nodiscard]] constexpr std::size_t block_width() noexcept {
  std::size_t smallest = 16;
  ((smallest = sizeof(Elements) < smallest ? sizeof(Elements) : smallest), ...);
  return 16 / smallest;
}

}  // namespace detail
}  // namespace shardwise::inline v0_1
