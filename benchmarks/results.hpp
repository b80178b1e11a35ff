#pragma once

#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <fstream>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

namespace benchmarks {

/// The middle one; of an even number the upper of the two.
[[nodiscard]] inline double median(std::vector<double> values) {
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

/// What a program prints as a table, for other programs: `{"machine": {...}, "rows": [...]}`. A row
/// names its units in its members' names.
class Results {
 public:
  void add(nlohmann::ordered_json row) { rows_.push_back(std::move(row)); }

  /// Does nothing where `path` is empty; std::runtime_error where it cannot be written.
  void write(const std::string& path) const {
    if (path.empty()) return;
    std::ofstream file(path);
    file << nlohmann::ordered_json{{"machine", machine()}, {"rows", rows_}}.dump(2) << '\n';
    file.close();
    if (!file) throw std::runtime_error("cannot write " + path);
  }

  [[nodiscard]] static nlohmann::ordered_json machine() {
    nlohmann::ordered_json result;
    result["processor"] = processor();
    result["cores"] = std::thread::hardware_concurrency();
#if defined(_SC_LEVEL3_CACHE_SIZE)
    result["last_cache_bytes"] = std::max(0L, sysconf(_SC_LEVEL3_CACHE_SIZE));
#endif
    return result;
  }

 private:
  [[nodiscard]] static std::string processor() {
    std::ifstream file("/proc/cpuinfo");
    for (std::string line; std::getline(file, line);) {
      const std::size_t colon = line.find(": ");
      if (line.starts_with("model name") && colon != std::string::npos)
        return line.substr(colon + 2);
    }
    return "unknown";
  }

  nlohmann::ordered_json rows_ = nlohmann::ordered_json::array();
};

}  // namespace benchmarks
