#pragma once

#include <cstddef>
#include <cstdio>

namespace shardwise::inline v0_1::detail {

/// Bytes of a core's caches.
struct HostCaches {
  std::size_t second = std::size_t{1} << 20;
  std::size_t last = std::size_t{32} << 20;

  /// Those of the first core, as the kernel tells; usual sizes where it does not. (sysconf's number
  /// for the last one, on which the C library's own choice of stores rests, is many times as large
  /// on some virtual machines.)
  [[nodiscard]] static HostCaches of_this_machine() noexcept {
    HostCaches caches;
    for (int index = 0; index < 8; ++index) {
      int level = 0;
      std::size_t bytes = 0;
      if (!read(index, level, bytes)) break;
      if (level == 2) caches.second = bytes;
      if (level >= 2) caches.last = bytes;
    }
    return caches;
  }

 private:
  [[nodiscard]] static bool read(int index, int& level, std::size_t& bytes) noexcept {
    char unit = 0;
    unsigned long size = 0;
    if (!scan(index, "level", "%d", &level) || !scan(index, "size", "%lu%c", &size, &unit)) {
      return false;
    }
    bytes = std::size_t{size} << (unit == 'K' ? 10 : unit == 'M' ? 20 : unit == 'G' ? 30 : 0);
    return bytes > 0;
  }

  template <class... Values>
  static bool scan(int index, const char* name, const char* fields, Values*... values) noexcept {
    char path[64];
    std::snprintf(path, sizeof(path), "/sys/devices/system/cpu/cpu0/cache/index%d/%s", index, name);
    std::FILE* const file = std::fopen(path, "re");
    if (file == nullptr) return false;
    const int found = std::fscanf(file, fields, values...);
    std::fclose(file);
    return found >= 1;
  }
};

}  // namespace shardwise::inline v0_1::detail
