#pragma once

#include <string>

#include "core.h"

namespace fmt {

inline std::string vformat(string_view, int) { return {}; }

}  // namespace fmt
