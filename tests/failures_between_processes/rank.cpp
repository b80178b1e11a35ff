// One rank of a run in which one rank fails as it is told, for matrix.py:
//   rank OPERATION HOW WHEN VICTIM TIMEOUT_MS
// Every rank says on stderr, one line each: its process, when it fails, and how it ended.

#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <shardwise/comm/launch.hpp>
#include <shardwise/comm/mpi.hpp>
#include <stdexcept>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "../comm/cases.hpp"

namespace {

using namespace shardwise;
using namespace std::chrono_literals;

// What comes from one call of write is one line in the launcher's output.
void say(int rank, const char* what, std::string text) {
  for (char& letter : text) {
    if (letter == '\n') letter = '|';
  }
  const auto now = std::chrono::steady_clock::now().time_since_epoch();
  const std::string line = detail::format("@{} {} {:.6f} {}\n", what, rank,
                                          std::chrono::duration<double>(now).count(), text);
  if (::write(STDERR_FILENO, line.data(), line.size()) < 0) std::abort();
}

struct Plan {
  Operation operation = Operation::barrier;
  std::string how;
  std::string when;
  int victim = 0;
  std::chrono::milliseconds timeout{0};
};

Plan parse(char** words) {
  Plan plan;
  for (const Operation each :
       {Operation::all_gather, Operation::reduce_scatter, Operation::all_reduce,
        Operation::broadcast, Operation::all_to_all, Operation::barrier}) {
    if (name_of(each) == words[1]) plan.operation = each;
  }
  plan.how = words[2];
  plan.when = words[3];
  plan.victim = std::atoi(words[4]);
  plan.timeout = std::chrono::milliseconds(std::atoi(words[5]));
  return plan;
}

class Trainer {
 public:
  Trainer(Communicator& comm, const Plan& plan) : comm_(comm), plan_(plan) {}
  Trainer(const Trainer&) = delete;
  Trainer& operator=(const Trainer&) = delete;
  ~Trainer() {
    if (clock_.joinable()) clock_.join();
  }

  void train() {
    const bool victim = comm_.rank() == plan_.victim;
    for (int step = 1;; ++step) {  // the failure ends it
      const bool now = step == failing;
      if (now && victim && plan_.when == "before") {
        if (fail()) return;
      }
      if (now && plan_.when == "inside") {
        // The victim waits in the call, to which the others have not come.
        if (victim) fail_in(100ms);
        if (!victim) std::this_thread::sleep_for(300ms);
      }
      if (now && victim && plan_.when == "moving")
        fail_in(std::chrono::milliseconds(20 + ::getpid() % 60));
      call(step);
      if (now && victim && plan_.when == "after") {
        if (fail()) return;
      }
      if (plan_.when != "moving") std::this_thread::sleep_for(5ms);
    }
  }

 private:
  static constexpr int failing = 3;  // the step

  void call(int step) {
    const std::string name = detail::format("block.{}", step);
    test::CollectiveCase one{plan_.operation, {{}}, (plan_.victim + 1) % comm_.size()};
    one.items[0].count = plan_.when == "moving" ? 300'000 : 10;
    if (plan_.operation == Operation::barrier) one.items.clear();
    test::RankCall call(one, comm_.rank(), comm_.size());
    // The first ones are to succeed, however far apart ranks come.
    const std::chrono::milliseconds timeout = step < failing ? 60s : plan_.timeout;
    call.issue(comm_, {}, {.name = name, .timeout = timeout});
  }

  // Returns true where the rank is to return.
  bool fail() {
    say(comm_.rank(), "FAILING", plan_.how);
    if (plan_.how == "throw") throw std::runtime_error("out of memory on purpose");
    end();
    return plan_.how == "return";
  }

  void fail_in(std::chrono::milliseconds time) {
    clock_ = std::thread([this, time] {
      std::this_thread::sleep_for(time);
      say(comm_.rank(), "FAILING", plan_.how);
      if (plan_.how == "throw") comm_.abort("out of memory on purpose");
      end();
    });
  }

  void end() const {
    if (plan_.how == "kill") ::kill(::getpid(), SIGKILL);
    if (plan_.how == "stop") ::kill(::getpid(), SIGSTOP);
    if (plan_.how == "wait") std::this_thread::sleep_for(60s);
  }

  Communicator& comm_;
  const Plan& plan_;
  std::thread clock_;
};

}  // namespace

int main(int count, char** words) {
  if (count != 6) return 2;
  const Plan plan = parse(words);
  const int rank = Launch::from_environment().rank;
  say(rank, "PROCESS", detail::format("{}", ::getpid()));
  try {
    run_mpi([&](Communicator& comm) { Trainer(comm, plan).train(); });
  } catch (const std::exception& error) {
    say(rank, "ENDED", error.what());
    return 1;
  }
  say(rank, "ENDED", "in peace");
  return 0;
}
