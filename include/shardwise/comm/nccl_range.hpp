#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <string_view>

#include "fingerprint.hpp"

#if __has_include(<nvtx3/nvToolsExt.h>)
#include <nvtx3/nvToolsExt.h>
#endif

namespace shardwise::inline v0_1::detail::nccl {

/// A call as profilers show it: a range "all_gather block.3" of the host thread, from its making
/// on. Without a profiler, or without NVTX's header, nothing happens.
class Range {
 public:
  explicit Range([[maybe_unused]] const Fingerprint& call) noexcept {
#if __has_include(<nvtx3/nvToolsExt.h>)
    std::array<char, 32 + Fingerprint::name_bytes> text{};
    char* end = text.data();
    const auto put = [&](std::string_view part) { end = std::copy(part.begin(), part.end(), end); };
    put(name_of(call.operation));
    put(" ");
    put(call.shown_name());
    nvtxRangePushA(text.data());
#endif
  }
  Range(const Range&) = delete;
  Range& operator=(const Range&) = delete;
  ~Range() {
#if __has_include(<nvtx3/nvToolsExt.h>)
    nvtxRangePop();
#endif
  }
};

}  // namespace shardwise::inline v0_1::detail::nccl
