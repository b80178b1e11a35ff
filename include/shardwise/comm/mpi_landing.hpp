#pragma once

#include <algorithm>
#include <cstddef>

#include "../core/dtype.hpp"
#include "communicator.hpp"
#include "mpi_options.hpp"

/// @file
/// What reductions over MPI want of memory, and how they are shared out: plain arithmetic.
namespace shardwise::inline v0_1::detail::mpi {

/// Elements [begin, end) of a reduction that one rank sums.
struct Part {
  std::size_t begin;
  std::size_t end;

  [[nodiscard]] std::size_t count() const noexcept { return end - begin; }
};

/// Reductions travel in chunks; so many are on their way at once.
inline constexpr std::size_t window = 2;

[[nodiscard]] inline std::size_t rounded_up(std::size_t bytes) noexcept {
  constexpr std::size_t line = 64;
  return (bytes + line - 1) / line * line;
}

/// How one reduction is cut.
struct Cut {
  Cut(const ReduceItem& item, bool scatter, std::size_t ranks, std::size_t chunk_bytes) noexcept
      : count(item.count),
        size(ranks),
        scatters(scatter),
        chunk(std::max<std::size_t>(line, chunk_bytes / size_of(item.dtype) / line * line)) {}

  /// What `rank` sums. An all_reduce's parts are whole cache lines.
  [[nodiscard]] Part part(std::size_t rank) const noexcept {
    if (scatters) return {rank * count, (rank + 1) * count};
    return {edge(rank), edge(rank + 1)};
  }
  /// Of it, what travels in step `step`; empty where the part is shorter.
  [[nodiscard]] Part chunk_of(std::size_t rank, std::size_t step) const noexcept {
    const Part whole = part(rank);
    const std::size_t begin = std::min(whole.end, whole.begin + step * chunk);
    return {begin, std::min(whole.end, begin + chunk)};
  }
  /// The first rank's part is as large as any.
  [[nodiscard]] std::size_t steps() const noexcept { return (part(0).count() + chunk - 1) / chunk; }
  /// Where the largest chunk of one peer lands.
  [[nodiscard]] std::size_t slot_bytes(DType dtype) const noexcept {
    return rounded_up(std::min(part(0).count(), chunk) * size_of(dtype));
  }

  std::size_t count;
  std::size_t size;
  bool scatters;
  std::size_t chunk;  // elements

 private:
  static constexpr std::size_t line = 64;  // elements

  [[nodiscard]] std::size_t edge(std::size_t rank) const noexcept {
    const std::size_t lines = count / line + 1;
    return std::min(count, (lines / size * rank + std::min(rank, lines % size)) * line);
  }
};

/// MPI has no type for bf16 and f16, and sums of 8-bit integers must be exact, where Open MPI 4.1
/// saturates them.
[[nodiscard]] constexpr bool has_mpi_sum(DType dtype) noexcept { return size_of(dtype) >= 4; }

/// Whether MPI itself takes the sum. Weights differ between ranks, so that it cannot. MPI counts in
/// int; of a scattered sum its trees move what all ranks contribute together.
[[nodiscard]] inline bool by_mpi(const ReduceItem& item, bool scatter, std::size_t ranks,
                                 const MpiOptions& options) noexcept {
  constexpr std::size_t largest = std::size_t{1} << 30;  // elements
  return ranks > 1 && options.order == MpiOrder::fast && has_mpi_sum(item.dtype) &&
         !item.spec.weighted && item.pieces.empty() &&
         item.count <= (scatter ? largest / ranks : largest);
}

[[nodiscard]] inline std::size_t chunk_bytes_of(const MpiOptions& options) noexcept {
  return options.chunk_bytes != 0 ? options.chunk_bytes : std::size_t{512} << 10;
}

[[nodiscard]] inline std::size_t landing_bytes(const ReduceItem& item, bool scatter,
                                               std::size_t ranks,
                                               const MpiOptions& options) noexcept {
  if (ranks == 1) return 0;
  const Cut cut(item, scatter, ranks, chunk_bytes_of(options));
  const std::size_t chunks =
      std::min(window, cut.steps()) * (ranks - 1) * cut.slot_bytes(item.dtype);
  if (!by_mpi(item, scatter, ranks, options)) return chunks;
  return std::max(chunks, rounded_up(item.count * size_of(item.dtype)));
}

}  // namespace shardwise::inline v0_1::detail::mpi
