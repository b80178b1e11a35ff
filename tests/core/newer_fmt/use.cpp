#include <shardwise/core/format.hpp>

std::string text() { return shardwise::detail::format("{} of {}", 1, 2); }
