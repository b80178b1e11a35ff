#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "collect.hpp"
#include "diagnosis.hpp"
#include "folder.hpp"
#include "html.hpp"
#include "json.hpp"
#include "monitor.hpp"
#include "records.hpp"
#include "summary.hpp"
#include "summary_json.hpp"
#include "table.hpp"
#include "trace.hpp"

namespace shardwise::inline v0_1 {

/// A run of all ranks, for people: `Report report(comm, monitor)`. Needs nlohmann/json (component
/// `monitor`); include it where the report is made alone.
class MonitorReport {
 public:
  /// Of what all ranks wrote down.
  explicit MonitorReport(std::vector<monitor::Rank> ranks)
      : ranks_(std::move(ranks)), summary_(monitor::summarize(ranks_)) {}

  /// Brings all ranks' records to rank 0: the report there, nothing elsewhere. Collective, between
  /// two steps or after the last one; `comm` is that of the Context.
  [[nodiscard]] static std::optional<MonitorReport> collect(Communicator& comm,
                                                            const Monitor& monitor) {
    std::vector<monitor::Rank> ranks = monitor::collect(comm, monitor);
    if (comm.rank() != 0) return std::nullopt;
    return MonitorReport(std::move(ranks));
  }

  [[nodiscard]] const monitor::Summary& summary() const noexcept { return summary_; }
  [[nodiscard]] const std::vector<monitor::Rank>& ranks() const noexcept { return ranks_; }

  /// What limits the run, in a sentence.
  [[nodiscard]] std::string diagnosis() const { return monitor::diagnosis(summary_); }
  /// For a terminal.
  [[nodiscard]] std::string table() const { return monitor::table(summary_); }
  /// Chrome's trace format.
  [[nodiscard]] std::string trace() const { return monitor::chrome_trace(ranks_); }
  [[nodiscard]] std::string json() const { return monitor::summary_json(summary_); }
  [[nodiscard]] std::string html(std::string_view title) const {
    return monitor::html_report(summary_, ranks_, title);
  }

  /// Writes summary.json, trace.json and report.html into a folder, which is made; BackendError.
  void write(const std::string& folder, std::string_view title = "training run") const {
    monitor::make_folder(folder);
    monitor::write_file(folder + "/summary.json", json());
    monitor::write_file(folder + "/trace.json", trace());
    monitor::write_file(folder + "/report.html", html(title));
  }

 private:
  std::vector<monitor::Rank> ranks_;
  monitor::Summary summary_;
};

}  // namespace shardwise::inline v0_1
