#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "engine.hpp"
#include "flat_parameter.hpp"
#include "slot_pool.hpp"

namespace shardwise::inline v0_1 {

/// How this rank's contribution enters a mean over batches of different sizes; made by
/// Context::weigh.
struct ReductionWeight {
  double share;  ///< of this rank, in the sum of all ranks' weights

  [[nodiscard]] bool operator==(const ReductionWeight&) const = default;
};

namespace detail {

template <class Device>
struct GradientUnit;

/// The stored gradient of one flat parameter on this rank and where it stands.
template <class Device>
struct FlatGradient {
  /// `host_pieces`: where its tensors lie in an arena; none where it is not in place.
  FlatGradient(FlatParameter<Device>& of, DType type, std::vector<Piece> host_pieces = {},
               RangeOf<Device>* host_arena = nullptr)
      : parameter((of.context->engine().ledger.about(of.subject), of)),
        stored(type),
        value(of.context->engine().ledger, StateKind::gradients,
              (is_whole() ? of.layout.padded_size() : of.shard_size()) * size_of(type)) {
    if (!in_pieces()) return;
    if (of.gradient_residency == Residency::host_buffer) host_pieces = pieces_of(of.layout);
    host = std::make_unique<HostPieces<Device>>(HostPieces<Device>{
        host_arena,
        {of.context->engine().ledger, StateKind::crumbs, of.gradient_placed.crumb_bytes()},
        std::move(host_pieces)});
  }
  FlatGradient(const FlatGradient&) = delete;
  FlatGradient& operator=(const FlatGradient&) = delete;
  ~FlatGradient() {
    if (arena() != nullptr) arena()->release(parameter.gradient_placed);
  }

  [[nodiscard]] bool is_whole() const noexcept {
    return parameter.strategy.gradients == Placement::replicated;
  }
  /// The stored gradient of the range that the optimizer updates on this rank.
  [[nodiscard]] std::byte* owned() const noexcept {
    return value.data() + (is_whole() ? parameter.owned_begin() * size_of(stored) : 0);
  }
  /// in_place: what of it comes and goes.
  [[nodiscard]] const Placed& place() const noexcept { return parameter.gradient_placed; }
  /// Leases write to pieces(), not to one flat buffer.
  [[nodiscard]] bool in_pieces() const noexcept {
    return parameter.gradient_residency != Residency::slots;
  }
  /// in_place: always; host_buffer: during a reduction; none elsewhere.
  [[nodiscard]] std::span<Piece> pieces() const noexcept {
    return host == nullptr ? std::span<Piece>() : host->pieces;
  }
  /// Where its tensors lie; null: in none.
  [[nodiscard]] RangeOf<Device>* arena() const noexcept {
    return host == nullptr ? nullptr : host->arena;
  }
  /// The whole gradient that leases write, where that is one flat buffer; null while none is open.
  [[nodiscard]] std::byte* whole() const noexcept {
    if (in_pieces()) return nullptr;
    if (parameter.lends_stored_gradient()) return value.data();
    return unit->slot == nullptr ? nullptr : unit->slot->buffer.data() + unit_offset;
  }

  FlatParameter<Device>& parameter;
  GradientUnit<Device>* unit = nullptr;
  std::size_t unit_offset = 0;  ///< bytes, in the unit's slot
  std::uint32_t leases = 0;
  float coefficient = 1;  ///< of the next update: clipping, loss scale
  DType stored;
  bool fresh = true;         ///< nothing was reduced since the last update
  bool ready = false;        ///< complete, waits for the rest of its unit
  bool held = false;         ///< by the plain calls
  bool contributed = false;  ///< one of the leases that are open together was reduced
  std::optional<ReductionWeight> weight = {};  ///< of the pending reduction; none: equal batches
  typename Device::Event reduced = {};         ///< communication stream: the last reduction
  std::uint64_t reduced_behind = 0;  ///< by ProgramOrder, the collective that it is behind
  Buffer<Device> value;
  FlatGradient* next_member = nullptr;       ///< of the unit
  std::unique_ptr<HostPieces<Device>> host;  ///< in_place, host_buffer
};

/// What is reduced together.
template <class Device>
struct GradientUnit : Members<FlatGradient<Device>> {
  std::uint32_t open = 0;   ///< members with a lease
  std::uint32_t ready = 0;  ///< members that wait to be reduced
  Residency residency = Residency::slots;
  Slot<Device>* slot = nullptr;
  std::size_t bytes = 0;          ///< of its slot
  std::size_t reduced_bytes = 0;  ///< of what travels
};

}  // namespace detail
}  // namespace shardwise::inline v0_1
