#pragma once

#include <string_view>

namespace plan {

/// A number with a unit: "80GiB", "450GB/s", "400Gb/s", "7e9", "13B", "5us". Prefixes are decimal
/// (k, M, G, T, P) or binary (Ki, Mi, Gi, Ti); a "b" for bits counts an eighth, "B" bytes or, after
/// a bare number, billions; "s", "ms", "us" seconds; "/s" says nothing more. Throws
/// std::invalid_argument that says what it found.
[[nodiscard]] double quantity(std::string_view text);

}  // namespace plan
