// A run whose rank has failed: what becomes of a split that is under way, of a communicator that
// was adopted, and how those that are left go on.

#include <dlfcn.h>

#include <atomic>
#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <chrono>
#include <functional>
#include <memory>
#include <shardwise/comm/collectives.hpp>
#include <shardwise/comm/nccl.hpp>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "../comm/failures.hpp"
#include "../emulation/control.hpp"
#include "../emulation/nccl_control.hpp"
#include "nccl_ranks.hpp"

namespace shardwise::test {
namespace {

using Catch::Matchers::ContainsSubstring;
using std::chrono::milliseconds;
using std::chrono::seconds;

// So many calls of ncclCommSplit are refused, first of all.
std::atomic<int> splits_to_refuse{0};

/// A hang of a test must not be one of minutes.
NcclOptions quick(bool shrinkable = true, bool separate = false) {
  NcclOptions options;
  options.startup_timeout = seconds(20);
  options.shrinkable = shrinkable;
  options.separate_reductions = separate;
  return options;
}

struct HostError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// Runs body(rank, its rendezvous) on a thread for each rank with a device of its own; what it
/// returns, or threw, by rank.
std::vector<std::string> on_own_threads(
    int world, const std::function<std::string(int, const std::shared_ptr<Rendezvous>&)>& body) {
  const auto meeting = LocalRendezvous::make(world);
  std::vector<std::string> said(static_cast<std::size_t>(world));
  std::vector<std::thread> threads;
  for (int r = 0; r < world; ++r) {
    threads.emplace_back([&, r] {
      auto& mine = said[static_cast<std::size_t>(r)];
      try {
        cuda_check(cudaSetDevice(r), "cudaSetDevice");
        mine = body(r, meeting[static_cast<std::size_t>(r)]);
      } catch (const std::exception& error) {
        mine = std::string("threw: ") + error.what();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  return said;
}

/// A reduction on a stream, right or an exception.
void meet(Communicator& comm, const CallInfo& info = {"meet", seconds(20)}) {
  CudaStream stream;
  const CollectiveCase collective{Operation::reduce_scatter, {{.count = 40}}, 0};
  CudaCall call(collective, comm, stream);
  call.issue(info);
  stream.synchronize();
  comm.check();
  if (call.results() != RankCall::expected(collective, comm.rank(), comm.size())) {
    throw std::logic_error("a wrong sum");
  }
}

/// Fails when all have come so far: the others are in their second reduction, or the first's end.
[[noreturn]] void fail_after_one(Communicator& comm, const char* message) {
  meet(comm);
  throw HostError(message);
}

/// The rank that failed, as this one learns it.
int failed_rank(Communicator& comm) {
  try {
    for (;;) meet(comm);
  } catch (const PeerFailed& error) {
    return error.rank();
  }
}

TEST_CASE("the ranks that are left shrink a communicator that has failed, and go on") {
  require_devices(2);
  for (const int world : {2, 3, 4}) {
    for (const int failing : {0, world - 1}) {
      for (const bool separate : {false, true}) {
        INFO("world " << world << ", rank " << failing << " fails, separate " << separate);
        const auto said = on_own_threads(
            world, [&](int r, const std::shared_ptr<Rendezvous>& place) -> std::string {
              std::unique_ptr<NcclCommunicator> rest;
              {
                NcclCommunicator comm(place, quick(true, separate));
                if (r == failing) fail_after_one(comm, "a disk is full");
                const int lost = failed_rank(comm);
                if (lost != failing) return "another rank failed";
                rest = comm.shrink(
                    std::make_shared<RemainingRendezvous>(place, std::vector<int>{lost}, "rest"),
                    {lost});
              }
              const int expected = r - (failing < r ? 1 : 0);
              if (rest->size() != world - 1 || rest->rank() != expected) return "other numbers";
              for (int i = 0; i < 3; ++i) meet(*rest);
              const auto part = rest->split(rest->rank() % 2, 0, {"part"});
              meet(*part);
              return sum(*rest, 1.0) == world - 1 ? "went on" : "a wrong sum";
            });
        for (int r = 0; r < world; ++r) {
          const auto& mine = said[static_cast<std::size_t>(r)];
          CHECK(mine == (r == failing ? "threw: a disk is full" : "went on"));
        }
        if (shardwise_emulation_present()) CHECK(emulation_control::nccl_communicators() == 0);
      }
    }
  }
}

TEST_CASE("what is left fails and shrinks again") {
  require_devices(4);
  const auto said =
      on_own_threads(4, [](int r, const std::shared_ptr<Rendezvous>& place) -> std::string {
        NcclCommunicator all(place, quick());
        if (r == 1) fail_after_one(all, "first");
        const int first = failed_rank(all);
        const auto three_meet =
            std::make_shared<RemainingRendezvous>(place, std::vector<int>{first}, "a");
        const auto three = all.shrink(three_meet, {first});
        if (r == 3) fail_after_one(*three, "second");  // rank 2 of the three
        const int second = failed_rank(*three);
        if (second != 2) return "another rank failed";
        try {
          meet(*three);
          return "a failed communicator works";
        } catch (const PeerFailed& error) {
          if (error.rank() != 2) return "another failure";
        }
        const auto two = three->shrink(
            std::make_shared<RemainingRendezvous>(three_meet, std::vector<int>{second}, "b"),
            {second});
        meet(*two);
        return two->size() == 2 && two->rank() == (r == 0 ? 0 : 1) ? "went on" : "other numbers";
      });
  CHECK(said == std::vector<std::string>{"went on", "threw: first", "went on", "threw: second"});
}

TEST_CASE("shrink says what is wrong with it") {
  require_devices(3);
  const auto error_of = [](auto&& f) -> std::string {
    try {
      f();
    } catch (const Error& error) {
      return error.what();
    }
    return "nothing was thrown";
  };
  const auto rest_of = [](const std::shared_ptr<Rendezvous>& place, int lost, const char* name) {
    return std::make_shared<RemainingRendezvous>(place, std::vector<int>{lost}, name);
  };
  SECTION("it has not failed") {
    const auto said =
        on_own_threads(3, [&](int r, const std::shared_ptr<Rendezvous>& place) -> std::string {
          NcclCommunicator comm(place, quick());
          meet(comm);
          std::string error;
          if (r > 0) {
            error = error_of([&] { static_cast<void>(comm.shrink(rest_of(place, 0, "x"), {0})); });
          }
          meet(comm);  // and works
          return error;
        });
    for (std::size_t r = 1; r < 3; ++r) {
      CHECK_THAT(said[r], ContainsSubstring("\"world\", which has not failed"));
    }
  }
  SECTION("it was aborted") {
    const auto said =
        on_own_threads(3, [&](int r, const std::shared_ptr<Rendezvous>& place) -> std::string {
          NcclCommunicator comm(place, quick(false));
          if (r == 0) fail_after_one(comm, "gone");
          const int lost = failed_rank(comm);
          return error_of(
              [&] { static_cast<void>(comm.shrink(rest_of(place, lost, "x"), {lost})); });
        });
    CHECK((said[1].find("was aborted, not revoked") != said[1].npos ||
           said[2].find("was aborted, not revoked") != said[2].npos));
  }
  SECTION("the ranks disagree, or the rendezvous is another's") {
    const auto said =
        on_own_threads(3, [&](int r, const std::shared_ptr<Rendezvous>& place) -> std::string {
          NcclCommunicator comm(place, quick());
          if (r == 0) fail_after_one(comm, "gone");
          const int lost = failed_rank(comm);
          const std::string whole =
              error_of([&] { static_cast<void>(comm.shrink(place, {lost})); });
          // Rank 1 takes 2 for lost, too: it is alone in its own view.
          const auto mine = r == 1 ? std::vector<int>{0, 2} : std::vector<int>{0};
          const std::string wrong =
              error_of([&] { static_cast<void>(comm.shrink(rest_of(place, 0, "x"), mine)); });
          const std::string own = error_of([&] { RemainingRendezvous(place, {r}, "y"); });
          return whole + "|" + wrong + "|" + own;
        });
    for (std::size_t r = 1; r < 3; ++r) {
      CHECK_THAT(said[r], ContainsSubstring("must be of all that are left") &&
                              ContainsSubstring("|the ranks that are lost must be different"));
    }
    CHECK_THAT(said[1], ContainsSubstring("without rank(s) 0,2: the rendezvous is that of rank 0"));
    CHECK_THAT(said[2], ContainsSubstring("rank 0 failed: shrink() of"));
  }
}

TEST_CASE("a host's communicator is revoked by a failure, and is the host's to shrink") {
  require_devices(3);
  for (const bool by_library : {false, true}) {
    ncclUniqueId id;
    REQUIRE(ncclGetUniqueId(&id) == ncclSuccess);
    const auto said =
        on_own_threads(3, [&](int r, const std::shared_ptr<Rendezvous>& place) -> std::string {
          ncclComm_t host = nullptr;
          if (ncclCommInitRank(&host, 3, id, r) != ncclSuccess) return "no communicator";
          std::string result;
          {
            NcclCommunicator comm(place, host, quick(false));
            if (r == 2) {
              meet(comm);
              comm.abort("an engine is on fire");
              result = "failed";
            } else if (failed_rank(comm) != 2) {
              result = "another rank failed";
            } else if (by_library) {
              const auto rest = comm.shrink(
                  std::make_shared<RemainingRendezvous>(place, std::vector<int>{2}, "rest"), {2});
              meet(*rest);
              result = "went on";
            }
          }
          if (result.empty()) {
            int lost = 2;
            ncclComm_t rest = nullptr;
            if (ncclCommShrink(host, &lost, 1, &rest, nullptr, NCCL_SHRINK_DEFAULT) !=
                ncclSuccess) {
              return "the host cannot shrink it";
            }
            {
              NcclCommunicator again(
                  std::make_shared<RemainingRendezvous>(place, std::vector<int>{2}, "again"), rest,
                  quick(false));
              meet(again);
            }
            result = ncclCommDestroy(rest) == ncclSuccess ? "went on" : "the rest is gone";
          }
          return ncclCommDestroy(host) == ncclSuccess ? result : "the host's is gone";
        });
    CHECK(said == std::vector<std::string>{"went on", "went on", "failed"});
    if (shardwise_emulation_present()) CHECK(emulation_control::nccl_communicators() == 0);
  }
}

TEST_CASE("a rank that fails while all split a communicator ends the split of the others") {
  require_devices(2);
  for (const int world : {2, 3, 4}) {
    for (const bool separate : {false, true}) {
      // The one that comes to NCCL first is refused; the others are inside, and wait for it.
      splits_to_refuse.store(1);
      const auto said =
          on_own_threads(world, [&](int, const std::shared_ptr<Rendezvous>& place) -> std::string {
            NcclCommunicator comm(place, quick(false, separate));
            if (separate) return "made";
            const auto part = comm.split(0, 0, {"part", seconds(20)});
            return "split";
          });
      int refused = 0;
      int told = 0;
      for (const std::string& mine : said) {
        INFO(mine);
        const bool is_own = mine.find("ncclCommSplit on rank") != mine.npos;
        if (is_own && mine.starts_with("threw: ncclCommSplit on rank")) ++refused;
        if (is_own && mine.starts_with("threw: rank ")) ++told;
      }
      INFO("world " << world << ", separate " << separate << ": " << said[0] << " / " << said[1]);
      CHECK(refused == 1);
      CHECK(told == world - 1);
      if (shardwise_emulation_present()) CHECK(emulation_control::nccl_communicators() == 0);
    }
  }
}

TEST_CASE("an abort from outside ends a split that is under way") {
  require_devices(3);
  for (int repeat = 0; repeat < 10; ++repeat) {
    const auto said =
        on_own_threads(3, [&](int r, const std::shared_ptr<Rendezvous>& place) -> std::string {
          NcclCommunicator comm(place, quick(false));
          std::thread outside;
          std::string result;
          try {
            meet(comm);
            // Some are inside NCCL then, some wait for each other's wish, one may come later.
            if (r == 0) {
              outside = std::thread([&] {
                std::this_thread::sleep_for(std::chrono::microseconds(200 * repeat));
                comm.abort("stop");
              });
            }
            for (;;) {
              const auto part = comm.split(0, r, {"part", seconds(20)});
              meet(*part);
            }
          } catch (const PeerFailed& error) {
            result = error.peer_message();
          } catch (const std::exception& error) {
            result = error.what();
          }
          if (outside.joinable()) outside.join();
          return result;
        });
    for (const std::string& mine : said) CHECK(mine == "stop");
    if (shardwise_emulation_present()) CHECK(emulation_control::nccl_communicators() == 0);
  }
}

}  // namespace
}  // namespace shardwise::test

/// NCCL's, or refused.
ncclResult_t ncclCommSplit(ncclComm_t comm, int color, int key, ncclComm_t* part,
                           ncclConfig_t* config) {
  if (shardwise::test::splits_to_refuse.fetch_sub(1) > 0) return ncclSystemError;
  auto* const real =
      reinterpret_cast<ncclResult_t (*)(ncclComm_t, int, int, ncclComm_t*, ncclConfig_t*)>(
          dlsym(RTLD_NEXT, "ncclCommSplit"));
  return real(comm, color, key, part, config);
}
