#include <algorithm>
#include <array>
#include <atomic>
#include <catch2/catch_test_macros.hpp>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <random>
#include <shardwise/comm/thread.hpp>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "failures.hpp"

namespace shardwise::test {
namespace {

using Random = std::minstd_rand;
using std::chrono::microseconds;

constexpr int calls_per_run = 12;
constexpr std::size_t part = 1500;

enum class Poison { none, throws, from_outside, time_out, stream_fails, leaves, throws_in_flight };
constexpr int poisons = 7;

struct RunCase {
  Poison poison;
  int world;
  int rank;  // the failing one
  int call;  // during which it fails
  unsigned seed;
};

struct RankResult {
  int completed = 0;    // collectives that this rank saw complete
  bool certain = true;  // false where it left one in flight
  std::string wrong;    // content that is not what it must be
};

std::int64_t number(int rank, int call, std::size_t index) {
  return static_cast<std::int64_t>(index) * 1000 + rank * 100 + call;
}

// Buffers of one call. Overwritten when they go: a peer that still reads them must notice.
class CallBuffers {
 public:
  CallBuffers(int world, int rank, int call)
      : world_(world),
        rank_(rank),
        call_(call),
        send_(part * static_cast<std::size_t>(world)),
        recv_(send_.size(), -1) {
    for (std::size_t i = 0; i < send_.size(); ++i) send_[i] = number(rank, call, i);
  }
  CallBuffers(const CallBuffers&) = delete;
  CallBuffers& operator=(const CallBuffers&) = delete;
  ~CallBuffers() {
    std::fill(send_.begin(), send_.end(), -7);
    std::fill(recv_.begin(), recv_.end(), -7);
  }

  void issue(Communicator& comm, const CallInfo& info, StreamRef stream) {
    const DType type = DType::i64;
    const ReduceSpec spec{.output = type};
    const GatherItem gather{send_.data(), recv_.data(), part, type};
    const ReduceItem scatter{send_.data(), recv_.data(), part, type, spec};
    const ReduceItem reduce{send_.data(), recv_.data(), part, type, spec};
    const ExchangeItem exchange{send_.data(), recv_.data(), part, type};
    const BroadcastItem broadcast{send_.data(), part, type};
    switch (call_ % 5) {
      case 0:
        return comm.all_gather({&gather, 1}, info, stream);
      case 1:
        return comm.all_reduce({&reduce, 1}, info, stream);
      case 2:
        return comm.reduce_scatter({&scatter, 1}, info, stream);
      case 3:
        return comm.all_to_all({&exchange, 1}, info, stream);
      default:
        return comm.broadcast({&broadcast, 1}, call_ % world_, info, stream);
    }
  }

  [[nodiscard]] bool right() const {
    const bool whole = call_ % 5 == 0 || call_ % 5 == 3;
    for (std::size_t i = 0; i < (whole ? recv_.size() : part); ++i) {
      if (found(i) != expected(i)) return false;
    }
    return true;
  }

 private:
  [[nodiscard]] std::int64_t found(std::size_t i) const {
    return call_ % 5 == 4 ? send_[i] : recv_[i];
  }

  [[nodiscard]] std::int64_t expected(std::size_t i) const {
    const auto own = static_cast<std::size_t>(rank_) * part;
    switch (call_ % 5) {
      case 0:
        return number(static_cast<int>(i / part), call_, i % part);
      case 3:
        return number(static_cast<int>(i / part), call_, own + i % part);
      case 4:
        return number(call_ % world_, call_, i);
      default: {
        std::int64_t sum = 0;
        for (int r = 0; r < world_; ++r) sum += number(r, call_, i + (call_ % 5 == 2 ? own : 0));
        return sum;
      }
    }
  }

  int world_;
  int rank_;
  int call_;
  std::vector<std::int64_t> send_;
  std::vector<std::int64_t> recv_;
};

void run_rank(Communicator& comm, const RunCase& run, RankResult& result) {
  Random random(run.seed * 31 + static_cast<unsigned>(comm.rank()));
  const auto chance = [&](unsigned n) { return (random() >> 4) % n == 0; };
  const bool fails = comm.rank() == run.rank;
  for (int call = 0; call < calls_per_run; ++call) {
    CallBuffers buffers(run.world, comm.rank(), call);
    HostStream stream(chance(2) ? HostStream::Mode::worker : HostStream::Mode::inline_calls);
    const bool now = fails && call == run.call;
    if (now && run.poison == Poison::throws) throw std::runtime_error("thrown");
    if (now && run.poison == Poison::leaves) return;
    if (chance(6)) std::this_thread::sleep_for(microseconds(random() % 100));
    CallInfo info{.name = "call"};
    if (run.poison == Poison::time_out) {
      info.timeout = microseconds(200 + random() % 800);
      if (chance(8)) std::this_thread::sleep_for(microseconds(random() % 2000));
    }
    if (now && run.poison == Poison::stream_fails) {
      HostStream failing(HostStream::Mode::worker);
      failing.enqueue([] { throw std::runtime_error("in a stream"); });
      buffers.issue(comm, info, failing.ref());
      failing.synchronize();
    }
    if (now && run.poison == Poison::throws_in_flight) {
      result.certain = false;
      HostStream flight(HostStream::Mode::worker);
      buffers.issue(comm, info, flight.ref());
      if (chance(2)) std::this_thread::sleep_for(microseconds(random() % 100));
      throw std::runtime_error("thrown in flight");
    }
    buffers.issue(comm, info, stream.ref());
    stream.synchronize();
    ++result.completed;
    if (!buffers.right()) result.wrong = fmt::format("rank {} call {}", comm.rank(), call);
  }
}

std::vector<RankResult> results_of(const RunCase& run) {
  std::vector<RankResult> results(static_cast<std::size_t>(run.world));
  auto ranks = make_thread_group(run.world, with_yields());
  std::atomic<int> running{run.world};
  std::vector<std::thread> threads;
  for (std::size_t r = 0; r < ranks.size(); ++r) {
    threads.emplace_back([&, r] {
      try {
        run_rank(*ranks[r], run, results[r]);
      } catch (const std::exception& error) {
        ranks[r]->abort(error.what());
      }
      if (run.poison != Poison::from_outside) ranks[r].reset();
      running.fetch_sub(1);
    });
  }
  if (run.poison == Poison::from_outside) {
    Random random(run.seed);
    std::this_thread::sleep_for(microseconds(random() % 1500));
    ranks[static_cast<std::size_t>(run.rank)]->abort("from outside");
  }
  for (std::thread& thread : threads) thread.join();
  return results;
}

TEST_CASE("poison at random moments: a collective runs on all ranks or on none") {
  Watchdog watchdog;
  int runs = 0;
  int cut_short = 0;
  for (unsigned seed = 0; seed < (sanitized ? 140u : 700u); ++seed) {
    const int world = 2 + static_cast<int>(seed / poisons % 3);
    Random random(seed + 1);
    random.discard(3);
    const RunCase run{static_cast<Poison>(seed % poisons), world,
                      static_cast<int>(random() % static_cast<unsigned>(world)),
                      static_cast<int>(random() % calls_per_run), seed};
    watchdog.start(fmt::format("seed {}", seed));
    const std::vector<RankResult> results = results_of(run);
    int first = -1;
    for (const RankResult& result : results) {
      if (!result.wrong.empty()) FAIL_CHECK("seed " << seed << ": wrong content " << result.wrong);
      if (!result.certain) continue;
      if (first < 0) first = result.completed;
      if (result.completed != first) {
        FAIL_CHECK("seed " << seed << ": one rank completed " << first << " calls, another "
                           << result.completed);
      }
    }
    if (run.poison == Poison::none) CHECK(first == calls_per_run);
    cut_short += first < calls_per_run;
    ++runs;
  }
  std::printf("random poison: %d runs, %d of them cut short\n", runs, cut_short);
  CHECK(cut_short > runs / 2);
}

}  // namespace
}  // namespace shardwise::test
