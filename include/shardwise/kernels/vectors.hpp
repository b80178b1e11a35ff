#pragma once

#include <cstdint>

namespace shardwise::inline v0_1::detail {

/// What the host's loops may compute with beyond what the compiler's options promise.
enum class Vectors : std::uint8_t { baseline, avx2, avx512, avx512_bf16 };

/// The widest that this processor and its system have. A few loads: asked at each call.
[[nodiscard]] inline Vectors widest_vectors() noexcept {
#if defined(__x86_64__) && !defined(__CUDA_ARCH__)
  // Not every compiler has a name for F16C; processors with FMA have it.
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return Vectors::baseline;
  // Processors without VBMI2 lower their clock where 512 bits are in use.
  const bool has_512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                       __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vbmi2");
  if (!has_512) return Vectors::avx2;
  return __builtin_cpu_supports("avx512bf16") ? Vectors::avx512_bf16 : Vectors::avx512;
#else
  return Vectors::baseline;
#endif
}

}  // namespace shardwise::inline v0_1::detail
