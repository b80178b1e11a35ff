#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdio>
#include <fstream>
#include <nlohmann/json.hpp>
#include <shardwise/device/host_caches.hpp>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

namespace benchmarks {

/// What a program measures: a table on the terminal, line by line as it comes, and the same for
/// other programs: `{"machine": {...}, "run": {...}, "rows": [...]}`. A row names its units in its
/// members' names.
class Results {
 public:
  using Json = nlohmann::ordered_json;

  /// What all rows share, as `"ranks": 2`; printed before the table.
  void describe(const std::string& name, Json value) { run_[name] = std::move(value); }

  /// Members whose names begin with `hidden` prefixes are left to the file.
  void hide(std::string name) { hidden_.push_back(std::move(name)); }

  /// Only one rank's results are printed and written.
  void silence() { silent_ = true; }

  void add(Json row) {
    if (!silent_) print(row);
    rows_.push_back(std::move(row));
  }

  /// Does nothing where `path` is empty; std::runtime_error where it cannot be written.
  void write(const std::string& path) const {
    if (path.empty() || silent_) return;
    std::ofstream file(path);
    file << Json{{"machine", machine()}, {"run", run_}, {"rows", rows_}}.dump(2) << '\n';
    file.close();
    if (!file) throw std::runtime_error("cannot write " + path);
  }

  [[nodiscard]] static Json machine() {
    Json result;
    result["processor"] = processor();
    result["cores"] = std::thread::hardware_concurrency();
    result["last_cache_bytes"] = shardwise::detail::HostCaches::of_this_machine().last;
    result["compiler"] = __VERSION__;
    return result;
  }

 private:
  void print(const Json& row) {
    std::string names;
    std::string values;
    for (const auto& [name, value] : row.items()) {
      if (std::find(hidden_.begin(), hidden_.end(), name) != hidden_.end()) continue;
      append(names, name, name.size(), value.is_string());
      append(values, shown(value), name.size(), value.is_string());
    }
    if (heading_.empty()) {
      std::printf("# %s, %u cores", processor().c_str(), std::thread::hardware_concurrency());
      for (const auto& [name, value] : run_.items()) {
        std::printf("; %s %s", name.c_str(), shown(value).c_str());
      }
    }
    if (names != heading_) std::printf("\n%s\n", names.c_str());
    heading_ = std::move(names);
    std::printf("%s\n", values.c_str());
    std::fflush(stdout);
  }

  static void append(std::string& line, const std::string& text, std::size_t name, bool is_text) {
    const std::size_t width = std::max<std::size_t>(name, is_text ? 15 : 10);
    const std::string gap(width - std::min(width, text.size()), ' ');
    if (!line.empty()) line += "  ";
    line += is_text ? text + gap : gap + text;
  }

  [[nodiscard]] static std::string shown(const Json& value) {
    if (value.is_string()) return value.get<std::string>();
    if (!value.is_number_float()) return value.dump();
    char text[32];
    const auto number = value.get<double>();
    std::snprintf(text, sizeof(text),
                  number < 10     ? "%.3f"
                  : number < 1000 ? "%.2f"
                                  : "%.0f",
                  number);
    return text;
  }

  [[nodiscard]] static std::string processor() {
    std::ifstream file("/proc/cpuinfo");
    for (std::string line; std::getline(file, line);) {
      const std::size_t colon = line.find(": ");
      if (line.starts_with("model name") && colon != std::string::npos)
        return line.substr(colon + 2);
    }
    return "unknown";
  }

  Json run_ = Json::object();
  Json rows_ = Json::array();
  std::vector<std::string> hidden_;
  std::string heading_;
  bool silent_ = false;
};

}  // namespace benchmarks
