#pragma once

#include <string>
#include <string_view>
#include <utility>

#include "../core/error.hpp"
#include "../core/format.hpp"

namespace shardwise::inline v0_1::detail {

inline constexpr std::string_view left_the_group =
    "left the group (its communicator was destroyed; it returned early?)";

/// What rank `own` throws in `call` because of `rank`, to which `what` happened ("failed: ...").
[[nodiscard]] inline PeerFailed peer_failed(int rank, std::string_view what, int own,
                                            std::string_view call, std::string peer_message) {
  const std::string who =
      rank == own ? detail::format("this rank ({})", own) : detail::format("rank {}", rank);
  return PeerFailed(detail::format("{} {}\nwhile rank {} was in {}", who, what, own, call), rank,
                    std::move(peer_message));
}

}  // namespace shardwise::inline v0_1::detail
