#pragma once

#include <atomic>
#include <cstddef>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "../core/error.hpp"
#include "../device/host_stream.hpp"
#include "../kernels/copy.hpp"
#include "../kernels/reduce.hpp"
#include "arguments.hpp"
#include "communicator.hpp"
#include "fingerprint.hpp"

namespace shardwise::inline v0_1 {

/// A world of one rank: copies where the result is elsewhere, reductions by the same kernel as with
/// several ranks. Host memory.
class SelfCommunicator final : public Communicator {
 public:
  [[nodiscard]] int rank() const noexcept override { return 0; }
  [[nodiscard]] int size() const noexcept override { return 1; }
  [[nodiscard]] std::string_view backend() const noexcept override { return "self"; }
  [[nodiscard]] bool accepts(MemoryKind memory) const noexcept override {
    return memory == MemoryKind::host;
  }
  [[nodiscard]] std::size_t landing_bytes(const ReduceItem&, bool) const noexcept override {
    return 0;
  }

  void all_gather(std::span<const GatherItem> items, const CallInfo& info,
                  StreamRef stream) override {
    const Arguments arguments(Operation::all_gather, info.name, 0, 1);
    arguments.check(items);
    run(arguments, items, stream, [](std::span<const GatherItem> calls) { copy(calls); });
  }
  void reduce_scatter(std::span<const ReduceItem> items, const CallInfo& info,
                      StreamRef stream) override {
    reduce(Operation::reduce_scatter, items, info, stream);
  }
  void all_reduce(std::span<const ReduceItem> items, const CallInfo& info,
                  StreamRef stream) override {
    reduce(Operation::all_reduce, items, info, stream);
  }
  void broadcast(std::span<const BroadcastItem> items, int root, const CallInfo& info,
                 StreamRef stream) override {
    const Arguments arguments(Operation::broadcast, info.name, 0, 1);
    arguments.check(items, root);
    run(arguments, items, stream, [](std::span<const BroadcastItem>) {});
  }
  void all_to_all(std::span<const ExchangeItem> items, const CallInfo& info,
                  StreamRef stream) override {
    const Arguments arguments(Operation::all_to_all, info.name, 0, 1);
    arguments.check(items);
    run(arguments, items, stream, [](std::span<const ExchangeItem> calls) { copy(calls); });
  }
  void barrier(const CallInfo& info, StreamRef stream) override {
    run(Arguments(Operation::barrier, info.name, 0, 1), std::span<const BroadcastItem>(), stream,
        [](std::span<const BroadcastItem>) {});
  }

  [[nodiscard]] std::unique_ptr<Communicator> split(int, int, const CallInfo&) override {
    refuse_after_abort();
    return std::make_unique<SelfCommunicator>();
  }

  /// There is no peer to tell; later calls are refused.
  void abort(std::string_view, bool = false) noexcept override { aborted_ = true; }

 private:
  template <class Item>
  static void copy(std::span<const Item> items) noexcept {
    for (const Item& item : items) {
      copy_bytes(item.recv, item.send, item.count * size_of(item.dtype));
    }
  }

  void reduce(Operation operation, std::span<const ReduceItem> items, const CallInfo& info,
              StreamRef stream) {
    const Arguments arguments(operation, info.name, 0, 1);
    arguments.check(items);
    run(arguments, items, stream, [](std::span<const ReduceItem> calls) {
      for (const ReduceItem& item : calls) {
        canonical_reduce({&item.send, 1}, {&item.spec.weight, 1}, item.dtype, item.count, item.recv,
                         item.spec);
      }
    });
  }

  template <class Item, class Task>
  void run(const Arguments& arguments, std::span<const Item> items, StreamRef stream, Task task) {
    arguments.check(stream);
    refuse_after_abort();
    if (stream.native == nullptr) {
      task(items);
    } else {
      static_cast<HostStream*>(stream.native)->enqueue(task, items);
    }
  }

  void refuse_after_abort() const {
    if (aborted_) throw PeerFailed("this communicator was aborted", 0, "aborted");
  }

  std::atomic<bool> aborted_{false};
};

static_assert(CommunicatorBackend<SelfCommunicator>);

}  // namespace shardwise::inline v0_1
