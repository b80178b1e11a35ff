#pragma once

#include <atomic>
#include <string_view>

namespace shardwise::test {

/// Counts a rank that leaves a scope, by an exception too.
struct CountsEnd {
  ~CountsEnd() { ++count; }
  std::atomic<int>& count;
};

/// Whether a peer heard that a rank had waited in vain before that rank could say for whom, see
/// heard_early().
inline bool gave_up_early(std::string_view message) {
  return message.find("failed: its time is up") != message.npos;
}

}  // namespace shardwise::test
