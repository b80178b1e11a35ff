#pragma once

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "../comm/communicator.hpp"
#include "json.hpp"
#include "monitor.hpp"
#include "records.hpp"

namespace shardwise::inline v0_1::monitor {

/// What all ranks wrote down, by rank, on rank 0; nothing on the others. Collective: all ranks call
/// it, between two steps or after the last one. Timelines come from the first `timelines` ranks.
[[nodiscard]] inline std::vector<Rank> collect(Communicator& comm, const Monitor& monitor,
                                               int timelines = 16) {
  Rank mine = monitor.snapshot();
  const CallInfo info{"monitor"};
  comm.barrier(info, {});
  mine.clock_ns = std::chrono::duration_cast<std::chrono::nanoseconds>(
                      std::chrono::steady_clock::now().time_since_epoch())
                      .count();
  if (comm.rank() >= timelines) {
    mine.host.clear();
    mine.communication.clear();
  }
  const std::vector<std::uint8_t> own = Json::to_cbor(Json(mine));
  std::vector<std::int64_t> sizes(static_cast<std::size_t>(comm.size()));
  const auto own_size = static_cast<std::int64_t>(own.size());
  const GatherItem gathered{&own_size, sizes.data(), 1, DType::i64};
  comm.all_gather({&gathered, 1}, info, {});

  std::vector<Rank> ranks;
  constexpr std::size_t largest = std::size_t{1} << 18;  // host memory is staged by some backends
  std::vector<std::uint8_t> text;
  std::vector<std::uint8_t> chunk;
  for (int root = 0; root < comm.size(); ++root) {
    const auto size = static_cast<std::size_t>(sizes[static_cast<std::size_t>(root)]);
    text.clear();
    for (std::size_t at = 0; at < size; at += chunk.size()) {
      chunk.resize(std::min(largest, size - at));
      if (root == comm.rank()) {
        std::copy_n(own.begin() + static_cast<std::ptrdiff_t>(at), chunk.size(), chunk.begin());
      }
      const BroadcastItem item{chunk.data(), chunk.size(), DType::u8};
      comm.broadcast({&item, 1}, root, info, {});
      if (comm.rank() == 0) text.insert(text.end(), chunk.begin(), chunk.end());
    }
    if (comm.rank() == 0) ranks.push_back(Json::from_cbor(text).get<Rank>());
  }
  return ranks;
}

/// What to add to this rank's times so that they are the reference's: 0 where both read one clock
/// (threads, processes of one machine), as the end of a barrier tells.
[[nodiscard]] inline std::int64_t clock_offset(const Rank& reference, const Rank& rank) noexcept {
  const std::int64_t difference = reference.clock_ns - rank.clock_ns;
  constexpr std::int64_t same_clock = 20'000'000;  // ranks leave a barrier as they are scheduled
  return std::abs(difference) < same_clock ? 0 : difference;
}

}  // namespace shardwise::inline v0_1::monitor
