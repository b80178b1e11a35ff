#pragma once

#include <cstddef>

#include "../core/dtype.hpp"
#include "communicator.hpp"
#include "nccl_options.hpp"

/// @file
/// What reductions by NCCL want of memory: plain arithmetic, also for those who only plan.
namespace shardwise::inline v0_1::detail::nccl {

/// How an all_reduce in the canonical order is shared out: each rank sums a part, which all gather;
/// what is left over, a few elements, every rank sums itself.
struct Shares {
  static constexpr std::size_t grain = 64;  // elements: parts stay aligned

  Shares(std::size_t count, std::size_t size) noexcept
      : part(count / size / grain * grain), rest(count - part * size) {}

  std::size_t part;
  std::size_t rest;
};

/// Whether NCCL itself takes the sum. Weights differ between ranks, so that it cannot.
[[nodiscard]] inline bool by_nccl(const ReduceItem& item, NcclOrder order) noexcept {
  return order == NcclOrder::fast && !item.spec.weighted;
}

/// Whether NCCL's sum lands elsewhere first: NCCL does not add to what is there, nor convert.
[[nodiscard]] inline bool lands(const ReduceItem& item) noexcept {
  return item.spec.accumulate || item.spec.output != item.dtype;
}

[[nodiscard]] inline std::size_t landing_bytes(const ReduceItem& item, bool scatter,
                                               std::size_t size, NcclOrder order) noexcept {
  const std::size_t element = size_of(item.dtype);
  if (size == 1 && !by_nccl(item, order)) return 0;
  if (by_nccl(item, order)) return lands(item) ? item.count * element : 0;
  if (scatter) return size * item.count * element;
  const Shares shares(item.count, size);
  return size * (shares.part + shares.rest) * element;
}

}  // namespace shardwise::inline v0_1::detail::nccl
