#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <csignal>
#include <shardwise/comm/failure_channel.hpp>
#include <string>
#include <vector>

#include "processes.hpp"

namespace shardwise::test {
namespace {

using Catch::Matchers::ContainsSubstring;
using namespace std::chrono_literals;

const int worlds[] = {2, 3, 4, 7};
// What a peer may take to know of a failure.
const std::int64_t soon = std::int64_t{1'000'000} * (sanitized ? 2000 : 100);

Fingerprint call(std::uint64_t sequence, const char* name = "block.3") {
  const GatherItem item{nullptr, nullptr, 1024, DType::f32};
  return detail::fingerprint_of(Operation::all_gather, std::span(&item, 1), CallInfo{.name = name},
                                -1, sequence);
}

/// Waits in a call until a failure ends it.
void wait_in(FailureChannel& channel, const Fingerprint& print, std::uint64_t group = 0) {
  channel.entering(print, group);
  Processes::wait_until([&] { return channel.has_failed(); });
  throw channel.peer_failed(print);
}

class Run : public Processes {
 public:
  explicit Run(int size) : Processes(size), size_(size) {}

  /// Each rank makes a channel and, when all have one, runs body(rank, channel).
  template <class Body>
  void with_channels(const Body& body, const std::function<void()>& meanwhile = {}) {
    run(
        [&](int rank) {
          FailureChannelOptions options;
          options.on_failure = {};
          FailureChannel channel(
              rank, size_, [&](const std::string& mine) { return exchange(rank, mine); }, options);
          meet();
          try {
            body(rank, channel);
          } catch (const std::exception& error) {
            say(rank, error.what());
          }
        },
        meanwhile);
  }

  /// All ranks but `failed` ended by themselves, soon after `since`, saying all of `texts`.
  void check_peers(int failed, std::int64_t since, const std::vector<std::string>& texts) const {
    for (int r = 0; r < size_; ++r) {
      if (r == failed) continue;
      const ProcessEnd& end = ends()[static_cast<std::size_t>(r)];
      INFO("rank " << r << " of " << size_ << ": " << end.text);
      CHECK(end.returned());
      for (const std::string& text : texts) CHECK_THAT(end.text, ContainsSubstring(text));
      CHECK(end.ended_at - since < soon);
    }
  }

 private:
  int size_;
};

/// Calls f(world, rank that fails).
template <class F>
void for_each_failure(const F& f) {
  for (const int size : worlds) {
    for (const int failing : {0, size - 1}) f(size, failing);
  }
}

TEST_CASE("a killed process is known to all others at once") {
  for_each_failure([](int size, int failing) {
    Run run(size);
    std::int64_t killed_at = 0;
    run.with_channels(
        [&](int rank, FailureChannel& channel) {
          run.flag() += 1;
          if (rank == failing) std::this_thread::sleep_for(1h);
          wait_in(channel, call(12));
        },
        [&] {
          Processes::wait_until([&] { return run.flag() == size; });
          std::this_thread::sleep_for(2ms);
          killed_at = Processes::now();
          ::kill(run.pid(failing), SIGKILL);
        });
    run.check_peers(failing, killed_at,
                    {detail::format("rank {} died", failing), "ended without leaving",
                     "was in all_gather #12 \"block.3\" (f32 x 1024)"});
  });
}

TEST_CASE("a rank's message reaches all others, the provisional one only if no other follows") {
  for_each_failure([](int size, int failing) {
    for (const bool follows : {true, false}) {
      Run run(size);
      run.with_channels([&](int rank, FailureChannel& channel) {
        if (rank == failing) {
          run.say(rank, "");
          channel.fail("unwinding", true);
          if (follows) channel.fail("out of memory in block.7");
          channel.fail("a later message");
          if (!follows) return;
          CHECK(channel.failure().message == "out of memory in block.7");
          return;
        }
        wait_in(channel, call(3));
      });
      const auto& failed = run.ends()[static_cast<std::size_t>(failing)];
      CHECK(failed.returned());
      run.check_peers(failing, failed.ended_at,
                      {detail::format("rank {} failed: {}", failing,
                                      follows ? "out of memory in block.7" : "a later message"),
                       "all_gather #3"});
    }
  });
}

TEST_CASE("a rank that returns early has left, which ends later calls and no earlier ones") {
  for_each_failure([](int size, int failing) {
    Run run(size);
    run.with_channels([&](int rank, FailureChannel& channel) {
      channel.entering(call(1), 77);
      if (rank == failing) {
        channel.leaving(77);
        run.say(rank, "");
        channel.leave(77);
        return;
      }
      std::this_thread::sleep_for(50ms);  // what the leaver took part in is completed in peace
      if (channel.has_failed()) throw UsageError("a call that the leaver took part in has failed");
      channel.leaving(77);
      channel.entering(call(1), 78);  // nor does another communicator suffer
      std::this_thread::sleep_for(10ms);
      if (channel.has_failed()) throw UsageError("a group that nobody left has failed");
      channel.leaving(78);
      run.flag() += 1;
      Processes::wait_until([&] { return run.flag() == size - 1; });
      run.say(rank, "");
      wait_in(channel, call(2), 77);
    });
    run.check_peers(
        failing, Processes::now(),
        {detail::format("rank {} left the group", failing), "returned early?", "all_gather #2"});
  });
}

TEST_CASE("ranks that end in peace, in any order, are no failure") {
  for (const int size : worlds) {
    Run run(size);
    run.with_channels([&](int rank, FailureChannel& channel) {
      std::this_thread::sleep_for(rank * 3ms);
      run.say(rank, channel.has_failed() ? channel.failure().message : "in peace");
    });
    run.check_peers(-1, Processes::now(), {"in peace"});
  }
}

TEST_CASE("a stopped process is silent, and a wait in vain names it") {
  for_each_failure([](int size, int failing) {
    Run run(size);
    run.with_channels(
        [&](int rank, FailureChannel& channel) {
          if (rank == failing) {
            run.flag() += 1;
            std::this_thread::sleep_for(1h);
          }
          if (!channel.silent(5s).empty()) throw UsageError("a rank that runs is silent");
          channel.entering(call(4));
          channel.leaving();
          channel.entering(call(5));
          run.flag() += 1;
          Processes::wait_until([&] { return run.flag(1) == 1; });
          if (channel.silent(300ms) != std::vector<int>{failing}) {
            throw UsageError("the stopped rank is not the one that is silent");
          }
          std::vector<int> all;
          for (int r = 0; r < size; ++r) all.push_back(r);
          channel.time_out(call(5), all);
        },
        [&] {
          Processes::wait_until([&] { return run.flag() == size; });
          run.stop(failing);
          run.flag(1) = 1;
          Processes::wait_until([&] { return run.have_ended(failing); });
          ::kill(run.pid(failing), SIGKILL);
        });
    run.check_peers(
        failing, Processes::now(),
        {"waited in vain in all_gather #5", detail::format("missing ranks: {};", failing),
         detail::format("rank {} (missing): does not answer", failing)});
  });
}

}  // namespace
}  // namespace shardwise::test
