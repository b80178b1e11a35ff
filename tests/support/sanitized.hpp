#pragma once

#include <chrono>
#include <string_view>

namespace shardwise::test {

/// Whether this build looks at every access: fewer cases do then.
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
inline constexpr bool sanitized = true;
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer) || __has_feature(address_sanitizer)
inline constexpr bool sanitized = true;
#else
inline constexpr bool sanitized = false;
#endif
#else
inline constexpr bool sanitized = false;
#endif

/// Time after which one rank is missing while the others have come: where all is slow they come
/// further apart.
constexpr std::chrono::milliseconds patience(int milliseconds) {
  return std::chrono::milliseconds(sanitized ? 4 * milliseconds : milliseconds);
}

/// Whether a peer heard of a failure before its message was there. It waits some 50 ms for that,
/// which under a sanitizer may be too short for a stack to unwind.
inline bool heard_early(std::string_view message) {
  return sanitized && message.find("an exception is unwinding its stack") != message.npos;
}

}  // namespace shardwise::test
