#pragma once

#include <cstddef>

#include "../core/host_device.hpp"

/// @file
/// How a functor over elements is cut into blocks where each block is one thread's work. The device
/// and its twin on the host follow the same plan.
///
/// A functor has `template <std::size_t Width> void run(std::size_t first) const` for elements
/// [first, first + Width). If it has `block_width`, too, then whole blocks of so many elements go
/// to `template <std::size_t Width> void run_block(std::size_t first) const`, which may use wide
/// accesses, and single ones to run_block<1>: `template <std::size_t Width> bool
/// aligned(std::size_t first) const` says whether blocks may begin at `first`, and so from there on
/// in steps of Width.
namespace shardwise::inline v0_1::detail {

template <class Functor>
concept RunsBlocks = requires(const Functor& functor) {
  {functor.template aligned<Functor::block_width>(std::size_t{})};
  functor.template run_block<Functor::block_width>(std::size_t{});
};

/// Elements of one thread's work.
template <class Functor>
[[nodiscard]] constexpr std::size_t width_of() noexcept {
  if constexpr (RunsBlocks<Functor>) {
    return Functor::block_width;
  } else {
    return 1;
  }
}

/// `head` single elements, then `blocks` blocks, then single elements again.
struct ElementPlan {
  std::size_t head = 0;
  std::size_t blocks = 0;

  /// Pieces of work: blocks first, then the single elements before and after them.
  template <class Functor>
  [[nodiscard]] std::size_t pieces(std::size_t count) const noexcept {
    return blocks + (count - blocks * width_of<Functor>());
  }
};

/// Where pointers lie such that they are never aligned together, all elements are single ones.
template <class Functor>
[[nodiscard]] ElementPlan plan_elements(std::size_t count,
                                        [[maybe_unused]] const Functor& functor) noexcept {
  if constexpr (RunsBlocks<Functor>) {
    constexpr std::size_t width = Functor::block_width;
    for (std::size_t head = 0; head < width && head + width <= count; ++head) {
      if (functor.template aligned<width>(head)) return {head, (count - head) / width};
    }
  }
  return {};
}

/// Piece `index` of the plan.
template <class Functor>
SHARDWISE_HOST_DEVICE inline void run_piece(const ElementPlan& plan, std::size_t index,
                                            const Functor& functor) {
  if constexpr (RunsBlocks<Functor>) {
    constexpr std::size_t width = Functor::block_width;
    if (index < plan.blocks) {
      functor.template run_block<width>(plan.head + index * width);
    } else {
      const std::size_t single = index - plan.blocks;
      functor.template run_block<1>(single < plan.head ? single : plan.blocks * width + single);
    }
  } else {
    functor.template run<1>(index);
  }
}

/// The whole plan on the host, in ascending order.
template <class Functor>
void run_elements(std::size_t count, const ElementPlan& plan, const Functor& functor) {
  const std::size_t pieces = plan.pieces<Functor>(count);
  for (std::size_t index = 0; index < pieces; ++index) run_piece(plan, index, functor);
}

/// f(index) for [0, count), in an order that nobody expects: what relies on one fails, where
/// threads of a device, which have none, are emulated.
template <class F>
void for_each_scattered(std::size_t count, const F& f) {
  for (std::size_t index = count; index-- > 0;) {
    if (index % 2 == 1) f(index);
  }
  for (std::size_t index = 0; index < count; index += 2) f(index);
}

/// The device's launch on the host: the same pieces, scattered.
template <class Functor>
void run_pieces(std::size_t pieces, const ElementPlan& plan, const Functor& functor) {
  for_each_scattered(pieces, [&](std::size_t index) { run_piece(plan, index, functor); });
}

}  // namespace shardwise::inline v0_1::detail
