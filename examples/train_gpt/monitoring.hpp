#pragma once

#include <memory>
#include <shardwise/comm/communicator.hpp>
#include <shardwise/monitor/monitor.hpp>

#include "options.hpp"

namespace train_gpt {

/// A rank's monitor, for ContextOptions::observer; null where the options want none.
[[nodiscard]] std::unique_ptr<shardwise::Monitor> make_monitor(const Options& options);

/// Brings all ranks' records together; rank 0 prints the table and writes trace.json, summary.json
/// and report.html beside steps.jsonl. All ranks call it; nothing happens where `monitor` is null.
void finish_monitor(const Options& options, shardwise::Communicator& comm,
                    const shardwise::Monitor* monitor);

}  // namespace train_gpt
