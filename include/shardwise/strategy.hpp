#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "core/dtype.hpp"
#include "core/error.hpp"
#include "core/hash.hpp"

namespace shardwise::inline v0_1 {

/// How one kind of state is held at rest: whole on every rank, or each rank its shard.
enum class Placement : std::uint8_t { replicated, sharded };

/// "replicated" or "sharded".
[[nodiscard]] constexpr std::string_view name_of(Placement placement) noexcept {
  return placement == Placement::sharded ? "sharded" : "replicated";
}

/// How the gradients of several micro-batches come together in one step.
enum class Accumulation : std::uint8_t {
  reduce,  ///< every lease is reduced and added to the stored gradient
  hold     ///< at most one reduction of a gradient in a step: its lease stays open meanwhile
};

/// "reduce" or "hold".
[[nodiscard]] constexpr std::string_view name_of(Accumulation accumulation) noexcept {
  return accumulation == Accumulation::hold ? "hold" : "reduce";
}

/// Where a gathered parameter, or a leased gradient, lives.
enum class Residency : std::uint8_t {
  slots,     ///< in buffers of the library: leases hand out spans, steps of the same calls the same
  in_place,  ///< where the host expects it: at its own addresses, within an Arena
  host_buffer,  ///< in memory that the host gives with each gather or reduction
  shared        ///< parameters: in one copy for all ranks, which see one memory
};

/// "slots", "in_place", "host_buffer" or "shared".
[[nodiscard]] constexpr std::string_view name_of(Residency residency) noexcept {
  constexpr std::string_view names[] = {"slots", "in_place", "host_buffer", "shared"};
  return names[static_cast<std::size_t>(residency)];
}

/// What is held where, and how it travels. A small value, chosen at run time and equal on all
/// ranks. The named ones are rows of one table:
///
/// | name                               | parameters | gradients  | optimizer state |
/// |------------------------------------|------------|------------|-----------------|
/// | ddp                                | replicated | replicated | replicated      |
/// | zero1                              | replicated | replicated | sharded         |
/// | zero2                              | replicated | sharded    | sharded         |
/// | zero3, fsdp                        | sharded    | sharded    | sharded         |
/// | zero3-no-reshard, fsdp-shard-grad-op: zero3 with reshard_after_forward = false     |
/// | hybrid-G: zero3 within groups of G ranks, replicated across them (shard_group = G) |
///
/// (Rajbhandari et al., ZeRO, 2020, section 5; Zhao et al., PyTorch FSDP, 2023, section 3.2; Zhang
/// et al., MiCS, 2022, section 3.)
struct Strategy {
  Placement parameters = Placement::sharded;
  Placement gradients = Placement::sharded;
  Placement optimizer_state = Placement::sharded;

  /// What is sharded is so within groups of so many consecutive ranks, and replicated across the
  /// groups (HSDP, MiCS); the world is a multiple of it. 0: the whole world is one group; 1:
  /// nothing is sharded. Gradients are reduce-scattered within a group and all-reduced across the
  /// groups, in the accumulator's type. With a power of two every bit is that of the whole world as
  /// one group; with another number sums are added in another order, and bits differ.
  int shard_group = 0;

  /// Sharded parameters that are gathered more than once a step: what the first gather after a
  /// write brought leaves a secondary shard behind, of the lease type and of 1/reshard_group of the
  /// parameter, so that the next gathers stay within that many consecutive ranks, such as those of
  /// one machine (ZeRO++'s hpZ; Wang et al., 2023, section 3.2). Divides the shard group; bits are
  /// the same. 0: none; 1: as reshard_after_forward = false.
  int reshard_group = 0;

  /// Sharded parameters: false keeps each in a slot of its own from its first use in a step on, so
  /// that backward gathers nothing.
  bool reshard_after_forward = true;
  /// Logical elements; a parameter with fewer stays replicated. 0: none.
  std::size_t persistence_threshold = 0;
  /// How many parameters are gathered ahead of use, where that runs beside compute; 0: none.
  int prefetch = 1;
  /// Consecutive parameters share one collective up to so many bytes of leases; 0: none do.
  std::size_t bucket_bytes = 0;
  /// Cap on the bytes of gathered sharded parameters; 0: none.
  std::size_t max_live_bytes = 0;

  /// Residency in_place: sharded parameters below 4 MiB keep the memory below their addresses, in
  /// the order of registration, as long as their leases have at most so many bytes together
  /// (what is kept counts as slots); 0: none do. Moving pages costs small parameters more than
  /// copying bytes.
  std::size_t keep_resident_bytes = 0;

  /// Where gathered parameters live, unless ParameterOptions::residency or an Arena says otherwise:
  /// slots or shared.
  ///
  /// shared: for ranks on one machine, threads of a process or processes that MPI connects
  /// (Communicator::share_block). All shards of a parameter lie side by side in one allocation,
  /// which all of them see; each rank owns and writes its own, and
  /// leases of the storage type show that memory itself: a gather moves no bytes, and waits for the
  /// other ranks only where nothing else has since the last write (a norm before the update and a
  /// loss mean after it do). Leases of another type show one copy for all ranks, of which each
  /// casts its shard. A parameter that the placements call replicated is one copy for all ranks,
  /// too. Bits and traffic by formula are those of slots. Needs sharded optimizer state, and the
  /// same groups for all that is shared.
  Residency residency = Residency::slots;

  /// What the compute sees of parameters; none: the storage type. A replicated parameter is held in
  /// this type too.
  std::optional<DType> lease = std::nullopt;
  /// What the compute writes gradients in; none: the lease type of the parameter.
  std::optional<DType> gradient_lease = std::nullopt;
  /// What reductions carry; none: the gradient lease type. Sums are in fp32 (fp64 for fp64) anyway.
  std::optional<DType> wire = std::nullopt;

  /// Communication runs on a stream of its own beside compute; on CPUs what is worth it
  /// (ContextOptions::overlap_from).
  bool overlap = true;
  Accumulation accumulation = Accumulation::reduce;

  [[nodiscard]] static constexpr Strategy ddp() noexcept {
    return with(Placement::replicated, Placement::replicated, Placement::replicated);
  }
  [[nodiscard]] static constexpr Strategy zero1() noexcept {
    return with(Placement::replicated, Placement::replicated, Placement::sharded);
  }
  [[nodiscard]] static constexpr Strategy zero2() noexcept {
    return with(Placement::replicated, Placement::sharded, Placement::sharded);
  }
  [[nodiscard]] static constexpr Strategy zero3() noexcept {
    return with(Placement::sharded, Placement::sharded, Placement::sharded);
  }
  [[nodiscard]] static constexpr Strategy zero3_no_reshard() noexcept {
    Strategy strategy = zero3();
    strategy.reshard_after_forward = false;
    return strategy;
  }
  /// zero3 within groups of so many consecutive ranks: see shard_group.
  [[nodiscard]] static constexpr Strategy hybrid(int group) noexcept {
    Strategy strategy = zero3();
    strategy.shard_group = group;
    return strategy;
  }

  /// The strategy with this name; ConfigError that lists the names where there is none. "hybrid",
  /// "hybrid-no-reshard", "hybrid-zero1" and "hybrid-zero2" take the size of a group ("hybrid-8");
  /// without one the whole world is the group.
  [[nodiscard]] static Strategy parse(std::string_view name) {
    std::string names;
    for (const Name& known : all_names) {
      if (known.name == name) return known.make();
      names += detail::format("{}{}", names.empty() ? "" : ", ", known.name);
    }
    for (const Name& known : hybrid_names) {
      if (!name.starts_with(known.name)) continue;
      const std::optional<int> group = scan_group(name.substr(known.name.size()));
      if (!group) continue;
      Strategy strategy = known.make();
      strategy.shard_group = *group;
      return strategy;
    }
    raise<ConfigError>(
        "there is no strategy '{}'; choose one of: {}, hybrid-<ranks of a group>, such as hybrid-8",
        name, names);
  }

  /// The name that parse knows of these placements ("zero3", not "fsdp") and of shard_group,
  /// whatever else is set; the three placements where they have none
  /// ("sharded/replicated/sharded").
  [[nodiscard]] std::string name() const {
    if (shard_group != 0) {
      for (const Name& known : hybrid_names) {
        if (!has_placements_of(known.make())) continue;
        return detail::format("{}-{}", known.name, shard_group);
      }
    }
    for (const Name& known : all_names) {
      if (has_placements_of(known.make())) return std::string(known.name);
    }
    const std::string groups = shard_group != 0 ? detail::format("/{}", shard_group) : "";
    return detail::format("{}/{}/{}{}", name_of(parameters), name_of(gradients),
                          name_of(optimizer_state), groups);
  }

  /// What it comes to in a world of so many ranks: in groups of one rank nothing is sharded, a
  /// group of all ranks is none, and what has no effect is not set. UsageError where groups do not
  /// divide the world, or secondary ones the groups.
  [[nodiscard]] Strategy in_world(int world) const {
    Strategy strategy = *this;
    if (shard_group == 1) {
      strategy.parameters = strategy.gradients = strategy.optimizer_state = Placement::replicated;
    }
    if (shard_group == 1 || shard_group == world) strategy.shard_group = 0;
    if (reshard_group == 1) strategy.reshard_after_forward = false;
    if (shard_group > 1 && world % shard_group != 0) {
      raise(
          "Strategy::shard_group = {} does not divide a world of {} ranks: take a divisor of {}, "
          "or "
          "0 for the whole world",
          shard_group, world, world);
    }
    const int group = strategy.shard_group > 0 ? strategy.shard_group : world;
    if (strategy.parameters == Placement::replicated || !strategy.reshard_after_forward ||
        reshard_group == group) {
      strategy.reshard_group = 0;  // nothing is gathered twice, or among fewer ranks
    }
    if (strategy.reshard_group > 0 && group % reshard_group != 0) {
      raise(
          "Strategy::reshard_group = {} does not divide the {} ranks that shard parameters: take a "
          "divisor of {}, or 0 for none",
          reshard_group, group, group);
    }
    return strategy;
  }

  /// Whether gradients have the bits that they have where the whole world is one group.
  [[nodiscard]] constexpr bool keeps_bits(int world) const noexcept {
    return (shard_group & (shard_group - 1)) == 0 || shard_group == world;
  }

  /// UsageError where parameters of residency shared cannot be held so.
  void check_shares() const {
    if (optimizer_state == Placement::sharded) return;
    raise(
        "residency shared is one copy of which each rank updates its own part, but the optimizer "
        "state is replicated (ddp, or groups of one rank): take zero1, which has the same bits, or "
        "residency slots");
  }

  /// UsageError where the settings contradict each other or are out of range.
  void validate() const {
    if (optimizer_state == Placement::replicated) {
      check_replicated("parameters", parameters);
      check_replicated("gradients", gradients);
    }
    if (shard_group < 0) {
      raise("Strategy::shard_group counts ranks and is not negative: {}", shard_group);
    }
    if (reshard_group < 0) {
      raise("Strategy::reshard_group counts ranks and is not negative: {}", reshard_group);
    }
    if (shard_group > 1 && optimizer_state == Placement::replicated) {
      raise(
          "Strategy::shard_group = {}, but nothing is sharded: shard the optimizer state at least, "
          "or set shard_group = 0",
          shard_group);
    }
    if (prefetch < 0)
      raise("Strategy::prefetch counts parameters and is not negative: {}", prefetch);
    if (residency == Residency::shared) {
      check_shares();
    } else if (residency != Residency::slots) {
      raise(
          "Strategy::residency is slots or shared, found {}: tensors come in_place as HostTensors "
          "in an Arena, and host_buffer is of ParameterOptions::residency",
          name_of(residency));
    }
    check_floating("lease", lease);
    check_floating("gradient_lease", gradient_lease);
    check_floating("wire", wire);
  }

  /// Equal for equal strategies: part of what ranks compare when a parameter is made.
  [[nodiscard]] constexpr std::uint64_t hash() const noexcept {
    const auto type = [](const std::optional<DType>& value) {
      return value ? std::uint64_t{1} + static_cast<std::uint64_t>(*value) : 0;
    };
    detail::Hash hash;
    for (const std::uint64_t value :
         {static_cast<std::uint64_t>(parameters), static_cast<std::uint64_t>(gradients),
          static_cast<std::uint64_t>(optimizer_state), static_cast<std::uint64_t>(shard_group),
          static_cast<std::uint64_t>(reshard_group),
          static_cast<std::uint64_t>(reshard_after_forward), std::uint64_t{persistence_threshold},
          static_cast<std::uint64_t>(prefetch), std::uint64_t{bucket_bytes},
          std::uint64_t{max_live_bytes}, std::uint64_t{keep_resident_bytes},
          static_cast<std::uint64_t>(residency), type(lease), type(gradient_lease), type(wire),
          static_cast<std::uint64_t>(overlap), static_cast<std::uint64_t>(accumulation)}) {
      hash.add(value);
    }
    return hash.value();
  }

  [[nodiscard]] bool operator==(const Strategy&) const = default;

 private:
  struct Name {
    std::string_view name;
    Strategy (*make)() noexcept;
  };
  // The first name of each is the one that is printed.
  static const std::array<Name, 7> all_names;
  static const std::array<Name, 4> hybrid_names;

  // "" and "-8"; none for anything else.
  [[nodiscard]] static std::optional<int> scan_group(std::string_view text) noexcept {
    if (text.empty()) return 0;
    if (text.size() < 2 || text.size() > 8 || text[0] != '-') return std::nullopt;
    int group = 0;
    for (const char digit : text.substr(1)) {
      if (digit < '0' || digit > '9') return std::nullopt;
      group = group * 10 + (digit - '0');
    }
    if (group == 0) return std::nullopt;
    return group;
  }

  [[nodiscard]] static constexpr Strategy with(Placement parameters, Placement gradients,
                                               Placement state) noexcept {
    Strategy strategy;
    strategy.parameters = parameters;
    strategy.gradients = gradients;
    strategy.optimizer_state = state;
    return strategy;
  }

  // Where parameters are replicated there is nothing to reshard.
  [[nodiscard]] constexpr bool has_placements_of(const Strategy& other) const noexcept {
    return parameters == other.parameters && gradients == other.gradients &&
           optimizer_state == other.optimizer_state &&
           (parameters == Placement::replicated ||
            reshard_after_forward == other.reshard_after_forward);
  }

  static void check_replicated(const char* what, Placement placement) {
    if (placement == Placement::replicated) return;
    raise(
        "Strategy: sharded {} need sharded optimizer state: each rank updates its own shard. Set "
        "optimizer_state = Placement::sharded, or {} = Placement::replicated",
        what, what);
  }

  static void check_floating(const char* what, const std::optional<DType>& type) {
    if (!type || is_floating(*type)) return;
    raise("Strategy::{} is a floating type (f64, f32, bf16 or f16), found {}", what,
          name_of(*type));
  }
};

inline constexpr std::array<Strategy::Name, 7> Strategy::all_names{{
    {"ddp", &Strategy::ddp},
    {"zero1", &Strategy::zero1},
    {"zero2", &Strategy::zero2},
    {"zero3", &Strategy::zero3},
    {"zero3-no-reshard", &Strategy::zero3_no_reshard},
    {"fsdp", &Strategy::zero3},
    {"fsdp-shard-grad-op", &Strategy::zero3_no_reshard},
}};
inline constexpr std::array<Strategy::Name, 4> Strategy::hybrid_names{{
    {"hybrid", &Strategy::zero3},
    {"hybrid-no-reshard", &Strategy::zero3_no_reshard},
    {"hybrid-zero1", &Strategy::zero1},
    {"hybrid-zero2", &Strategy::zero2},
}};

/// What is particular to one parameter.
struct ParameterOptions {
  std::string name = {};  ///< for messages and reports; empty: made from its tensors
  /// Instead of the context's; what sizes the slots and streams of all parameters (prefetch,
  /// max_live_bytes, overlap) is the context's all the same.
  std::optional<Strategy> strategy = std::nullopt;
  /// Used more than once in a pass: its gradient lease stays open from the first contribution to
  /// the last, while leases of others open and close.
  bool tied = false;
  /// slots, shared or host_buffer; none: Strategy::residency. A parameter that is made of
  /// HostTensors is in_place without being told.
  std::optional<Residency> residency = std::nullopt;
};

}  // namespace shardwise::inline v0_1
