#include <catch2/catch_test_macros.hpp>
#include <shardwise/monitor/diagnosis.hpp>
#include <string>

using namespace shardwise;
using monitor::diagnosis;
using monitor::Row;
using monitor::Summary;

namespace {

bool contains(const std::string& text, const std::string& words) {
  return text.find(words) != std::string::npos;
}

// Two ranks, 10 ms a step: 8 compute, 1 waits, 1 updates.
Summary quiet() {
  Summary s;
  s.world = 2;
  s.strategy = "zero3";
  s.backend = "nccl";
  s.prefetch = 1;
  s.steps = 11;
  s.timed_steps = 10;
  s.step_ms = 10;
  s.compute_ms = 8;
  s.exposed_ms = 1;
  s.optimizer_ms = 1;
  s.collectives = 12;
  s.payload_bytes = 8 << 20;
  s.collective_ms = 0.5;
  s.parameter_bytes = 32 << 20;
  s.ranks = {{0, 10, 8, 1, 1, {}}, {1, 10, 8, 1, 1, {}}};
  s.straggler = {1, 9, 9, "", ""};
  s.rows = {{"h.3", true, Activity::all_gather, 6e6, 2, 1.5, 0.6},
            {"h.2", true, Activity::reduce_scatter, 3e6, 1, 1, 0.4},
            {"h.2", true, Activity::update, 0, 1, 0.7, 0}};
  return s;
}

Summary waiting(double ms) {
  Summary s = quiet();
  s.step_ms += ms;
  s.exposed_ms += ms;
  s.rows[0].exposed_ms += ms;
  return s;
}

}  // namespace

TEST_CASE("a run that computes is bound by it") {
  const std::string text = diagnosis(quiet());
  CHECK(contains(text, "compute-bound: 80 % of the step (8.00 ms of 10.0 ms) computes"));
  CHECK(contains(text, "10 % waits for communication and 10 % updates"));
}

TEST_CASE("a run that waits names the part, the parameter, and what would hide it") {
  const std::string text = diagnosis(waiting(10));
  CHECK(contains(text, "communication-bound: 55 % of the step (11.0 ms of 20.0 ms)"));
  CHECK(contains(text, "10.6 ms of it for gathers of parameters, most for 'h.3'"));
  CHECK(contains(text, "5.7 MiB"));
  CHECK(contains(text, "prefetch 2 (of gathers that run beside compute)"));
  CHECK(contains(text, "a larger batch"));
  CHECK(contains(text, "zero2"));
  CHECK_FALSE(contains(text, "overlap = true\n"));
}

TEST_CASE("advice fits the settings") {
  Summary s = waiting(10);
  s.prefetch = 2;
  s.strategy = "zero3-no-reshard";
  CHECK_FALSE(contains(diagnosis(s), "prefetch"));
  CHECK_FALSE(contains(diagnosis(s), "zero2"));
  s.overlap = false;
  CHECK(contains(diagnosis(s), "overlap = true"));
  s.rows[0].activity = Activity::reduce_scatter;
  CHECK(contains(diagnosis(s), "reductions of gradients"));
  CHECK(contains(diagnosis(s), "accumulation = hold"));
  s.rows[0].calls = 1;
  CHECK_FALSE(contains(diagnosis(s), "accumulation = hold"));
  s.rows[0] = {"gradient_norm", false, Activity::scalar, 0, 1, 10, 10};
  CHECK(contains(diagnosis(s), "'gradient_norm', where the ranks meet"));
}

TEST_CASE("ranks that share processors are told of it") {
  Summary s = waiting(10);
  s.backend = "thread";
  s.processors = 1;
  CHECK(contains(diagnosis(s), "2 ranks share 1 processors"));
  s.processors = 2;
  CHECK_FALSE(contains(diagnosis(s), "share"));
}

TEST_CASE("a straggler comes before what the others wait for") {
  Summary s = waiting(10);
  s.straggler = {1, 20, 9, "h.2", "backward"};
  const std::string text = diagnosis(s);
  CHECK(contains(text, "limited by a straggler: rank 1 works 20.0 ms of each step"));
  CHECK(contains(text, "the other ranks work 9.00 ms"));
  CHECK(contains(text, "55 % of the step"));
  CHECK(contains(text, "in the backward of 'h.2'"));
  s.straggler.where.clear();
  CHECK(contains(diagnosis(s), "outside of leases"));
  s.straggler.work_ms = 11;  // a tenth of the step is no straggler
  CHECK_FALSE(contains(diagnosis(s), "straggler"));
}

TEST_CASE("small collectives are told from slow ones") {
  Summary s = waiting(10);
  s.collectives = 96;
  s.payload_bytes = 3 << 10;
  s.collective_ms = 0.1;
  s.parameter_bytes = 128 << 10;
  s.bucket_bytes = 1 << 10;
  const std::string text = diagnosis(s);
  CHECK(contains(text, "latency of small collectives"));
  CHECK(contains(text, "55 % of the step"));
  CHECK(contains(text, "96 collectives of 3.0 KiB on average"));
  CHECK(contains(text, "takes 115 us whatever it carries"));
  CHECK(contains(text, "'h.3' is waited for longest"));
  CHECK(contains(text, "bucket_bytes is 1.0 KiB: set it to 16.0 KiB for about 18 of them"));

  s.bucket_bytes = 64 << 10;  // it is not the bucket
  CHECK(contains(diagnosis(s), "communication-bound"));
  s.bucket_bytes = 0;
  CHECK(contains(diagnosis(s), "bucket_bytes is 0"));
  s.payload_bytes = 256 << 10;  // it carries something
  CHECK(contains(diagnosis(s), "communication-bound"));
  s.payload_bytes = 60 << 10;  // and takes no longer than that
  s.collectives = 200;
  CHECK(contains(diagnosis(s), "communication-bound"));
}

TEST_CASE("an optimizer that takes long is told, and who could share it") {
  Summary s = quiet();
  s.optimizer_ms = 6;
  s.compute_ms = 3;
  s.straggler = {1, 9, 9, "", ""};
  CHECK(contains(diagnosis(s), "optimizer-bound: 60 % of the step"));
  CHECK(contains(diagnosis(s), "700 us of it 'h.2'"));
  CHECK_FALSE(contains(diagnosis(s), "zero1"));
  s.strategy = "ddp";
  CHECK(contains(diagnosis(s), "zero1 would share it"));
}

TEST_CASE("without steps there is nothing to say, and that is said") {
  CHECK(contains(diagnosis(Summary{}), "call Context::end_step"));
}
