#pragma once

#include <cstddef>
#include <span>
#include <string_view>

#include "../core/checked.hpp"
#include "../core/dtype.hpp"
#include "../core/error.hpp"
#include "../core/reduce_spec.hpp"
#include "communicator.hpp"
#include "fingerprint.hpp"

namespace shardwise::inline v0_1 {

/// UsageError where `spec` cannot be applied to contributions of type `dtype`.
inline void check_reduction(DType dtype, const ReduceSpec& spec) {
  if (spec.weight != 1 && !spec.weighted) {
    raise(
        "a weight of {} in a reduction that is not weighted: set ReduceSpec::weighted on all ranks",
        spec.weight);
  }
  if (is_floating(dtype)) {
    if (!is_floating(spec.output)) {
      raise("a sum of {} cannot be stored as {}: choose a floating output type", name_of(dtype),
            name_of(spec.output));
    }
    return;
  }
  if (spec.output != dtype) {
    raise("a sum of {} is exact and stays {}, but the output type is {}", name_of(dtype),
          name_of(dtype), name_of(spec.output));
  }
  if (spec.scale != 1 || spec.weighted) {
    raise(
        "a sum of {} is exact: scale must be 1 and there are no weights, found scale {} and weight "
        "{}; for a mean convert to a floating type first",
        name_of(dtype), spec.scale, spec.weight);
  }
}

/// What every backend checks before it takes a call: pointers, in-place rules, types. UsageError.
class Arguments {
 public:
  Arguments(Operation operation, std::string_view name, int rank, int size) noexcept
      : operation_(operation),
        name_(name),
        rank_(static_cast<std::size_t>(rank)),
        size_(static_cast<std::size_t>(size)) {}

  void check(std::span<const GatherItem> items) const {
    for (const GatherItem& item : items) {
      const std::size_t part = bytes(item.count, item.dtype);
      const std::size_t whole = checked_multiply(part, size_, "bytes of an all_gather");
      if (!item.pieces.empty()) {
        check_pieces(item.pieces, item.count * size_, item.recv, "receive");
        continue;
      }
      pointers(item.send, item.recv, part);
      separate(item.send, part, item.recv, whole, rank_ * part, true);
    }
  }

  void check(std::span<const ReduceItem> items) const {
    const bool scatter = operation_ == Operation::reduce_scatter;
    for (const ReduceItem& item : items) {
      check_reduction(item.dtype, item.spec);
      const std::size_t part = bytes(item.count, item.dtype);
      const std::size_t whole =
          scatter ? checked_multiply(part, size_, "bytes of a reduce_scatter") : part;
      if (!item.pieces.empty()) {
        check_pieces(item.pieces, scatter ? item.count * size_ : item.count, item.send, "send");
        pointers(item.recv, item.recv, part);
        continue;
      }
      pointers(item.send, item.recv, part);
      separate(item.recv, bytes(item.count, item.spec.output), item.send, whole,
               scatter ? rank_ * part : 0, item.dtype == item.spec.output && !item.spec.accumulate);
    }
  }

  void check(std::span<const ExchangeItem> items) const {
    for (const ExchangeItem& item : items) {
      const std::size_t whole =
          checked_multiply(bytes(item.count, item.dtype), size_, "bytes of an all_to_all");
      pointers(item.send, item.recv, whole);
      separate(item.send, whole, item.recv, whole, 0, false);
    }
  }

  void check(std::span<const BroadcastItem> items, int root) const {
    if (root < 0 || static_cast<std::size_t>(root) >= size_) {
      raise("{} \"{}\": root {} is not a rank: there are {}", name_of(operation_), name_, root,
            size_);
    }
    for (const BroadcastItem& item : items) {
      pointers(item.buffer, item.buffer, bytes(item.count, item.dtype));
    }
  }

  void check(StreamRef stream) const {
    if (stream.memory != MemoryKind::host) {
      raise("{} \"{}\": this communicator works on host memory; it was given a CUDA stream",
            name_of(operation_), name_);
    }
  }

 private:
  static std::size_t bytes(std::size_t count, DType dtype) {
    return checked_multiply(count, size_of(dtype), "bytes of a collective's buffer");
  }

  void pointers(const void* send, const void* recv, std::size_t size) const {
    if (size > 0 && (send == nullptr || recv == nullptr)) {
      raise("{} \"{}\" on rank {}: the {} buffer is null, expected {} bytes", name_of(operation_),
            name_, rank_, send == nullptr ? "send" : "receive", size);
    }
  }

  void check_pieces(std::span<const Piece> pieces, std::size_t elements, const void* buffer,
                    const char* which) const {
    std::size_t end = 0;
    bool good = buffer == nullptr;
    for (const Piece& piece : pieces) {
      good = good && piece.offset >= end && piece.offset <= elements &&
             piece.count <= elements - piece.offset && (piece.count == 0 || piece.data != nullptr);
      end = piece.offset + piece.count;
    }
    if (good) return;
    raise(
        "{} \"{}\" on rank {}: {} pieces must ascend, lie within {} elements and not be null, "
        "and the {} buffer that they stand for must be null",
        name_of(operation_), name_, rank_, pieces.size(), elements, which);
  }

  // `small` may lie at `whole` + offset where in_place; the two are apart otherwise.
  void separate(const void* small, std::size_t small_bytes, const void* whole,
                std::size_t whole_bytes, std::size_t offset, bool in_place) const {
    const auto a = reinterpret_cast<std::uintptr_t>(small);
    const auto b = reinterpret_cast<std::uintptr_t>(whole);
    if (small_bytes == 0 || a >= b + whole_bytes || b >= a + small_bytes) return;
    if (in_place && a == b + offset) return;
    raise("{} \"{}\" on rank {}: the buffers overlap (send or receive at byte {} of the other); {}",
          name_of(operation_), name_, rank_,
          static_cast<std::ptrdiff_t>(a) - static_cast<std::ptrdiff_t>(b),
          operation_ == Operation::all_to_all
              ? "an all_to_all is never in place"
              : "in place needs equal types, no accumulation and this rank's own part");
  }

  Operation operation_;
  std::string_view name_;
  std::size_t rank_;
  std::size_t size_;
};

}  // namespace shardwise::inline v0_1
