#pragma once

#include <cstdint>

#if defined(__x86_64__) && !defined(__CUDA_ARCH__)
#include <cpuid.h>
#endif

namespace shardwise::inline v0_1::detail {

/// What the host's loops may compute with beyond what the compiler's options promise.
enum class Vectors : std::uint8_t { baseline, avx2, avx512 };

/// The widest that this processor and its system have.
[[nodiscard]] inline Vectors find_vectors() noexcept {
#if defined(__x86_64__) && !defined(__CUDA_ARCH__)
  __builtin_cpu_init();
  unsigned eax = 0;
  unsigned ebx = 0;
  unsigned ecx = 0;
  unsigned edx = 0;
  const bool has_f16c = __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0 && (ecx & bit_F16C) != 0;
  if (!has_f16c || !__builtin_cpu_supports("avx2")) return Vectors::baseline;
  // Processors without VBMI2 lower their clock where 512 bits are in use.
  const bool has_512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vbmi2");
  return has_512 ? Vectors::avx512 : Vectors::avx2;
#else
  return Vectors::baseline;
#endif
}

/// Before its initialisation, when a program starts: baseline.
inline const Vectors widest_vectors = find_vectors();

}  // namespace shardwise::inline v0_1::detail
