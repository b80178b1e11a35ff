#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_floating_point.hpp>
#include <optional>
#include <shardwise/comm/simulated.hpp>
#include <shardwise/device/simulated.hpp>
#include <shardwise/shardwise.hpp>
#include <vector>

using namespace shardwise;
using Catch::Matchers::WithinRel;

namespace {

Processor gpu() {
  Processor processor;
  processor.memory_bandwidth = 1e9;
  return processor;
}

Processor cpu(double share) {
  Processor processor;
  processor.inline_compute = true;
  processor.communication_share = share;
  return processor;
}

}  // namespace

TEST_CASE("work of two streams overlaps, and an event orders it") {
  SimulatedClock clock(gpu());
  SimulatedStream compute(clock.compute_line());
  SimulatedStream other(clock.communication_line());
  clock.compute(2);
  other.enqueue(3, SimulatedWork::communication);
  CHECK(clock.now() == 0);
  CHECK_THAT(clock.end(), WithinRel(3.0));
  compute.wait(other.record());
  clock.compute(1);
  CHECK_FALSE(SimulatedStream::reached(compute.record()));
  compute.synchronize();
  CHECK_THAT(clock.now(), WithinRel(4.0));
  CHECK(SimulatedStream::reached(compute.record()));
  CHECK(SimulatedStream::reached({}));
  CHECK_THAT(clock.worked(SimulatedWork::compute), WithinRel(3.0));
}

TEST_CASE("each launch costs the host") {
  Processor processor = gpu();
  processor.launch = 0.5;
  SimulatedClock clock(processor);
  for (int i = 0; i < 4; ++i) clock.compute(0.125);  // faster than the host enqueues
  CHECK_THAT(clock.now(), WithinRel(2.0));
  CHECK_THAT(clock.end(), WithinRel(2.125));
}

TEST_CASE("a CPU computes in the caller, and collectives take their share of it") {
  SimulatedClock alone(cpu(0));
  SimulatedStream(alone.communication_line()).enqueue(4, SimulatedWork::communication);
  alone.compute(3);
  CHECK_THAT(alone.now(), WithinRel(3.0));

  SimulatedClock halved(cpu(0.5));
  SimulatedStream(halved.communication_line()).enqueue(4, SimulatedWork::communication);
  halved.compute(1);  // at half the speed
  CHECK_THAT(halved.now(), WithinRel(2.0));
  halved.compute(2);  // 2 seconds at half the speed, then one
  CHECK_THAT(halved.now(), WithinRel(5.0));

  SimulatedClock none(cpu(1));
  SimulatedStream(none.communication_line()).enqueue(4, SimulatedWork::communication);
  none.compute(3);
  none.compute(1);
  CHECK_THAT(none.now(), WithinRel(8.0));
}

TEST_CASE("a simulated rank holds, sends and plans what a real one does") {
  const std::vector<TensorSpec> tensors{{"a", {100, 7}}, {"b", {9}}};
  for (const char* name : {"ddp", "zero1", "zero2", "zero3", "zero3-no-reshard"}) {
    SimulatedClock clock(gpu());
    SimulatedCommunicator comm(clock, 5, Topology{}, {}, 3);
    ContextOptions options;
    options.stream = clock.ref();
    Context<SimulatedDevice> context(comm, Strategy::parse(name), options);
    ShardedParameter<float, SimulatedDevice> parameter(context, tensors);
    ShardedGradient gradient(parameter);
    ShardedOptimizerState<AdamW, SimulatedDevice> state(parameter);
    parameter.initialize([](const auto&, std::size_t) { return 1.0f; });
    for (int step = 0; step < 2; ++step) {
      auto w = parameter.gather();
      auto g = gradient.lease();
      clock.compute(1e-3);
      w.release();
      std::move(g).reduce();
      CHECK(clip_gradient_norm(context, 1.0) == 0);
      state.step(parameter, gradient);
    }
    INFO(name);
    CHECK(context.held() == context.plan().bytes);
    CHECK(context.sum(2) == 10);
    CHECK(context.mean(3) == 3);
    CHECK(context.any(true));
    CHECK_FALSE(context.all(false));
    CHECK(context.weigh(2).share == 0.2);
    CHECK(clock.now() > 2e-3);
  }
}

TEST_CASE("NCCL's landing buffers are counted where it is what is simulated") {
  SimulatedClock clock(gpu());
  ReduceItem item{};
  item.count = 640;
  item.dtype = DType::bf16;
  item.spec.output = DType::bf16;
  const auto landing = [&](std::optional<NcclOrder> order, bool scatter) {
    return SimulatedCommunicator(clock, 4, Topology{}, {order}).landing_bytes(item, scatter);
  };
  CHECK(landing(std::nullopt, true) == 0);
  CHECK(landing(NcclOrder::canonical, true) == 4 * 640 * 2);
  // Parts of 128 elements for each rank, and the 128 that are left over, from all ranks.
  CHECK(landing(NcclOrder::canonical, false) == 4 * (128 + 128) * 2);
  CHECK(landing(NcclOrder::fast, true) == 0);
  item.spec.output = DType::f32;
  CHECK(landing(NcclOrder::fast, true) == 640 * 2);
}

TEST_CASE("what a simulation cannot do is refused") {
  SimulatedClock clock(gpu());
  CHECK_THROWS_AS(SimulatedCommunicator(clock, 0, Topology{}), UsageError);
  CHECK_THROWS_AS(SimulatedCommunicator(clock, 2, Topology{}, {}, 2), UsageError);
  SimulatedCommunicator comm(clock, 2, Topology{});
  CHECK_THROWS_AS(comm.split(0, 0, {"split"}), UsageError);
  CHECK_THROWS_AS(comm.part(2, 2), UsageError);
  SimulatedCommunicator eight(clock, 8, Topology{}, {}, 6);
  CHECK(eight.part(4, 1)->rank() == 2);
  CHECK(eight.part(2, 4)->rank() == 1);
  CHECK(eight.part(2, 4)->size() == 2);
  CHECK_THROWS_AS(Context<SimulatedDevice>(comm), UsageError);  // no clock
  CHECK_THROWS_AS(Context<>(comm), UsageError);                 // the host's memory
}
