#include <algorithm>
#include <array>
#include <atomic>
#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <chrono>
#include <cstddef>
#include <cstdio>
#include <functional>
#include <memory>
#include <set>
#include <shardwise/comm/thread.hpp>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "../support/endings.hpp"
#include "failures.hpp"

namespace shardwise::test {
namespace {

using Catch::Matchers::ContainsSubstring;
using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

constexpr Operation operations[] = {
    Operation::all_gather, Operation::reduce_scatter, Operation::all_reduce, Operation::broadcast,
    Operation::all_to_all, Operation::barrier,        Operation::split};
constexpr int failure_worlds[] = {2, 3, 4, 8};

struct HostError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

enum class Phase { before, inside, after };
enum class Failing { throws, returns, times_out };

/// What deviates in a call; the rest is the same for all calls of these tests.
struct Variation {
  std::size_t count = 8;
  std::size_t items = 1;
  DType dtype = DType::f32;
  DType output = DType::f32;
  double scale = 1;
  bool accumulate = false;
  int root = 0;
};

struct Buffers {
  explicit Buffers(int world)
      : send(static_cast<std::size_t>(world) * 64, 1.0), recv(send.size(), -1.0) {}
  std::vector<double> send;
  std::vector<double> recv;
};

void call(Communicator& comm, Operation operation, Buffers& buffers, const CallInfo& info,
          StreamRef stream = {}, const Variation& how = {}) {
  const std::vector<GatherItem> gather(
      how.items, {buffers.send.data(), buffers.recv.data(), how.count, how.dtype});
  const std::vector<ReduceItem> reduce(how.items, {buffers.send.data(),
                                                   buffers.recv.data(),
                                                   how.count,
                                                   how.dtype,
                                                   {how.output, how.scale, 1, how.accumulate}});
  const std::vector<BroadcastItem> broadcast(how.items,
                                             {buffers.recv.data(), how.count, how.dtype});
  const std::vector<ExchangeItem> exchange(
      how.items, {buffers.send.data(), buffers.recv.data(), how.count, how.dtype});
  switch (operation) {
    case Operation::all_gather:
      return comm.all_gather(gather, info, stream);
    case Operation::reduce_scatter:
      return comm.reduce_scatter(reduce, info, stream);
    case Operation::all_reduce:
      return comm.all_reduce(reduce, info, stream);
    case Operation::broadcast:
      return comm.broadcast(broadcast, how.root, info, stream);
    case Operation::all_to_all:
      return comm.all_to_all(exchange, info, stream);
    case Operation::split:
      static_cast<void>(comm.split(0, 0, info));
      return;
    default:
      return comm.barrier(info, stream);
  }
}

/// Runs body(communicator) on every rank and says how each ended; `rethrown` is what run_ranks
/// threw.
template <class Body>
std::vector<RankEnd> ends_of(int world, const Body& body, RankEnd& rethrown,
                             const ThreadOptions& options = {}) {
  std::vector<RankEnd> ends(static_cast<std::size_t>(world));
  const auto note = [](RankEnd& end) {
    try {
      throw;
    } catch (const HostError& error) {
      end.kind = RankEnd::Kind::own;
      end.what = error.what();
    } catch (const PeerFailed& error) {
      end.kind = RankEnd::Kind::peer_failed;
      end.what = error.what();
      end.peer = error.rank();
      end.peer_message = error.peer_message();
    } catch (const TimedOut& error) {
      end.kind = RankEnd::Kind::timed_out;
      end.what = error.what();
    } catch (const CollectiveMismatch& error) {
      end.kind = RankEnd::Kind::mismatch;
      end.what = error.what();
    } catch (const std::exception& error) {
      end.kind = RankEnd::Kind::other;
      end.what = error.what();
    }
  };
  try {
    run_ranks(
        world,
        [&](Communicator& comm) {
          RankEnd& end = ends[static_cast<std::size_t>(comm.rank())];
          try {
            body(comm, end);
          } catch (...) {
            note(end);
            throw;
          }
        },
        options);
  } catch (...) {
    note(rethrown);
  }
  return ends;
}

struct FailureCase {
  Operation operation;
  Phase phase;
  Failing failing;
  int world;
  int rank;

  [[nodiscard]] std::string name() const {
    constexpr const char* phases[] = {"before", "inside", "after"};
    constexpr const char* kinds[] = {"throws", "returns early", "times out"};
    return fmt::format("rank {} of {} {} {} {}", rank, world, kinds[static_cast<int>(failing)],
                       phases[static_cast<int>(phase)], name_of(operation));
  }
};

std::vector<FailureCase> failure_cases() {
  std::vector<FailureCase> cases;
  for (const Operation operation : operations) {
    for (const Phase phase : {Phase::before, Phase::inside, Phase::after}) {
      // A split has no stream, so its rank's thread cannot fail while it is inside.
      if (operation == Operation::split && phase == Phase::inside) continue;
      for (const Failing failing : {Failing::throws, Failing::returns, Failing::times_out}) {
        for (const int world : failure_worlds) {
          for (int rank = 0; rank < world; ++rank) {
            const bool edge = rank == 0 || rank == world - 1;
            if (failing == Failing::times_out && !edge) continue;  // these take real time
            cases.push_back({operation, phase, failing, world, rank});
          }
        }
      }
    }
  }
  return cases;
}

/// One rank of a failure case.
class FailureRank {
 public:
  FailureRank(const FailureCase& failure, std::vector<Buffers>& buffers, std::atomic<bool>& failed,
              std::atomic<Clock::rep>& failed_at, std::atomic<int>& ended)
      : failure_(failure),
        buffers_(buffers),
        failed_(failed),
        failed_at_(failed_at),
        ended_(ended) {}

  void operator()(Communicator& comm, RankEnd& end) const {
    Clock::time_point called = Clock::now();
    try {
      if (comm.rank() == failure_.rank) {
        fail(comm);
      } else {
        // Inside: one rank is late, so that the failing rank fails while it waits.
        if (failure_.phase == Phase::inside && failure_.failing != Failing::times_out &&
            comm.rank() == (failure_.rank + 1) % failure_.world) {
          wait([&] { return failed_.load(); });
        }
        collective(comm, failure_.operation, "weights");
        called = Clock::now();
        collective(comm, Operation::barrier, "next");
      }
    } catch (...) {
      const Clock::time_point since =
          std::max(called, Clock::time_point(Clock::duration(failed_at_.load())));
      end.latency = std::chrono::duration<double>(Clock::now() - since).count();
      ended_.fetch_add(1);
      throw;
    }
  }

 private:
  void collective(Communicator& comm, Operation operation, std::string_view name,
                  StreamRef stream = {}) const {
    // Where the failure comes after it, the first one succeeds, however far apart ranks come.
    const bool succeeds = failure_.phase == Phase::after && name == "weights";
    const auto timeout = failure_.failing == Failing::times_out && !succeeds
                             ? std::chrono::nanoseconds(milliseconds(sanitized ? 200 : 25))
                             : std::chrono::nanoseconds(std::chrono::minutes(10));
    call(comm, operation, buffers_[static_cast<std::size_t>(comm.rank())],
         {.name = name, .timeout = timeout}, stream);
  }

  template <class Ready>
  static void wait(const Ready& ready) {
    while (!ready()) std::this_thread::sleep_for(std::chrono::microseconds(20));
  }

  void fail(Communicator& comm) const {
    if (failure_.phase == Phase::after) collective(comm, failure_.operation, "weights");
    HostStream stream(HostStream::Mode::worker);
    if (failure_.phase == Phase::inside) {
      std::atomic<bool> started{false};
      stream.enqueue([&, stalls = failure_.failing == Failing::times_out] {
        started.store(true);
        if (stalls) peers_ended();
      });
      collective(comm, failure_.operation, "weights", stream.ref());
      wait([&] { return started.load(); });
      if (failure_.failing == Failing::times_out) {
        stream.synchronize();
        return;
      }
      std::this_thread::sleep_for(std::chrono::microseconds(200));
    }
    failed_at_.store(Clock::now().time_since_epoch().count());
    failed_.store(true);
    switch (failure_.failing) {
      case Failing::throws:
        throw HostError("host error of " + failure_.name());
      case Failing::returns:
        return;
      case Failing::times_out:
        peers_ended();
        collective(comm, Operation::barrier, "too late");
    }
  }

  void peers_ended() const {
    wait([&] { return ended_.load() == failure_.world - 1; });
  }

  const FailureCase& failure_;
  std::vector<Buffers>& buffers_;
  std::atomic<bool>& failed_;
  std::atomic<Clock::rep>& failed_at_;
  std::atomic<int>& ended_;
};

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

/// Empty, or what is wrong with how the ranks of this case ended. `early` counts those that heard
/// of the failure before its message, which they wait for 50 ms.
std::string complaint(const FailureCase& failure, const std::vector<RankEnd>& ends,
                      const RankEnd& rethrown, int& early) {
  using Kind = RankEnd::Kind;
  const std::string failing = fmt::format("rank {}", failure.rank);
  int timed_out = 0;
  for (int rank = 0; rank < failure.world; ++rank) {
    const RankEnd& end = ends[static_cast<std::size_t>(rank)];
    const auto wrong = [&](const char* why) {
      return fmt::format("rank {} {}: {}", rank, why, end.what);
    };
    if (rank == failure.rank && failure.failing == Failing::throws) {
      if (end.kind != Kind::own) return wrong("lost its own exception");
      continue;
    }
    if (rank == failure.rank && failure.failing == Failing::returns) {
      if (end.kind != Kind::returned) return wrong("did not return");
      continue;
    }
    timed_out += end.kind == Kind::timed_out;
    const bool may_time_out = failure.failing == Failing::times_out && rank != failure.rank;
    if (end.kind != Kind::peer_failed && !(may_time_out && end.kind == Kind::timed_out)) {
      return wrong("got the wrong exception or none");
    }
    if (!contains(end.what, name_of(failure.operation).data()) && !contains(end.what, "barrier")) {
      return wrong("does not name its operation");
    }
    if (!contains(end.what, fmt::format("rank {}", rank))) return wrong("does not name itself");
    switch (failure.failing) {
      case Failing::throws:
        if (end.peer != failure.rank || !contains(end.what, failing + " failed")) {
          return wrong("does not name the first rank");
        }
        if ((failure.phase == Phase::inside && contains(end.what, "was never run")) ||
            is_provisional(end.what)) {
          ++early;
          break;
        }
        if (!contains(end.what, "host error of " + failure.name()) ||
            !contains(end.peer_message, "host error of")) {
          return wrong("does not carry the message");
        }
        break;
      case Failing::returns:
        if (end.peer != failure.rank || !contains(end.what, failing)) {
          return wrong("does not name the rank that left");
        }
        if (!contains(end.what, "left the group") && !contains(end.what, "was never run")) {
          return wrong("does not say that it left");
        }
        break;
      case Failing::times_out: {
        if (gave_up_early(end.what)) {
          ++early;
          break;
        }
        const std::size_t begin = end.what.find("missing ranks: ");
        if (begin == std::string::npos) return wrong("does not say who is missing");
        const std::string missing =
            end.what.substr(begin + 15, end.what.find(';', begin) - begin - 15);
        if (!contains(missing, std::to_string(failure.rank))) return wrong("misses another rank");
        break;
      }
    }
  }
  switch (failure.failing) {
    case Failing::throws:
      if (rethrown.kind != Kind::own) return "run_ranks threw " + rethrown.what;
      break;
    case Failing::returns:
      if (rethrown.kind != Kind::peer_failed) return "run_ranks threw " + rethrown.what;
      break;
    case Failing::times_out:
      if (timed_out != 1) return fmt::format("{} ranks say that they timed out", timed_out);
      if (rethrown.kind != Kind::timed_out) return "run_ranks threw " + rethrown.what;
      break;
  }
  return {};
}

TEST_CASE("a rank that throws, returns early or does not come ends every peer's wait") {
  Watchdog watchdog;
  std::set<std::string> distinct;
  std::vector<double> latencies;
  std::size_t index = 0;
  int early = 0;
  for (const FailureCase& failure : failure_cases()) {
    if (sanitized && index++ % 7 != 0) continue;
    watchdog.start(failure.name());
    std::vector<Buffers> buffers(static_cast<std::size_t>(failure.world), Buffers(failure.world));
    std::atomic<bool> failed{false};
    std::atomic<Clock::rep> failed_at{0};
    std::atomic<int> ended{0};
    RankEnd rethrown;
    const std::vector<RankEnd> ends =
        ends_of(failure.world, FailureRank(failure, buffers, failed, failed_at, ended), rethrown,
                sanitized ? with_yields() : ThreadOptions());
    const std::string wrong = complaint(failure, ends, rethrown, early);
    if (!wrong.empty()) FAIL_CHECK(failure.name() << ": " << wrong);
    distinct.insert(failure.name());
    if (failure.failing != Failing::times_out) {
      for (int rank = 0; rank < failure.world; ++rank) {
        if (rank != failure.rank) {
          latencies.push_back(ends[static_cast<std::size_t>(rank)].latency);
        }
      }
    }
  }
  std::sort(latencies.begin(), latencies.end());
  const double median = latencies[latencies.size() / 2];
  std::printf(
      "failure cases: %zu distinct; latency median %.3f ms, 99%% %.3f ms, most %.3f ms; %d ranks "
      "heard of a failure before its message\n",
      distinct.size(), median * 1e3, latencies[latencies.size() * 99 / 100] * 1e3,
      latencies.back() * 1e3, early);
  // Few: on a machine that does other things an exception may take its time.
  CHECK(early * (sanitized ? 10 : 50) <= static_cast<int>(latencies.size()));
  // The promise is 100 ms for each; the median leaves room for a machine that does other things.
  if (!sanitized) CHECK(median < 0.1);
}

TEST_CASE("a stream that fails ends the calls of every group in it") {
  auto first = make_thread_group(2);
  auto second = make_thread_group(2);
  std::vector<std::string> seen(2);
  std::vector<std::thread> threads;
  for (std::size_t r = 0; r < 2; ++r) {
    threads.emplace_back([&, r] {
      try {
        HostStream stream(HostStream::Mode::worker);
        if (r == 0) {
          first[0]->abort("the first group's failure");
          first[0]->barrier({.name = "first"}, stream.ref());
        }
        second[r]->barrier({.name = "second"}, stream.ref());
        stream.synchronize();
      } catch (const PeerFailed& error) {
        seen[r] = error.what();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK_THAT(seen[0], ContainsSubstring("the first group's failure"));
  CHECK_THAT(seen[1], ContainsSubstring("rank 0 failed: barrier #1 \"second\" was never run") &&
                          ContainsSubstring("the first group's failure"));
}

TEST_CASE("poison reaches the whole family") {
  constexpr int rounds = 5;
  for (int round = 0; round < 2 * rounds; ++round) {
    const bool part_fails = round % 2 == 0;
    RankEnd rethrown;
    const auto ends = ends_of(
        4,
        [&](Communicator& comm, RankEnd&) {
          const auto part = comm.split(comm.rank() / 2, 0, {.name = "halves"});
          if (comm.rank() == 3) throw HostError("in a part");
          Communicator& where = part_fails && comm.rank() < 2 ? *part : comm;
          for (int call = 0; call < 1000000; ++call) where.barrier({.name = "loop"}, {});
        },
        rethrown);
    for (std::size_t r = 0; r < 3; ++r) {
      CHECK(ends[r].kind == RankEnd::Kind::peer_failed);
      CHECK(ends[r].peer == 3);
      if (heard_early(ends[r].peer_message)) continue;
      CHECK(ends[r].peer_message == "in a part");
    }
    CHECK(rethrown.kind == RankEnd::Kind::own);
  }
}

struct MismatchCase {
  std::string what;
  Operation operation;
  int world;
  int rank;
  std::function<void(Communicator&, Buffers&)> usual;
  std::function<void(Communicator&, Buffers&)> deviating;
  std::string usual_text;
  std::string deviating_text;

  [[nodiscard]] std::string name() const {
    return fmt::format("rank {} of {}: {} in {}", rank, world, what, name_of(operation));
  }
};

std::vector<MismatchCase> mismatch_cases() {
  using Body = std::function<void(Communicator&, Buffers&)>;
  const auto one = [](Operation operation, Variation how, CallInfo info) -> Body {
    return [=](Communicator& comm, Buffers& buffers) {
      call(comm, operation, buffers, info, {}, how);
    };
  };
  const auto then = [](Body first, Body second) -> Body {
    return [=](Communicator& comm, Buffers& buffers) {
      first(comm, buffers);
      second(comm, buffers);
    };
  };
  const CallInfo info{.name = "weights"};
  std::vector<MismatchCase> cases;
  for (const Operation operation : operations) {
    const Body usual = one(operation, {}, info);
    const std::string usual_text = fmt::format("{} #1 \"weights\"", name_of(operation));
    struct Deviation {
      std::string what;
      Body body;
      std::string text;
      Body usual;
      std::string usual_text;
    };
    std::vector<Deviation> deviations;
    const auto deviate = [&](std::string what, Body body, std::string text) {
      deviations.push_back({std::move(what), std::move(body), std::move(text), usual, usual_text});
    };
    for (const Operation other : operations) {
      if (other == operation) continue;
      deviate(fmt::format("operation {}", name_of(other)), one(other, {}, info),
              fmt::format("{} #1 \"weights\"", name_of(other)));
    }
    deviate("name", one(operation, {}, {.name = "biases"}), "\"biases\"");
    const std::string longest(200, 'x');
    static const std::string long_name = longest + "1";
    static const std::string other_long_name = longest + "2";
    deviations.push_back({"name that is cut", one(operation, {}, {.name = other_long_name}), "xxx",
                          one(operation, {}, {.name = long_name}), "xxx"});
    deviate("detail", one(operation, {}, {.name = "weights", .detail = 7}),
            "detail 0000000000000007");
    const Body next = one(operation, {}, {.name = "next"});
    deviations.push_back({"missing call", next, "#1 \"next\"", then(usual, next), usual_text});
    deviations.push_back({"extra call", then(next, usual), "#1 \"next\"", usual, usual_text});
    deviations.push_back(
        {"order", then(next, usual), "#1 \"next\"", then(usual, next), usual_text});
    if (operation != Operation::barrier && operation != Operation::split) {
      deviate("dtype", one(operation, {.dtype = DType::f64, .output = DType::f64}, info),
              "f64 x 8");
      deviate("count", one(operation, {.count = 9}, info), "f32 x 9");
      deviate("item count", one(operation, {.items = 2}, info), "2 items");
      deviate("no items", one(operation, {.items = 0}, info), "\"weights\"");
    }
    if (operation == Operation::broadcast) {
      deviate("root", one(operation, {.root = 1}, info), "from root 1");
    }
    if (operation == Operation::all_reduce || operation == Operation::reduce_scatter) {
      deviate("output", one(operation, {.output = DType::bf16}, info), "-> bf16");
      deviate("scale", one(operation, {.scale = 0.5}, info), "scale 0.5");
      deviate("accumulation", one(operation, {.accumulate = true}, info), "accumulating");
    }
    for (const Deviation& deviation : deviations) {
      for (const int world : failure_worlds) {
        for (int rank = 0; rank < world; ++rank) {
          cases.push_back({deviation.what, operation, world, rank, deviation.usual, deviation.body,
                           deviation.usual_text, deviation.text});
        }
      }
    }
  }
  return cases;
}

TEST_CASE("different calls are refused on all ranks, before any byte moves") {
  Watchdog watchdog;
  std::set<std::string> distinct;
  std::size_t index = 0;
  for (const MismatchCase& mismatch : mismatch_cases()) {
    if (sanitized && index++ % 19 != 0) continue;
    watchdog.start(mismatch.name());
    std::vector<Buffers> buffers(static_cast<std::size_t>(mismatch.world), Buffers(mismatch.world));
    std::vector<std::string> later(static_cast<std::size_t>(mismatch.world));
    RankEnd rethrown;
    const std::vector<RankEnd> ends = ends_of(
        mismatch.world,
        [&](Communicator& comm, RankEnd&) {
          const auto rank = static_cast<std::size_t>(comm.rank());
          try {
            (comm.rank() == mismatch.rank ? mismatch.deviating : mismatch.usual)(comm,
                                                                                 buffers[rank]);
          } catch (const CollectiveMismatch&) {
            try {
              comm.barrier({.name = "later"}, {});
            } catch (const PeerFailed& error) {
              later[rank] = error.peer_message();
            }
            throw;
          }
        },
        rethrown, sanitized ? with_yields() : ThreadOptions());
    for (const RankEnd& end : ends) {
      if (end.kind != RankEnd::Kind::mismatch || end.what != ends[0].what) {
        FAIL_CHECK(mismatch.name() << ": a rank got " << end.what);
      }
    }
    const std::string& text = ends[0].what;
    const int usual_rank = mismatch.rank == 0 ? 1 : 0;
    if (!contains(text, mismatch.usual_text) || !contains(text, mismatch.deviating_text) ||
        !contains(text, fmt::format("rank {}", mismatch.rank)) ||
        !contains(text, fmt::format("rank {}", usual_rank))) {
      FAIL_CHECK(mismatch.name() << ": does not name both sides: " << text);
    }
    for (std::size_t r = 0; r < buffers.size(); ++r) {
      if (buffers[r].recv != std::vector<double>(buffers[r].recv.size(), -1.0)) {
        FAIL_CHECK(mismatch.name() << ": bytes moved on rank " << r);
      }
      if (later[r] != text) FAIL_CHECK(mismatch.name() << ": later on rank " << r << later[r]);
    }
    if (rethrown.kind != RankEnd::Kind::mismatch) FAIL_CHECK(mismatch.name() << ": not rethrown");
    distinct.insert(mismatch.name());
  }
  std::printf("mismatch cases: %zu distinct\n", distinct.size());
}

}  // namespace
}  // namespace shardwise::test
