#pragma once

#include <atomic>
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

/// Time after which one rank is missing while the others have come: where all is slow, or a machine
/// does other things, they come further apart.
constexpr std::chrono::milliseconds patience(int milliseconds) {
  return std::chrono::milliseconds((sanitized ? 4 : 2) * milliseconds);
}

/// Whether a message is what stands for the reason that a rank could not yet say.
inline bool is_provisional(std::string_view message) {
  return message.find("an exception is unwinding its stack") != message.npos;
}

/// Whether a peer heard of a failure before its message was there. It waits 50 ms (on devices 250),
/// which under a sanitizer may be too short for a stack to unwind; elsewhere a busy machine may
/// hold one rank up so long, which a few peers may tell in a test.
inline bool heard_early(std::string_view message) {
  if (!is_provisional(message)) return false;
  static std::atomic<int> peers{0};
  constexpr int few = 8;  // all peers of one rank, in the largest world
  return sanitized || ++peers <= few;
}

}  // namespace shardwise::test
