#pragma once

#include <concepts>
#include <cstddef>
#include <type_traits>

#include "../core/dtype.hpp"
#include "../core/host_device.hpp"
#include "cast.hpp"
#include "pack.hpp"
#include "reduce.hpp"

namespace shardwise::inline v0_1::detail {

/// A functor for a device's launch: the reduction of kernels/reduce.hpp, bit by bit. Contributions
/// lie `stride` elements apart, but for `own`, which lies where the rank has it. In and out are
/// the same memory, or apart.
///
/// Subtrees of equal size are merged as they become complete, as a binary counter carries; at the
/// end those that are left are added from the smallest, which is the last one, upwards. That is the
/// tree that splits at the largest power of two below the number of ranks.
template <class In, class Out>
struct CanonicalReduce {
  using Sum = Accumulator<In>;

  /// Ranks that the tree can hold.
  static constexpr unsigned most_ranks = 1u << 16;

  const In* inputs;
  std::size_t stride;
  const In* own;          ///< null: with the others
  const double* weights;  ///< null: all 1
  Out* out;
  double scale;
  unsigned ranks;
  unsigned own_rank;
  std::size_t accumulate;  ///< 0 or 1; as wide as a word, so that no bytes lie idle behind it

  static constexpr std::size_t block_width = detail::block_width<In>();

  template <std::size_t Width>
  [[nodiscard]] bool aligned(std::size_t first) const noexcept {
    const bool others = ranks == 1 && own != nullptr;
    return (others || is_aligned_for<Width>(inputs + first)) &&
           (ranks == 1 || is_aligned_for<Width>(inputs + first + stride)) &&
           (own == nullptr || is_aligned_for<Width>(own + first)) &&
           is_aligned_for<Width>(out + first);
  }
  template <std::size_t Width>
  SHARDWISE_HOST_DEVICE void run(std::size_t first) const {
    for (std::size_t k = 0; k < Width; ++k) run_block<1>(first + k);
  }

  template <std::size_t Width>
  SHARDWISE_HOST_DEVICE void run_block(std::size_t first) const {
    Block<Sum, Width> sum{};
    add_ranks(first, sum);
    finish(first, sum);
  }

 private:
  // Subtrees of so many ranks are added in registers; larger ones in thread-local memory.
  static constexpr unsigned chunk_levels = 3;
  static constexpr unsigned chunk = 1u << chunk_levels;
  static constexpr unsigned levels = 13;

  template <std::size_t Width>
  SHARDWISE_HOST_DEVICE void load(unsigned rank, std::size_t first, Block<Sum, Width>& to) const {
    const bool is_own = own != nullptr && rank == own_rank;
    Block<In, Width> in;
    in.load(is_own ? own + first : inputs + rank * stride + first);
    for (std::size_t k = 0; k < Width; ++k) to.values[k] = static_cast<Sum>(in.values[k]);
    if constexpr (std::floating_point<Sum>) {
      if (weights != nullptr) {
        const auto weight = static_cast<Sum>(weights[rank]);
        for (std::size_t k = 0; k < Width; ++k) to.values[k] = to.values[k] * weight;
      }
    }
  }

  // right = left + right
  template <std::size_t Width>
  SHARDWISE_HOST_DEVICE static void merge(const Block<Sum, Width>& left, Block<Sum, Width>& right) {
    for (std::size_t k = 0; k < Width; ++k) {
      right.values[k] = detail::add(left.values[k], right.values[k]);
    }
  }

  // The tree over at most `chunk` ranks. Loops over levels have constant bounds, so that `pending`
  // stays in registers.
  template <std::size_t Width>
  SHARDWISE_HOST_DEVICE void add_chunk(unsigned begin, unsigned count, std::size_t first,
                                       Block<Sum, Width>& sum) const {
    Block<Sum, Width> pending[chunk_levels];
    for (unsigned rank = 0; rank < count; ++rank) {
      load(begin + rank, first, sum);
      bool carries = true;
      for (unsigned level = 0; level < chunk_levels; ++level) {
        if (carries && (rank >> level & 1u) != 0) {
          merge(pending[level], sum);
        } else if (carries) {
          pending[level] = sum;
          carries = false;
        }
      }
    }
    if (count == chunk) return;
    bool is_first = true;
    for (unsigned level = 0; level < chunk_levels; ++level) {
      if ((count >> level & 1u) == 0) continue;
      if (is_first) {
        sum = pending[level];
        is_first = false;
      } else {
        merge(pending[level], sum);
      }
    }
  }

  // The tree over all ranks, by chunks.
  template <std::size_t Width>
  SHARDWISE_HOST_DEVICE void add_ranks(std::size_t first, Block<Sum, Width>& sum) const {
    Block<Sum, Width> pending[levels];
    unsigned complete = 0;
    for (unsigned begin = 0; begin < ranks; begin += chunk) {
      const unsigned rest = ranks - begin;
      add_chunk(begin, rest < chunk ? rest : chunk, first, sum);
      if (rest <= chunk) break;
      unsigned level = 0;
      for (; (complete >> level & 1u) != 0; ++level) merge(pending[level], sum);
      pending[level] = sum;
      ++complete;
    }
    // The last chunk, complete or not, is the smallest subtree: as large as others, or smaller.
    for (unsigned level = 0; complete >> level != 0; ++level) {
      if ((complete >> level & 1u) != 0) merge(pending[level], sum);
    }
  }

  template <std::size_t Width>
  SHARDWISE_HOST_DEVICE void finish(std::size_t first, const Block<Sum, Width>& sum) const {
    Block<Out, Width> result;
    if (accumulate != 0) result.load(out + first);
    for (std::size_t k = 0; k < Width; ++k) {
      if constexpr (std::integral<Sum>) {
        result.values[k] =
            accumulate != 0 ? detail::add(result.values[k], sum.values[k]) : sum.values[k];
      } else {
        using Wide = std::common_type_t<Sum, Accumulator<Out>>;
        // Adding 0 turns -0 into +0, as accumulation onto zeroed storage does.
        const Wide old = accumulate != 0 ? static_cast<Wide>(result.values[k]) : Wide{0};
        const Sum scaled = static_cast<Sum>(scale) * sum.values[k];
        result.values[k] = cast_element<Out>(old + static_cast<Wide>(scaled));
      }
    }
    result.store(out + first);
  }
};

}  // namespace shardwise::inline v0_1::detail
