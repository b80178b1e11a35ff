#include <algorithm>
#include <catch2/catch_test_macros.hpp>
#include <chrono>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <initializer_list>
#include <limits>
#include <map>
#include <shardwise/monitor/report.hpp>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "watched.hpp"

namespace {

using namespace shardwise;
using namespace shardwise::test;
using monitor::Rank;
using Json = nlohmann::json;

MonitorReport report_of(int world, const WatchedRun& run, const MonitorOptions& options = {}) {
  auto reports =
      watch(world, run, options, [](Communicator& comm, const Monitor& monitor, const Counted&) {
        return MonitorReport::collect(comm, monitor);
      });
  for (int rank = 1; rank < world; ++rank) {
    REQUIRE_FALSE(reports[static_cast<std::size_t>(rank)].has_value());
  }
  REQUIRE(reports[0].has_value());
  return std::move(*reports[0]);
}

bool contains(const std::string& text, const std::string& words) {
  return text.find(words) != std::string::npos;
}

std::string content(const std::filesystem::path& path) {
  std::ifstream file(path);
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

void work_for(std::chrono::microseconds time) {
  const auto end = std::chrono::steady_clock::now() + time;
  while (std::chrono::steady_clock::now() < end) {
  }
}

// A folder of this test, emptied.
std::filesystem::path folder(const std::string& name) {
  const auto path =
      std::filesystem::temp_directory_path() /
      (name + "-" + std::to_string(std::chrono::steady_clock::now().time_since_epoch().count()));
  std::filesystem::remove_all(path);
  return path;
}

}  // namespace

TEST_CASE("all ranks' records come to rank 0 as they are") {
  for (const int world : {1, 2, 3, 4, 7}) {
    const MonitorReport report = report_of(world, {});
    const auto& ranks = report.ranks();
    REQUIRE(ranks.size() == static_cast<std::size_t>(world));
    for (int r = 0; r < world; ++r) {
      const Rank& rank = ranks[static_cast<std::size_t>(r)];
      CHECK(rank.rank == r);
      CHECK(rank.world == world);
      CHECK(rank.strategy == "zero3");
      CHECK(rank.backend == "thread");
      CHECK(rank.steps == 4);
      CHECK(rank.history.size() == 4);
      CHECK(rank.history[1].loss == 1.5);
      CHECK(rank.subjects.size() >= 4);
      CHECK(rank.subjects[3].name == "h.3");
      CHECK(rank.collectives == ranks[0].collectives);
      CHECK_FALSE(rank.host.empty());
      CHECK(rank.communication.empty() == false);
    }
    const auto& summary = report.summary();
    CHECK(summary.world == world);
    CHECK(summary.ranks.size() == static_cast<std::size_t>(world));
    CHECK(summary.timed_steps == 3);
    CHECK(std::abs(summary.compute_ms + summary.exposed_ms + summary.optimizer_ms -
                   summary.step_ms) < 1e-6 * summary.step_ms);
    CHECK(summary.peak.held.total() > 0);
  }
}

TEST_CASE("records survive their way between ranks") {
  const auto made = watch(1, {}, {}, [](Communicator&, const Monitor& monitor, const Counted&) {
    return monitor.snapshot();
  });
  Rank rank = made[0];
  rank.history[0].loss = std::numeric_limits<double>::quiet_NaN();
  const auto bytes = monitor::Json::to_cbor(monitor::Json(rank));
  const Rank read = monitor::Json::from_cbor(bytes).get<Rank>();
  CHECK(monitor::Json(read) == monitor::Json(rank));
  CHECK(std::isnan(read.history[0].loss));
}

TEST_CASE("a rank that sleeps is named in the first sentence") {
  WatchedRun run;
  run.steps = 6;
  run.compute = [](int rank, std::size_t layer) {
    work_for(std::chrono::microseconds(100));
    if (rank == 2 && layer == 1) std::this_thread::sleep_for(std::chrono::milliseconds(40));
  };
  const MonitorReport report = report_of(4, run);
  const std::string sentence = report.diagnosis();
  INFO(sentence);
  CHECK(contains(sentence, "straggler: rank 2 works"));
  CHECK(contains(sentence, "in the backward of 'h.1'"));
  CHECK(report.summary().slowest == 2);
  CHECK(report.table().starts_with(sentence));
  CHECK(contains(report.html("t"), "<p class=\"say\">limited by a straggler: rank 2 works"));
}

TEST_CASE("a rank that is slow in most steps is a straggler, one that was slow once is none") {
  // Three ranks, ten steps of 10 ms: 6 of work, the rest waits.
  const auto ranks_with = [](std::initializer_list<std::uint64_t> slow_steps) {
    std::vector<Rank> ranks(3);
    for (int r = 0; r < 3; ++r) {
      Rank& rank = ranks[static_cast<std::size_t>(r)];
      rank.rank = r;
      rank.world = 3;
      rank.steps = 10;
      rank.timed_steps = 9;
      rank.subjects = {{"h.0"}, {"h.1"}};
      for (std::uint64_t number = 0; number < 10; ++number) {
        const auto is_slow =
            r == 1 && std::find(slow_steps.begin(), slow_steps.end(), number) != slow_steps.end();
        monitor::Step step;
        step.number = number;
        step.end_ns = 10'000'000;
        step.exposed_ns = is_slow ? 0 : 4'000'000;
        rank.history.push_back(step);
        if (number == 0) continue;  // it warms up
        rank.sum.end_ns += step.end_ns;
        rank.sum.exposed_ns += step.exposed_ns;
        rank.subjects[1].backward_ns += is_slow ? 8'000'000 : 4'000'000;
      }
    }
    return ranks;
  };
  const auto mostly = monitor::summarize(ranks_with({1, 2, 3, 4, 5, 6, 7}));
  CHECK(mostly.slowest == 1);
  CHECK(mostly.straggler.work_ms == 10);
  CHECK(mostly.straggler.others_ms == 6);
  CHECK(mostly.straggler.where == "h.1");
  CHECK(mostly.straggler.phase == "backward");
  CHECK(contains(monitor::diagnosis(mostly), "straggler: rank 1"));
  const auto once = monitor::summarize(ranks_with({0, 5}));
  CHECK(once.straggler.surplus_ms() == 0);
  CHECK(once.ranks[1].work_ms() > once.ranks[0].work_ms());
  CHECK_FALSE(contains(monitor::diagnosis(once), "straggler"));
  CHECK(monitor::summarize(ranks_with({})).straggler.surplus_ms() == 0);
  // The step that warms up is not among the nine.
  CHECK(monitor::summarize(ranks_with({0, 1, 2, 3, 4})).straggler.surplus_ms() == 0);
}

TEST_CASE("a bucket that is too small is named in the first sentence") {
  WatchedRun run{.layers = 48, .elements = 100, .steps = 60, .micro_batches = 1};
  run.strategy.bucket_bytes = 900;  // two layers
  const MonitorReport small = report_of(2, run);
  const std::string sentence = small.diagnosis();
  INFO(sentence);
  CHECK(contains(sentence, "latency of small collectives"));
  CHECK(contains(sentence, "bucket_bytes is 900 B"));
  CHECK(contains(sentence, "set it to 8.0 KiB"));

  run.strategy.bucket_bytes = 8 << 10;  // what it says
  const MonitorReport advised = report_of(2, run);
  INFO(advised.diagnosis());
  CHECK_FALSE(contains(advised.diagnosis(), "bucket_bytes is"));
  CHECK(advised.summary().collectives < small.summary().collectives / 3);
}

TEST_CASE("a line of JSON for each step, and none that is no JSON") {
  const auto path = folder("shardwise-steps");
  std::filesystem::create_directories(path);
  const std::string log = (path / "steps.jsonl").string();
  const auto last =
      watch(3, {}, {.step_log = log}, [](Communicator&, const Monitor& monitor, const Counted&) {
        return std::pair(monitor.last_step(), monitor.step_log_is_complete());
      });
  for (const auto& [step, complete] : last) CHECK(complete);
  std::ifstream file(log);
  std::vector<Json> lines;
  for (std::string line; std::getline(file, line);) lines.push_back(Json::parse(line));
  REQUIRE(lines.size() == 4);
  for (std::size_t i = 0; i < lines.size(); ++i) {
    const Json& line = lines[i];
    CHECK(line.at("step") == i);
    CHECK(line.at("loss").get<double>() > 0);
    CHECK(line.at("tokens_per_s").get<double>() > 0);
    CHECK(line.at("peak_bytes").get<std::uint64_t>() > 0);
    const double parts = line.at("compute_ms").get<double>() +
                         line.at("exposed_communication_ms").get<double>() +
                         line.at("optimizer_ms").get<double>();
    CHECK(std::abs(parts - line.at("step_ms").get<double>()) < 1e-3);
  }
  CHECK(std::abs(lines[3].at("step_ms").get<double>() -
                 static_cast<double>(last[0].first.total_ns()) / 1e6) < 1e-3);

  monitor::Step step;
  step.loss = std::numeric_limits<double>::infinity();
  CHECK(monitor::StepLog(log).write(step));
  CHECK(Json::parse(content(log)).at("loss").is_null());
  CHECK(monitor::StepLog((path / "new" / "steps").string()).write(step));
  CHECK_THROWS_AS(monitor::StepLog(log + "/below"), BackendError);
  std::filesystem::remove_all(path);
}

TEST_CASE("a log of steps that cannot be written is no end of training, and is told") {
  const auto complete = watch(1, {}, {.step_log = "/dev/null/steps.jsonl"},
                              [](Communicator&, const Monitor& monitor, const Counted&) {
                                return std::pair(monitor.step_log_is_complete(), monitor.steps());
                              });
  CHECK_FALSE(complete[0].first);
  CHECK(complete[0].second == 4);
}

TEST_CASE("the summary as JSON has the numbers of the run") {
  const MonitorReport report = report_of(2, {});
  const Json json = Json::parse(report.json());
  CHECK(json.at("diagnosis") == report.diagnosis());
  CHECK(json.at("world") == 2);
  CHECK(json.at("ranks").size() == 2);
  CHECK(json.at("peak").at("bytes").at("total") == report.summary().peak.held.total());
  CHECK(json.at("rows").size() == report.summary().rows.size());
  double gathered = 0;
  for (const Json& row : json.at("rows")) {
    if (row.at("operation") == "all_gather")
      gathered += row.at("wire_bytes_per_step").get<double>();
  }
  CHECK(gathered > 0);
}

TEST_CASE("a trace has a process for each rank, and arrows from issue to run") {
  const MonitorReport report = report_of(4, {});
  const Json trace = Json::parse(report.trace());
  std::map<std::string, int> phases;
  std::map<std::uint64_t, int> flows;
  for (const Json& event : trace.at("traceEvents")) {
    ++phases[event.at("ph").get<std::string>()];
    if (event.at("ph") == "s") ++flows[event.at("id").get<std::uint64_t>()];
    if (event.at("ph") == "f") --flows[event.at("id").get<std::uint64_t>()];
    if (event.at("ph") == "X") {
      CHECK(event.at("ts").get<double>() >= 0);
      CHECK(event.at("dur").get<double>() >= 0);
    }
  }
  CHECK(phases["s"] > 4 * 16);
  CHECK(phases["s"] == phases["f"]);
  CHECK(phases["X"] > 2 * phases["s"]);
  for (const auto& [id, balance] : flows) CHECK(balance == 0);
}

TEST_CASE("a report stands for itself and takes names as they are") {
  auto ranks = report_of(2, {}).ranks();
  ranks[0].subjects[0].name = "<b>&\"x\"";
  const std::string html = MonitorReport(ranks).html("a < b");
  CHECK(contains(html, "a &lt; b"));
  CHECK(contains(html, "&lt;b&gt;&amp;&quot;x&quot;"));
  CHECK_FALSE(contains(html, "<b>&"));
  for (const char* outside : {"<script", "http:", "https:", "src=", "@import", "url("}) {
    INFO(outside);
    CHECK_FALSE(contains(html, outside));
  }
  CHECK(contains(html, "prefers-color-scheme: dark"));
  CHECK_FALSE(contains(html, "nan"));
  CHECK_FALSE(contains(html, "inf"));
  std::size_t drawings = 0;
  for (std::size_t at = 0; (at = html.find("<svg", at)) != std::string::npos; ++at) ++drawings;
  CHECK(drawings == 5);
}

TEST_CASE("reports of nothing are texts all the same") {
  const MonitorReport nothing({});
  CHECK(contains(nothing.diagnosis(), "no step"));
  CHECK(contains(nothing.html("t"), "</html>"));
  CHECK_FALSE(nothing.table().empty());
  CHECK(Json::parse(nothing.trace()).at("traceEvents").empty());
  CHECK(Json::parse(nothing.json()).at("ranks").empty());

  const MonitorReport bare({Rank{}});
  CHECK(contains(bare.html("t"), "</html>"));
  CHECK(contains(bare.table(), "no step"));
  WatchedRun run;
  run.steps = 0;
  const MonitorReport no_steps = report_of(2, run);
  CHECK(contains(no_steps.diagnosis(), "no step"));
  CHECK(contains(no_steps.html("t"), "</html>"));
}

TEST_CASE("a report is written into a folder") {
  const auto path = folder("shardwise-report");
  const MonitorReport report = report_of(2, {});
  report.write(path.string());
  CHECK(content(path / "report.html") == report.html("training run"));
  CHECK(content(path / "trace.json") == report.trace());
  CHECK(content(path / "summary.json") == report.json());
  std::ofstream(path / "file") << "in the way";
  CHECK_THROWS_AS(report.write((path / "file" / "below").string()), BackendError);
  std::filesystem::remove_all(path);
}

TEST_CASE("clocks of one machine are one clock, of others not") {
  Rank here, there;
  here.clock_ns = 5'000'000'000;
  there.clock_ns = here.clock_ns + 1'000'000;
  CHECK(monitor::clock_offset(here, there) == 0);
  there.clock_ns = 7'000'000'000;
  CHECK(monitor::clock_offset(here, there) == -2'000'000'000);
}
