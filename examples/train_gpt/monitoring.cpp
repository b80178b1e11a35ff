#include "monitoring.hpp"

#include <fmt/core.h>

#include <shardwise/monitor/report.hpp>
#include <stdexcept>

namespace train_gpt {

std::unique_ptr<shardwise::Monitor> make_monitor(const Options& options) {
  if (options.monitor.empty()) return nullptr;
  return std::make_unique<shardwise::Monitor>(
      shardwise::MonitorOptions{.step_log = options.monitor + "/steps.jsonl"});
}

void finish_monitor(const Options& options, shardwise::Communicator& comm,
                    const shardwise::Monitor* monitor) {
  if (monitor == nullptr) return;
  const auto report = shardwise::MonitorReport::collect(comm, *monitor);
  if (!report) return;
  report->write(options.monitor, fmt::format("train_gpt --strategy {}", options.strategy));
  if (!monitor->step_log_is_complete()) {
    throw std::runtime_error(fmt::format("cannot write {}/steps.jsonl", options.monitor));
  }
  if (!options.quiet) fmt::print("{}\nwritten to {}\n", report->table(), options.monitor);
}

}  // namespace train_gpt
