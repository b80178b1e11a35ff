#pragma once

#include <sys/stat.h>

#include <cerrno>
#include <cstddef>
#include <string>
#include <system_error>

#include "../core/error.hpp"

namespace shardwise::inline v0_1::monitor {

/// Makes a folder and those above it, where they are missing; BackendError. (std::filesystem would
/// cost whoever includes a monitor more compile time than the rest of it.)
inline void make_folder(const std::string& path) {
  for (std::size_t at = 0; at != std::string::npos;) {
    at = path.find('/', at + 1);
    const std::string part = path.substr(0, at);
    if (part.empty() || mkdir(part.c_str(), 0777) == 0 || errno == EEXIST) continue;
    raise<BackendError>("cannot make the folder {}: {}", part,
                        std::generic_category().message(errno));
  }
}

}  // namespace shardwise::inline v0_1::monitor
