// One rank of a run that NCCL connects after MPI has, for check_cuda_gpt_mpi.py:
//   nccl_over_mpi [HOW WHEN VICTIM]
// VICTIM, a rank, fails: HOW is throw, kill, stop or version (it finds another NCCL), WHEN is
// before (it gives its card), given (the others may not have it yet) or connecting (NCCL connects).
// Every rank says on stderr, in one line, how it ended.

#include <unistd.h>

#include <chrono>
#include <csignal>
#include <cstdlib>
#include <memory>
#include <optional>
#include <shardwise/comm/collectives.hpp>
#include <shardwise/comm/file_rendezvous.hpp>
#include <shardwise/comm/mpi.hpp>
#include <shardwise/comm/nccl.hpp>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>

#include "emulation/control.hpp"

namespace {

using namespace shardwise;

struct Plan {
  std::string how = {};
  std::string when = {};
  int victim = -1;
};

/// Hands everything on, until this rank is to fail.
class FailingRendezvous final : public Rendezvous {
 public:
  FailingRendezvous(std::shared_ptr<Rendezvous> inner, Plan plan)
      : inner_(std::move(inner)), plan_(std::move(plan)) {}

  [[nodiscard]] int rank() const noexcept override { return inner_->rank(); }
  [[nodiscard]] int size() const noexcept override { return inner_->size(); }
  void put(std::string_view key, std::string_view value) override {
    const bool card = key.find(".here.") != key.npos;
    if (card && plan_.when == "before") end();
    inner_->put(key, value);
    if (card && plan_.when == "given") end();
  }
  [[nodiscard]] std::optional<std::string> try_get(std::string_view key) override {
    auto result = inner_->try_get(key);
    if (result && key.find(".here.") != key.npos) ++cards_;
    return result;
  }
  void fail(const RankFailure& failure) noexcept override { inner_->fail(failure); }
  [[nodiscard]] std::optional<RankFailure> failure() noexcept override {
    // What is asked for once all have met.
    if (plan_.when == "connecting" && cards_ == size()) {
      try {
        end();
      } catch (const std::exception& error) {
        plan_.when.clear();
        inner_->fail({rank(), error.what()});
      }
    }
    return inner_->failure();
  }

 private:
  void end() {
    if (plan_.victim != rank()) return;
    if (plan_.how == "throw") throw std::runtime_error("out of memory on purpose");
    if (plan_.how == "kill") ::kill(::getpid(), SIGKILL);
    if (plan_.how == "stop") ::kill(::getpid(), SIGSTOP);
  }

  std::shared_ptr<Rendezvous> inner_;
  Plan plan_;
  int cards_ = 0;
};

void run(const Launch& launch, const Plan& plan) {
  run_mpi([&](MpiCommunicator& processes) {
    Launch place = launch;
    const auto meeting =
        std::make_shared<FailingRendezvous>(std::make_shared<MpiRendezvous>(processes), plan);
    find_local_place(place, *meeting);
    cuda_check(cudaSetDevice(place.local_rank), "cudaSetDevice");
    NcclCommunicator world(meeting, {.startup_timeout = std::chrono::seconds(4)});
    const int total = sum(world, world.rank() + 1);
    if (total != world.size() * (world.size() + 1) / 2) throw std::runtime_error("a wrong sum");
    barrier(world, {.name = "after the start"});
    // The emulation's ranks meet in rank 0's process, which must not go before the others are done.
    static_cast<void>(meeting->exchange("done", "", std::chrono::seconds(20)));
  });
}

}  // namespace

int main(int count, char** words) {
  Plan plan;
  if (count == 4) plan = {words[1], words[2], std::atoi(words[3])};
  const Launch launch = Launch::from_environment();
  if (plan.how == "version" && plan.victim == launch.rank) {
    emulation_control::set_option("nccl_version", std::to_string(NCCL_VERSION_CODE + 100).c_str());
  }
  std::string text = "in peace";
  int status = 0;
  try {
    run(launch, plan);
  } catch (const std::exception& error) {
    text = error.what();
    status = 1;
  }
  for (char& letter : text) {
    if (letter == '\n') letter = '|';
  }
  // What comes from one call of write is one line in the launcher's output.
  const std::string line = detail::format("@ENDED {} {}\n", launch.rank, text);
  if (::write(STDERR_FILENO, line.data(), line.size()) < 0) return 2;
  return status;
}
