#include <algorithm>
#include <catch2/catch_test_macros.hpp>
#include <shardwise/monitor/monitor.hpp>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "watched.hpp"

namespace {

using namespace shardwise;
using namespace shardwise::test;
using monitor::Rank;
using monitor::Span;
using monitor::SpanKind;

struct Seen {
  Rank rank;
  Traffic traffic;
  Counted counted;
};

std::vector<Seen> see(int world, const WatchedRun& run, const MonitorOptions& options = {}) {
  return watch(world, run, options,
               [](Communicator&, const Monitor& monitor, const Counted& counted) {
                 return Seen{monitor.snapshot(), monitor.traffic(), counted};
               });
}

std::uint64_t sum_of(const Rank& rank, Activity activity) {
  std::uint64_t sum = 0;
  for (const auto& subject : rank.subjects) sum += subject[activity].wire_bytes;
  return sum;
}

// By the formula, from what the strategies are: for a flat parameter of `padded` elements.
struct Formula {
  std::uint64_t gather = 0, scatter = 0, reduce = 0;
};
Formula formula(const WatchedRun& run, std::size_t layer, std::uint64_t world) {
  const Strategy& s = run.strategy;
  const Layout layout({{"weight", {run.elements + layer}}, {"bias", {3}}}, static_cast<int>(world));
  const std::uint64_t part = layout.shard_size() * 4 * (world - 1);
  const std::uint64_t wire = part * size_of(s.wire.value_or(DType::f32)) / 4;
  const auto micro = static_cast<std::uint64_t>(run.micro_batches);
  const std::uint64_t reductions = s.accumulation == Accumulation::hold ? 1 : micro;
  Formula result;
  const bool whole =
      s.parameters == Placement::replicated || run.elements + layer + 3 < s.persistence_threshold;
  if (s.optimizer_state == Placement::replicated) {
    result.reduce = 2 * wire * reductions;
    return result;
  }
  result.scatter = wire * reductions;
  // The last layer is still there when the backward pass begins, and the first sharded one when the
  // next forward pass does.
  std::size_t first = 0;
  while (run.elements + first + 3 < s.persistence_threshold) ++first;
  std::uint64_t uses = 2 * micro;
  if (layer + 1 == run.layers) uses -= micro;
  if (layer == first) uses -= micro - 1;
  result.gather = part * (whole || !s.reshard_after_forward ? 1 : uses);
  return result;
}

}  // namespace

TEST_CASE("a monitor's bytes are those of the statistics and of the formula") {
  for (const int world : {1, 2, 3, 4, 7}) {
    for (const Strategy& strategy : watched_strategies()) {
      WatchedRun run{.strategy = strategy};
      INFO(strategy.name() << " world " << world << " bucket " << strategy.bucket_bytes
                           << " overlap " << strategy.overlap);
      for (const Seen& seen : see(world, run, {.warm_up = 0})) {
        CHECK(seen.traffic == seen.counted.traffic);
        CHECK(sum_of(seen.rank, Activity::all_gather) == seen.counted.traffic.all_gather);
        CHECK(sum_of(seen.rank, Activity::reduce_scatter) == seen.counted.traffic.reduce_scatter);
        CHECK(sum_of(seen.rank, Activity::all_reduce) == seen.counted.traffic.all_reduce);
        CHECK(seen.rank.timed_steps == 4);
      }
    }
  }
}

TEST_CASE("each parameter has its bytes by the formula") {
  for (const int world : {1, 2, 3, 4, 7}) {
    for (Strategy strategy : watched_strategies()) {
      if (strategy.prefetch > 1) continue;  // buckets and slots of more than one layer
      strategy.prefetch = 0;
      const WatchedRun run{.strategy = strategy};
      INFO(strategy.name() << " world " << world);
      for (const Seen& seen : see(world, run)) {
        for (std::size_t layer = 0; layer < run.layers; ++layer) {
          const Formula expected = formula(run, layer, static_cast<std::uint64_t>(world));
          const auto& subject = seen.rank.subjects[layer];
          INFO(subject.name);
          REQUIRE(subject.name == "h." + std::to_string(layer));
          CHECK(seen.rank.timed_steps == 3);
          CHECK(subject[Activity::all_gather].wire_bytes == 3 * expected.gather);
          CHECK(subject[Activity::reduce_scatter].wire_bytes == 3 * expected.scatter);
          CHECK(subject[Activity::all_reduce].wire_bytes == 3 * expected.reduce);
        }
      }
    }
  }
}

TEST_CASE("members of a bucket share its collective") {
  WatchedRun run;
  run.strategy.bucket_bytes = 9000;  // two layers of about 4000 bytes
  for (const Seen& seen : see(2, run)) {
    const auto& subjects = seen.rank.subjects;
    CHECK(seen.rank.collectives > 0);
    for (const auto activity : {Activity::all_gather, Activity::reduce_scatter}) {
      CHECK(subjects[0][activity].calls > 0);
      CHECK(subjects[0][activity].calls == subjects[1][activity].calls);
      CHECK(subjects[0][activity].run_ns > 0);
      CHECK(subjects[1][activity].run_ns > 0);
    }
    std::uint64_t calls = 0;
    for (const auto& subject : subjects) {
      for (const auto activity : {Activity::all_gather, Activity::reduce_scatter}) {
        calls += subject[activity].calls;
      }
    }
    CHECK(calls == 2 * seen.rank.collectives);
  }
}

TEST_CASE("the ledger is followed to the byte, with the peak's cause") {
  for (const Strategy& strategy : watched_strategies()) {
    for (const int world : {1, 3}) {
      INFO(strategy.name() << " world " << world);
      for (const Seen& seen : see(world, {.strategy = strategy})) {
        const monitor::Peak& peak = seen.rank.peak;
        CHECK(peak.held.total() == seen.counted.peak);
        CHECK(peak.held == seen.counted.held);
        CHECK(peak.allocation >= peak.held.total() / 200);
        CHECK(peak.step == 0);
        REQUIRE(peak.subject < seen.rank.subjects.size());
        CHECK(seen.rank.subjects[peak.subject].is_parameter);
        // The context is gone by now, and all that it held.
        CHECK(seen.rank.ledger.back().held == Bytes{});
      }
    }
  }
}

TEST_CASE("waits are of the parameter that was waited for") {
  // Rank 0 is late with the gradient of layer 2 alone; rank 1 comes to wait for its reduction.
  WatchedRun run;
  run.strategy.prefetch = 0;
  run.compute = [](int rank, std::size_t layer) {
    if (rank == 0 && layer == 2) std::this_thread::sleep_for(std::chrono::milliseconds(20));
  };
  const auto seen = see(2, run);
  const Rank& late = seen[0].rank;
  const Rank& waiting = seen[1].rank;
  CHECK(late.subjects[2].backward_ns > 3 * 2 * 19'000'000);
  CHECK(waiting.subjects[2].backward_ns < late.subjects[2].backward_ns / 2);
  std::int64_t of_parameters = 0;
  for (const auto& subject : waiting.subjects) {
    for (const Activity activity : activities) of_parameters += subject[activity].exposed_ns;
  }
  CHECK(of_parameters == waiting.sum.exposed_ns);
  // On a loaded machine other waits grow, too; those for layer 1's gather, which comes next on the
  // stream, hold the late reduction.
  const auto& next = waiting.subjects[1][Activity::all_gather];
  CHECK(next.exposed_ns > 3 * 2 * 10'000'000);
}

TEST_CASE("a wait for a slot is for the collective that has it") {
  // Rank 0 comes late to the reduction of layer 3; rank 1 finds both slots in use when it wants the
  // gradient of layer 1.
  WatchedRun run{.layers = 8};
  run.strategy = Strategy::zero2();  // no gathers in the backward pass
  run.compute = [](int rank, std::size_t layer) {
    if (rank == 0 && layer == 3) std::this_thread::sleep_for(std::chrono::milliseconds(20));
  };
  const Rank waiting = see(2, run)[1].rank;
  const auto& late = waiting.subjects[3][Activity::reduce_scatter];
  CHECK(late.exposed_ns > 3 * 2 * 10'000'000);
  CHECK(3 * late.exposed_ns > waiting.subjects[1][Activity::reduce_scatter].exposed_ns);
}

TEST_CASE("a step is computation, exposed communication and updates") {
  for (const bool overlap : {true, false}) {
    WatchedRun run;
    run.strategy.overlap = overlap;
    run.compute = [](int, std::size_t) {
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    };
    for (const Seen& seen : see(2, run)) {
      const monitor::Step& sum = seen.rank.sum;
      CHECK(seen.rank.steps == 4);
      CHECK(seen.rank.timed_steps == 3);
      CHECK(sum.tokens == 300);
      CHECK(sum.loss == 0.75);
      CHECK(sum.update_ns > 0);
      CHECK(sum.exposed_ns > 0);
      CHECK(sum.compute_ns() > 3 * 8 * 1'000'000);
      std::int64_t updates = 0;
      std::int64_t labelled = 0;
      for (const auto& subject : seen.rank.subjects) {
        updates += subject[Activity::update].run_ns;
        labelled += subject.forward_ns + subject.backward_ns;
      }
      CHECK(updates == sum.update_ns);
      CHECK(labelled > 3 * 8 * 1'000'000);
      CHECK(labelled <= sum.compute_ns());
      REQUIRE(seen.rank.history.size() == 4);
      CHECK(seen.rank.history[3].loss == 0.75);
      for (std::size_t i = 1; i < 4; ++i) {
        CHECK(seen.rank.history[i].begin_ns == seen.rank.history[i - 1].end_ns);
      }
    }
  }
}

TEST_CASE("the timeline has steps, micro-batches, and each collective's issue and run") {
  for (const bool overlap : {true, false}) {
    WatchedRun run;
    run.strategy.overlap = overlap;
    for (const Seen& seen : see(3, run)) {
      std::vector<std::uint64_t> issued, ran;
      int steps = 0, micro_batches = 0;
      for (const Span& span : seen.rank.host) {
        CHECK(span.begin_ns <= span.end_ns);
        if (span.kind == SpanKind::issue) issued.push_back(span.sequence);
        if (span.kind == SpanKind::step) ++steps;
        if (span.kind == SpanKind::micro_batch) ++micro_batches;
      }
      for (const Span& span : seen.rank.communication) ran.push_back(span.sequence);
      CHECK(steps == 4);
      CHECK(micro_batches == 8);
      CHECK(issued.size() > 4 * 4);
      CHECK(issued == ran);
      for (std::size_t i = 0; i < issued.size(); ++i) CHECK(issued[i] == i + 1);
      // A run begins after the host began to issue it.
      std::size_t at = 0;
      for (const Span& span : seen.rank.host) {
        if (span.kind != SpanKind::issue) continue;
        CHECK(span.begin_ns <= seen.rank.communication[at].begin_ns);
        CHECK(span.activity == seen.rank.communication[at].activity);
        CHECK(span.subject == seen.rank.communication[at++].subject);
      }
    }
  }
}

TEST_CASE("a step that the trainer begins itself counts from there") {
  const auto counted = on_threads(1, [](Communicator& communicator) {
    Monitor monitor;
    Context<> context(communicator, Strategy::zero3(), {.observer = &monitor});
    ShardedParameter<float> parameter(context, {{"w", {100}}});
    for (int step = 0; step < 3; ++step) {
      parameter.ensure_gathered();
      std::this_thread::sleep_for(std::chrono::milliseconds(100));
      parameter.release();
      context.begin_step();
      parameter.ensure_gathered();
      parameter.release();
      context.end_step();
    }
    return std::pair(monitor.snapshot(), context.statistics().traffic);
  });
  const auto& [rank, traffic] = counted[0];
  CHECK(rank.sum.end_ns < 100'000'000);
  CHECK(rank.subjects[0].forward_ns < 100'000'000);
  CHECK(traffic.all_gather_calls <= 1);  // of the last step
}

TEST_CASE("where every step warms up they count all the same") {
  for (const Seen& seen : see(2, {.steps = 1})) {
    CHECK(seen.rank.steps == 1);
    CHECK(seen.rank.timed_steps == 1);
    CHECK(seen.rank.sum.end_ns > 0);
    CHECK(seen.rank.collectives > 0);
    CHECK(sum_of(seen.rank, Activity::all_gather) == seen.counted.traffic.all_gather);
  }
}

TEST_CASE("a timeline and a history of fixed size keep the last spans, and evenly spaced steps") {
  const WatchedRun run{.layers = 2, .elements = 10, .steps = 40, .micro_batches = 1};
  const auto all = see(2, run, {.spans = 1 << 12});
  for (const Seen& seen : see(2, run, {.spans = 64, .history = 8})) {
    CHECK(seen.rank.host.size() == 64);
    CHECK(seen.rank.communication.size() == 64);
    CHECK(seen.rank.communication.back().sequence == all[0].rank.communication.back().sequence);
    CHECK(seen.rank.communication.front().sequence + 63 == seen.rank.communication.back().sequence);
    const auto& history = seen.rank.history;
    REQUIRE(history.size() >= 4);
    REQUIRE(history.size() <= 8);
    const auto stride = history[1].number;
    for (std::size_t i = 0; i < history.size(); ++i) CHECK(history[i].number == i * stride);
    CHECK(history.back().number + stride >= 40);
    CHECK(seen.rank.steps == 40);
  }
}

TEST_CASE("a flight recorder keeps the last values in order") {
  monitor::FlightRecorder<int> recorder(3);
  CHECK(recorder.values().empty());
  for (int i = 0; i < 2; ++i) recorder.add(i);
  CHECK(recorder.values() == std::vector{0, 1});
  for (int i = 2; i < 8; ++i) recorder.add(i);
  CHECK(recorder.values() == std::vector{5, 6, 7});
  CHECK(recorder.count() == 8);
}
