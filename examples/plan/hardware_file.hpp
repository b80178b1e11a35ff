#pragma once

#include <shardwise/plan/hardware.hpp>
#include <string>

namespace plan {

/// A description of hardware as JSON: rates in seconds and bytes. What a file does not say stays
/// the default. Throws std::invalid_argument that names the file and the key.
[[nodiscard]] shardwise::Hardware read_hardware(const std::string& file);
void write_hardware(const shardwise::Hardware& hardware, const std::string& file);

}  // namespace plan
