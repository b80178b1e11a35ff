#include <algorithm>
#include <atomic>
#include <catch2/catch_test_macros.hpp>
#include <cstdint>
#include <shardwise/monitor/monitor.hpp>
#include <string>
#include <utility>
#include <vector>

#include "support/device.hpp"
#include "support/ranks.hpp"

// What a monitor sees on each device: on one whose streams run behind the host, too.

using namespace shardwise;
using namespace shardwise::test;
using monitor::Rank;
using monitor::Span;
using monitor::SpanKind;

namespace {

constexpr std::size_t layers = 3;
constexpr int steps = 5;

struct Seen {
  Rank rank;
  Traffic monitor, context;
};

Seen train(Communicator& communicator, const Strategy& strategy) {
  Monitor monitor;
  Context<Device> context(communicator, strategy, {.observer = &monitor});
  std::vector<Parameter<float>> parameters;
  std::vector<Gradient<float>> gradients;
  std::vector<State<AdamW>> states;
  Sequence<float> sequence;
  for (std::size_t i = 0; i < layers; ++i) {
    parameters.emplace_back(context, std::vector<TensorSpec>{{"w", {2000 + i}}},
                            ParameterOptions{.name = "h." + std::to_string(i)});
    parameters.back().initialize([](const auto&, std::size_t) { return 0.5f; });
  }
  for (auto& parameter : parameters) {
    gradients.emplace_back(parameter);
    states.emplace_back(parameter);
  }
  for (std::size_t i = 0; i < layers; ++i) sequence.add(parameters[i], gradients[i]);
  for (int step = 0; step < steps; ++step) {
    context.begin_micro_batch();
    for (std::size_t i = 0; i < layers; ++i) sequence.forward(i).finish();
    for (std::size_t i = layers; i-- > 0;) {
      auto visit = sequence.backward(i);
      add(context, visit.gradient[0], 1);
      visit.finish();
    }
    if (step % 2 == 0) (void)context.mean(1);
    for (std::size_t i = 0; i < layers; ++i) states[i].step(parameters[i], gradients[i]);
    context.end_step({.loss = 1, .tokens = 8});
  }
  context.barrier();
  context.flush_observer();
  return {monitor.snapshot(), monitor.traffic(), context.statistics().traffic};
}

std::vector<Strategy> settings() {
  std::vector<Strategy> result = {Strategy::ddp(), Strategy::zero1(), Strategy::zero2(),
                                  Strategy::zero3()};
  result.push_back(Strategy::zero3());
  result.back().overlap = false;
  result.push_back(Strategy::zero3());
  result.back().bucket_bytes = 1 << 14;
  return result;
}

// Spans of one thread, sorted: apart, or one within the other.
bool nest(std::vector<Span> spans) {
  std::sort(spans.begin(), spans.end(), [](const Span& a, const Span& b) {
    return a.begin_ns != b.begin_ns ? a.begin_ns < b.begin_ns : a.end_ns > b.end_ns;
  });
  std::vector<std::int64_t> open;
  for (const Span& span : spans) {
    while (!open.empty() && open.back() <= span.begin_ns) open.pop_back();
    if (!open.empty() && open.back() < span.end_ns) return false;
    open.push_back(span.end_ns);
  }
  return true;
}

}  // namespace

TEST_CASE("a monitor sees steps, collectives and updates of every device") {
  for (const int world : {1, 2, 3}) {
    for (const Strategy& strategy : settings()) {
      INFO(strategy.name() << " world " << world << " overlap " << strategy.overlap << " bucket "
                           << strategy.bucket_bytes);
      const auto seen = on_ranks(
          world, [&](Communicator& communicator) { return train(communicator, strategy); });
      for (const Seen& one : seen) {
        const Rank& rank = one.rank;
        CHECK(one.monitor == one.context);
        CHECK(rank.asynchronous == !on_host);
        CHECK(rank.steps == steps);
        CHECK(rank.timed_steps == steps - 1);
        CHECK(rank.sum.tokens == 8 * (steps - 1));
        CHECK(rank.sum.end_ns > 0);
        CHECK(rank.sum.update_ns > 0);
        CHECK(rank.sum.compute_ns() >= 0);
        std::uint64_t wire = 0;
        for (const auto& subject : rank.subjects) {
          for (const Activity activity :
               {Activity::all_gather, Activity::reduce_scatter, Activity::all_reduce}) {
            wire += subject[activity].wire_bytes;
            if (strategy.bucket_bytes == 0 && subject[activity].calls > 0) {
              CHECK(subject[activity].run_ns > 0);
            }
          }
          if (subject.is_parameter) CHECK(subject[Activity::update].calls == steps - 1);
        }
        // The first step has its bytes, too, which are not in the counters.
        if (world > 1) {
          CHECK(wire > 0);
          CHECK(wire < one.context.bytes());
        }
      }
    }
  }
}

TEST_CASE("the timeline of a device is in its order, and each collective runs once") {
  for (const Strategy& strategy : settings()) {
    INFO(strategy.name() << " overlap " << strategy.overlap);
    const auto seen =
        on_ranks(2, [&](Communicator& communicator) { return train(communicator, strategy); });
    for (const Seen& one : seen) {
      const Rank& rank = one.rank;
      std::vector<std::uint64_t> issued, ran;
      std::vector<Span> compute, host;
      for (const Span& span : rank.host) {
        const bool issues = span.kind == SpanKind::issue || span.kind == SpanKind::scalar;
        (issues && rank.asynchronous ? host : compute).push_back(span);
        if (span.kind == SpanKind::issue) issued.push_back(span.sequence);
      }
      std::int64_t last = 0;
      for (const Span& span : rank.communication) {
        ran.push_back(span.sequence);
        CHECK(span.begin_ns <= span.end_ns);
        CHECK(span.begin_ns >= last);
        last = span.end_ns;
      }
      CHECK(issued == ran);
      CHECK(nest(compute));
      CHECK(nest(host));
      CHECK(nest(rank.communication));
      std::vector<std::uint64_t> numbers;
      for (const Span& span : compute) {
        if (span.kind == SpanKind::step) numbers.push_back(span.sequence);
      }
      CHECK(numbers == std::vector<std::uint64_t>{0, 1, 2, 3, 4});
    }
  }
}

TEST_CASE("a device that is far behind loses marks and no step") {
  const auto seen = on_ranks(1, [](Communicator& communicator) {
    Monitor monitor;
    Context<Device> context(communicator, Strategy::zero3(), {.observer = &monitor});
    std::atomic<bool> may_go_on{false};
#ifdef SHARDWISE_TEST_CUDA
    const auto stand_still = [](void* flag) { static_cast<std::atomic<bool>*>(flag)->wait(false); };
    cuda_check(cudaLaunchHostFunc(context.stream().native(), stand_still, &may_go_on),
               "cudaLaunchHostFunc");
#endif
    for (int step = 0; step < steps; ++step) {
      context.begin_step();
      for (int mark = 0; mark < 3000; ++mark) context.begin_micro_batch();
      context.end_step({.loss = 1, .tokens = 1});
    }
    may_go_on = true;
    may_go_on.notify_all();
    context.flush_observer();
    return monitor.snapshot();
  });
  CHECK(seen[0].steps == steps);
  CHECK(seen[0].sum.tokens == steps - 1);
}
