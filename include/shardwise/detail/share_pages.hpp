#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <string_view>
#include <utility>

#include "../comm/communicator.hpp"
#include "address_range.hpp"
#include "engine.hpp"
#include "pages.hpp"

namespace shardwise::inline v0_1::detail {

/// UsageError: `what` with this name cannot be shared by these ranks.
[[noreturn]] inline void refuse_sharing(std::string_view what, std::string_view name,
                                        const Communicator& ranks) {
  raise(
      "{} '{}': residency shared is for ranks on the CPUs of one machine: threads (run_ranks of "
      "comm/thread.hpp), or processes of MPI that may map one another's memory; these, of the {} "
      "communicator, share none: use residency slots, or in_place",
      what, name, ranks.backend());
}

/// Whole pages, all zero, that the ranks of a shard group of the context's strategy see at the same
/// offsets. All ranks together; UsageError, on all of them, where they see no common memory.
template <class Device>
[[nodiscard]] SharedPages share_pages(Engine<Device>& engine, std::size_t bytes,
                                      const std::string& arena) {
  const Strategy strategy = engine.strategy.in_world(engine.world());
  strategy.check_shares();
  const int size = strategy.shard_group > 0 ? strategy.shard_group : engine.world();
  Communicator& ranks = *engine.groups.make(size, engine.options.timeout).within;
  if (Device::memory == MemoryKind::cuda) refuse_sharing("arena", arena, ranks);
  SharedPages pages{&ranks, nullptr, {nullptr, round_up(bytes, page_size())}};
  const CallInfo info = engine.info(arena, std::uint64_t{bytes});
  pages.block = ranks.share_block(pages.pages.bytes + page_size(), info);
  if (pages.block == nullptr) refuse_sharing("arena", arena, ranks);
  const auto address = reinterpret_cast<std::uintptr_t>(pages.block->data());
  pages.pages.begin = pages.block->data() + (round_up(address, page_size()) - address);
  // Whoever touches a page first may have it near; roughly, that is who will write it.
  const std::size_t part =
      round_up(pages.pages.bytes / static_cast<std::size_t>(size), page_size());
  const std::size_t begin =
      std::min(pages.pages.bytes, part * static_cast<std::size_t>(ranks.rank()));
  const std::size_t end =
      ranks.rank() + 1 == size ? pages.pages.bytes : std::min(pages.pages.bytes, begin + part);
  std::memset(pages.pages.begin + begin, 0, end - begin);
  ranks.barrier(info, {});
  return pages;
}

}  // namespace shardwise::inline v0_1::detail
