#pragma once

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <memory>
#include <optional>
#include <span>
#include <string_view>

#include "../core/dtype.hpp"
#include "../core/error.hpp"
#include "../device/simulated.hpp"
#include "../device/simulated_clock.hpp"
#include "communicator.hpp"
#include "mpi_landing.hpp"
#include "mpi_options.hpp"
#include "nccl_landing.hpp"
#include "nccl_options.hpp"
#include "regular_parts.hpp"
#include "shared_block.hpp"
#include "topology.hpp"

namespace shardwise::inline v0_1 {

/// Which backend a SimulatedCommunicator stands for: what its reductions want of scratch memory.
struct SimulatedBackend {
  /// NCCL's landing buffers, for this order; none: threads, which need none.
  std::optional<NcclOrder> nccl = std::nullopt;
  /// MPI's, with these options, where `nccl` is none.
  std::optional<MpiOptions> mpi = std::nullopt;
  /// Those of this communicator's backend, in whatever world; borrowed. Null: as above.
  const Communicator* like = nullptr;
};

/// One representative rank of a world of any size, in which all ranks do the same at the same time:
/// no byte moves, a collective takes what its Topology says of virtual time. Collectives of one
/// communicator run one after the other. Numbers in the host's memory (losses, norms, flags) are
/// taken to be the same on all ranks.
class SimulatedCommunicator final : public Communicator, public RegularParts {
 public:
  /// The clock is borrowed. UsageError where world < 1 or rank is not one of it.
  SimulatedCommunicator(SimulatedClock& clock, int world, const Topology& topology,
                        const SimulatedBackend& backend = {}, int rank = 0)
      : clock_(&clock), topology_(topology), backend_(backend), world_(world), rank_(rank) {
    if (world < 1) raise("a simulated world has at least 1 rank, found {}", world);
    if (rank < 0 || rank >= world) raise("rank {} is not in a world of {}", rank, world);
  }

  [[nodiscard]] int rank() const noexcept override { return rank_; }
  [[nodiscard]] int size() const noexcept override { return world_; }
  [[nodiscard]] std::string_view backend() const noexcept override { return "simulated"; }
  [[nodiscard]] bool accepts(MemoryKind memory) const noexcept override {
    return memory == MemoryKind::simulated;
  }
  [[nodiscard]] std::size_t landing_bytes(const ReduceItem& item,
                                          bool scatter) const noexcept override {
    if (backend_.like != nullptr) return backend_.like->landing_bytes_among(world_, item, scatter);
    if (backend_.nccl) {
      return detail::nccl::landing_bytes(item, scatter, ranks(), *backend_.nccl);
    }
    return backend_.mpi ? detail::mpi::landing_bytes(item, scatter, ranks(), *backend_.mpi) : 0;
  }

  void all_gather(std::span<const GatherItem> items, const CallInfo&, StreamRef stream) override {
    if (stream.native == nullptr) {
      for (const GatherItem& item : items) repeat(item.recv, item.send, part(item), ranks());
      return wait_for_scalars();
    }
    double bytes = 0;
    for (const GatherItem& item : items) bytes += static_cast<double>(part(item)) * world_;
    run(stream, topology_.all_gather(bytes, world_));
  }
  void reduce_scatter(std::span<const ReduceItem> items, const CallInfo&,
                      StreamRef stream) override {
    if (stream.native == nullptr) return reduce(items, static_cast<std::size_t>(rank_));
    double bytes = 0;
    for (const ReduceItem& item : items) bytes += static_cast<double>(part(item)) * world_;
    run(stream, topology_.reduce_scatter(bytes, world_));
  }
  void all_reduce(std::span<const ReduceItem> items, const CallInfo&, StreamRef stream) override {
    if (stream.native == nullptr) return reduce(items, 0);
    double bytes = 0;
    for (const ReduceItem& item : items) bytes += static_cast<double>(part(item));
    run(stream, topology_.all_reduce(bytes, world_));
  }
  void broadcast(std::span<const BroadcastItem> items, int, const CallInfo&,
                 StreamRef stream) override {
    if (stream.native == nullptr) return wait_for_scalars();
    double bytes = 0;
    for (const BroadcastItem& item : items) bytes += static_cast<double>(part(item));
    run(stream, topology_.all_gather(bytes, world_));
  }
  void all_to_all(std::span<const ExchangeItem> items, const CallInfo&, StreamRef stream) override {
    if (stream.native == nullptr) {
      for (const ExchangeItem& item : items) {
        const auto* const own =
            static_cast<const std::byte*>(item.send) + static_cast<std::size_t>(rank_) * part(item);
        repeat(item.recv, own, part(item), ranks());
      }
      return wait_for_scalars();
    }
    double bytes = 0;
    for (const ExchangeItem& item : items) bytes += static_cast<double>(part(item)) * world_;
    run(stream, topology_.all_gather(bytes, world_));
  }
  void barrier(const CallInfo&, StreamRef stream) override {
    if (stream.native == nullptr) return wait_for_scalars();
    run(stream, topology_.scalar(world_));
  }

  /// As ranks do that see one memory: a plan asks for it where they are meant.
  [[nodiscard]] std::unique_ptr<SharedBlock> share_block(std::size_t bytes,
                                                         const CallInfo&) override {
    return std::make_unique<Block>(bytes);
  }

  /// UsageError: who else has this color is not known.
  [[nodiscard]] std::unique_ptr<Communicator> split(int, int, const CallInfo&) override {
    raise("a simulated communicator is not split: make one of the size that you need, or a part()");
  }
  /// On the same clock. All parts do the same at the same time.
  [[nodiscard]] std::unique_ptr<Communicator> part(int size, int stride) const override {
    if (size < 1 || stride < 1 || world_ % (size * stride) != 0) {
      raise("parts of {} ranks that are {} apart do not divide a world of {}", size, stride,
            world_);
    }
    return std::make_unique<SimulatedCommunicator>(*clock_, size, topology_.part(size, stride),
                                                   backend_, rank_ / stride % size);
  }
  void abort(std::string_view, bool = false) noexcept override {}
  void check() override {}

 private:
  class Block final : public SharedBlock {
   public:
    explicit Block(std::size_t bytes) : data_(SimulatedDevice::allocate(bytes)), bytes_(bytes) {}
    ~Block() override { SimulatedDevice::deallocate(data_, bytes_); }
    [[nodiscard]] std::byte* data() const noexcept override {
      return static_cast<std::byte*>(data_);
    }

   private:
    void* data_;
    std::size_t bytes_;
  };

  [[nodiscard]] std::size_t ranks() const noexcept { return static_cast<std::size_t>(world_); }
  template <class Item>
  [[nodiscard]] static std::size_t part(const Item& item) noexcept {
    return item.count * size_of(item.dtype);
  }

  void run(StreamRef stream, double seconds) {
    auto& line = *static_cast<SimulatedTimeline*>(stream.native);
    clock_->wait(line, last_);
    clock_->enqueue(line, seconds, SimulatedWork::communication);
    last_ = line.free;
  }

  // The host waits for what was issued before, too: collectives run in order.
  void wait_for_scalars() noexcept {
    clock_->host_waits(last_);
    last_ = clock_->now() + topology_.scalar(world_);
    clock_->host_waits(last_);
  }

  static void repeat(void* to, const void* from, std::size_t bytes, std::size_t times) {
    if (bytes == 0) return;
    auto* const out = static_cast<std::byte*>(to);
    for (std::size_t i = 0; i < times; ++i) {
      if (out + i * bytes != from) std::memcpy(out + i * bytes, from, bytes);
    }
  }

  // The sum of equal contributions; of `index`'s part.
  void reduce(std::span<const ReduceItem> items, std::size_t index) {
    for (const ReduceItem& item : items) {
      dispatch(item.dtype, [&]<class In>() {
        dispatch(item.spec.output, [&]<class Out>() {
          const auto* const in = static_cast<const In*>(item.send) + index * item.count;
          auto* const out = static_cast<Out*>(item.recv);
          for (std::size_t i = 0; i < item.count; ++i) {
            const double old = item.spec.accumulate ? static_cast<double>(out[i]) : 0;
            out[i] = to<Out>(old + static_cast<double>(in[i]) * item.spec.weight * item.spec.scale *
                                       world_);
          }
        });
      });
    }
    wait_for_scalars();
  }
  template <class Out>
  [[nodiscard]] static Out to(double value) noexcept {
    if constexpr (std::is_same_v<Out, bf16> || std::is_same_v<Out, f16>) {
      return Out(static_cast<float>(value));
    } else {
      return static_cast<Out>(value);
    }
  }

  SimulatedClock* clock_;
  Topology topology_;
  SimulatedBackend backend_;
  int world_;
  int rank_;
  double last_ = 0;  // when the last collective ends
};

static_assert(CommunicatorBackend<SimulatedCommunicator>);

}  // namespace shardwise::inline v0_1
