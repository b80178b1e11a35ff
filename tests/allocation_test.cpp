#include <algorithm>
#include <catch2/catch_test_macros.hpp>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <shardwise/monitor/monitor.hpp>
#include <span>
#include <string>
#include <utility>
#include <vector>

#ifdef SHARDWISE_TEST_CUDA
#include "emulation/control.hpp"
#endif
#include "support/device.hpp"
#include "support/heap.hpp"
#include "support/ranks.hpp"
#include "support/sanitized.hpp"

using namespace shardwise;
using namespace shardwise::test;

namespace {

/// Of a test: what its ranks may allocate in their steady state, which is nothing; everything again
/// afterwards, also where one of them throws.
class SteadyState {
 public:
  SteadyState() = default;
  SteadyState(const SteadyState&) = delete;
  SteadyState& operator=(const SteadyState&) = delete;
  ~SteadyState() { forbid_on_device(nullptr); }

  /// From here on the heap's allocations are counted, and, on an emulated device, making device
  /// memory, page-locked memory, an event or a stream fails.
  void begin(Context<Device>& context) {
    context.barrier();
    if (context.rank() == 0) {
      forbid_on_device(
          "cudaMalloc:1:2,cudaHostAlloc:1:2,cudaMallocHost:1:2,cudaEventCreateWithFlags:1:2,"
          "cudaStreamCreateWithPriority:1:2");
      heap.allocations = 0;
    }
    context.barrier();
  }
  /// Allocations of all ranks since then.
  std::uint64_t end(Context<Device>& context) {
    context.barrier();
    const std::uint64_t count = heap.allocations;
    context.barrier();
    if (context.rank() == 0) forbid_on_device(nullptr);
    context.barrier();
    return count;
  }

 private:
  static void forbid_on_device([[maybe_unused]] const char* calls) {
#ifdef SHARDWISE_TEST_CUDA
    emulation_control::set_option("fail", calls);
#endif
  }
};

Strategy shared_by_ranks() {
  Strategy strategy = Strategy::zero3();
  strategy.residency = Residency::shared;
  return strategy;
}

std::vector<Strategy> strategies() {
  std::vector<Strategy> result = {Strategy::ddp(), Strategy::zero1(), Strategy::zero2(),
                                  Strategy::zero3(), Strategy::zero3_no_reshard()};
  Strategy variant = Strategy::zero3();
  variant.prefetch = 2;
  variant.bucket_bytes = 1 << 20;
  result.push_back(variant);
  variant = Strategy::zero3();
  variant.prefetch = 0;
  variant.persistence_threshold = 100;
  result.push_back(variant);
  if (on_host) result.push_back(shared_by_ranks());
  return result;
}

struct Held {
  std::uint64_t steady = 0;    // allocations of all ranks in steps 3 to 6
  std::int64_t allocator = 0;  // bytes of all ranks that the allocator holds
  std::size_t device = 0;      // bytes of this rank's emulated device, the communicator's apart
  shardwise::Bytes ledger, plan;
  std::size_t scalars = 0;
  std::vector<std::pair<const void*, std::size_t>> memory;  // what this rank stores
};

/// Everything that a training step may contain.
template <FloatingElement L, FloatingElement G>
Held train(Communicator& communicator, Strategy strategy, std::int64_t before, std::size_t size,
           SteadyState& steady, Observer* observer = nullptr) {
  strategy.lease = dtype_of<L>;
  Held held;
#ifdef SHARDWISE_TEST_CUDA
  const std::size_t communicator_bytes = emulation_control::used_bytes(communicator.rank());
#endif
  {
    Context<Device> context(communicator, strategy,
                            {.open_parameters = 2, .observer = observer, .overlap_from = 0});
    std::vector<Parameter<float>> parameters;
    std::vector<Gradient<G>> gradients;
    std::vector<State<AdamW>> states;
    for (std::size_t i = 0; i < 4; ++i) {
      parameters.emplace_back(
          context,
          std::vector<TensorSpec>{{fmt::format("a long enough name {}", i), {i == 3 ? 50 : size}}},
          ParameterOptions{.tied = i == 0});
      parameters.back().initialize([](const auto&, std::size_t k) { return noise(k, 1); });
    }
    for (auto& parameter : parameters) gradients.emplace_back(parameter);
    for (auto& parameter : parameters) states.emplace_back(parameter);
    Parameter<float> plain(context, {{"plain", {size}}});
    Gradient<G> plain_gradient(plain);
    Sequence<float, L, G> sequence;
    for (std::size_t i = 0; i < 4; ++i) sequence.add(parameters[i], gradients[i]);
    sequence.add(parameters[0], gradients[0]);
    LossScaler scaler({.initial_scale = 4, .growth_interval = 2});

    for (int step = 0; step < 6; ++step) {
      if (step == 2) steady.begin(context);
      for (int micro = 0; micro < 2; ++micro) {
        for (std::size_t i = 0; i < sequence.size(); ++i) sequence.forward(i).finish();
        const ReductionWeight weight = context.weigh(context.rank() + 1);
        for (std::size_t i = sequence.size(); i-- > 0;) {
          auto visit = sequence.backward(i);
          Device::launch(context.stream(), 1,
                         AddElements<L>{visit.gradient[0].data(), visit.weights[0].data()});
          visit.finish(strategy.accumulation == Accumulation::reduce || micro == 1);
        }
        if (strategy.accumulation == Accumulation::reduce || micro == 1) {
          plain.template ensure_gathered<L>();
          plain_gradient.template ensure_open<L>();
          plain.release();
          plain_gradient.reduce(weight);
        }
      }
      { const auto both = gather_as<L>(parameters[1], parameters[2]); }
      if (scaler.unscale(context)) {
        clip_gradient_norm(context, 1);
        for (std::size_t i = 0; i < 4; ++i) states[i].step(parameters[i], gradients[i]);
      }
      (void)plain_gradient.shard();
      plain_gradient.consume();
      plain.update([&](std::span<float> values) { add(context, values.first(1), 1); });
      parameters[2].prefetch();
      (void)context.mean(1);
      (void)context.any(false);
      (void)context.weighted_mean(1, 2);
      context.end_step({.loss = 1, .tokens = 2});
    }
    held.steady = steady.end(context);
    held.allocator = heap.live - before;
    context.barrier();
#ifdef SHARDWISE_TEST_CUDA
    held.device = emulation_control::used_bytes(context.rank()) - communicator_bytes;
#endif
    held.ledger = context.held();
    held.plan = context.plan().bytes;
    held.scalars = context.plan().scalars;
    for (const auto& parameter : parameters) {
      held.memory.emplace_back(parameter.shard().data(), parameter.shard().size_bytes());
    }
    for (auto& gradient : gradients) {
      const auto shard = gradient.shard();
      held.memory.emplace_back(shard.data(), shard.size_bytes());
    }
    for (auto& state : states) {
      const auto values = state.template values<float>("exp_avg");
      held.memory.emplace_back(values.data(), values.size_bytes());
    }
    const auto lease = parameters[0].template gather<L>();
    held.memory.emplace_back(lease.data(), lease[0].size_bytes());
    context.barrier();  // nobody frees what others have not shown yet
  }
  return held;
}

template <FloatingElement L, FloatingElement G>
void check_steady_state(const std::vector<int>& sizes) {
  for (const int world : sizes) {
    for (Strategy strategy : strategies()) {
      for (const bool overlap : {false, true}) {
        for (const auto accumulation : {Accumulation::reduce, Accumulation::hold}) {
          strategy.overlap = overlap;
          strategy.accumulation = accumulation;
          INFO(strategy.name() << " world " << world << " overlap " << overlap << " hold "
                               << (accumulation == Accumulation::hold) << " bucket "
                               << strategy.bucket_bytes);
          SteadyState steady;
          const auto ranks = on_ranks(world, [&](Communicator& communicator) {
            return train<L, G>(communicator, strategy, 0, 1000, steady);
          });
          for (const Held& held : ranks) {
            CHECK(held.steady == 0);
            CHECK(held.ledger == held.plan);
          }
        }
      }
    }
  }
}

}  // namespace

TEST_CASE("steady state makes no heap allocation: fp32") {
  check_steady_state<float, float>({1, 2, 4});
}
TEST_CASE("steady state makes no heap allocation: bf16") { check_steady_state<bf16, float>({3}); }

TEST_CASE("steady state makes no heap allocation: watched by a monitor, which sees all of it") {
  for (const int world : {1, 3}) {
    for (const Strategy& strategy : strategies()) {
      INFO(strategy.name() << " world " << world);
      SteadyState steady;
      const auto ranks = on_ranks(world, [&](Communicator& communicator) {
        Monitor monitor({.spans = 100, .history = 4, .step_log = "/dev/null"});
        const Held held = train<float, float>(communicator, strategy, 0, 1000, steady, &monitor);
        return std::pair(held, monitor.snapshot());
      });
      for (const auto& [held, seen] : ranks) {
        CHECK(held.steady == 0);
        CHECK(seen.steps == 6);
        CHECK(seen.timed_steps == 5);
        CHECK(seen.peak.held == held.ledger);
        CHECK(seen.host.size() == 100);
      }
    }
  }
}

TEST_CASE("steady state makes no heap allocation: in buffers of the host") {
  for (const int world : {1, 3}) {
    for (const Strategy& given : strategies()) {
      for (const bool overlap : {false, true}) {
        Strategy strategy = given;
        strategy.overlap = overlap;
        INFO(strategy.name() << " world " << world << " overlap " << overlap);
        SteadyState steady;
        const auto counted = on_ranks(world, [&](Communicator& communicator) {
          Context<Device> context(communicator, strategy, {.overlap_from = 0});
          Parameter<float> own(context, {{"own", {1000}}, {"none", {0}}},
                               {.residency = Residency::host_buffer});
          ShardedGradient own_gradient(own, Residency::host_buffer);
          const DeviceArray<float> buffer(1000);
          float* const buffers[] = {buffer.data(), nullptr};
          for (int step = 0; step < 6; ++step) {
            if (step == 2) steady.begin(context);
            own.ensure_gathered_into<float>(buffers);
            own.release();
            own_gradient.reduce_from<float>(buffers);
            clip_gradient_norm(context, 1);
            (void)own_gradient.shard();
            own_gradient.consume();
            own.update_segments([](std::span<const ShardSegment<float>>) {});
          }
          return steady.end(context);
        });
        for (const std::uint64_t count : counted) CHECK(count == 0);
      }
    }
  }
}

#ifdef SHARDWISE_TEST_CUDA

TEST_CASE("what a device holds is the ledger's sum, and all of it goes back") {
  if (!shardwise_emulation_present()) SKIP("others may use a real device's memory");
  constexpr std::size_t size = 20011;
  for (const bool overlap : {false, true}) {
    for (Strategy strategy :
         {Strategy::ddp(), Strategy::zero1(), Strategy::zero2(), Strategy::zero3()}) {
      strategy.overlap = overlap;
      for (const int world : worlds) {
        INFO(strategy.name() << " world " << world << " overlap " << overlap);
        SteadyState steady;
        std::vector<std::size_t> before;
        for (int r = 0; r < world; ++r) before.push_back(emulation_control::used_bytes(r));
        const auto ranks = on_ranks(world, [&](Communicator& communicator) {
          return train<float, float>(communicator, strategy, 0, size, steady);
        });
        for (int r = 0; r < world; ++r) {
          const Held& held = ranks[static_cast<std::size_t>(r)];
          // The scalars are on the host. Beside the ledger there are a stream's scratch, what the
          // communicator stages, and rounding to 256 bytes.
          CHECK(held.device >= held.ledger.total() - held.scalars);
          CHECK(held.device <= held.ledger.total() + (16 << 10));
          CHECK(emulation_control::used_bytes(r) == before[static_cast<std::size_t>(r)]);
        }
      }
    }
  }
}

#else  // arenas, and the host's allocator

TEST_CASE("steady state makes no heap allocation: in arenas") {
  for (const int world : {1, 3}) {
    for (const Strategy& given : strategies()) {
      for (const bool overlap : {false, true}) {
        Strategy strategy = given;
        strategy.overlap = overlap;
        INFO(strategy.name() << " world " << world << " overlap " << overlap);
        SteadyState steady;
        const auto counted = on_ranks(world, [&](Communicator& communicator) {
          constexpr std::size_t wide = 50001, layers = 4;
          Context<Device> context(communicator, strategy, {.overlap_from = 0});
          Arena weights(context, layers * wide * sizeof(float));
          Arena gradient_arena(context, layers * wide * sizeof(float));
          std::vector<Parameter<float>> parameters;
          std::vector<Gradient<float>> gradients;
          std::vector<State<AdamW>> states;
          for (const auto& tensors : stacked(layers, {{"wide", weights.as<float>(), {wide}}})) {
            parameters.emplace_back(context, tensors);
            gradients.emplace_back(parameters.back(), gradient_arena);
            states.emplace_back(parameters.back());
          }
          for (int step = 0; step < 6; ++step) {
            if (step == 2) steady.begin(context);
            for (auto& parameter : parameters) {
              parameter.ensure_gathered();
              parameter.release();
            }
            for (std::size_t i = layers; i-- > 0;) {
              parameters[i].prefetch();
              gradients[i].ensure_open();
              gradients[i].reduce();
            }
            clip_gradient_norm(context, 1);
            for (std::size_t i = 0; i < layers; ++i) states[i].step(parameters[i], gradients[i]);
          }
          return steady.end(context);
        });
        for (const std::uint64_t count : counted) CHECK(count == 0);
      }
    }
  }
}

TEST_CASE("what the allocator holds is the ledger's sum, on memory of each rank's own") {
  constexpr std::size_t size = 100003;
  for (const bool overlap : {false, true}) {
    for (Strategy strategy : {Strategy::ddp(), Strategy::zero1(), Strategy::zero2(),
                              Strategy::zero3(), shared_by_ranks()}) {
      strategy.overlap = overlap;
      std::int64_t previous = 0;
      for (const int world : worlds) {
        if (sanitized && world > 3) continue;
        INFO(strategy.name() << " world " << world << " overlap " << overlap);
        const std::int64_t before = heap.live;
        SteadyState steady;
        const auto ranks = on_ranks(world, [&](Communicator& communicator) {
          return train<float, float>(communicator, strategy, before, size, steady);
        });
        std::int64_t ledger = 0;
        for (const Held& held : ranks) ledger += static_cast<std::int64_t>(held.ledger.total());
        // Beside the ledger: a stream's queue (256 KiB), names, layouts, rounding to pages.
        const std::int64_t beside = world * ((overlap ? 256 << 10 : 0) + (160 << 10));
        for (const Held& held : ranks) {
          CHECK(held.allocator >= ledger);
          CHECK(held.allocator <= ledger + beside);
        }
        // Per rank it falls, but for ddp.
        const std::int64_t per_rank = ledger / world;
        if (world > 1 && strategy.optimizer_state == Placement::sharded) {
          CHECK(per_rank < previous);
        }
        if (strategy.optimizer_state == Placement::replicated && world > 1) {
          CHECK(per_rank > previous * 99 / 100);
        }
        previous = per_rank;
        // No two ranks share a byte of what they store, nor of a lease, if they are not to.
        std::vector<std::pair<std::uintptr_t, std::uintptr_t>> ranges;
        for (const Held& held : ranks) {
          const bool with_lease = strategy.residency != Residency::shared;
          const std::span all(held.memory);
          for (const auto& [data, bytes] : with_lease ? all : all.first(all.size() - 1)) {
            const auto begin = reinterpret_cast<std::uintptr_t>(data);
            if (bytes > 0) ranges.emplace_back(begin, begin + bytes);
          }
        }
        std::sort(ranges.begin(), ranges.end());
        std::size_t shared = 0;
        for (std::size_t i = 1; i < ranges.size(); ++i) {
          if (ranges[i].first < ranges[i - 1].second) ++shared;
        }
        // A whole fp32 replica is its own lease.
        const bool lease_is_storage = strategy.parameters == Placement::replicated;
        CHECK(shared == (lease_is_storage ? static_cast<std::size_t>(world) : 0));
      }
    }
  }
}

#endif

TEST_CASE("everything is freed at the end") {
  for (const Strategy& strategy : strategies()) {
    for (const int world : {1, 3}) {
      std::int64_t after[3] = {};
      for (std::int64_t& bytes : after) {
        const std::int64_t before = heap.live;
        const auto left = on_ranks(world, [&](Communicator& communicator) {
          Context<Device> context(communicator, strategy, {.overlap_from = 0});
          {
            Parameter<float> parameter(context, {{"w", {5000}}});
            ShardedGradient gradient(parameter);
            State<AdamW> state(parameter);
            auto lease = gradient.lease();
            std::move(lease).reduce();
            state.step(parameter, gradient);
            (void)parameter.gather();
          }
          const shardwise::Bytes& held = context.held();
          return held.parameters + held.gradients + held.optimizer_state;
        });
        for (const std::size_t bytes_left : left) CHECK(bytes_left == 0);
        bytes = heap.live - before - static_cast<std::int64_t>(left.capacity() * sizeof(left[0]));
      }
      INFO(strategy.name() << " world " << world);
      // The first run may leave something in caches of the standard library; a leak would grow.
      CHECK(after[1] <= 64);
      CHECK(after[2] <= 64);
    }
  }
}
