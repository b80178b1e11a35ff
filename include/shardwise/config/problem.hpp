#pragma once

#include <cstddef>
#include <string>
#include <utility>
#include <vector>

#include "../core/error.hpp"

namespace shardwise::inline v0_1 {

/// One thing that is wrong with a file of configuration, or that is not built yet.
struct ConfigProblem {
  std::string file;
  std::size_t line = 0;    ///< from 1; 0: of the file as a whole
  std::size_t column = 0;  ///< from 1, in characters
  std::string path;        ///< of the key: "zero_optimization.stage"; empty: none
  std::string message;

  /// `file:line:column: path: message`.
  [[nodiscard]] std::string text() const {
    std::string result = file;
    if (line > 0) result += ":" + std::to_string(line) + ":" + std::to_string(column);
    result += ": ";
    if (!path.empty()) result += path + ": ";
    return result + message;
  }
  [[nodiscard]] bool operator==(const ConfigProblem&) const = default;
};

/// All that is wrong with a file, in its order; what() has a line for each.
class ConfigErrors : public ConfigError {
 public:
  explicit ConfigErrors(std::vector<ConfigProblem> problems)
      : ConfigError(joined(problems)), problems_(std::move(problems)) {}

  [[nodiscard]] const std::vector<ConfigProblem>& problems() const noexcept { return problems_; }

 private:
  [[nodiscard]] static std::string joined(const std::vector<ConfigProblem>& problems) {
    std::string text;
    for (const ConfigProblem& problem : problems) {
      if (!text.empty()) text += '\n';
      text += problem.text();
    }
    return text;
  }

  std::vector<ConfigProblem> problems_;
};

}  // namespace shardwise::inline v0_1
