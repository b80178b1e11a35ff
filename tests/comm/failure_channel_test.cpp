#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include <algorithm>
#include <atomic>
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
const std::int64_t millisecond = 1'000'000;
// What a peer may take to know of a failure on a machine that does other things, too.
const std::int64_t soon = 5000 * millisecond;

const char* const unwinding = "an exception is unwinding its stack";

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
  /// `several_machines`: the ranks take themselves for as many machines, on the loopback interface.
  explicit Run(int size, bool several_machines = false)
      : Processes(size), size_(size), several_machines_(several_machines) {}

  [[nodiscard]] FailureChannelOptions options() const {
    FailureChannelOptions result;
    result.on_failure = {};
    if (several_machines_) result.interfaces = {"lo"};
    return result;
  }

  [[nodiscard]] FailureChannel::Exchange exchange_of(int rank) {
    return [this, rank, first = true](const std::string& mine) mutable {
      const std::string named =
          several_machines_ && first ? mine + detail::format(" {}", rank) : mine;
      first = false;
      return exchange(rank, named);
    };
  }

  /// Each rank makes a channel and, when all have one, runs body(rank, channel).
  template <class Body>
  void with_channels(const Body& body, const std::function<void()>& meanwhile = {}) {
    run(
        [&](int rank) {
          FailureChannel channel(rank, size_, exchange_of(rank), options());
          meet();
          try {
            body(rank, channel);
          } catch (const std::exception& error) {
            say(rank, error.what());
          }
        },
        meanwhile);
  }

  /// Whether a rank heard `unwinding` before what follows, see heard_early().
  [[nodiscard]] bool anybody_heard_early() const {
    return std::ranges::any_of(ends(), [](const ProcessEnd& end) { return heard_early(end.text); });
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

  /// How long after `since` the last of the others ended.
  [[nodiscard]] std::int64_t latency(int failed, std::int64_t since) const {
    std::int64_t last = 0;
    for (int r = 0; r < size_; ++r) {
      if (r != failed) last = std::max(last, ends()[static_cast<std::size_t>(r)].ended_at - since);
    }
    return last;
  }

  /// All ranks wait in a call, in which `failing` is killed; when that was.
  std::int64_t kill_one(int failing) {
    std::int64_t killed_at = 0;
    with_channels(
        [&](int rank, FailureChannel& channel) {
          flag() += 1;
          if (rank == failing) std::this_thread::sleep_for(1h);
          wait_in(channel, call(12));
        },
        [&] {
          wait_until([&] { return flag() == size_; });
          std::this_thread::sleep_for(2ms);
          killed_at = now();
          ::kill(pid(failing), SIGKILL);
        });
    return killed_at;
  }

 private:
  int size_;
  bool several_machines_;
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
    const std::int64_t killed_at = run.kill_one(failing);
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
          channel.fail(unwinding, true);
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
      if (run.anybody_heard_early()) continue;
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
      channel.entering(call(5), 78);  // nor does another communicator suffer
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

TEST_CASE("who has left a communicator is remembered while that can matter, and no longer") {
  using detail::failures::Birth;
  using detail::failures::Calls;
  Calls calls;
  const Birth split{0, 3};
  CHECK(calls.enter(call(3, "split"), 0).rank == -1);
  // Others may be done with what this split makes before this rank has it.
  CHECK(calls.add({2, 77, 0, split}).rank == -1);
  CHECK(calls.add({1, 78, 0, split}).rank == -1);  // of another color
  calls.join(77, split);
  calls.complete(0);
  CHECK(calls.enter(call(1), 77).rank == 2);
  CHECK(calls.enter(call(1), 78).rank == -1);
  CHECK(calls.leave(78).last == 0);
  calls.complete(77);
  CHECK(calls.leave(77).birth == split);
  // This rank has left, too, or the split is over: nobody asks any more.
  for (const std::uint64_t group : {77u, 79u}) {
    CHECK(calls.add({1, group, 0, split}).rank == -1);
    CHECK(calls.enter(call(1), group).rank == -1);
  }
  CHECK(calls.add({1, 80, 0, {}}).rank == -1);  // of unknown origin
  CHECK(calls.enter(call(1), 80).rank == 1);
}

TEST_CASE("ranks that end in peace, in any order, are no failure") {
  for (const int size : worlds) {
    Run run(size);
    run.run([&](int rank) {
      auto options = run.options();
      options.on_failure = [&](int, const ProcessFailure&, const std::string&) { run.flag() += 1; };
      FailureChannel channel(rank, size, run.exchange_of(rank), options);
      run.meet();
      std::this_thread::sleep_for(rank * 3ms);
      run.say(rank, channel.has_failed() ? channel.failure().message : "in peace");
    });
    run.check_peers(-1, Processes::now(), {"in peace"});
    CHECK(run.flag() == 0);
  }
}

TEST_CASE("a stopped process is silent, and a wait in vain names it") {
  for (const int size : worlds) {
    const int failing = size % 2 == 0 ? 0 : size - 1;
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
          if (channel.silent(1s) != std::vector<int>{failing}) {
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
  }
}

TEST_CASE("a death is known within 100 ms") {
  std::int64_t best = std::numeric_limits<std::int64_t>::max();
  for (int attempt = 0; attempt < 5 && best > 100 * millisecond; ++attempt) {
    Run run(4);
    const std::int64_t killed_at = run.kill_one(1);
    best = std::min(best, run.latency(1, killed_at));
  }
  CHECK(best < (sanitized ? 1000 : 100) * millisecond);
}

TEST_CASE("in a large run what one rank knows reaches ranks that it has no connection with") {
  constexpr int size = 40;
  CHECK(detail::failures::neighbours_of(0, size).size() < 12);
  Run run(size);
  const std::int64_t killed_at = run.kill_one(17);
  run.check_peers(17, killed_at, {"rank 17 died", "was in all_gather #12"});
}

TEST_CASE("neighbours are neighbours of each other, and all ranks of a small run") {
  for (const int size : {1, 2, 3, 4, 7, 16, 17, 31, 32, 33, 64, 1000}) {
    for (int r = 0; r < std::min(size, 70); ++r) {
      const std::vector<int> own = detail::failures::neighbours_of(r, size);
      if (size <= 16) CHECK(own.size() == static_cast<std::size_t>(size - 1));
      CHECK(own.size() <= 20);
      for (const int peer : own) {
        const std::vector<int> theirs = detail::failures::neighbours_of(peer, size);
        CHECK(peer != r);
        CHECK(std::count(theirs.begin(), theirs.end(), r) == 1);
      }
    }
  }
}

TEST_CASE("ranks on several machines are connected by TCP, and no stranger gets in") {
  for (const int size : {2, 4}) {
    Run run(size, true);
    run.run([&](int rank) {
      std::vector<detail::FileHandle> strangers;
      int round = 0;
      const auto own = run.exchange_of(rank);
      const auto exchange = [&](const std::string& mine) {
        std::vector<std::string> all = own(mine);
        if (++round != 2) return all;
        for (const std::string& place : all) {
          // One that says nothing, one that talks nonsense, one that guesses.
          const auto port = static_cast<std::uint16_t>(std::stoi(place));
          for (const std::string& said :
               {std::string(), std::string(100, 'x'),
                "swfail1 " + std::string(32, '0') + detail::format("{:08x}!", size - 1)}) {
            strangers.push_back(detail::FileHandle(::socket(AF_INET, SOCK_STREAM, 0)));
            const auto address = detail::failures::Address::internet("127.0.0.1", port);
            if (::connect(strangers.back().get(), address.get(), address.size) != 0) std::abort();
            if (::send(strangers.back().get(), said.data(), said.size(), MSG_NOSIGNAL) < 0) {
              std::abort();
            }
          }
        }
        run.meet();
        return all;
      };
      FailureChannel channel(rank, size, exchange, run.options());
      if (round != 2) throw UsageError("the addresses were not exchanged");
      run.meet();
      try {
        if (rank == 0) {
          channel.fail("as planned");
          return run.say(rank, "");
        }
        wait_in(channel, call(1));
      } catch (const PeerFailed& error) {
        run.say(rank, error.what());
      }
    });
    CHECK(run.ends()[0].returned());
    run.check_peers(0, run.ends()[0].ended_at, {"rank 0 failed: as planned"});
  }
  Run run(3, true);
  const std::int64_t killed_at = run.kill_one(0);
  run.check_peers(0, killed_at, {"rank 0 died"});
}

TEST_CASE("a rank that dies is known although a child that it forked keeps its sockets open") {
  Run run(3);
  std::int64_t killed_at = 0;
  run.with_channels(
      [&](int rank, FailureChannel& channel) {
        if (rank == 1) {
          const pid_t child = ::fork();
          if (child == 0) {
            std::this_thread::sleep_for(5s);
            ::_exit(0);
          }
          run.flag(1) = child;
          std::this_thread::sleep_for(1h);
        }
        run.flag() += 1;
        wait_in(channel, call(2));
      },
      [&] {
        Processes::wait_until([&] { return run.flag() == 2 && run.flag(1) != 0; });
        killed_at = Processes::now();
        ::kill(run.pid(1), SIGKILL);
      });
  ::kill(run.flag(1), SIGKILL);
  run.check_peers(1, killed_at, {"rank 1 died"});
}

TEST_CASE("in a forked child the channel says nothing") {
  Run run(2);
  run.run([&](int rank) {
    {
      FailureChannel channel(rank, 2, run.exchange_of(rank), run.options());
      run.meet();
      const pid_t child = ::fork();
      if (child == 0) {
        channel.fail("the child says so");
        channel.leave();
        channel.~FailureChannel();
        ::_exit(7);
      }
      int status = 0;
      ::waitpid(child, &status, 0);
      if (!WIFEXITED(status) || WEXITSTATUS(status) != 7) throw UsageError("the child crashed");
      run.meet();
      std::this_thread::sleep_for(20ms);
      if (channel.has_failed()) throw UsageError(channel.failure().message);
      if (!channel.silent(5s).empty()) throw UsageError("the channel is broken");
    }
    run.say(rank, "well");
  });
  run.check_peers(-1, Processes::now(), {"well"});
}

TEST_CASE("the report comes once, from the channel's thread, whatever the rank does") {
  constexpr int attempts = 5;
  for (int attempt = 1; attempt <= attempts; ++attempt) {
    Run run(3);
    run.run([&](int rank) {
      FailureChannelOptions options;
      std::atomic<int> reports{0};
      options.on_failure = [&](int own, const ProcessFailure& failure, const std::string& report) {
        reports += 1;
        run.say(own, detail::format("{} {} {}", failure.rank, failure.died, report));
      };
      FailureChannel channel(rank, 3, run.exchange_of(rank), options);
      run.meet();
      if (rank == 2) {
        Processes::wait_until([&] { return run.flag() == 2; });
        channel.fail(unwinding, true);
        std::this_thread::sleep_for(10ms);
        return channel.fail("the disk is full");
      }
      channel.entering(call(9, "head"));
      run.flag() += 1;
      Processes::wait_until([&] { return reports > 0; });
      std::this_thread::sleep_for(60ms);
      if (reports != 1) throw UsageError("several reports");
    });
    if (attempt < attempts && run.anybody_heard_early()) continue;
    run.check_peers(2, Processes::now(),
                    {"2 false rank 2 failed: the disk is full; rank ",
                     "was in all_gather #9 \"head\" (f32 x 1024)"});
    CHECK_THAT(run.ends()[2].text, ContainsSubstring("2 false rank 2 failed: the disk is full"));
    break;
  }
}

TEST_CASE("an exception that unwinds the stack is a failure, though nobody says so") {
  Run run(3);
  run.run([&](int rank) {
    try {
      FailureChannel channel(rank, 3, run.exchange_of(rank), run.options());
      run.meet();
      if (rank == 1) throw UsageError("out of ideas");
      wait_in(channel, call(1));
    } catch (const std::exception& error) {
      run.say(rank, error.what());
    }
  });
  run.check_peers(1, Processes::now(),
                  {"rank 1 failed: an exception is unwinding its stack", "while rank"});
}

TEST_CASE("a peer that sends nonsense is as good as dead, whatever it sends") {
  using detail::failures::Kind;
  using detail::failures::Writer;
  const auto frame = [](std::int32_t origin, Kind kind, const Writer& body) {
    return Writer().put(origin).put(std::uint64_t{1}).put(kind).append(body).frame();
  };
  const std::string too_long = "\xff\xff\xff\x7f";
  const std::string cases[] = {
      std::string(100, 'x'),
      std::string(4, '\0'),
      too_long,
      frame(2, Kind::goodbye, {}),
      frame(-1, Kind::goodbye, {}),
      frame(0, static_cast<Kind>(9), {}),
      frame(0, Kind::failed, {}),
      frame(0, Kind::failed, Writer().put(std::int32_t{0}).put_flag(false).put_flag(false)),
      frame(0, Kind::answer, Writer().put(std::int32_t{1})),
      frame(
          0, Kind::failed,
          Writer().put(std::int32_t{0}).put(std::uint32_t{1}).append(std::string_view(too_long)))};
  for (const std::string& sent : cases) {
    Run run(2);
    run.run([&](int rank) {
      if (rank == 0) {
        detail::failures::Meeting meeting(rank, 2, run.exchange_of(rank), run.options());
        const auto links = meeting.connect();
        if (::send(links[0].socket.get(), sent.data(), sent.size(), MSG_NOSIGNAL) < 0) std::abort();
        Processes::wait_until([&] { return run.flag() == 1; });
        return;
      }
      try {
        FailureChannel channel(rank, 2, run.exchange_of(rank), run.options());
        wait_in(channel, call(1));
      } catch (const PeerFailed& error) {
        run.say(rank, error.what());
      }
      run.flag() = 1;
    });
    run.check_peers(0, Processes::now(), {"rank 0 died: it sent what no failure channel sends"});
  }
}

TEST_CASE("a callback that never returns holds nobody up") {
  Run run(2);
  run.run([&](int rank) {
    auto options = run.options();
    if (rank == 0) {
      options.on_failure = [](int, const ProcessFailure&, const std::string&) {
        std::this_thread::sleep_for(1h);
      };
    }
    FailureChannel channel(rank, 2, run.exchange_of(rank), options);
    run.meet();
    if (rank == 1) return channel.fail("enough");
    try {
      wait_in(channel, call(1));
    } catch (const PeerFailed& error) {
      run.say(rank, error.what());
    }
  });
  CHECK(run.ends()[0].returned());
  CHECK_FALSE(run.ends()[0].hung);
  CHECK_THAT(run.ends()[0].text, ContainsSubstring("rank 1 failed: enough"));
}

TEST_CASE("ranks that cannot connect are named, and an exchange that loses texts is refused") {
  Run run(3);
  run.run([&](int rank) {
    auto options = run.options();
    options.connect_timeout = 300ms;
    try {
      if (rank == 0) {  // takes part in the exchange, and connects with nobody
        const detail::failures::Meeting meeting(rank, 3, run.exchange_of(rank), options);
        std::this_thread::sleep_for(1s);
        return run.say(rank, "rank 0");
      }
      const FailureChannel channel(rank, 3, run.exchange_of(rank), options);
    } catch (const BackendError& error) {
      run.say(rank, error.what());
    }
  });
  run.check_peers(-1, Processes::now(), {"rank 0"});
  CHECK_THAT(run.ends()[2].text, ContainsSubstring("rank 2 could not connect") &&
                                     ContainsSubstring("within 300 ms") &&
                                     ContainsSubstring("a local socket"));

  const FailureChannelOptions quiet{.on_failure = {}};
  const auto with = [&](const FailureChannel::Exchange& exchange) {
    const FailureChannel channel(0, 2, exchange, quiet);
  };
  CHECK_THROWS_WITH(with([](const std::string& mine) { return std::vector{mine}; }),
                    ContainsSubstring("2 ranks") && ContainsSubstring("gave 1 texts"));
  CHECK_THROWS_WITH(with([](const std::string& mine) {
                      return std::vector{mine, "x" + mine};
                    }),
                    ContainsSubstring("as they are"));
  CHECK_THROWS_AS(FailureChannel(2, 2, {}, quiet), UsageError);
  const FailureChannel alone(0, 1, {}, quiet);
  CHECK_FALSE(alone.has_failed());
}

}  // namespace
}  // namespace shardwise::test
