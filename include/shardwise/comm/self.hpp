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
#include "pieces.hpp"
#include "thread_shared_block.hpp"

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
  [[nodiscard]] bool shares_addresses() const noexcept override { return true; }
  [[nodiscard]] std::size_t landing_bytes(const ReduceItem&, bool) const noexcept override {
    return 0;
  }

  void all_gather(std::span<const GatherItem> items, const CallInfo& info,
                  StreamRef stream) override {
    const Arguments arguments(Operation::all_gather, info.name, 0, 1);
    arguments.check(items);
    run(arguments, items, stream, [](std::span<const GatherItem> calls) {
      for (const GatherItem& item : calls) {
        detail::fill_part(item, item, 0, [](void* to, const void* from, std::size_t bytes) {
          copy_bytes(to, from, bytes);
        });
      }
    });
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
    run(arguments, items, stream, [](std::span<const ExchangeItem> calls) {
      for (const ExchangeItem& item : calls) {
        copy_bytes(item.recv, item.send, item.count * size_of(item.dtype));
      }
    });
  }
  void barrier(const CallInfo& info, StreamRef stream) override {
    run(Arguments(Operation::barrier, info.name, 0, 1), std::span<const BroadcastItem>(), stream,
        [](std::span<const BroadcastItem>) {});
  }

  [[nodiscard]] std::unique_ptr<SharedBlock> share_block(std::size_t bytes,
                                                         const CallInfo& info) override {
    return std::make_unique<ThreadSharedBlock>(*this, bytes, info);
  }

  [[nodiscard]] std::unique_ptr<Communicator> split(int, int, const CallInfo&) override {
    refuse_after_abort();
    return std::make_unique<SelfCommunicator>();
  }

  /// There is no peer to tell; later calls are refused.
  void abort(std::string_view, bool = false) noexcept override { aborted_ = true; }
  void check() override {}  // host streams rethrow

 private:
  void reduce(Operation operation, std::span<const ReduceItem> items, const CallInfo& info,
              StreamRef stream) {
    const Arguments arguments(operation, info.name, 0, 1);
    arguments.check(items);
    run(arguments, items, stream, [](std::span<const ReduceItem> calls) {
      for (const ReduceItem& item : calls) {
        auto* out = static_cast<std::byte*>(item.recv);
        detail::for_each_stretch(
            item, 0, item.count, out, [&](std::size_t first, std::size_t count, const auto& input) {
              const void* const from = input(item);
              canonical_reduce({&from, 1}, {&item.spec.weight, 1}, item.dtype, count,
                               out + first * size_of(item.spec.output), item.spec);
            });
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
