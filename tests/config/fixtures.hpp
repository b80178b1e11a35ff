#pragma once

#include <fstream>
#include <iterator>
#include <shardwise/config.hpp>
#include <stdexcept>
#include <string>
#include <vector>

namespace shardwise::test {

/// A file below the project's folder.
inline std::string project_file(const std::string& path) {
  return std::string(SHARDWISE_PROJECT_DIR) + "/" + path;
}
inline std::string fixture(const std::string& name) {
  return project_file("tests/config/fixtures/" + name);
}
inline std::string read_text(const std::string& file) {
  std::ifstream stream(file, std::ios::binary);
  if (!stream) throw std::runtime_error("there is no " + file);
  return {std::istreambuf_iterator<char>(stream), {}};
}

/// What a trainer of a model of width 4096 knows, on four ranks.
inline Hints all_hints() {
  return {.world = 4,
          .micro_batch = 2,
          .micro_batches = 3,
          .clip = 0.5,
          .lease = DType::bf16,
          .hidden_size = 4096};
}

/// All that is wrong with a text; empty where it loads.
inline std::vector<ConfigProblem> problems_of(const std::string& text,
                                              const Hints& hints = all_hints(),
                                              const ConfigOptions& options = {}) {
  try {
    static_cast<void>(parse_config(text, "f", hints, options));
  } catch (const ConfigErrors& errors) {
    return errors.problems();
  }
  return {};
}

/// The same, as lines.
inline std::vector<std::string> complaints(const std::string& text,
                                           const Hints& hints = all_hints(),
                                           const ConfigOptions& options = {}) {
  std::vector<std::string> lines;
  for (const ConfigProblem& problem : problems_of(text, hints, options)) {
    lines.push_back(problem.text());
  }
  return lines;
}

/// The report of a key; throws where there is none.
inline const ConfigKeyReport& report_of(const LoadedConfiguration& loaded,
                                        const std::string& path) {
  for (const ConfigKeyReport& key : loaded.keys()) {
    if (key.path == path) return key;
  }
  throw std::runtime_error("there is no report of " + path);
}

/// The names of the files that are not refused, of either folder.
inline const std::vector<std::string>& fixtures_that_load() {
  static const std::vector<std::string> names = {
      "deepspeed_z0.json",    "deepspeed_z2.json",
      "deepspeed_z3.json",    "deepspeed_by_hand.json",
      "fsdp_v1.yaml",         "fsdp_v1_nodes.yaml",
      "fsdp_v2.yaml",         "fsdp_v2_layers.yaml",
      "fsdp_v2_experts.yaml", "fsdp_without_prefix.yaml"};
  return names;
}

}  // namespace shardwise::test
