#pragma once

#include <algorithm>
#include <concepts>
#include <cstddef>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "context.hpp"
#include "detail/host_place.hpp"
#include "host_tensor.hpp"
#include "lease.hpp"

namespace shardwise::inline v0_1 {

/// Elements of one tensor that follow each other in what a rank's optimizer updates.
template <class T>
struct ShardSegment {
  const Layout::Tensor* tensor;  ///< name, shape, options; lives as long as the parameter
  std::size_t first;             ///< elements[i] is element first + i of the tensor
  std::span<T> elements;         ///< at least 1; at an address that never moves
};

/// One or more named tensors of storage type T that are gathered together: the unit of
/// communication. At rest each rank holds the contiguous part that is its shard (1/world, or 1/G in
/// groups of G ranks), or everything, as the strategy says. Movable; belongs to a Context, which
/// must outlive it. Made by all ranks in the same order.
template <FloatingElement T, class Device = HostDevice>
class ShardedParameter {
 public:
  using value_type = T;
  using device_type = Device;

  /// Allocates the storage, zeroed; call initialize, load or broadcast before the first
  /// gather. The lease type and the placements are Strategy's, unless `options` overrides it. All
  /// ranks check that they make the same parameter.
  ShardedParameter(Context<Device>& context, std::vector<TensorSpec> tensors,
                   ParameterOptions options = {})
      : flat_(std::make_unique<detail::FlatParameter<Device>>(
            context, detail::Registration(std::move(tensors), context.world(), dtype_of<T>,
                                          context.strategy(), std::move(options),
                                          context.engine().strategies))) {
    if (flat_->residency == Residency::in_place) {
      raise(
          "parameter '{}': residency in_place is for tensors with an address: make it of "
          "HostTensors within an Arena",
          name());
    }
    context.parameter_store().add(*flat_);
    Device::zero(context.engine().compute, flat_->value.data(), flat_->value.size());
    if (flat_->beside != nullptr) {
      Device::zero(context.engine().compute, flat_->beside->buffer.data(),
                   flat_->beside->buffer.size());
    }
    flat_->written = context.engine().compute.record();
  }
  /// Residency in_place: the tensors lie in one Arena of the context, and a gather fills them
  /// there, so that the host's own pointers are what it computes with; between gathers nothing is
  /// there. They are of the lease type. Where parameters are replicated and leases are of type T
  /// the arena's memory is the storage itself, and so it is of all ranks together where they share
  /// the arena (ArenaOptions::shared; the residency is shared then). UsageError where a tensor is
  /// of another type, outside the arena, or shares bytes with another parameter.
  template <std::same_as<std::vector<HostTensor>> HostTensors>
  ShardedParameter(Context<Device>& context, const HostTensors& tensors,
                   ParameterOptions options = {}) {
    detail::RangeOf<Device>* const arena = detail::arena_of<Device>(context.engine(), tensors);
    const bool is_shared = arena != nullptr && arena->ranks() != nullptr;
    options.residency = is_shared ? Residency::shared : Residency::in_place;
    std::vector<TensorSpec> specs;
    specs.reserve(tensors.size());
    for (const HostTensor& tensor : tensors) specs.push_back(tensor.spec);
    detail::Registration registration(std::move(specs), context.world(), dtype_of<T>,
                                      context.strategy(), std::move(options),
                                      context.engine().strategies);
    registration.in_shared_arena = is_shared;
    detail::HostPlace<detail::RangeOf<Device>> place =
        detail::claim_place(arena, registration.name(), tensors, registration.layout,
                            registration.lease, registration.sharded());
    registration.placed = std::move(place.placed);
    flat_ = std::make_unique<detail::FlatParameter<Device>>(context, std::move(registration),
                                                            std::move(place.pieces), place.arena);
    context.parameter_store().add(*flat_);
    for (const Piece& piece : flat_->pieces()) {
      if (flat_->sharded()) break;
      Device::zero(context.engine().compute, piece.data, piece.count * size_of(flat_->lease));
    }
    if (is_shared) {
      const std::size_t begin = flat_->owned_begin();
      layout().for_each_segment(
          begin, begin + flat_->owned_count(), [&](const Layout::Segment& segment) {
            Device::zero(context.engine().compute, stored(segment), segment.count * sizeof(T));
          });
    }
    Device::zero(context.engine().compute, flat_->value.data(), flat_->value.size());
    flat_->written = context.engine().compute.record();
  }
  ShardedParameter(ShardedParameter&&) noexcept = default;
  ShardedParameter& operator=(ShardedParameter&&) = delete;
  ~ShardedParameter() {
    if (flat_ == nullptr) return;
    context().engine().quiesce();
    context().parameter_store().remove(*flat_);
  }

  [[nodiscard]] const std::string& name() const noexcept { return flat_->name(); }
  [[nodiscard]] const Layout& layout() const noexcept { return flat_->layout; }
  /// The strategy after ParameterOptions and the persistence threshold.
  [[nodiscard]] const Strategy& strategy() const noexcept { return flat_->strategy; }
  [[nodiscard]] Context<Device>& context() const noexcept { return *flat_->context; }
  /// Counts writes: equal versions mean equal values.
  [[nodiscard]] std::uint64_t version() const noexcept { return flat_->version; }
  /// The index of a tensor in leases, layout and listings; UsageError that lists the names where
  /// there is none.
  [[nodiscard]] std::size_t tensor(std::string_view tensor_name) const {
    return layout().find(tensor_name);
  }

  /// Gathers the whole parameter and lends it in the lease type L. Work enqueued on the context's
  /// stream afterwards sees the values; free where nothing was written since the last gather and
  /// the slot was not needed by another parameter. L must be Strategy::lease (the storage type
  /// unless set). UsageError, on all ranks, where no slot is free.
  template <FloatingElement L = T>
  [[nodiscard]] Gathered<L, Device> gather() {
    require_lease_type(dtype_of<L>);
    detail::FlatParameter<Device>* const wanted[] = {flat_.get()};
    context().parameter_store().open(wanted);
    return {context().parameter_store(), *flat_};
  }

  /// Starts to gather what is wanted soon, where a slot is free. The host does not wait; where the
  /// caller runs it (no Strategy::overlap, or below ContextOptions::overlap_from) it waits for the
  /// other ranks to come to it.
  /// Idempotent.
  void prefetch() { context().parameter_store().prefetch(*flat_); }

  /// The plain form under gather(): idempotent, for hosts that call from hooks. The parameter stays
  /// gathered until release().
  template <FloatingElement L = T>
  detail::FlatView<const L> ensure_gathered() {
    require_lease_type(dtype_of<L>);
    if (!flat_->held) {
      detail::FlatParameter<Device>* const wanted[] = {flat_.get()};
      context().parameter_store().open(wanted);
      flat_->held = true;
    }
    return detail::view_of<const L>(*flat_, layout());
  }

  /// Residency host_buffer: gathers the whole parameter into the host's memory and lends it there:
  /// one buffer for each tensor, without padding, of the lease type L. The buffers stay alive until
  /// the lease ends; afterwards the host may free or reuse them. Every gather moves the bytes.
  template <FloatingElement L = T>
  [[nodiscard]] Gathered<L, Device> gather_into(std::span<L* const> buffers) {
    require_lease_type(dtype_of<L>);
    context().parameter_store().open_into(*flat_, buffers);
    return {context().parameter_store(), *flat_};
  }
  /// The same for a parameter of one tensor.
  template <FloatingElement L = T>
  [[nodiscard]] Gathered<L, Device> gather_into(L* buffer) {
    return gather_into<L>(std::span<L* const>(&buffer, 1));
  }
  /// The plain form under gather_into(): idempotent until release(), which ends it.
  template <FloatingElement L = T>
  detail::FlatView<const L> ensure_gathered_into(std::span<L* const> buffers) {
    require_lease_type(dtype_of<L>);
    if (flat_->held) {
      context().parameter_store().place(*flat_, buffers);  // the same ones
    } else {
      context().parameter_store().open_into(*flat_, buffers);
      flat_->held = true;
    }
    return detail::view_of<const L>(*flat_, layout());
  }
  template <FloatingElement L = T>
  detail::FlatView<const L> ensure_gathered_into(L* buffer) {
    return ensure_gathered_into<L>(std::span<L* const>(&buffer, 1));
  }

  /// Ends ensure_gathered() and ensure_gathered_into(). Idempotent, never waits.
  void release() noexcept {
    if (std::exchange(flat_->held, false)) context().parameter_store().close(*flat_);
  }

  /// Writes values: value(tensor, element) for every element that this rank holds, tensor being a
  /// Layout::Tensor. Must return the same on all ranks. No communication.
  template <std::invocable<const Layout::Tensor&, std::size_t> Value>
  void initialize(Value&& value) {
    write_tensors("initialize",
                  [&](const Layout::Tensor& tensor, std::size_t first, std::span<T> elements) {
                    for (std::size_t i = 0; i < elements.size(); ++i) {
                      elements[i] = static_cast<T>(value(tensor, first + i));
                    }
                  });
  }

  /// Writes values from a file or a host buffer: source(tensor, first, elements) fills
  /// elements[i] with element first + i of the tensor; it is called for the parts that this rank
  /// holds, in order, and never for more.
  template <std::invocable<const Layout::Tensor&, std::size_t, std::span<T>> Source>
  void load(Source&& source) {
    write_tensors("load", source);
  }

  /// Writes rank `root`'s values everywhere, as load() there would, through a small buffer:
  /// `source` is called on root alone.
  template <std::invocable<const Layout::Tensor&, std::size_t, std::span<T>> Source>
  void broadcast(int root, Source&& source) {
    if (root < 0 || root >= context().world()) {
      raise("broadcast of parameter '{}' from rank {}: ranks are 0 to {}", name(), root,
            context().world() - 1);
    }
    std::vector<T> staging(std::min(staging_chunk, layout().padded_size()));
    write_stored("broadcast", [&](std::size_t begin, std::size_t end) {
      for (std::size_t first = 0; first < layout().padded_size(); first += staging_chunk) {
        const std::size_t last = std::min(first + staging_chunk, layout().padded_size());
        if (context().rank() == root) {
          layout().for_each_segment(first, last, [&](const Layout::Segment& segment) {
            source(layout().tensors()[segment.tensor], segment.tensor_offset,
                   std::span<T>(staging.data() + (segment.offset - first), segment.count));
          });
        }
        send(staging.data(), last - first, root);
        const std::size_t from = std::max(first, begin);
        const std::size_t to = std::min(last, end);
        if (from >= to) continue;
        layout().for_each_segment(from, to, [&](const Layout::Segment& segment) {
          upload(segment, &staging[segment.offset - first]);
        });
      }
    });
  }

  /// Reads the whole parameter in the storage type, through a small buffer: sink(tensor, first,
  /// elements) on every rank, for all elements in order. All ranks call it (each with its own
  /// sink).
  template <std::invocable<const Layout::Tensor&, std::size_t, std::span<const T>> Sink>
  void read(Sink&& sink) {
    auto& engine = context().engine();
    engine.check();
    const auto pass_on = [&](std::size_t begin, std::size_t end, const T* values) {
      layout().for_each_segment(begin, end, [&](const Layout::Segment& segment) {
        sink(layout().tensors()[segment.tensor], segment.tensor_offset,
             std::span<const T>(values + (segment.offset - begin), segment.count));
      });
    };
    if (!flat_->updates_shard()) {
      for_each_chunk(0, layout().padded_size(), [&](const Layout::Segment& segment, T* elements) {
        if (elements != stored(segment)) download(segment, elements);
        sink(layout().tensors()[segment.tensor], segment.tensor_offset,
             std::span<const T>(elements, segment.count));
      });
      return;
    }
    const std::size_t shard = flat_->shard_size();
    std::vector<T> staging(std::min(staging_chunk, shard));
    for (int owner = 0; owner < flat_->group_size(); ++owner) {  // the first group has everything
      const std::size_t begin = flat_->shard_begin_of(owner);
      for (std::size_t first = 0; first < shard; first += staging_chunk) {
        const std::size_t count = std::min(staging_chunk, shard - first);
        if (owner == context().rank()) {
          const std::size_t at = begin + first;
          layout().for_each_segment(at, at + count, [&](const Layout::Segment& segment) {
            download(segment, &staging[segment.offset - at]);
          });
        }
        send(staging.data(), count, owner);
        pass_on(begin + first, begin + first + count, staging.data());
      }
    }
  }

  /// What this rank's optimizer updates (its shard, or everything where the optimizer state is
  /// replicated), in storage order, padding included, at an address that never moves. To read in
  /// stream order; write inside update(). UsageError where it is not contiguous, which is where an
  /// arena's memory is the storage (in_place, replicated, or shared): segments() has its parts.
  [[nodiscard]] std::span<const T> shard() const { return owned(); }

  /// The same as a list, for every residency: one segment for each tensor that this rank's
  /// optimizer updates a part of, in order, without padding. The same list each time.
  [[nodiscard]] std::vector<ShardSegment<const T>> segments() const {
    return list_segments<const T>();
  }

  /// For a host's own optimizer: write(shard) changes this rank's shard on the context's stream;
  /// other ranks' copies follow with the next gather. UsageError where a lease is open, or where
  /// shard() is one.
  template <std::invocable<std::span<T>> Write>
  void update(Write&& write) {
    const std::span<T> shard = owned();
    const Written written(*this, "update");
    write(shard);
  }
  /// The same with segments(), to write.
  template <std::invocable<std::span<const ShardSegment<T>>> Write>
  void update_segments(Write&& write) {
    if (to_write_ == nullptr) to_write_ = std::make_unique<Segments>(list_segments<T>());
    const Written written(*this, "update");
    write(std::span<const ShardSegment<T>>(*to_write_));
  }

  /// f(tensor, first, elements) for every tensor's part of shard(): elements[i] is element first +
  /// i of the tensor (Layout::Tensor: name, shape, options). A view of T const or not, as `range`
  /// is: pass shard(), update()'s span, or anything laid out alike (gradient, optimizer state).
  template <class U, class F>
  void for_each_tensor(std::span<U> range, F&& f) const {
    if (range.size() != flat_->owned_count()) {
      raise("for_each_tensor of parameter '{}': a range of {} elements, expected the {} of shard()",
            name(), range.size(), flat_->owned_count());
    }
    const std::size_t begin = flat_->owned_begin();
    layout().for_each_segment(begin, begin + flat_->owned_count(),
                              [&](const Layout::Segment& segment) {
                                f(layout().tensors()[segment.tensor], segment.tensor_offset,
                                  range.subspan(segment.offset - begin, segment.count));
                              });
  }

  /// The library's own side; not for hosts.
  [[nodiscard]] detail::FlatParameter<Device>& flat() const noexcept { return *flat_; }

  void require_lease_type(DType lease) const {
    if (lease == flat_->lease) return;
    raise(
        "parameter '{}' is gathered as {}, but its leases are {}: call gather<{}>(), or set "
        "Strategy::lease = DType::{} (slots and replicated copies are planned by it)",
        name(), name_of(lease), name_of(flat_->lease), name_of(flat_->lease), name_of(lease));
  }

 private:
  /// The time during which the host writes. Where it throws, what is stored counts as changed all
  /// the same, and as different on each rank.
  struct Written {
    Written(ShardedParameter& of, const char* what) : parameter(of) {
      parameter.context().parameter_store().begin_write(*parameter.flat_, what);
    }
    Written(const Written&) = delete;
    Written& operator=(const Written&) = delete;
    ~Written() { parameter.context().parameter_store().end_write(*parameter.flat_, everything); }

    ShardedParameter& parameter;
    bool everything = false;  // the whole storage, on all ranks alike
  };

  using Segments = std::vector<ShardSegment<T>>;

  static constexpr std::size_t staging_chunk = std::size_t{1} << 16;  // elements

  void send(T* values, std::size_t count, int root) {
    auto& engine = context().engine();
    const BroadcastItem item{values, count, dtype_of<T>};
    engine.comm.broadcast({&item, 1}, root, engine.info(name()), {});
  }
  void upload(const Layout::Segment& segment, const T* elements) {
    Device::upload(context().engine().compute, stored(segment), elements,
                   segment.count * sizeof(T));
  }
  void download(const Layout::Segment& segment, T* elements) {
    auto& engine = context().engine();
    Device::download(engine.compute, elements, stored(segment), segment.count * sizeof(T));
    engine.check_peers();  // an aborted collective ends the wait, too
  }

  // f(segment, elements in the host's memory) over what this rank stores of [begin, end): the
  // storage itself where the host can read it, else a buffer for a part of it.
  template <class F>
  void for_each_chunk(std::size_t begin, std::size_t end, F&& f) {
    std::vector<T> staging;
    layout().for_each_segment(begin, end, [&](Layout::Segment segment) {
      if constexpr (Device::memory == MemoryKind::host) {
        f(segment, stored(segment));
      } else {
        staging.resize(std::min(staging_chunk, end - begin));
        const std::size_t last = segment.offset + segment.count;
        while (segment.offset < last) {
          segment.count = std::min(staging.size(), last - segment.offset);
          f(segment, staging.data());
          segment.offset += segment.count;
          segment.tensor_offset += segment.count;
        }
      }
    });
  }

  [[nodiscard]] std::span<T> owned() const {
    if (flat_->storage_in_place()) {
      raise(
          "the shard of parameter '{}' lies in the host's arena, tensor by tensor: use segments() "
          "and update_segments()",
          name());
    }
    return {reinterpret_cast<T*>(flat_->owned()), flat_->owned_count()};
  }
  [[nodiscard]] T* stored(const Layout::Segment& segment) const noexcept {
    return reinterpret_cast<T*>(flat_->stored(segment));
  }

  template <class U>
  [[nodiscard]] std::vector<ShardSegment<U>> list_segments() const {
    std::vector<ShardSegment<U>> result;
    const std::size_t begin = flat_->owned_begin();
    layout().for_each_segment(
        begin, begin + flat_->owned_count(), [&](const Layout::Segment& segment) {
          result.push_back({&layout().tensors()[segment.tensor], segment.tensor_offset,
                            std::span<U>(stored(segment), segment.count)});
        });
    return result;
  }

  // source(tensor, first, elements) over all that this rank stores.
  template <class Source>
  void write_tensors(const char* what, Source&& source) {
    write_stored(what, [&](std::size_t begin, std::size_t end) {
      for_each_chunk(begin, end, [&](const Layout::Segment& segment, T* elements) {
        source(layout().tensors()[segment.tensor], segment.tensor_offset,
               std::span<T>(elements, segment.count));
        if (elements != stored(segment)) upload(segment, elements);
      });
    });
  }

  // write(begin, end) over the flat range that this rank stores.
  template <class Write>
  void write_stored(const char* what, Write&& write) {
    Written written(*this, what);
    const bool whole = flat_->storage_is_whole();
    const std::size_t begin = whole ? 0 : flat_->shard_begin;
    write(begin, begin + (whole ? layout().padded_size() : flat_->shard_size()));
    written.everything = whole;
  }

  std::unique_ptr<detail::FlatParameter<Device>> flat_;
  std::unique_ptr<const Segments> to_write_;  // listed at the first update_segments
};

namespace detail {

// Opens all of them in one grouped operation; the context is theirs.
template <class... T, class Device>
Context<Device>& open_together(ShardedParameter<T, Device>&... parameters) {
  FlatParameter<Device>* const wanted[] = {&parameters.flat()...};
  Context<Device>* const contexts[] = {&parameters.context()...};
  for (const Context<Device>* other : contexts) {
    if (other != contexts[0]) {
      raise("gather: '{}' and others are of different contexts; gather those of one together",
            wanted[0]->name());
    }
  }
  contexts[0]->parameter_store().open(wanted);
  return *contexts[0];
}

}  // namespace detail

/// Gathers several parameters, also of several element types, in one grouped operation and lends
/// them: a tuple of Gathered. The lease type of each is its storage type.
template <class... T, class Device>
requires(sizeof...(T) > 0) [[nodiscard]] std::tuple<Gathered<T, Device>...> gather(
    ShardedParameter<T, Device>&... parameters) {
  (parameters.require_lease_type(dtype_of<T>), ...);
  auto& store = detail::open_together(parameters...).parameter_store();
  return {Gathered<T, Device>(store, parameters.flat())...};
}

/// The same with leases of type L for all of them.
template <FloatingElement L, class... T, class Device>
requires(sizeof...(T) > 0)
    [[nodiscard]] auto gather_as(ShardedParameter<T, Device>&... parameters) {
  (parameters.require_lease_type(dtype_of<L>), ...);
  auto& store = detail::open_together(parameters...).parameter_store();
  return std::make_tuple(Gathered<L, Device>(store, parameters.flat())...);
}

}  // namespace shardwise::inline v0_1
