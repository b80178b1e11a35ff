#include <dlfcn.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <chrono>
#include <cstddef>
#include <memory>
#include <optional>
#include <shardwise/comm/collectives.hpp>
#include <shardwise/comm/nccl.hpp>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "../comm/failures.hpp"
#include "../emulation/control.hpp"
#include "../support/endings.hpp"
#include "nccl_ranks.hpp"

namespace shardwise::test {
namespace {

using Catch::Matchers::ContainsSubstring;
using Clock = std::chrono::steady_clock;
using Kind = RankEnd::Kind;
using std::chrono::milliseconds;
using std::chrono::seconds;

struct HostError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Whether calls of ncclCommAbort hang, and how many are under way.
std::atomic<bool> abort_hangs{false};
std::atomic<int> aborting{0};

// Seconds within which peers learn of a failure, or of their next call after it.
constexpr double soon = sanitized ? 1.0 : 0.1;

/// How a rank meets its peers.
enum class Way { stream, host };

void note(RankEnd& end) {
  try {
    throw;
  } catch (const HostError& error) {
    end.kind = Kind::own;
    end.what = error.what();
  } catch (const PeerFailed& error) {
    end.kind = Kind::peer_failed;
    end.what = error.what();
    end.peer = error.rank();
    end.peer_message = error.peer_message();
  } catch (const TimedOut& error) {
    end.kind = Kind::timed_out;
    end.what = error.what();
  } catch (const CollectiveMismatch& error) {
    end.kind = Kind::mismatch;
    end.what = error.what();
  } catch (const std::exception& error) {
    end.kind = Kind::other;
    end.what = error.what();
  }
}

/// Runs body(communicator) on every rank and says how each ended; `rethrown` is what run_cuda_ranks
/// threw.
template <class Body>
std::vector<RankEnd> ends_of(int world, const Body& body, RankEnd& rethrown,
                             const NcclOptions& options = {}) {
  std::vector<RankEnd> ends(static_cast<std::size_t>(world));
  try {
    run_cuda_ranks(
        world,
        [&](Communicator& comm) {
          try {
            body(comm);
          } catch (...) {
            note(ends[static_cast<std::size_t>(comm.rank())]);
            throw;
          }
        },
        options);
  } catch (...) {
    note(rethrown);
  }
  return ends;
}

/// One collective with peers, by a stream or by numbers of the host; returns when it has ended.
void meet(Communicator& comm, Way way, const CallInfo& info, std::size_t count = 40) {
  if (way == Way::host) {
    std::vector<float> numbers(count, 1.0f);
    all_reduce(comm, numbers, Reduce::sum, info);
    return;
  }
  CudaStream stream;
  const CollectiveCase collective{Operation::reduce_scatter, {{.count = count}}, 0};
  CudaCall call(collective, comm, stream);
  call.issue(info);
  stream.synchronize();  // ends where the collective was aborted
  comm.check();
}

/// Ranks that have left a meeting: what fails the run ends calls that others have not left.
class Past {
 public:
  void add() { count_.fetch_add(1); }
  void wait_for(int ranks) const {
    const auto end = Clock::now() + seconds(20);
    while (count_.load() < ranks) {
      if (Clock::now() > end) throw std::runtime_error("a peer did not come past its meeting");
      std::this_thread::sleep_for(std::chrono::microseconds(100));
    }
  }

 private:
  std::atomic<int> count_{0};
};

std::vector<int> failure_worlds() {
  require_devices(2);
  std::vector<int> worlds = present_worlds();
  std::erase_if(worlds, [](int world) { return world != 2 && world != 4 && world != 8; });
  return worlds;
}

/// Every way to fail, of the first and the last rank.
template <class F>
void for_each_failure(const F& f) {
  Watchdog watchdog;
  for (const int world : failure_worlds()) {
    for (const int rank : {0, world - 1}) {
      for (const Way way : {Way::stream, Way::host}) {
        watchdog.start("rank " + std::to_string(rank) + " of " + std::to_string(world));
        f(world, rank, way);
      }
    }
  }
}

TEST_CASE("an exception in one rank ends its peers' calls with its message") {
  std::vector<double> all;
  for_each_failure([&](int world, int failing, Way way) {
    std::atomic<Clock::rep> failed_at{0};
    std::vector<double> latencies(static_cast<std::size_t>(world));
    RankEnd rethrown;
    Past good;
    const auto ends = ends_of(
        world,
        [&](Communicator& comm) {
          meet(comm, way, {"good"});
          good.add();
          if (comm.rank() == failing) {
            good.wait_for(world);
            std::this_thread::sleep_for(milliseconds(30));  // its peers are waiting
            failed_at.store(Clock::now().time_since_epoch().count());
            throw HostError("the disk is full");
          }
          try {
            meet(comm, way, {"bad", seconds(20)});
          } catch (...) {
            const auto late = Clock::now().time_since_epoch().count() - failed_at.load();
            latencies[static_cast<std::size_t>(comm.rank())] =
                std::chrono::duration<double>(Clock::duration(late)).count();
            throw;
          }
        },
        rethrown);
    CHECK(rethrown.kind == Kind::own);
    for (int r = 0; r < world; ++r) {
      const RankEnd& end = ends[static_cast<std::size_t>(r)];
      if (r == failing) {
        CHECK(end.kind == Kind::own);
        continue;
      }
      CHECK(end.kind == Kind::peer_failed);
      CHECK(end.peer == failing);
      if (!heard_early(end.what)) CHECK_THAT(end.what, ContainsSubstring("the disk is full"));
      CHECK_THAT(end.what, ContainsSubstring("rank " + std::to_string(failing) + " failed") &&
                               ContainsSubstring("while rank " + std::to_string(r) + " was in") &&
                               ContainsSubstring("#2 \"bad\""));
      all.push_back(latencies[static_cast<std::size_t>(r)]);
    }
  });
  // The promise is for each; the median leaves room for a machine that does other things.
  std::ranges::nth_element(all, all.begin() + static_cast<std::ptrdiff_t>(all.size() / 2));
  CHECK(all[all.size() / 2] < soon);
}

TEST_CASE("a rank that leaves early is named; what it took part in is not disturbed") {
  for_each_failure([](int world, int leaving, Way way) {
    RankEnd rethrown;
    Past good;
    const auto ends = ends_of(
        world,
        [&](Communicator& comm) {
          meet(comm, way, {"good"});
          if (comm.rank() == leaving) return;
          good.add();
          good.wait_for(world - 1);  // the first to find out fails the run
          meet(comm, way, {"bad", seconds(20)});
        },
        rethrown);
    for (int r = 0; r < world; ++r) {
      const RankEnd& end = ends[static_cast<std::size_t>(r)];
      if (r == leaving) {
        CHECK(end.kind == Kind::returned);
        continue;
      }
      CHECK(end.kind == Kind::peer_failed);
      CHECK_THAT(end.what, ContainsSubstring("left the group") && ContainsSubstring("\"bad\""));
    }
    CHECK(rethrown.kind == Kind::peer_failed);
  });
}

TEST_CASE("ranks that leave one after the other after their last call do not fail") {
  const int world = present_worlds().back();
  for (int round = 0; round < 10; ++round) {
    const auto sums = on_cuda_ranks(
        world,
        [&](Communicator& comm) {
          CudaStream stream;
          const CollectiveCase last{Operation::broadcast, {{.count = 2000}}, round % world};
          CudaCall call(last, comm, stream);
          if (comm.rank() == (round + 1) % world) std::this_thread::sleep_for(milliseconds(20));
          call.issue({"last"});
          stream.synchronize();
          comm.check();
          return call.results()[0] == RankCall::expected(last, comm.rank(), world)[0] ? 1 : 0;
        },
        {});
    CHECK(std::count(sums.begin(), sums.end(), 1) == world);
  }
}

TEST_CASE("abort ends everything, and later calls are refused") {
  for_each_failure([](int world, int failing, Way way) {
    RankEnd rethrown;
    Past good;
    const auto ends = ends_of(
        world,
        [&](Communicator& comm) {
          meet(comm, way, {"good"});
          good.add();
          if (comm.rank() == failing) {
            good.wait_for(world);
            comm.abort("loss is not a number");
            comm.abort("never seen");
          }
          RankEnd first;
          try {
            meet(comm, way, {"bad", seconds(20)});
          } catch (...) {
            note(first);
          }
          if (first.kind != Kind::peer_failed) throw std::runtime_error("did not fail");
          const auto refused = [](const auto& later) {
            try {
              later();
            } catch (const PeerFailed&) {
              return;
            }
            throw std::runtime_error("a later call was accepted");
          };
          refused([&] { barrier(comm); });
          refused([&] { static_cast<void>(comm.split(0, 0, {"split"})); });
          comm.check();
        },
        rethrown);
    for (int r = 0; r < world; ++r) {
      const RankEnd& end = ends[static_cast<std::size_t>(r)];
      CHECK(end.kind == Kind::peer_failed);
      CHECK(end.peer == failing);
      CHECK(end.peer_message == "loss is not a number");
      CHECK_THAT(end.what, ContainsSubstring(r == failing ? "this rank" : "rank"));
    }
  });
}

TEST_CASE("a time-out names who is missing, on all ranks") {
  for_each_failure([](int world, int late, Way way) {
    RankEnd rethrown;
    Past good;
    const auto ends = ends_of(
        world,
        [&](Communicator& comm) {
          meet(comm, way, {"good"});
          good.add();
          good.wait_for(world);
          if (comm.rank() == late) {
            // It lives, and does not come: until its peers have given up.
            const auto end = Clock::now() + seconds(20);
            while (Clock::now() < end) {
              comm.check();
              std::this_thread::sleep_for(milliseconds(1));
            }
            return;
          }
          meet(comm, way, {"bad", patience(300)});
        },
        rethrown);
    int timed_out = 0;
    for (int r = 0; r < world; ++r) {
      const RankEnd& end = ends[static_cast<std::size_t>(r)];
      timed_out += end.kind == Kind::timed_out ? 1 : 0;
      CHECK((end.kind == Kind::timed_out || end.kind == Kind::peer_failed));
      if (gave_up_early(end.what)) continue;
      CHECK_THAT(end.what, ContainsSubstring("waited in vain in") &&
                               ContainsSubstring("#2 \"bad\"") &&
                               ContainsSubstring("missing ranks: " + std::to_string(late) + ";") &&
                               ContainsSubstring("#1 \"good\""));
    }
    CHECK(timed_out == 1);
    CHECK(rethrown.kind == Kind::timed_out);
  });
}

TEST_CASE("the time does not run before a call's turn in its stream") {
  const auto ends = on_cuda_ranks(
      std::min(2, present_worlds().back()),
      [](Communicator& comm) {
        CudaStream stream;
        const CollectiveCase gather{Operation::all_gather, {{.count = 9}}, 0};
        CudaCall call(gather, comm, stream);
        cuda_check(cudaLaunchHostFunc(
                       stream.native(), [](void*) { std::this_thread::sleep_for(patience(1200)); },
                       nullptr),
                   "cudaLaunchHostFunc");
        call.issue({"patient", patience(1000)});
        stream.synchronize();
        comm.check();
        return call.results()[0] == RankCall::expected(gather, comm.rank(), comm.size())[0] ? 1 : 0;
      },
      {});
  for (const int good : ends) CHECK(good == 1);
}

TEST_CASE("different calls are a mismatch on all ranks where calls are compared") {
  for_each_failure([](int world, int odd, Way way) {
    RankEnd rethrown;
    const auto ends = ends_of(
        world,
        [&](Communicator& comm) {
          meet(comm, way, {"good"});
          meet(comm, way, {"bad"}, comm.rank() == odd ? 41 : 40);
        },
        rethrown, checked_options());
    for (int r = 0; r < world; ++r) {
      const RankEnd& end = ends[static_cast<std::size_t>(r)];
      CHECK(end.kind == Kind::mismatch);
      CHECK_THAT(end.what, ContainsSubstring("x 40") && ContainsSubstring("x 41") &&
                               ContainsSubstring("#2 \"bad\"") &&
                               ContainsSubstring("no byte was moved"));
    }
    CHECK(rethrown.kind == Kind::mismatch);
  });
}

TEST_CASE("parts fail with the whole, and can be left without it") {
  for_each_failure([](int world, int failing, Way way) {
    RankEnd rethrown;
    const auto ends = ends_of(
        world,
        [&](Communicator& comm) {
          {
            const auto gone = comm.split(0, 0, {"gone"});
            meet(*gone, way, {"in a part"});
          }
          meet(comm, way, {"in the whole"});
          const auto part = comm.split(comm.rank() == failing ? 1 : 0, 0, {"part"});
          barrier(comm, {"all are split"});
          if (comm.rank() == failing) throw HostError("alone in its part");
          meet(comm, way, {"bad", seconds(20)});
        },
        rethrown);
    for (int r = 0; r < world; ++r) {
      if (r == failing) continue;
      const RankEnd& end = ends[static_cast<std::size_t>(r)];
      CHECK(end.kind == Kind::peer_failed);
      CHECK(end.peer == failing);
      if (heard_early(end.what)) continue;
      CHECK_THAT(end.what, ContainsSubstring("alone in its part"));
    }
  });
}

/// Sets an option of the emulation for as long as it lives.
class Fault {
 public:
  Fault(const char* option, const std::string& value) : option_(option) {
    emulation_control::set_option(option_, value.c_str());
  }
  Fault(const Fault&) = delete;
  Fault& operator=(const Fault&) = delete;
  ~Fault() { emulation_control::set_option(option_, nullptr); }

 private:
  const char* option_;
};

TEST_CASE("what NCCL finds out later, on one rank, fails all with its text") {
  if (!shardwise_emulation_present()) SKIP("faults are injected by the emulation");
  for_each_failure([](int world, int failing, Way way) {
    RankEnd rethrown;
    const Fault fault("nccl_fault", "fail:" + std::to_string(failing) + ":2");
    const auto ends = ends_of(
        world,
        [&](Communicator& comm) {
          CudaStream stream;
          for (int i = 0; i < 6; ++i) {
            if (way == Way::host) {
              barrier(comm, {"bad", seconds(20)});
            } else {
              comm.barrier({"bad", seconds(20)}, stream.ref());
              stream.synchronize();
              comm.check();
            }
          }
        },
        rethrown);
    for (int r = 0; r < world; ++r) {
      const RankEnd& end = ends[static_cast<std::size_t>(r)];
      // That rank may find out itself, in its next call, or be told by its watchdog.
      CHECK((end.kind == Kind::peer_failed || (end.kind == Kind::other && r == failing)));
      CHECK((end.peer == failing || end.kind == Kind::other));
      // Another one may hear of it after its last call.
      CHECK_THAT(end.what, ContainsSubstring("system error") &&
                               (ContainsSubstring("\"bad\"") ||
                                ContainsSubstring(r == failing ? "\"bad\"" : "was in no call")));
    }
  });
}

TEST_CASE("a call that NCCL loses ends by its time-out, though all ranks made it") {
  if (!shardwise_emulation_present()) SKIP("faults are injected by the emulation");
  const int world = failure_worlds().back();
  RankEnd rethrown;
  const Fault fault("nccl_fault", "lose:0:2");
  const auto ends = ends_of(
      world,
      [&](Communicator& comm) {
        CudaStream stream;
        meet(comm, Way::stream, {"good"});
        for (int i = 0; i < 4; ++i) comm.barrier({"bad", patience(400)}, stream.ref());
        stream.synchronize();
        comm.check();
      },
      rethrown);
  for (const RankEnd& end : ends) {
    CHECK((end.kind == Kind::timed_out || end.kind == Kind::peer_failed));
    if (gave_up_early(end.what)) continue;
    CHECK_THAT(end.what, ContainsSubstring("all made the call"));
  }
}

TEST_CASE("what CUDA refuses on one rank fails all with its text") {
  if (!shardwise_emulation_present()) SKIP("faults are injected by the emulation");
  const int world = failure_worlds().back();
  // before a call's work and after it
  const std::array refused_records{"cudaEventRecord:1:2", "cudaEventRecord:2:2",
                                   "cudaEventRecord:3:2"};
  for (const Way way : {Way::stream, Way::host}) {
    for (const char* const records : refused_records) {
      CAPTURE(static_cast<int>(way), records);
      RankEnd rethrown;
      const auto ends = ends_of(
          world,
          [&](Communicator& comm) {
            meet(comm, way, {"good"});
            std::optional<Fault> fault;
            if (comm.rank() == 0) fault.emplace("fail", records);
            meet(comm, way, {"bad", seconds(20)});  // its collective may have come through
            meet(comm, way, {"next", seconds(20)});
          },
          rethrown);
      int refused = 0;  // whichever rank came first
      for (const RankEnd& end : ends) {
        refused += end.kind == Kind::other ? 1 : 0;
        CHECK((end.kind == Kind::other || end.kind == Kind::peer_failed));
        CHECK_THAT(end.what, ContainsSubstring("cudaEventRecord"));
      }
      CHECK(refused == 1);
      emulation_control::reset();
    }
  }
}

TEST_CASE("a rank that never comes is named before NCCL waits for it") {
  require_devices(3);
  auto meeting = LocalRendezvous::make(3);
  std::vector<RankEnd> ends(3);
  std::vector<std::thread> threads;
  for (const std::size_t r : {std::size_t{0}, std::size_t{2}}) {
    threads.emplace_back([&, r] {
      try {
        cuda_check(cudaSetDevice(static_cast<int>(r)), "cudaSetDevice");
        const NcclCommunicator comm(meeting[r], {.startup_timeout = patience(500)});
      } catch (...) {
        note(ends[r]);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const std::size_t r : {std::size_t{0}, std::size_t{2}}) {
    CHECK((ends[r].kind == Kind::timed_out || ends[r].kind == Kind::peer_failed));
    CHECK_THAT(ends[r].what, ContainsSubstring("missing ranks: 1"));
  }
}

TEST_CASE("ranks that found different NCCLs are told so before it connects them") {
  require_devices(1);
  const auto refused = [](const std::string& theirs) {
    const auto two = LocalRendezvous::make(2);
    two[1]->put("nccl.world.here.1", theirs);
    std::string said;
    try {
      const NcclCommunicator alone(two[0], {.startup_timeout = seconds(2)});
    } catch (const BackendError& error) {
      said = error.what();
    }
    CHECK(two[1]->failure().value_or(RankFailure{}).rank == 0);  // the others learn it
    return said;
  };
  CHECK_THAT(refused(text_of_card(100)), ContainsSubstring("rank 0 found the library of NCCL 2.") &&
                                             ContainsSubstring("rank 1 that of 2."));
  CHECK_THAT(refused("another program's"), ContainsSubstring("rank 1 gave 17 bytes"));
}

TEST_CASE("a rank that fails before it has a communicator ends its peers' start") {
  const int world = std::min(3, present_worlds().back());
  auto meeting = LocalRendezvous::make(world);
  std::vector<RankEnd> ends(static_cast<std::size_t>(world));
  std::vector<std::thread> threads;
  for (std::size_t r = 0; r < ends.size(); ++r) {
    threads.emplace_back([&, r] {
      try {
        cuda_check(cudaSetDevice(static_cast<int>(r)), "cudaSetDevice");
        if (r == 0) {
          std::this_thread::sleep_for(milliseconds(50));
          meeting[r]->fail({0, "no memory for the model"});
          return;
        }
        const NcclCommunicator comm(meeting[r], {.startup_timeout = seconds(20)});
      } catch (...) {
        note(ends[r]);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (std::size_t r = 1; r < ends.size(); ++r) {
    CHECK(ends[r].kind == Kind::peer_failed);
    CHECK_THAT(ends[r].what, ContainsSubstring("no memory for the model"));
  }
}

TEST_CASE("the destructor does not wait for calls that never end") {
  const int world = std::min(2, present_worlds().back());
  std::vector<double> waited(static_cast<std::size_t>(world));
  Past gone;
  auto meeting = LocalRendezvous::make(world);
  std::vector<std::thread> threads;
  for (std::size_t r = 0; r < meeting.size(); ++r) {
    threads.emplace_back([&, r] {
      cuda_check(cudaSetDevice(static_cast<int>(r)), "cudaSetDevice");
      auto comm = std::make_unique<NcclCommunicator>(
          meeting[r], NcclOptions{.shutdown_timeout = milliseconds(100)});
      CudaStream stream;
      const CollectiveCase gather{Operation::all_gather, {{.count = 9}}, 0};
      CudaCall call(gather, *comm, stream);
      if (r == 1) call.issue({"alone", seconds(60)});
      if (r == 0) gone.wait_for(world - 1);  // its peer does not wait for it to leave
      const auto begin = Clock::now();
      comm.reset();
      waited[r] = std::chrono::duration<double>(Clock::now() - begin).count();
      gone.add();
      stream.synchronize();
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const double seconds_waited : waited) CHECK(seconds_waited < 5);
}

TEST_CASE("communicators whose calls wait for each other in one stream are ended together") {
  for (const int world : failure_worlds()) {
    for (const bool parts : {false, true}) {
      RankEnd rethrown;
      const auto ends =
          ends_of(world,
                  [&](Communicator& comm) {
                    const std::unique_ptr<Communicator> part = comm.split(0, 0, {"part"});
                    Communicator& first = parts ? *part : comm;
                    CudaStream stream;
                    const CollectiveCase reduce{Operation::reduce_scatter, {{.count = 9}}, 0};
                    const CollectiveCase gather{Operation::all_gather, {{.count = 9}}, 0};
                    CudaCall one(reduce, first, stream);
                    CudaCall other(gather, comm, stream);
                    if (comm.rank() == 0) {
                      std::this_thread::sleep_for(milliseconds(30));
                      throw HostError("no more data");
                    }
                    one.issue({"first", seconds(20)});
                    other.issue({"behind it", seconds(20)});
                    stream.synchronize();
                    comm.check();
                  },
                  rethrown, {.separate_reductions = !parts});
      CHECK(rethrown.what == "no more data");
      for (std::size_t r = 1; r < ends.size(); ++r) CHECK(ends[r].kind == Kind::peer_failed);
    }
  }
}

TEST_CASE("an arena's memory goes when an abort has let go of it") {
  require_devices(1);
  cuda_check(cudaSetDevice(0), "cudaSetDevice");
  NcclCommunicator comm(LocalRendezvous::make(1)[0]);
  auto arena = std::make_unique<NcclArena>(comm, 4096);
  abort_hangs.store(true);
  comm.abort("stop");
  while (aborting.load() == 0) std::this_thread::sleep_for(milliseconds(1));
  std::thread later([] {
    std::this_thread::sleep_for(milliseconds(100));
    abort_hangs.store(false);
  });
  arena.reset();
  CHECK(aborting.load() == 0);
  later.join();
}

TEST_CASE("the destructor does not wait for a watchdog that hangs in NCCL") {
  require_devices(1);
  cuda_check(cudaSetDevice(0), "cudaSetDevice");
  auto meeting = LocalRendezvous::make(1);
  const std::weak_ptr<Rendezvous> used = meeting[0];
  auto comm = std::make_unique<NcclCommunicator>(meeting[0]);
  meeting.clear();
  barrier(*comm, {"good"});
  abort_hangs.store(true);
  comm->abort("stop");
  const auto begin = Clock::now();
  std::thread rescue([&] {  // without it a failure of this test would not end
    while (abort_hangs.load() && Clock::now() - begin < seconds(30)) {
      std::this_thread::sleep_for(milliseconds(5));
    }
    abort_hangs.store(false);
  });
  comm.reset();
  CHECK(Clock::now() - begin < seconds(20));
  abort_hangs.store(false);
  rescue.join();
  // The thread that was left behind goes, and what it has kept.
  for (int i = 0; i < 1000 && !used.expired(); ++i) std::this_thread::sleep_for(milliseconds(5));
  CHECK(used.expired());
}

}  // namespace
}  // namespace shardwise::test

/// NCCL's, which may hang.
ncclResult_t ncclCommAbort(ncclComm_t comm) {
  using namespace shardwise::test;
  aborting.fetch_add(1);
  while (abort_hangs.load()) std::this_thread::sleep_for(milliseconds(5));
  auto* const real =
      reinterpret_cast<ncclResult_t (*)(ncclComm_t)>(dlsym(RTLD_NEXT, "ncclCommAbort"));
  const ncclResult_t result = real(comm);
  aborting.fetch_sub(1);
  return result;
}
