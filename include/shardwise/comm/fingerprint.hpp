#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>

#include "../core/format.hpp"
#include "communicator.hpp"

namespace shardwise::inline v0_1 {

/// The collectives, for fingerprints and messages.
enum class Operation : std::uint8_t {
  none,
  all_gather,
  reduce_scatter,
  all_reduce,
  broadcast,
  all_to_all,
  barrier,
  split
};

/// "all_gather", ...
[[nodiscard]] constexpr std::string_view name_of(Operation operation) noexcept {
  constexpr std::string_view names[] = {"nothing",   "all_gather", "reduce_scatter", "all_reduce",
                                        "broadcast", "all_to_all", "barrier",        "split"};
  return names[static_cast<std::size_t>(operation)];
}

/// What of one item must be equal on all ranks.
struct ItemPrint {
  std::uint64_t count = 0;
  std::uint64_t pieces = 0;  ///< hash of their offsets and counts; 0: none
  double scale = 1;
  DType dtype = DType::f32;
  DType output = DType::f32;
  bool accumulate = false;
  bool weighted = false;

  bool operator==(const ItemPrint&) const = default;
};

/// What of one call must be equal on all ranks. A flat value: backends may send its bytes.
struct Fingerprint {
  static constexpr std::size_t name_bytes = 64;

  std::uint64_t sequence = 0;  ///< 1 for the communicator's first collective
  std::uint64_t item_count = 0;
  std::uint64_t items_hash = 0;  ///< of all items' prints
  std::uint64_t name_hash = 0;   ///< of the whole name
  std::uint64_t detail = 0;      ///< CallInfo::detail, as is `registration`
  RegistrationPrint registration;
  std::uint64_t shown = 0;  ///< which item `item` shows
  ItemPrint item;           ///< the first; after a mismatch, the first that differs
  std::int32_t root = -1;   ///< of a broadcast
  Operation operation = Operation::none;
  std::uint8_t name_length = 0;  ///< of what `name` holds of it
  std::array<char, name_bytes> name{};

  /// The call's name, cut where it is too long.
  [[nodiscard]] std::string_view shown_name() const noexcept { return {name.data(), name_length}; }

  [[nodiscard]] bool agrees_with(const Fingerprint& other) const noexcept {
    return operation == other.operation && root == other.root && sequence == other.sequence &&
           item_count == other.item_count && items_hash == other.items_hash &&
           name_hash == other.name_hash && detail == other.detail;
  }
};
static_assert(std::is_trivially_copyable_v<Fingerprint>);

namespace detail {

/// One step of a 64-bit hash (the finaliser of splitmix64).
[[nodiscard]] constexpr std::uint64_t mix(std::uint64_t hash, std::uint64_t value) noexcept {
  std::uint64_t x = (hash ^ value) + 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

[[nodiscard]] inline std::uint64_t hash_text(std::string_view text) noexcept {
  std::uint64_t hash = mix(0, text.size());
  for (; text.size() >= 8; text.remove_prefix(8)) {
    std::uint64_t word = 0;
    std::memcpy(&word, text.data(), 8);
    hash = mix(hash, word);
  }
  std::uint64_t rest = 0;
  if (!text.empty()) std::memcpy(&rest, text.data(), text.size());
  return mix(hash, rest);
}

[[nodiscard]] inline std::uint64_t hash_pieces(std::span<const Piece> pieces) noexcept {
  std::uint64_t hash = pieces.size();
  for (const Piece& piece : pieces) hash = mix(mix(hash, piece.offset), piece.count);
  return hash;
}

}  // namespace detail

[[nodiscard]] inline ItemPrint print_of(const ReduceItem& item) noexcept {
  return {item.count,        detail::hash_pieces(item.pieces),
          item.spec.scale,   item.dtype,
          item.spec.output,  item.spec.accumulate,
          item.spec.weighted};
}
[[nodiscard]] inline ItemPrint print_of(const GatherItem& item) noexcept {
  // Where each rank's own part is read from its pieces, all ranks' must be.
  const std::uint64_t inside = item.send == nullptr && !item.pieces.empty() ? 1 : 0;
  return {item.count, detail::hash_pieces(item.pieces) + inside, 1, item.dtype, item.dtype, false};
}
template <class Item>
[[nodiscard]] ItemPrint print_of(const Item& item) noexcept {
  return {item.count, 0, 1, item.dtype, item.dtype, false};
}

namespace detail {

[[nodiscard]] inline std::uint64_t hash_item(std::uint64_t hash, const ItemPrint& item) noexcept {
  const auto kinds = static_cast<std::uint64_t>(item.dtype) |
                     static_cast<std::uint64_t>(item.output) << 8 |
                     static_cast<std::uint64_t>(item.accumulate) << 16 |
                     static_cast<std::uint64_t>(item.weighted) << 17;
  return mix(mix(mix(mix(hash, item.count), item.pieces), std::bit_cast<std::uint64_t>(item.scale)),
             kinds);
}

template <class Item>
[[nodiscard]] Fingerprint fingerprint_of(Operation operation, std::span<const Item> items,
                                         const CallInfo& info, int root,
                                         std::uint64_t sequence) noexcept {
  Fingerprint print;
  print.sequence = sequence;
  print.operation = operation;
  print.root = root;
  print.detail = info.detail;
  print.registration = info.registration;
  print.name_hash = hash_text(info.name);
  print.name_length =
      static_cast<std::uint8_t>(std::min(info.name.size(), Fingerprint::name_bytes));
  std::copy_n(info.name.data(), print.name_length, print.name.data());
  print.item_count = items.size();
  if (!items.empty()) print.item = print_of(items.front());
  for (const Item& item : items) print.items_hash = hash_item(print.items_hash, print_of(item));
  return print;
}

[[nodiscard]] inline std::string describe(const ItemPrint& item, Operation operation) {
  std::string text = detail::format("{} x {}", name_of(item.dtype), item.count);
  if (item.pieces != 0) text += " in pieces";
  if (operation == Operation::reduce_scatter || operation == Operation::all_reduce) {
    if (item.output != item.dtype) text += detail::format(" -> {}", name_of(item.output));
    if (item.scale != 1) text += detail::format(", scale {}", item.scale);
    if (item.accumulate) text += ", accumulating";
    if (item.weighted) text += ", weighted";
  }
  return text;
}

}  // namespace detail

/// `all_gather #12 "block.3" (f32 x 1024)`
[[nodiscard]] inline std::string describe(const Fingerprint& call) {
  std::string text = detail::format("{} #{}", name_of(call.operation), call.sequence);
  if (call.name_length > 0) text += detail::format(" \"{}\"", call.shown_name());
  if (call.item_count == 1) {
    text += detail::format(" ({})", detail::describe(call.item, call.operation));
  } else if (call.item_count > 1) {
    text += detail::format(" ({} items; item {}: {})", call.item_count, call.shown,
                           detail::describe(call.item, call.operation));
  }
  if (call.root >= 0) text += detail::format(" from root {}", call.root);
  if (call.detail != 0) text += detail::format(" detail {:016x}", call.detail);
  return text;
}

namespace detail {

/// In what calls differ that all register one parameter; empty for other calls.
[[nodiscard]] inline std::string describe_registrations(std::span<const Fingerprint> calls) {
  const auto is_other = [&](const Fingerprint& call) {
    return !call.registration.registers || call.name_hash != calls.front().name_hash;
  };
  if (std::any_of(calls.begin(), calls.end(), is_other)) return {};
  struct Thing {
    std::uint16_t RegistrationPrint::*print;
    std::string_view name;
  };
  using Print = RegistrationPrint;
  constexpr Thing things[] = {
      {&Print::tensors, "the tensors (names, shapes, options, order)"},
      {&Print::storage, "the storage type"},
      {&Print::strategy, "the parameter's strategy"},
      {&Print::placement, "tied or residency"},
      {&Print::position, "how many parameters came before"},
      {&Print::context_strategy, "the Context's strategy"},
      {&Print::context_options, "ContextOptions::open_parameters, open_gradients or debug"},
      {&Print::overlap_from,
       "what runs beside compute (Strategy::overlap, ContextOptions::overlap_from, or what each "
       "rank "
       "chose by its cores)"},
      {&Print::arenas,
       "the Context's arenas (how many; ArenaOptions, and what each rank's system can do)"},
  };
  std::string text;
  for (const Thing& thing : things) {
    const auto differs = [&](const Fingerprint& call) {
      return call.registration.*thing.print != calls.front().registration.*thing.print;
    };
    if (std::none_of(calls.begin(), calls.end(), differs)) continue;
    text += text.empty() ? "\nThey register this parameter and differ in " : "; ";
    text += thing.name;
  }
  return text.empty() ? text : text + ".";
}

}  // namespace detail

/// The message of a CollectiveMismatch: each different call with the ranks that made it. `calls`
/// holds one per rank; `rank_name(r)` is what rank r is called.
template <class RankName>
[[nodiscard]] std::string describe_mismatch(std::span<const Fingerprint> calls,
                                            const RankName& rank_name) {
  std::string text = "ranks called different collectives:";
  constexpr int most_lines = 8;
  int lines = 0;
  for (std::size_t r = 0; r < calls.size(); ++r) {
    const auto same = [&](const Fingerprint& other) { return other.agrees_with(calls[r]); };
    if (std::any_of(calls.begin(), calls.begin() + static_cast<std::ptrdiff_t>(r), same)) continue;
    if (++lines > most_lines) {
      text += "\n  ...";
      break;
    }
    text += "\n  rank";
    std::string separator = " ";
    for (std::size_t q = r; q < calls.size(); ++q) {
      if (!same(calls[q])) continue;
      text += detail::format("{}{}", separator, rank_name(q));
      separator = ", ";
    }
    text += detail::format(": {}", describe(calls[r]));
  }
  text += detail::describe_registrations(calls);
  return text + "\nAll ranks must make the same calls in the same order; no byte was moved.";
}

}  // namespace shardwise::inline v0_1
