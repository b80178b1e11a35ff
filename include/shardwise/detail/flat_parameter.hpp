#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "../comm/shared_block.hpp"
#include "../core/piece.hpp"
#include "../fwd.hpp"
#include "engine.hpp"
#include "in_place.hpp"
#include "members.hpp"
#include "registration.hpp"
#include "shard_groups.hpp"
#include "slot_pool.hpp"

namespace shardwise::inline v0_1::detail {

template <class Device>
struct ParameterUnit;

template <class T>
[[nodiscard]] std::byte* as_bytes(T* buffer) noexcept {
  return reinterpret_cast<std::byte*>(buffer);
}

/// UsageError where a host's buffers are not one for each tensor.
template <class T>
void check_buffers(std::string_view what, const Registration& registration,
                   std::span<T* const> buffers) {
  const auto tensors = registration.layout.tensors();
  if (buffers.size() != tensors.size()) {
    raise("{} '{}' has {} tensors, but {} buffers were given: one for each, in order", what,
          registration.name(), tensors.size(), buffers.size());
  }
  for (std::size_t i = 0; i < buffers.size(); ++i) {
    if (tensors[i].count == 0 || buffers[i] != nullptr) continue;
    raise("{} '{}': the buffer for tensor '{}' ({} elements) is null", what, registration.name(),
          tensors[i].name, tensors[i].count);
  }
}

/// Where the tensors lie, one piece for each, in the order of the layout.
[[nodiscard]] inline std::vector<Piece> pieces_of(const Layout& layout) {
  std::vector<Piece> pieces;
  pieces.reserve(layout.tensors().size());
  for (const Layout::Tensor& tensor : layout.tensors()) {
    pieces.push_back({nullptr, tensor.offset, tensor.count});
  }
  return pieces;
}

/// The observer knows of it before its memory is allocated.
template <class Device>
[[nodiscard]] Registration introduced(Engine<Device>& engine, Registration registration) {
  registration.subject = engine.introduce(registration.name(), registration.lease_bytes());
  return registration;
}

/// Residency::shared: the storage of all ranks, all shards side by side.
struct SharedStorage {
  std::unique_ptr<SharedBlock> block;  ///< null where there are no elements, and in arenas
  std::uint64_t written_at = 0;        ///< by ProgramOrder, the last write,
  std::uint64_t released_at = 0;       ///< the last release of leases that show it,
  std::uint64_t gathered_behind = 0;  ///< and the collective that FlatParameter::gathered is behind
};

/// What stands beside the storage, in the lease type: the replicated copy, or the secondary shard
/// of Strategy::reshard_group.
template <class Device>
struct Beside {
  Buffer<Device> buffer;
  std::uint64_t version = 0;      ///< of the secondary shard; of this rank's part of the copy, if a
                                  ///< step wrote it
  Communicator* ranks = nullptr;  ///< of the secondary shard: they hold everything together
};

/// Where tensors lie that are not in a buffer of the library.
template <class Device>
struct HostPieces {
  RangeOf<Device>* arena;     ///< null: in the host's buffers, or nowhere
  Account in_arena;           ///< what of it stays
  std::vector<Piece> pieces;  ///< one for each tensor; host_buffer: the host's of the last call
};

/// One flat parameter of any element type: its storage on this rank and where it stands.
template <class Device>
struct FlatParameter : Registration {
  /// `host_pieces`, `host_arena`: where it lies in an arena; the registration's claim there ends
  /// with this object.
  FlatParameter(Context<Device>& of, Registration registration, std::vector<Piece> host_pieces = {},
                RangeOf<Device>* host_arena = nullptr)
      : Registration(introduced(of.engine(), std::move(registration))),
        context(&of),
        shard_begin(shard_begin_of(of.rank())),
        value(of.engine().ledger, StateKind::parameters, own_storage_bytes()) {
    if ((has_copy() && !replicated_in_place()) || keeps_secondary()) {
      beside = std::make_unique<Beside<Device>>();
      beside->buffer = Buffer<Device>(of.engine().ledger, StateKind::parameters,
                                      copy_bytes() + secondary_bytes());
    }
    if (residency == Residency::shared) shared = std::make_unique<SharedStorage>();
    if (!in_pieces()) return;
    if (residency == Residency::host_buffer) host_pieces = pieces_of(layout);
    host = std::make_unique<HostPieces<Device>>(
        HostPieces<Device>{host_arena, account_in(of.engine().ledger), std::move(host_pieces)});
  }

  FlatParameter(const FlatParameter&) = delete;
  FlatParameter& operator=(const FlatParameter&) = delete;
  ~FlatParameter() {
    if (arena() != nullptr) arena()->release(placed);
  }

  /// The flat range that this rank's optimizer updates: its shard, or everything.
  [[nodiscard]] std::size_t owned_begin() const noexcept {
    return updates_shard() ? shard_begin : 0;
  }
  [[nodiscard]] std::size_t owned_count() const noexcept {
    return updates_shard() ? shard_size() : layout.padded_size();
  }
  /// The first element of that range in the storage, which must be contiguous.
  [[nodiscard]] std::byte* owned() const noexcept {
    return value.data() + (storage_is_whole() ? owned_begin() * size_of(storage) : 0);
  }
  /// A segment of what this rank stores: [0, padded_size) where the storage is whole, else the
  /// shard.
  [[nodiscard]] std::byte* stored(const Layout::Segment& segment) const noexcept {
    if (storage_in_place()) {
      return host->pieces[segment.tensor].data + segment.tensor_offset * size_of(storage);
    }
    const std::size_t begin = storage_is_whole() ? 0 : shard_begin;
    return value.data() + (segment.offset - begin) * size_of(storage);
  }

  /// in_place: what of it comes and goes.
  [[nodiscard]] const Placed& place() const noexcept { return placed; }
  /// Leases see pieces(), not one flat buffer.
  [[nodiscard]] bool in_pieces() const noexcept {
    return residency == Residency::in_place || residency == Residency::host_buffer ||
           in_shared_arena;
  }
  /// In an arena: always; host_buffer: while it is gathered; none elsewhere.
  [[nodiscard]] std::span<Piece> pieces() const noexcept {
    return host == nullptr ? std::span<Piece>() : host->pieces;
  }
  /// Where its tensors lie; null: in none.
  [[nodiscard]] RangeOf<Device>* arena() const noexcept {
    return host == nullptr ? nullptr : host->arena;
  }
  /// The whole parameter in the lease type, where that is one flat buffer; null while it is not
  /// gathered.
  [[nodiscard]] std::byte* whole() const noexcept {
    if (sharded()) {
      if (lends_storage()) return shared->block == nullptr ? nullptr : shared->block->data();
      if (in_pieces() || unit->slot == nullptr) return nullptr;
      return unit->slot->buffer.data() + unit_offset;
    }
    if (replicated_in_place()) return nullptr;
    return has_copy() ? beside->buffer.data() : value.data();
  }

  /// What stands beside the storage has the values of the storage.
  [[nodiscard]] bool beside_is_current() const noexcept {
    return beside != nullptr && beside->version == version;
  }

  Context<Device>* context;
  ParameterUnit<Device>* unit = nullptr;
  std::size_t unit_offset = 0;  ///< bytes, in the unit's slot
  std::uint32_t index = 0;      ///< in order of registration
  std::uint32_t leases = 0;
  std::uint32_t scopes = 0;  ///< full_parameters that it is in; each has one of the leases
  bool held = false;         ///< by the plain calls
  /// The ranks that it is sharded over; null before it is registered.
  const ShardGroup* group = nullptr;
  std::size_t shard_begin;
  std::uint64_t version = 1;             ///< of the storage; every write adds 1
  std::uint64_t gathered_version = 0;    ///< of whole()
  typename Device::Event gathered = {};  ///< communication stream: the last read by a gather
  typename Device::Event written = {};   ///< compute stream: the last write
  Buffer<Device> value;  ///< shared: this rank's part of the block, once that is there
  std::unique_ptr<Beside<Device>> beside;    ///< null: nothing is
  FlatParameter* next_member = nullptr;      ///< of the unit
  std::unique_ptr<SharedStorage> shared;     ///< Residency::shared
  std::unique_ptr<HostPieces<Device>> host;  ///< in an arena, or in buffers of the host

 private:
  // Storage that others share, or that is the host's, is not allocated here.
  [[nodiscard]] std::size_t own_storage_bytes() const noexcept {
    return storage_in_place() || residency == Residency::shared ? 0 : storage_bytes();
  }
  [[nodiscard]] Account account_in(Ledger& ledger) const noexcept {
    if (in_shared_arena) return {ledger, StateKind::parameters, storage_bytes()};
    if (!replicated_in_place()) return {ledger, StateKind::crumbs, placed.crumb_bytes()};
    return {ledger, StateKind::parameters, storage_in_place() ? storage_bytes() : copy_bytes()};
  }
};

/// What is gathered together: one parameter, or several small ones in registration order.
template <class Device>
struct ParameterUnit : Members<FlatParameter<Device>> {
  std::uint32_t leases = 0;
  Slot<Device>* slot = nullptr;
  /// PagePool::stays_below(): whose memory lies below its addresses, whoever has the slot.
  const Slot<Device>* home = nullptr;
  std::size_t lease_bytes = 0;  ///< the same on all ranks
  Residency residency = Residency::slots;
  bool needs_slot = false;
  bool shares_slots = false;
  bool settled = false;     ///< it is decided whether it keeps its memory
  bool kept = false;        ///< Strategy::keep_resident_bytes
  bool extra_slot = false;  ///< the slot is there for full_parameters alone
  bool changed = false;     ///< a member has gone while others were lent
  bool hidden = false;      ///< debug mode: nobody may have touched it since it was hidden

  /// Bytes that its slot has room for.
  [[nodiscard]] std::size_t slot_bytes() const noexcept {
    return this->empty() ? 0 : this->back().unit_offset + this->back().slot_bytes();
  }
};

/// Empties lists of items at the end of the scope, also where the call that they are for throws.
template <class Items>
struct Emptied {
  Items& items;
  ~Emptied() { items.clear(); }
};

}  // namespace shardwise::inline v0_1::detail
