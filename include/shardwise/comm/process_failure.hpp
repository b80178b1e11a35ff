#pragma once

#include <string>

#include "../core/format.hpp"
#include "peer_failure.hpp"

namespace shardwise::inline v0_1 {

/// Why the processes of a run cannot go on: the first of them that failed, as this one learnt it.
struct ProcessFailure {
  int rank = -1;  ///< in the run; -1: none has failed
  std::string message;
  bool provisional = false;  ///< the real message follows at once
  bool left = false;         ///< it destroyed its communicator, and others called it afterwards
  bool died = false;         ///< its process ended, or its machine is gone, without a word

  [[nodiscard]] explicit operator bool() const noexcept { return rank >= 0; }
};

/// `failed: out of memory`, `left the group (...)`, `died: ...`
[[nodiscard]] inline std::string what_happened(const ProcessFailure& failure) {
  if (failure.left) return std::string(detail::left_the_group);
  return detail::format("{}: {}", failure.died ? "died" : "failed", failure.message);
}

}  // namespace shardwise::inline v0_1
