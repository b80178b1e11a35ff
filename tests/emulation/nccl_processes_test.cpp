// Ranks in processes of their own: the same results and the same diagnoses as with threads, and a
// process that dies is an error for its peers.

#include <unistd.h>

#include <catch2/catch_test_macros.hpp>
#include <filesystem>
#include <vector>

#include "child_process.hpp"
#include "control.hpp"
#include "plain_cuda.hpp"

namespace {

/// A folder of the test's own.
class Folder {
 public:
  Folder() {
    std::string name = (std::filesystem::temp_directory_path() / "shardwise_nccl_XXXXXX").string();
    if (mkdtemp(name.data()) == nullptr) throw std::runtime_error("mkdtemp failed");
    path_ = name;
  }
  ~Folder() { std::filesystem::remove_all(path_); }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;
  std::string file(const std::string& name) const { return (path_ / name).string(); }

 private:
  std::filesystem::path path_;
};

std::vector<Finished> run(const std::string& scenario, int ranks,
                          const std::string& environment = "") {
  const Folder folder;
  std::vector<Child> children;
  for (int rank = 0; rank < ranks; ++rank) {
    children.emplace_back("env SHARDWISE_EMULATION_LEAKS=off " + environment + " " +
                          SHARDWISE_NCCL_PROCESS + " " + scenario + " " + std::to_string(rank) +
                          " " + std::to_string(ranks) + " " + folder.file("id"));
  }
  std::vector<Finished> finished;
  for (Child& child : children) finished.push_back(child.finish());
  return finished;
}

void check_complete(const std::vector<Finished>& finished, int without = -1) {
  for (std::size_t rank = 0; rank < finished.size(); ++rank) {
    if (static_cast<int>(rank) == without) continue;
    INFO("rank " << rank << ": " << finished[rank].output);
    CHECK(finished[rank].status == 0);
    CHECK(finished[rank].says("complete"));
  }
}

bool enough(int devices) { return plain::device_count() >= devices; }

}  // namespace

TEST_CASE("collectives, splits and windows between processes") {
  for (const int ranks : {1, 2, 3, 4, 8}) {
    if (!enough(ranks)) continue;
    INFO("ranks " << ranks);
    check_complete(run("collectives", ranks));
  }
}

TEST_CASE("several ranks in each of several processes") {
  if (!enough(4)) SKIP("needs 4 devices");
  check_complete(run("threads", 2));
}

TEST_CASE("non-blocking communicators between processes") {
  if (!enough(3)) SKIP("needs 3 devices");
  check_complete(run("polled", 3));
}

TEST_CASE("the id by NCCL_COMM_ID") {
  if (!enough(3)) SKIP("needs 3 devices");
  check_complete(
      run("collectives", 3, "NCCL_COMM_ID=127.0.0.1:" + std::to_string(20000 + getpid() % 20000)));
}

TEST_CASE("the death of a process is a remote error for its peers, and no hang") {
  if (!enough(3) || !shardwise_emulation_present()) SKIP("needs the emulation");
  for (const auto& [scenario, victim] : {std::pair("peer_dies", 1), std::pair("first_dies", 0)}) {
    INFO(scenario);
    const auto finished = run(scenario, 3);
    check_complete(finished, victim);
    CHECK(finished[static_cast<std::size_t>(victim)].status == 7);
  }
}

TEST_CASE("the survivors of a dead process shrink their communicator") {
  if (!enough(4) || !shardwise_emulation_present()) SKIP("needs the emulation");
  check_complete(run("survivors", 4), 1);
}

TEST_CASE("calls that do not fit together end all processes, each with both sides named") {
  if (!enough(3) || !shardwise_emulation_present()) SKIP("needs the emulation");
  for (const Finished& finished : run("mismatch", 3)) {
    INFO(finished.output);
    CHECK(finished.status == 66);
    CHECK(finished.says("rank 1 calls [AllReduce count 7 type float32 operation sum]"));
    CHECK(finished.says("calls [AllReduce count 8 type float32 operation sum]"));
  }
}

TEST_CASE("a rank of another process that does not come is named") {
  if (!enough(3) || !shardwise_emulation_present()) SKIP("needs the emulation");
  const auto finished = run("skip", 3, "SHARDWISE_EMULATION_WATCHDOG_MS=1500");
  INFO(finished[0].output << finished[1].output);
  CHECK(finished[0].status == 66);
  CHECK(finished[1].status == 66);
  // Whoever gives up first says so; its peer may find in the same moment that a process was lost.
  CHECK((finished[0].says("missing ranks 2") || finished[1].says("missing ranks 2") ||
         finished[0].says("missing ranks 1, 2 (rank 1 died")));
}
