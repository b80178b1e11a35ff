#pragma once

#include <cstddef>
#include <cstdio>

namespace shardwise::inline v0_1::detail {

/// Bytes of the last cache of the first core, as the kernel tells; a usual size where it does not.
/// (sysconf's number, on which the C library's own choice of stores rests, is many times as large
/// on some virtual machines.)
[[nodiscard]] inline std::size_t last_cache_bytes() noexcept {
  constexpr std::size_t usual = std::size_t{32} << 20;
  std::size_t largest = 0;
  for (int index = 0; index < 8; ++index) {
    char path[64];
    std::snprintf(path, sizeof(path), "/sys/devices/system/cpu/cpu0/cache/index%d/size", index);
    std::FILE* const file = std::fopen(path, "re");
    if (file == nullptr) break;
    unsigned long size = 0;
    char unit = 0;
    const int read = std::fscanf(file, "%lu%c", &size, &unit);
    std::fclose(file);
    const unsigned shift = unit == 'K' ? 10 : unit == 'M' ? 20 : unit == 'G' ? 30 : 0;
    if (read >= 1 && (std::size_t{size} << shift) > largest) largest = std::size_t{size} << shift;
  }
  return largest > 0 ? largest : usual;
}

}  // namespace shardwise::inline v0_1::detail
