#pragma once

#include <xxhash.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "../core/format.hpp"

namespace shardwise::inline v0_1::detail {

/// XXH3, 64 bits (https://xxhash.com): finds what disks and memories do, not what somebody does on
/// purpose.
[[nodiscard]] inline std::uint64_t checksum(std::span<const std::byte> bytes) noexcept {
  return XXH3_64bits(bytes.data(), bytes.size());
}
[[nodiscard]] inline std::uint64_t checksum(std::string_view text) noexcept {
  return XXH3_64bits(text.data(), text.size());
}

/// 16 digits.
[[nodiscard]] inline std::string hex(std::uint64_t number) { return format("{:016x}", number); }

}  // namespace shardwise::inline v0_1::detail
