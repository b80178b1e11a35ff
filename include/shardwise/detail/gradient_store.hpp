#pragma once

#include <algorithm>
#include <cstddef>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "engine.hpp"
#include "parameter_store.hpp"
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
  FlatGradient(Engine<Device>& engine, FlatParameter<Device>& of, DType type)
      : parameter(of),
        stored(type),
        value(engine.ledger, StateKind::gradients,
              (is_whole() ? of.layout.padded_size() : of.layout.shard_size()) * size_of(type)) {}

  [[nodiscard]] bool is_whole() const noexcept {
    return parameter.strategy.gradients == Placement::replicated;
  }
  /// The stored gradient of the range that the optimizer updates on this rank.
  [[nodiscard]] std::byte* owned() const noexcept {
    return value.data() + (is_whole() ? parameter.owned_begin() * size_of(stored) : 0);
  }
  /// The whole gradient that leases write; null while none is open.
  [[nodiscard]] std::byte* whole() const noexcept {
    if (parameter.gradient_in_place()) return value.data();
    return unit->slot == nullptr ? nullptr : unit->slot->buffer.data() + unit_offset;
  }

  FlatParameter<Device>& parameter;
  DType stored;
  Buffer<Device> value;
  typename Device::Event reduced = {};  ///< communication stream: the last reduction
  bool fresh = true;                    ///< nothing was reduced since the last update
  bool ready = false;                   ///< complete, waits for the rest of its unit
  bool held = false;                    ///< by the plain calls
  std::size_t leases = 0;
  bool contributed = false;  ///< one of the leases that are open together was reduced
  std::optional<ReductionWeight> weight = {};  ///< of the pending reduction; none: equal batches
  float coefficient = 1;                       ///< of the next update: clipping, loss scale
  GradientUnit<Device>* unit = nullptr;
  std::size_t unit_offset = 0;
};

template <class Device>
struct GradientUnit {
  std::vector<FlatGradient<Device>*> members;
  Slot<Device>* slot = nullptr;
  std::size_t open = 0;   ///< members with a lease
  std::size_t ready = 0;  ///< members that wait to be reduced
  std::size_t bytes = 0;
};

/// All gradients of a Context: lends slots to write them, reduces them into what each rank stores.
template <class Device>
class GradientStore {
 public:
  using Gradient = FlatGradient<Device>;
  using Unit = GradientUnit<Device>;

  explicit GradientStore(Engine<Device>& engine) : engine_(engine), pool_(engine.ledger) {}

  void add(Gradient& gradient) {
    const std::string& name = gradient.parameter.name;
    if (prepared_) {
      raise(
          "the gradient of '{}' is registered after the slots were allocated, by the first "
          "gradient "
          "lease or by prepare(); register all first",
          name);
    }
    // Units and norms follow the order of the parameters, as the plan does.
    const auto later = std::find_if(
        gradients_.begin(), gradients_.end(),
        [&](const Gradient* other) { return other->parameter.index > gradient.parameter.index; });
    gradients_.insert(later, &gradient);
  }
  void remove(Gradient& gradient) noexcept {
    std::erase(gradients_, &gradient);
    if (gradient.unit == nullptr) return;
    Unit& unit = *gradient.unit;
    std::erase(unit.members, &gradient);
    if (gradient.leases > 0) --unit.open;
    if (gradient.ready) --unit.ready;
    give_back(unit, engine_.compute.record());
  }
  [[nodiscard]] std::span<Gradient* const> gradients() const noexcept { return gradients_; }

  /// Forms units and allocates slots, landing buffers and room for the norm; at the first lease.
  void prepare() {
    if (prepared_) return;
    form_units();
    allocate_slots();
    items_.reserve(gradients_.size());
    engine_.reserve_scalars(gradients_.size());
    prepared_ = true;
  }

  /// Lends the whole gradient, zeroed; a tied gradient that is open already as it is.
  void open(Gradient& gradient) {
    engine_.check();
    prepare();
    Unit& unit = *gradient.unit;
    if (gradient.leases > 0) {
      ++gradient.leases;
      return;
    }
    const Registration& registration = gradient.parameter;
    if (gradient.ready) flush(unit);
    if (registration.strategy.accumulation == Accumulation::hold && !gradient.fresh) {
      raise(
          "the gradient of '{}' was reduced already in this step, and Strategy::accumulation = "
          "hold allows one reduction a step: keep its lease open over the micro-batches, or use "
          "Accumulation::reduce",
          registration.name);
    }
    if (registration.gradient_in_place()) {
      engine_.wait(gradient.reduced, registration.name);
    } else {
      // While others of its bucket are under way, the slot has not been anybody else's.
      if (unit.open + unit.ready > 0) engine_.wait(gradient.reduced, registration.name);
      borrow(unit, registration.name);
    }
    Device::zero(engine_.compute, gradient.whole(),
                 registration.layout.padded_size() * size_of(registration.gradient_lease));
    gradient.leases = 1;
    ++unit.open;
  }

  /// UsageError where reduce() may not be called now; nothing has changed then.
  void check_reduction(const Gradient& gradient, std::optional<ReductionWeight> weight) {
    engine_.check();
    if (gradient.leases == 0) {
      raise("reduce() of the gradient of '{}' without an open lease", gradient.parameter.name);
    }
    if (!gradient.contributed || gradient.weight == weight) return;
    raise(
        "the leases of the gradient of '{}' that are open together must be reduced with one weight",
        gradient.parameter.name);
  }

  /// This lease's contribution is complete. With the last one of its unit the reduction is issued.
  void reduce(Gradient& gradient, std::optional<ReductionWeight> weight) {
    gradient.weight = weight;
    gradient.contributed = true;
    if (close(gradient) && gradient.unit->ready == gradient.unit->members.size()) {
      flush(*gradient.unit);
    }
  }

  /// Gives a lease back without a contribution. What nested leases of the same gradient contributed
  /// stays, and is reduced when it is needed.
  void discard(Gradient& gradient) noexcept {
    if (close(gradient)) give_back(*gradient.unit, engine_.compute.record());
  }

  /// Issues what waits for its unit to fill up.
  void flush(Gradient& gradient) {
    if (gradient.ready) flush(*gradient.unit);
  }

  /// The compute stream may read the stored gradient after this; zeros where nothing was reduced.
  void settle(Gradient& gradient, const char* what) {
    engine_.check();
    if (gradient.leases > 0) {
      raise("{} with the gradient lease of '{}' open: reduce or discard it first", what,
            gradient.parameter.name);
    }
    flush(gradient);
    engine_.wait(gradient.reduced, gradient.parameter.name);
    if (gradient.fresh) {
      Device::zero(engine_.compute, gradient.value.data(), gradient.value.size());
    }
  }

  /// The stored gradient was used: the next reduction overwrites it.
  void consume(Gradient& gradient) noexcept {
    gradient.fresh = true;
    gradient.coefficient = 1;
  }

 private:
  using State = typename Slot<Device>::State;

  // One lease less; true where it was the last.
  bool close(Gradient& gradient) noexcept {
    if (--gradient.leases > 0) return false;
    --gradient.unit->open;
    if (std::exchange(gradient.contributed, false)) {
      gradient.ready = true;
      ++gradient.unit->ready;
    }
    return true;
  }

  void form_units() {
    std::vector<const Registration*> entries;
    for (const Gradient* gradient : gradients_) entries.push_back(&gradient->parameter);
    const auto unit_of = group_gradients(entries);
    for (std::size_t i = 0; i < gradients_.size(); ++i) {
      Gradient& gradient = *gradients_[i];
      if (unit_of[i] == units_.size()) units_.push_back(std::make_unique<Unit>());
      Unit& unit = *units_.back();
      gradient.unit = &unit;
      gradient.unit_offset = unit.bytes;
      unit.members.push_back(&gradient);
      unit.bytes += gradient.parameter.gradient_slot_bytes();
    }
  }

  void allocate_slots() {
    std::size_t largest = 0;
    std::size_t count = 0;
    std::size_t landing = 0;
    for (const auto& unit : units_) {
      const Registration& first = unit->members.front()->parameter;
      std::size_t unit_landing = 0;
      for (const Gradient* member : unit->members) {
        const bool scatter = member->parameter.updates_shard();
        unit_landing += engine_.comm.landing_bytes(item(*member, nullptr), scatter);
      }
      landing = std::max(landing, unit_landing);
      if (first.gradient_in_place()) continue;
      if (first.tied || first.strategy.accumulation == Accumulation::hold) {
        pool_.dedicate(unit->slot, unit->bytes);
      } else {
        largest = std::max(largest, unit->bytes);
        ++count;
      }
    }
    const std::size_t in_flight = engine_.strategy.overlap ? 1 : 0;
    pool_.share(std::min(count, engine_.options.open_gradients + in_flight), largest);
    landing_ = Buffer<Device>(engine_.ledger, StateKind::slots, landing);
  }

  void borrow(Unit& unit, const std::string& name) {
    if (unit.slot == nullptr && !acquire(unit)) {
      std::string holders;
      for (const auto& other : units_) {
        if (other->slot == nullptr || other->slot->state != State::open) continue;
        for (const Gradient* member : other->members) {
          holders += fmt::format("{}'{}'{}", holders.empty() ? "" : ", ", member->parameter.name,
                                 member->ready ? " (waits for the rest of its bucket)" : "");
        }
      }
      raise(
          "the gradient lease of '{}' needs a slot, but all {} are lent: to {}. Reduce one of "
          "them, or set ContextOptions::open_gradients to the number that you hold open at once, "
          "or mark a parameter whose lease stays open for long ParameterOptions::tied",
          name, pool_.shared_count(), holders);
    }
    engine_.wait(unit.slot->last_use, name);
    pool_.mark(*unit.slot, State::open);
  }

  // Where every slot is lent, buckets that only wait for their other members go first.
  bool acquire(Unit& unit) {
    if (pool_.acquire(unit.slot, true)) return true;
    for (const auto& other : units_) {
      if (other->ready > 0 && other->open == 0) flush(*other);
    }
    return pool_.acquire(unit.slot, true);
  }

  void give_back(Unit& unit, typename Device::Event last_use) noexcept {
    if (unit.slot == nullptr || unit.open > 0 || unit.ready > 0) return;
    unit.slot->last_use = last_use;
    pool_.mark(*unit.slot, State::empty);
  }

  [[nodiscard]] ReduceItem item(const Gradient& gradient, void* landing) const noexcept {
    const Registration& registration = gradient.parameter;
    const bool scatter = registration.updates_shard();
    ReduceItem result{};
    result.send = gradient.whole();
    result.recv = gradient.owned();
    result.count = scatter ? registration.layout.shard_size() : registration.layout.padded_size();
    result.dtype = registration.wire;
    result.landing = landing;
    result.spec.output = gradient.stored;
    result.spec.accumulate = !gradient.fresh;
    result.spec.weight = gradient.weight ? gradient.weight->share : 1;
    result.spec.scale = gradient.weight ? 1 : 1.0 / engine_.world();
    return result;
  }

  void flush(Unit& unit) {
    auto& stream = engine_.communication;
    stream.wait(engine_.compute.record());
    const Registration& first = unit.members.front()->parameter;
    const std::string& name = first.name;
    const bool scatter = first.updates_shard();
    std::size_t bytes = 0;
    std::byte* landing = landing_.data();
    for (Gradient* member : unit.members) {
      if (!member->ready) continue;
      const Registration& registration = member->parameter;
      const std::size_t padded = registration.layout.padded_size();
      if (registration.wire != registration.gradient_lease) {
        Device::convert(stream, member->whole(), registration.wire, member->whole(),
                        registration.gradient_lease, padded);
      }
      if (padded > 0) {
        items_.push_back(item(*member, landing));
        landing += engine_.comm.landing_bytes(items_.back(), scatter);
        bytes += padded * size_of(registration.wire);
      }
      member->ready = false;
      member->fresh = false;
    }
    unit.ready = 0;
    issue(scatter, name, bytes);
    const auto done = stream.record();
    for (Gradient* member : unit.members) member->reduced = done;
    give_back(unit, done);
  }

  void issue(bool scatter, const std::string& name, std::size_t bytes) {
    if (items_.empty()) return;
    const auto world = static_cast<std::size_t>(engine_.world());
    Traffic& traffic = engine_.statistics.traffic;
    const std::size_t sent = bytes / world * (world - 1);
    if (scatter) {
      traffic.reduce_scatter += sent;
      ++traffic.reduce_scatter_calls;
    } else {
      traffic.all_reduce += 2 * sent;
      ++traffic.all_reduce_calls;
    }
    const Emptied<ReduceItem> emptied{items_};
    engine_.issue(Activity::reduce, name, bytes, [&] {
      const auto info = engine_.info(name);
      if (scatter) {
        engine_.comm.reduce_scatter(items_, info, engine_.communication.ref());
      } else {
        engine_.comm.all_reduce(items_, info, engine_.communication.ref());
      }
    });
  }

  Engine<Device>& engine_;
  SlotPool<Device> pool_;
  Buffer<Device> landing_;
  std::vector<Gradient*> gradients_;
  std::vector<std::unique_ptr<Unit>> units_;
  std::vector<ReduceItem> items_;
  bool prepared_ = false;
};

}  // namespace detail
}  // namespace shardwise::inline v0_1
