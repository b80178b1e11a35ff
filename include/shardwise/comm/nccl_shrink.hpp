#pragma once

#include <algorithm>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "../core/error.hpp"
#include "../core/format.hpp"
#include "nccl_connect.hpp"
#include "nccl_options.hpp"
#include "nccl_watchdog.hpp"
#include "rendezvous.hpp"

namespace shardwise::inline v0_1::detail::nccl {

/// Of the ranks in `lost`, numbered as in `whole`, for a key and for messages: "1,4".
[[nodiscard]] inline std::string list_ranks(const std::vector<int>& lost) {
  std::string text;
  for (const int r : lost) text += format("{}{}", text.empty() ? "" : ",", r);
  return text;
}

/// Where `whole` has failed: the channels of what is left of it without the ranks `lost`, which are
/// in ascending order. On all that are left. UsageError where it has not failed, or the ranks do
/// not agree.
[[nodiscard]] inline std::vector<std::unique_ptr<Channel>> shrink(
    const Member& whole, const std::vector<int>& lost, Rendezvous& rendezvous,
    const std::string& communicator_id, const NcclOptions& options, int device) {
  const int size = static_cast<int>(whole.world_ranks.size());
  if (whole.state.load() != Member::State::settled) {
    raise("shrink() of \"{}\", which has not failed: call split() instead", options.name);
  }
  const auto below =
      static_cast<int>(std::lower_bound(lost.begin(), lost.end(), whole.rank) - lost.begin());
  const bool makes_sense = !lost.empty() && lost.front() >= 0 && lost.back() < size &&
                           std::adjacent_find(lost.begin(), lost.end()) == lost.end() &&
                           !std::binary_search(lost.begin(), lost.end(), whole.rank);
  if (!makes_sense || rendezvous.size() != size - static_cast<int>(lost.size()) ||
      rendezvous.rank() != whole.rank - below) {
    raise(
        "shrink() of \"{}\" on rank {} of {} without rank(s) {}: the rendezvous is that of rank {} "
        "of {}; it must be of all that are left, in their order",
        options.name, whole.rank, size, lost.empty() ? "(none)" : list_ranks(lost),
        rendezvous.rank(), rendezvous.size());
  }
  // Who does not come, or thinks that others are lost, is named here.
  const std::string own = list_ranks(lost);
  const auto all = rendezvous.exchange(communicator_id + ".lost", own, options.startup_timeout);
  for (std::size_t r = 0; r < all.size(); ++r) {
    if (all[r] == all.front()) continue;
    raise("shrink() of \"{}\": rank {} of those that are left says that {} are lost, rank 0 {}",
          options.name, r, all[r], all.front());
  }
  const Joining joining(rendezvous, options);
  std::vector<std::unique_ptr<Channel>> channels;
  channels.push_back(std::make_unique<Channel>(
      whole.channels.front()->handle->shrink(lost, rendezvous.rank(), options, joining), device));
  add_reductions(channels, rendezvous.rank(), options, device, joining);
  return channels;
}

}  // namespace shardwise::inline v0_1::detail::nccl
