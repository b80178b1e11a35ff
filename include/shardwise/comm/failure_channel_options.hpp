#pragma once

#include <unistd.h>

#include <chrono>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "../core/format.hpp"
#include "process_failure.hpp"

namespace shardwise::inline v0_1 {

/// Writes the report to stderr where another rank has failed; what this rank itself threw is the
/// host's to print.
inline void print_failure(int rank, const ProcessFailure& failure, const std::string& report) {
  if (failure.rank == rank) return;
  const std::string line = detail::format("shardwise: {}\n", report);
  // One write, so that the reports of several ranks do not mix; where it fails nobody can be told.
  static_cast<void>(::write(STDERR_FILENO, line.data(), line.size()) < 0);
}

/// How a FailureChannel connects and reports.
struct FailureChannelOptions {
  /// How long the processes may take to connect with each other.
  std::chrono::milliseconds connect_timeout = std::chrono::seconds(30);
  /// Names of the network interfaces to use between machines; empty: all that are up.
  std::vector<std::string> interfaces = {};
  /// Called once, by the channel's thread, as soon as this process knows the first failure: a
  /// launcher may kill this process before its own code comes to say anything. `report` names the
  /// rank, what happened and the call that this rank was in. May be empty. It must not throw.
  std::function<void(int rank, const ProcessFailure& failure, const std::string& report)>
      on_failure = print_failure;
};

}  // namespace shardwise::inline v0_1
