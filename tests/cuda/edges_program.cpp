// A program that depends on every order that the library asks of streams; check_edges.py builds it
// under ThreadSanitizer against a library from which one order was taken out. Exits with 0 where
// all results are those of ranks that are threads of the host.

#include <cstdio>
#include <cstdlib>
#include <shardwise/comm/nccl.hpp>
#include <string>
#include <vector>

#include "edges_reference.hpp"
#include "emulation/control.hpp"
#include "support/device.hpp"
#include "support/ranks.hpp"
#include "support/toy.hpp"

namespace shardwise::test {
namespace {

bool failed = false;

void expect(bool holds, const std::string& what) {
  if (holds) return;
  std::printf("wrong: %s\n", what.c_str());
  failed = true;
}

template <FloatingElement L>
void train(const char* name, int world, const ToyRun& run) {
  const ToyResult expected = toy_on_the_host(world, run, dtype_of<L>);
  const auto found = on_ranks(world, [&](Communicator& communicator) {
    return train_toy<L, L, float, AdamW, Device>(communicator, run);
  });
  for (std::size_t rank = 0; rank < found.size(); ++rank) {
    expect(found[rank].hash == expected.hash && found[rank].norms == expected.norms, name);
  }
}

void train_all() {
  for (const int world : {2, 3}) {
    ToyRun run{.steps = 3, .micro_batches = 2, .clip = 0.5};
    for (const Strategy& strategy :
         {Strategy::ddp(), Strategy::zero1(), Strategy::zero2(), Strategy::zero3()}) {
      run.strategy = strategy;
      train<float>("fp32 leases", world, run);
      train<bf16>("bf16 leases", world, run);
    }
    run.strategy = Strategy::zero3();
    run.strategy.prefetch = 2;
    train<float>("two ahead", world, run);
    run.strategy.prefetch = 0;
    train<float>("none ahead", world, run);
    run.strategy.overlap = false;
    train<bf16>("no overlap", world, run);
    run.strategy = Strategy::zero3();
    run.strategy.bucket_bytes = 6000;
    train<float>("buckets", world, run);
    run.strategy.wire = DType::bf16;
    train<float>("a wire of bf16", world, run);
    run.strategy = Strategy::zero2();
    run.strategy.accumulation = Accumulation::hold;
    train<float>("held open", world, run);
    run.debug = true;
    run.strategy = Strategy::zero3();
    train<float>("debug mode", world, run);
    run.debug = false;
    run.residency = Residency::in_place;
    run.wide = true;
    run.steps = 2;
    train<float>("in place", world, run);
  }
}

// Buffers of the host, its own optimizer, a late parameter that makes the slots grow.
float host_memory(Communicator& communicator) {
  constexpr std::size_t count = 900;
  Context<Device> context(communicator);
  ParameterOptions options;
  options.residency = Residency::host_buffer;
  Parameter<float> fed(context, {{"fed", {count}}}, options);
  Gradient<float> contributed(fed, Residency::host_buffer);
  Parameter<float> slotted(context, {{"slotted", {count}}});
  // Nobody has written it but its constructor.
  Parameter<float> untouched(context, {{"untouched", {20 * count}}});
  {
    const auto lease = untouched.gather();
    const float zero = at(context, std::span<const float>(lease[0]), 20 * count - 1);
    if (zero != 0) return zero;
  }
  const auto ones = [](const Layout::Tensor&, std::size_t) { return 1.0f; };
  fed.initialize(ones);
  slotted.initialize(ones);
  DeviceArray<float> weights(count);
  DeviceArray<float> gradient(count);
  for (int step = 0; step < 4; ++step) {
    {
      auto lease = fed.gather_into(weights.data());
      fill(context, gradient.span(), [](std::size_t) { return 0.25f; });
      Device::copy(context.stream(), gradient.data(), weights.data(), count * sizeof(float));
    }
    contributed.reduce_from(gradient.data());
    add(context, gradient.span(), 100);  // the buffer is the host's again
    add(context, weights.span(), 100);
    fed.update([&](std::span<float> shard) { add(context, shard, 0.5f); });
    slotted.update([&](std::span<float> shard) { add(context, shard, 0.5f); });
    slotted.prefetch();  // which reads the shard that is written next
    slotted.update([&](std::span<float> shard) { add(context, shard, 0.5f); });
    const float reduced = at(context, contributed.shard(), 0);
    if (reduced != 1 + 0.5f * static_cast<float>(step)) return reduced;
    contributed.consume();
    auto lease = slotted.gather();
    Device::copy(context.stream(), weights.data(), lease.data(), count * sizeof(float));
  }
  Parameter<float> late(context, {{"late", {10 * count}}});
  late.initialize(ones);
  {
    auto lease = late.gather();
    Device::copy(context.stream(), weights.data(), lease.data(), count * sizeof(float));
  }
  auto lease = slotted.gather();
  return at(context, weights.span(), count - 1) +
         at(context, std::span<const float>(lease[0]), count - 1);
}

// Reductions of a bucket whose other member is open still, and leases that are discarded.
float open_bucket(Communicator& communicator, bool debug) {
  constexpr std::size_t count = 900;
  Strategy strategy = Strategy::zero2();
  strategy.bucket_bytes = std::size_t{1} << 20;
  Context<Device> context(communicator, strategy, {.open_gradients = 2, .debug = debug});
  Parameter<float> a(context, {{"a", {count}}});
  Parameter<float> b(context, {{"b", {count}}});
  Gradient<float> of_a(a);
  Gradient<float> of_b(b);
  const auto contribute = [&](Contribution<float> lease) {
    add(context, std::span<float>(lease[0]), 1);
    std::move(lease).reduce();
  };
  for (int step = 0; step < 4; ++step) {
    auto open = of_b.lease();
    for (int micro = 0; micro < 3; ++micro) contribute(of_a.lease());
    contribute(std::move(open));
    for (int round = 0; round < 3; ++round) {
      auto none = of_b.lease();
      add(context, std::span<float>(none[0]), 1);
      std::move(none).discard();
    }
    const float sum = at(context, of_a.shard(), 0) + at(context, of_b.shard(), 0);
    of_a.consume();
    of_b.consume();
    if (sum != 4) return sum;
  }
  return 4;
}

// Leases of what is stored, after reductions that nobody reads.
float unread_gradient(Communicator& communicator) {
  Strategy strategy = Strategy::ddp();
  strategy.accumulation = Accumulation::hold;
  Context<Device> context(communicator, strategy);
  Parameter<float> parameter(context, {{"w", {20000}}});
  Gradient<float> gradient(parameter);
  for (int step = 0; step < 4; ++step) {
    gradient.consume();
    auto lease = gradient.lease();
    add(context, std::span<float>(lease[0]), 1);
    std::move(lease).reduce();
  }
  return at(context, gradient.shard(), 0);
}

// In place: memory is taken from what was fetched and never opened, and from one gradient after the
// other.
float mapped_memory(Communicator& communicator) {
  constexpr std::size_t layers = 5, count = 20000;
  Context<Device> context(communicator);
  DeviceArena<Device> arena(context, layers * count * sizeof(float));
  DeviceArena<Device> gradient_arena(context, layers * count * sizeof(float));
  std::vector<Parameter<float>> blocks;
  std::vector<Gradient<float>> gradients;
  for (const auto& tensors : stacked(layers, {{"w", arena.as<float>(), {count}}})) {
    blocks.emplace_back(context, tensors);
    blocks.back().initialize([](const Layout::Tensor&, std::size_t) { return 1.0f; });
  }
  for (auto& block : blocks) gradients.emplace_back(block, gradient_arena);
  for (std::size_t round = 0; round < 10; ++round) {
    const auto other = blocks[round % layers].gather();
    blocks[(round + 2) % layers].prefetch();
    const auto lease = blocks[(round + 3) % layers].gather();
  }
  for (std::size_t i = 0; i < 2 * layers; ++i) {
    auto gradient = gradients[i % layers].lease();
    add(context, std::span<float>(gradient[0]), 1);
    std::move(gradient).reduce();
  }
  float sum = 0;
  for (auto& gradient : gradients) sum += at(context, gradient.shard(), 0);
  return sum;
}

}  // namespace
}  // namespace shardwise::test

int main() {
  using namespace shardwise::test;
  emulation_control::set_option("jitter_us", std::getenv("SHARDWISE_EDGES_JITTER_US"));
  train_all();
  for (const bool debug : {false, true}) {
    for (const float value :
         on_ranks(2, [&](shardwise::Communicator& comm) { return open_bucket(comm, debug); })) {
      expect(value == 4.0f, "a bucket that is open");
    }
  }
  for (const float value : on_ranks(3, unread_gradient)) expect(value == 1.0f, "an unread sum");
  for (const float value : on_ranks(3, host_memory)) expect(value == 6.0f, "the host's own memory");
  for (const float value : on_ranks(2, mapped_memory)) expect(value == 10.0f, "mapped memory");
  return failed ? 1 : 0;
}
