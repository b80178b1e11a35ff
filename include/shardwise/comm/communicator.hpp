#pragma once

#include <chrono>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string_view>
#include <type_traits>
#include <utility>

#include "../core/dtype.hpp"
#include "../core/piece.hpp"
#include "../core/reduce_spec.hpp"
#include "../core/stream_ref.hpp"
#include "shared_block.hpp"

namespace shardwise::inline v0_1 {

/// One buffer of an all-gather. Rank r's `send` (count elements) lands in every rank's
/// recv[r * count ...]; `recv` holds size() * count elements. In place: send == recv + rank *
/// count.
///
/// With `pieces`, equal in offsets and counts on all ranks, they are the receive buffer and `recv`
/// is null; `send` is null on all ranks where each has its own part in its pieces already, and is
/// contiguous otherwise. What lies in no piece is not moved. The list lives in stream order.
struct GatherItem {
  const void* send;
  void* recv;
  std::size_t count;  ///< elements that one rank contributes
  DType dtype;
  std::span<const Piece> pieces = {};
};

/// One buffer of a reduction.
/// reduce_scatter: `send` holds size() * count elements of `dtype`; rank r gets the sum of part r,
/// count elements of spec.output, in `recv`. In place: recv == send + rank * count, same type.
/// all_reduce: `send` and `recv` hold count elements; in place: recv == send, same type.
/// Integers: output must equal dtype, scale must be 1, and there are no weights.
/// accumulate is never in place; an all_reduce that accumulates adds to old values that are equal
/// on all ranks (replicated storage).
///
/// With `pieces`, equal in offsets and counts on all ranks, they are the send buffer, `send` is
/// null, and nothing is in place. Results that lie in no piece are 0, or stay where `accumulate` is
/// set. The list lives in stream order.
struct ReduceItem {
  const void* send;
  void* recv;
  std::size_t count;
  DType dtype;
  ReduceSpec spec;
  void* landing = nullptr;  ///< landing_bytes() of scratch, owned by the caller; may be null if 0
  std::span<const Piece> pieces = {};
};

/// One buffer of a broadcast: `count` elements from root's buffer into everybody's.
struct BroadcastItem {
  void* buffer;
  std::size_t count;
  DType dtype;
};

/// One buffer of an all-to-all: part q of rank r's `send` lands in part r of rank q's `recv`; each
/// part is `count` elements. Never in place.
struct ExchangeItem {
  const void* send;
  void* recv;
  std::size_t count;
  DType dtype;
};

/// What a parameter is registered with, a few bits of a hash of each thing: where ranks differ,
/// messages say in what. Other calls register nothing.
struct RegistrationPrint {
  bool registers = false;
  std::uint16_t tensors = 0;
  std::uint16_t storage = 0;
  std::uint16_t strategy = 0;
  std::uint16_t placement = 0;
  std::uint16_t position = 0;
  std::uint16_t context_strategy = 0;
  std::uint16_t context_options = 0;
  std::uint16_t overlap_from = 0;
  std::uint16_t arenas = 0;
};

/// Names a call, for fingerprints and messages.
struct CallInfo {
  std::string_view name;  ///< of the parameter, or what the caller does; lives in stream order
  /// How long ranks wait for each other, from the first one's arrival.
  std::chrono::nanoseconds timeout = std::chrono::minutes(10);
  std::uint64_t detail = 0;  ///< anything else that must be equal on all ranks (a layout's hash)
  RegistrationPrint registration = {};  ///< what `detail` is of, for messages
};

/// A group of ranks that call the same collectives in the same order.
///
/// One object stands for one rank and is used by one host thread at a time. A call with several
/// items is one grouped operation. Collectives of one communicator run in the order in which they
/// were called, whatever their streams. Every collective is asynchronous with respect to `stream`:
/// work enqueued on `stream` after the call sees the result; the host does not wait; buffers stay
/// alive in stream order (the array of items is copied). An inline host stream completes before the
/// call returns. Scalars of a group (losses, norms, flags) come as a few numbers in host memory on
/// the null stream, to every backend: one that works elsewhere stages them itself.
///
/// Errors: what all ranks can see is a UsageError on all ranks; different calls are a
/// CollectiveMismatch on all ranks before any byte moves; a rank that fails, leaves or does not
/// come in time ends every peer's wait with PeerFailed. On a host stream with a worker they surface
/// at the next wait for that stream.
class Communicator {
 public:
  virtual ~Communicator() = default;

  [[nodiscard]] virtual int rank() const noexcept = 0;
  [[nodiscard]] virtual int size() const noexcept = 0;
  /// "thread", "self", "mpi", "nccl", ...
  [[nodiscard]] virtual std::string_view backend() const noexcept = 0;
  [[nodiscard]] virtual bool accepts(MemoryKind memory) const noexcept = 0;
  /// Whether all ranks are threads of one process: nothing but their own cores moves bytes. The
  /// same answer on all ranks.
  [[nodiscard]] virtual bool shares_addresses() const noexcept { return false; }
  /// Bytes of scratch that this reduction wants in ReduceItem::landing; `scatter`: as part of a
  /// reduce_scatter, else of an all_reduce. A function of count, dtype and spec alone.
  [[nodiscard]] virtual std::size_t landing_bytes(const ReduceItem& item,
                                                  bool scatter) const noexcept = 0;
  /// The same among `ranks` ranks of this backend, for plans of other worlds.
  [[nodiscard]] virtual std::size_t landing_bytes_among(int /*ranks*/, const ReduceItem& item,
                                                        bool scatter) const noexcept {
    return landing_bytes(item, scatter);
  }

  virtual void all_gather(std::span<const GatherItem> items, const CallInfo& info,
                          StreamRef stream) = 0;
  virtual void reduce_scatter(std::span<const ReduceItem> items, const CallInfo& info,
                              StreamRef stream) = 0;
  virtual void all_reduce(std::span<const ReduceItem> items, const CallInfo& info,
                          StreamRef stream) = 0;
  virtual void broadcast(std::span<const BroadcastItem> items, int root, const CallInfo& info,
                         StreamRef stream) = 0;
  virtual void all_to_all(std::span<const ExchangeItem> items, const CallInfo& info,
                          StreamRef stream) = 0;
  virtual void barrier(const CallInfo& info, StreamRef stream) = 0;

  /// One block of the host's memory for all ranks, uninitialised; what a rank has written before a
  /// barrier, all read behind it (Residency::shared). All ranks call together, with the same size,
  /// not 0; null, on all of them, where they do not see one memory.
  [[nodiscard]] virtual std::unique_ptr<SharedBlock> share_block(std::size_t /*bytes*/,
                                                                 const CallInfo& /*info*/) {
    return nullptr;
  }

  /// Ranks that give the same color form a new communicator, ordered by (key, rank). All ranks of
  /// this one must call it. The parts fail together with the whole.
  [[nodiscard]] virtual std::unique_ptr<Communicator> split(int color, int key,
                                                            const CallInfo& info) = 0;

  /// This rank cannot go on: ends every peer's wait, now and later, with PeerFailed that carries
  /// `message`. Idempotent; the first rank's message stays. `provisional`: the real message follows
  /// at once (an exception is unwinding this rank's stack); peers give it a moment.
  virtual void abort(std::string_view message, bool provisional = false) noexcept = 0;

  /// Throws what is known to have failed in collectives whose stream does not rethrow it (a
  /// CUDA stream that an aborted collective has left). Never waits.
  virtual void check() = 0;

 protected:
  Communicator() = default;
  Communicator(const Communicator&) = default;
  Communicator& operator=(const Communicator&) = default;
};

/// What a custom communicator must be: derived from Communicator with every function overridden.
template <class C>
concept CommunicatorBackend = std::derived_from<C, Communicator> && !std::is_abstract_v<C>;

/// The door for a host's own backend: makes a C, which is checked here, where the host names it,
/// and not where the library first uses it.
template <CommunicatorBackend C, class... Args>
requires std::constructible_from<C, Args...>
[[nodiscard]] std::unique_ptr<Communicator> make_communicator(Args&&... args) {
  return std::make_unique<C>(std::forward<Args>(args)...);
}

}  // namespace shardwise::inline v0_1
