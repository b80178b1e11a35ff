#pragma once

#include <shardwise/plan/planner.hpp>
#include <string>

#include "options.hpp"

namespace plan {

/// The plan as a table for people, with what it rests on.
[[nodiscard]] std::string table(const Options& options, const shardwise::PlannedModel& model,
                                const shardwise::Hardware& hardware, const shardwise::Plan& plan);

/// The plan as JSON. Bytes have the names of train_gpt's report; what is not known is null.
[[nodiscard]] std::string to_json(const Options& options, const shardwise::PlannedModel& model,
                                  const shardwise::Hardware& hardware, const shardwise::Plan& plan);

/// The recommended strategy as a configuration file, with the reason as a comment; throws
/// std::invalid_argument where none is recommended.
[[nodiscard]] std::string config_of(const Options& options, const shardwise::Plan& plan);

/// All presets with their sources.
[[nodiscard]] std::string list_presets();

void write_file(const std::string& file, const std::string& text);

}  // namespace plan
