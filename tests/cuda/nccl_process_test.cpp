#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <chrono>
#include <csignal>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <shardwise/comm/collectives.hpp>
#include <shardwise/comm/file_rendezvous.hpp>
#include <shardwise/comm/launch.hpp>
#include <shardwise/comm/nccl.hpp>
#include <string>
#include <thread>
#include <vector>

#include "../support/sanitized.hpp"
#include "nccl_ranks.hpp"

/// Ranks that are processes, as a launcher starts them: this program, once for each rank, which
/// runs the hidden case "a process of a run" and says on its standard output how it ended.
namespace shardwise::test {
namespace {

using Catch::Matchers::ContainsSubstring;
using std::chrono::seconds;

struct Process {
  pid_t id;
  int output;
};

Process start(const std::string& what, int rank, int world, const std::string& directory) {
  int ends[2];
  REQUIRE(pipe2(ends, O_CLOEXEC) == 0);
  const pid_t id = fork();
  if (id == 0) {
    const auto set = [](const char* name, const std::string& value) {
      setenv(name, value.c_str(), 1);
    };
    set("RANK", std::to_string(rank));
    set("WORLD_SIZE", std::to_string(world));
    set("LOCAL_RANK", std::to_string(rank));
    set("LOCAL_WORLD_SIZE", std::to_string(world));
    set("SHARDWISE_RENDEZVOUS", directory);
    set("SHARDWISE_TEST_RUN", what);
    dup2(ends[1], 3);
    execl("/proc/self/exe", "ranks", "a process of a run", static_cast<char*>(nullptr));
    _exit(127);
  }
  close(ends[1]);
  return {id, ends[0]};
}

/// What each process said; "signal" for one that was killed.
std::vector<std::string> run(const std::string& what, int world) {
  char name[] = "/tmp/nccl-process-test-XXXXXX";
  REQUIRE(mkdtemp(name) != nullptr);
  const std::string directory = std::string(name) + "/meet";
  std::vector<Process> processes;
  for (int r = 0; r < world; ++r) processes.push_back(start(what, r, world, directory));
  std::vector<std::string> said;
  for (const Process& process : processes) {
    std::string text;
    std::array<char, 4096> block{};
    for (ssize_t got = 0; (got = read(process.output, block.data(), block.size())) > 0;) {
      text.append(block.data(), static_cast<std::size_t>(got));
    }
    close(process.output);
    int status = 0;
    waitpid(process.id, &status, 0);
    said.push_back(WIFSIGNALED(status) ? "signal" : text);
  }
  CHECK((what != "collectives" || access(directory.c_str(), F_OK) != 0));  // it was cleaned up
  static_cast<void>(std::system(("rm -rf " + std::string(name)).c_str()));
  return said;
}

std::string collectives(Communicator& comm) {
  const int world = comm.size();
  CudaStream stream;
  std::size_t index = 0;
  for (const CollectiveCase& collective : all_collective_cases(world)) {
    if (++index % 17 != static_cast<std::size_t>(world) && collective.items.size() == 1) continue;
    CudaCall call(collective, comm, stream);
    call.issue();
    stream.synchronize();
    if (call.results() != RankCall::expected(collective, comm.rank(), world)) {
      return std::string(name_of(collective.operation)) + " case " + std::to_string(index);
    }
  }
  const auto part = comm.split(comm.rank() % 2, 0, {"halves"});
  const double total = sum(*part, 1.0 + comm.rank());
  double expected = 0;
  for (int r = comm.rank() % 2; r < world; r += 2) expected += 1.0 + r;
  comm.check();
  return total == expected ? "good" : "sum of a part";
}

std::string meet_after(Communicator& comm, Rendezvous& rendezvous, const std::string& what) {
  barrier(comm);
  const auto past = [](int r) { return "past." + std::to_string(r); };
  if (comm.rank() != 1) {
    rendezvous.put(past(comm.rank()), "");
  } else {
    // Its failure would end the barrier of those that have not left it.
    for (int r = 0; r < comm.size(); ++r) {
      if (r != 1) static_cast<void>(rendezvous.get(past(r), seconds(20)));
    }
    if (what == "killed") kill(getpid(), SIGKILL);
    if (what == "throws") throw std::runtime_error("out of memory");
    if (what == "leaves") return "left";
  }
  CudaStream stream;
  const CollectiveCase gather{Operation::all_gather, {{.count = 100}}, 0};
  CudaCall call(gather, comm, stream);
  call.issue({"bad", what == "late" ? std::chrono::milliseconds(300) : seconds(20)});
  stream.synchronize();
  comm.check();
  return "good";
}

std::string run_rank(const std::string& what) {
  const Launch launch = detect_launch();
  const std::shared_ptr<Rendezvous> rendezvous = make_rendezvous(launch, seconds(20));
  cuda_check(cudaSetDevice(launch.local_rank), "cudaSetDevice");
  try {
    std::string result;
    {
      NcclCommunicator comm(rendezvous, {.startup_timeout = seconds(20)});
      result = what == "collectives" ? collectives(comm) : meet_after(comm, *rendezvous, what);
    }
    // The emulation's ranks meet in rank 0's process, which must not go before the others are done.
    if (what == "collectives") static_cast<void>(rendezvous->exchange("done", "", seconds(20)));
    return result;
  } catch (const PeerFailed& error) {
    return "peer " + std::to_string(error.rank()) + ": " + error.what();
  } catch (const std::exception& error) {
    rendezvous->fail({launch.rank, error.what()});
    return std::string("own: ") + error.what();
  }
}

TEST_CASE("a process of a run", "[.]") {
  const char* const what = std::getenv("SHARDWISE_TEST_RUN");
  REQUIRE(what != nullptr);
  const std::string text = run_rank(what);
  CHECK(write(3, text.data(), text.size()) == static_cast<ssize_t>(text.size()));
}

TEST_CASE("processes give the bytes of the reference") {
  for (const int world : present_worlds()) {
    const auto said = run("collectives", world);
    for (const std::string& text : said) CHECK(text == "good");
  }
}

TEST_CASE("a process that fails, leaves or is killed ends its peers' calls") {
  require_devices(4);
  struct Way {
    const char* what;
    const char* own;
    const char* peers;
  };
  for (const Way& way : {Way{"throws", "own: out of memory", "out of memory"},
                         Way{"leaves", "left", "left the group"},
                         Way{"killed", "signal", "has ended without leaving"}}) {
    auto said = run(way.what, 4);
    for (int again = 0; again < 4 && std::ranges::any_of(said, is_provisional); ++again) {
      said = run(way.what, 4);
    }
    for (std::size_t r = 0; r < said.size(); ++r) {
      INFO(way.what << ", rank " << r);
      if (r == 1) {
        CHECK(said[r] == way.own);
      } else {
        CHECK_THAT(said[r], ContainsSubstring("peer 1: rank 1 ") && ContainsSubstring(way.peers) &&
                                ContainsSubstring("\"bad\""));
      }
    }
  }
}

}  // namespace
}  // namespace shardwise::test
