#pragma once

#include <cstddef>
#include <shardwise/plan/hardware.hpp>
#include <string>

namespace plan {

/// A description of hardware as JSON: rates in seconds and bytes. What a file does not say stays
/// the default. Throws std::invalid_argument that names the file and the key.
[[nodiscard]] shardwise::Hardware read_hardware(const std::string& file);

/// Throws std::invalid_argument where collectives were measured for another number of ranks.
void require_ranks(const shardwise::Hardware& hardware, std::size_t ranks);

void write_hardware(const shardwise::Hardware& hardware, const std::string& file);

}  // namespace plan
