#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <limits>
#include <new>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "../comm/communicator.hpp"
#include "../core/observer.hpp"
#include "../core/stream_ref.hpp"
#include "../device/host.hpp"
#include "../host_tensor.hpp"
#include "../kernels/norm.hpp"
#include "../memory.hpp"
#include "../statistics.hpp"
#include "../strategy.hpp"
#include "address_range.hpp"
#include "in_place.hpp"
#include "program_order.hpp"
#include "shard_groups.hpp"
#include "strategies.hpp"

namespace shardwise::inline v0_1 {

/// What the host tells a Context about itself.
struct ContextOptions {
  /// How many sharded parameters' leases the host holds open at once (a tied one counts once, and
  /// so do the members of a bucket).
  std::size_t open_parameters = 1;
  /// How many gradients' leases, tied ones apart: those have slots of their own.
  std::size_t open_gradients = 1;
  /// How long ranks wait for each other, from the first one's arrival at a collective.
  std::chrono::nanoseconds timeout = std::chrono::minutes(10);
  /// Told of every operation; may be null; must outlive the Context.
  Observer* observer = nullptr;
  /// With Strategy::overlap: gathers and reductions of at least so many bytes, those of a bucket
  /// together, run beside compute. Smaller ones the caller runs itself, as without overlap, where
  /// the communication stream has nothing to do: what they cost is less than what handing them over
  /// does. The same bits, whoever runs them. All ranks alike: a sequence gathers ahead of use only
  /// what runs beside compute. None: chosen for the device and the communicator when the Context is
  /// made (Context::overlap_from says what): on CPUs whose ranks are threads without a core to
  /// spare for each what is above 8 MiB, else everything; measure_overlap() finds out what suits
  /// the machine. 0: everything.
  std::optional<std::size_t> overlap_from = std::nullopt;
  /// Finds wrong use, for a price: what is released cannot be read any more (pages in an Arena
  /// fault or read as NaN, slots are NaN), so every gather moves its bytes again; a gather that is
  /// free all the same compares its name and number with the other ranks' by a barrier; the first
  /// access outside a lease is an error, by name, at the rank's next call. All ranks alike. It does
  /// not see what is replicated (ddp), what is shared (another rank may read what this one has
  /// released, so it stays readable; gathers and writes are compared all the same), the host's own
  /// buffers after their release, other members of a bucket while one is lent, or writes within
  /// full_parameters.
  bool debug = false;
  /// The host's own compute stream, in whose order leases are valid (CUDA: a cudaStream_t); must
  /// outlive the Context. Null: the Context makes one.
  StreamRef stream = {};
  /// Where slots and landing buffers come from, if not from the device: memory that the
  /// communicator has registered, as large as plan().bytes.slots less plan().scalars, each slot
  /// rounded up to 256 bytes; what full_parameters() needs beyond is the device's. Must outlive the
  /// Context. All ranks alike.
  SlotMemory* slot_memory = nullptr;
};

namespace detail {

/// What every part of a Context stands on: communicator, streams, ledger, counters. The
/// communication stream runs every collective of the context in program order.
template <class Device>
class Engine {
 public:
  using Stream = typename Device::Stream;
  using Event = typename Device::Event;
  using Clock = std::chrono::steady_clock;

  Engine(Communicator& communicator, const Strategy& default_strategy, const ContextOptions& given)
      : comm(communicator),
        groups(communicator),
        strategy(default_strategy),
        options(given),
        ledger(given.observer),
        compute(Device::compute_stream(given.stream)),
        communication(Device::communication_stream(default_strategy.overlap, compute)),
        timeline(given.observer, compute, communication),
        overlap_from(overlap_from_of(communicator, default_strategy, given)),
        scalars(ledger, StateKind::slots, scalar_bytes(fixed_scalars)) {
    strategy.validate();
    static_cast<void>(strategy.in_world(world()));
    if (options.open_parameters == 0 || options.open_gradients == 0) {
      raise("ContextOptions: open_parameters = {} and open_gradients = {} must be at least 1",
            options.open_parameters, options.open_gradients);
    }
    if (!comm.accepts(Device::memory)) {
      raise("the {} communicator does not accept the memory of this device", comm.backend());
    }
    if (options.observer == nullptr) return;
    const std::string name = strategy.name();
    options.observer->attach({rank(), world(), name, comm.backend(), strategy.overlap,
                              strategy.prefetch, strategy.bucket_bytes,
                              Device::Timeline::asynchronous});
  }
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;
  ~Engine() { quiesce(); }

  [[nodiscard]] int rank() const noexcept { return comm.rank(); }
  [[nodiscard]] int world() const noexcept { return comm.size(); }
  [[nodiscard]] CallInfo info(std::string_view name, std::uint64_t detail = 0) const noexcept {
    return {name, options.timeout, detail};
  }

  /// Every call begins here: a failure of collectives is thrown where streams do not rethrow it, a
  /// gradient lease that was dropped is reported once, and so is an access to an arena's memory
  /// outside a lease, in debug mode.
  void check() {
    check_peers();
    if (options.debug) check_arenas();
    if (lost_pages) {
      raise<BackendError>(
          "the system did not move pages of an arena back, or could not empty them; raise "
          "vm.max_map_count, and put small tensors next to each other");
    }
    if (!dropped) return;
    const std::string name = *std::exchange(dropped, std::nullopt);
    raise(
        "the gradient lease of '{}' was dropped without reduce() or discard(); its contribution "
        "is lost. Call std::move(lease).reduce() or .discard() before it goes out of scope",
        name);
  }

  /// What has failed in collectives whose stream does not rethrow it.
  void check_peers() {
    comm.check();
    groups.check();
  }

  /// Calls `operation`, which issues one collective of `parts` on the communication stream, and
  /// accounts for it. `on_host`: it ends in the call, on no stream.
  template <class Operation>
  void issue(Activity activity, SubjectId subject, std::size_t bytes, std::size_t wire_bytes,
             std::span<const ActivityPart> parts, Operation&& operation, bool on_host = false) {
    ++sequence;
    const bool blocking = on_host || communication.is_inline();
    const auto begin = Clock::now();
    if (on_host) {
      operation();
    } else {
      const Run run(timeline, sequence, activity, subject);
      operation();
    }
    const auto end = Clock::now();
    if (blocking) statistics.waited += end - begin;
    if (options.observer == nullptr) return;
    options.observer->record(
        {activity, subject, sequence, bytes, wire_bytes, blocking, begin, end, parts});
  }

  /// Whether the device's streams let the caller run what it hands to them.
  static constexpr bool runs_in_caller = requires(Stream & stream) { stream.begin_inline(); };

  /// Whether collectives of so many bytes are the caller's to run: ContextOptions::overlap_from.
  [[nodiscard]] bool is_for_caller(std::size_t bytes) const noexcept {
    return runs_in_caller && bytes < overlap_from;
  }

  /// For as long as it lives: collectives of `bytes` run in the caller if they are so small.
  class Placing {
   public:
    Placing(Engine& engine, std::size_t bytes) noexcept : stream_(engine.communication) {
      if constexpr (runs_in_caller) {
        if (engine.is_for_caller(bytes)) stream_.begin_inline();
      }
    }
    Placing(const Placing&) = delete;
    Placing& operator=(const Placing&) = delete;
    ~Placing() {
      if constexpr (runs_in_caller) stream_.end_inline();
    }

   private:
    Stream& stream_;
  };

  /// The compute stream waits for `event`, the end of an `awaited`; on the host that is the caller.
  void wait(const Event& event, SubjectId subject, Activity awaited) {
    if (Stream::reached(event)) {
      compute.wait(event);  // rethrows what failed
      return;
    }
    timeline.begin_wait();
    const auto begin = Clock::now();
    compute.wait(event);
    const auto end = Clock::now();
    statistics.waited += end - begin;
    timeline.end_wait({subject, awaited, begin, end});
  }

  /// The host waits for `event`, before it does what is in no stream's order. Throws what failed.
  void await(const Event& event, SubjectId subject, Activity awaited) {
    if constexpr (!MapsMemory<Device>) {
      wait(event, subject, awaited);
    } else {
      if (Stream::reached(event)) return;
      timeline.begin_wait();
      const auto begin = Clock::now();
      Stream::await(event);
      const auto end = Clock::now();
      statistics.waited += end - begin;
      timeline.end_wait({subject, awaited, begin, end});
      check_peers();  // an aborted collective ends the wait, too
    }
  }

  /// Room for `count` values of this rank; the same memory until more are asked for.
  [[nodiscard]] std::span<double> local_scalars(std::size_t count) {
    reserve_scalars(count);
    return {reinterpret_cast<double*>(scalars.data()), count};
  }

  /// All ranks' values, rank by rank, `mine.size()` each; valid until the next call. `mine` may be
  /// local_scalars. One collective; the host waits.
  std::span<const double> exchange(std::span<const double> mine, std::string_view name) {
    const std::size_t count = mine.size();
    const auto local = local_scalars(count);
    if (local.data() != mine.data()) std::copy(mine.begin(), mine.end(), local.begin());
    double* const all = local.data() + count;
    const GatherItem item{local.data(), all, count, DType::f64};
    agree(name, count * sizeof(double), [&] { comm.all_gather({&item, 1}, info(name), {}); });
    return {all, count * static_cast<std::size_t>(world())};
  }

  /// The host waits for the collectives so far; throws what failed.
  void settle() {
    const std::uint64_t last = order.issued();
    communication.synchronize();
    order.meet(last);
    check_peers();
  }
  /// The host waits for all ranks.
  void meet(const CallInfo& call) {
    order.issue();
    comm.barrier(call, communication.ref());
    settle();
  }

  /// Calls `operation`, a collective over scalars that the host waits for, and accounts for it.
  template <class Operation>
  auto agree(std::string_view name, std::size_t bytes, Operation&& operation) {
    struct Account {
      Engine& engine;
      std::string_view name;
      std::size_t bytes;
      Clock::time_point begin = Clock::now();
      ~Account() {
        const auto end = Clock::now();
        engine.statistics.waited += end - begin;
        ++engine.statistics.traffic.scalar_calls;
        if (engine.options.observer == nullptr) return;
        engine.timeline.poll();  // what ran before
        engine.options.observer->record(
            {Activity::scalar, engine.subject_of(name), 0, bytes, 0, true, begin, end, {}});
      }
    };
    const Account account{*this, name, bytes};
    const Meeting meeting{order, order.issue()};
    return operation();
  }

  /// Room for `count` scalars of every rank at once.
  void reserve_scalars(std::size_t count) {
    if (scalars.size() >= scalar_bytes(count)) return;
    scalars = {};
    scalars = Buffer<HostDevice>(ledger, StateKind::slots, scalar_bytes(count));
  }
  [[nodiscard]] std::size_t scalar_bytes(std::size_t count) const noexcept {
    return count * (static_cast<std::size_t>(comm.size()) + 1) * sizeof(double);
  }

  /// Before buffers are freed: no operation may still use them. Blocks until what this rank issued
  /// has run or failed. Where an exception unwinds, too: peers come to the same collectives, or
  /// fail, and which ones run must not depend on timing.
  void quiesce() noexcept {
    communication.drain();
    compute.drain();
    timeline.poll();
  }

  void mark(Mark mark, SubjectId subject = no_subject) noexcept { timeline.mark(mark, subject); }

  /// A number for a new parameter, of which the observer knows when this returns; what the ledger
  /// counts next is for it.
  [[nodiscard]] SubjectId introduce(std::string_view name, std::size_t bytes) noexcept {
    if (options.observer != nullptr) options.observer->introduce(subjects, name, true, bytes);
    ledger.about(subjects);
    return subjects++;
  }
  /// The number of a call that belongs to no parameter; calls of one name are one subject.
  [[nodiscard]] SubjectId subject_of(std::string_view call) noexcept {
    if (options.observer == nullptr) return no_subject;
    for (const auto& [name, subject] : calls) {
      if (name == call) return subject;
    }
    try {
      calls.emplace_back(call, subjects);
    } catch (const std::bad_alloc&) {
      return no_subject;
    }
    options.observer->introduce(subjects, call, false, 0);
    return subjects++;
  }

  /// What may be done with an arena's addresses while nothing is lent below them.
  [[nodiscard]] Access released() const noexcept {
    return options.debug ? Access::none : Access::write;
  }

  /// Whether the device has a rule for ContextOptions::overlap_from: it depends on the machine.
  static constexpr bool has_overlap_rule = requires { Device::overlap_from(std::size_t{}); };
  /// Whether this rank leaves open which collectives run beside compute.
  [[nodiscard]] bool leaves_overlap_open() const noexcept {
    return has_overlap_rule && strategy.overlap && !options.overlap_from;
  }

  /// How pages come below one range of an arena of this context at a time: refill where one of the
  /// arenas cannot move them.
  [[nodiscard]] Recycling recycling() const noexcept {
    for (const RangeOf<Device>* arena : arenas) {
      if (arena->recycling_singly() == Recycling::refill) return Recycling::refill;
    }
    return Recycling::move;
  }

  /// The arena that holds `tensor`; UsageError where there is none.
  [[nodiscard]] RangeOf<Device>& arena_of(const HostTensor& tensor) const {
    for (RangeOf<Device>* arena : arenas) {
      if (arena->contains(tensor.data, tensor.bytes())) return *arena;
    }
    raise(
        "tensor '{}' ({} bytes) does not lie in an Arena of this context ({} of them): make one of "
        "the size of all parameters and put the tensors there, or use Residency::slots or "
        "host_buffer",
        tensor.spec.name, tensor.bytes(), arenas.size());
  }

  /// Scalars that fit before any gradient is there: more than Context::weigh needs.
  static constexpr std::size_t fixed_scalars = 4;

  Communicator& comm;
  ShardGroups groups;
  const Strategy strategy;
  Strategies strategies;  ///< of parameters, resolved
  const ContextOptions options;
  Ledger ledger;
  Statistics statistics;
  ProgramOrder order;
  Stream compute;
  Stream communication;
  typename Device::Timeline timeline;  ///< for the observer
  std::size_t overlap_from;            ///< bytes: ContextOptions, measure_overlap
  Buffer<HostDevice> scalars;          ///< communicators bring them to where they need them
  std::vector<NormRange> norm_ranges;  ///< of the norm that is being computed
  std::vector<double> norm_sums;
  std::optional<std::string> dropped;  ///< name of the gradient whose lease was dropped
  std::vector<RangeOf<Device>*> arenas;
  std::uint64_t sequence = 0;  ///< of the last collective of parameters or gradients
  SubjectId subjects = 0;      ///< so many have a number
  std::vector<std::pair<std::string, SubjectId>> calls;  ///< those that are no parameters
  std::atomic<bool> lost_pages{false};  ///< the system did not take pages of an arena back

 private:
  [[nodiscard]] static std::size_t overlap_from_of(const Communicator& communicator,
                                                   const Strategy& strategy,
                                                   const ContextOptions& options) noexcept {
    if (!strategy.overlap) return std::numeric_limits<std::size_t>::max();
    if (options.overlap_from) return *options.overlap_from;
    if constexpr (has_overlap_rule) {
      // Processes may wait for a network, which keeps no core busy.
      if (!communicator.shares_addresses()) return 0;
      return Device::overlap_from(static_cast<std::size_t>(communicator.size()));
    } else {
      return 0;
    }
  }

  /// The observer is told when what is enqueued meanwhile ran on the communication stream.
  struct Run {
    typename Device::Timeline& timeline;
    Run(typename Device::Timeline& of, std::uint64_t number, Activity activity, SubjectId subject)
        : timeline(of) {
      timeline.begin_run(number, activity, subject);
    }
    Run(const Run&) = delete;
    Run& operator=(const Run&) = delete;
    ~Run() { timeline.end_run(); }
  };

  /// A collective of all ranks that the host waits for.
  struct Meeting {
    ProgramOrder& order;
    std::uint64_t number;
    int exceptions = std::uncaught_exceptions();
    ~Meeting() {
      if (std::uncaught_exceptions() == exceptions) order.meet(number);
    }
  };

  void check_arenas() {
    for (RangeOf<Device>* arena : arenas) {
      const std::string violation = arena->take_violation(rank());
      if (!violation.empty()) raise("{}", violation);
    }
  }
};

}  // namespace detail
}  // namespace shardwise::inline v0_1
