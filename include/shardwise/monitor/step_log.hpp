#pragma once

#include <array>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <string>

#include "../core/error.hpp"
#include "folder.hpp"
#include "records.hpp"

namespace shardwise::inline v0_1::monitor {

/// A file of JSON lines, one for each step, written at its end and flushed: it can be followed
/// while the run goes on. Nothing is allocated after the first line.
class StepLog {
 public:
  StepLog() = default;
  /// Empties the file, and makes the folder for it; BackendError where it cannot be written.
  explicit StepLog(const std::string& path) {
    if (const auto end = path.rfind('/'); end != std::string::npos) {
      make_folder(path.substr(0, end));
    }
    file_.reset(std::fopen(path.c_str(), "w"));
    if (!file_) raise<BackendError>("cannot write the log of steps {}", path);
  }

  /// False where the system took no more of it (a full disk).
  bool write(const Step& step) noexcept {
    if (!file_) return true;
    const auto ms = [](std::int64_t ns) { return static_cast<double>(ns) / 1e6; };
    const double seconds = static_cast<double>(step.total_ns()) / 1e9;
    std::array<char, 64> loss{"null"};  // JSON has no NaN
    if (std::isfinite(step.loss)) std::snprintf(loss.data(), loss.size(), "%.9g", step.loss);
    const int written = std::fprintf(
        file_.get(),
        "{\"step\":%llu,\"loss\":%s,\"tokens_per_s\":%.6g,\"step_ms\":%.6g,\"compute_ms\":%.6g,"
        "\"exposed_communication_ms\":%.6g,\"optimizer_ms\":%.6g,\"peak_bytes\":%llu}\n",
        static_cast<unsigned long long>(step.number), loss.data(),
        seconds > 0 ? static_cast<double>(step.tokens) / seconds : 0.0, ms(step.total_ns()),
        ms(step.compute_ns()), ms(step.exposed_ns), ms(step.update_ns),
        static_cast<unsigned long long>(step.peak_bytes));
    return written > 0 && std::fflush(file_.get()) == 0;
  }

 private:
  struct Close {
    void operator()(std::FILE* file) const noexcept { static_cast<void>(std::fclose(file)); }
  };
  std::unique_ptr<std::FILE, Close> file_;
};

}  // namespace shardwise::inline v0_1::monitor
