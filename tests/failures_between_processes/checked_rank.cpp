// One rank of a run over MPI whose calls are compared: ranks that differ in each kind of call are
// told so on all ranks, before MPI sees messages that do not fit; equal calls give their results.
// Ends with 0 where that holds.

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <shardwise/comm/checked.hpp>
#include <shardwise/comm/mpi.hpp>
#include <shardwise/device/host_stream.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "../comm/cases.hpp"

namespace {

using namespace shardwise;
using test::CollectiveCase;
using test::RankCall;

const Operation operations[] = {Operation::all_gather, Operation::reduce_scatter,
                                Operation::all_reduce, Operation::broadcast,
                                Operation::all_to_all, Operation::barrier};

void require(bool condition, int rank, std::string_view what) {
  if (condition) return;
  std::fprintf(stderr, "rank %d: %.*s\n", rank, static_cast<int>(what.size()), what.data());
  std::exit(1);
}

CollectiveCase case_of(Operation operation, std::size_t count) {
  CollectiveCase one{operation, {{}}};
  one.items[0].count = count;
  if (operation == Operation::barrier) one.items.clear();
  return one;
}

void run_equal(Communicator& comm, StreamRef stream) {
  for (const Operation operation : operations) {
    const CollectiveCase one = case_of(operation, 1000);
    RankCall call(one, comm.rank(), comm.size());
    call.issue(comm, stream, {.name = "equal"});
    if (stream.native != nullptr) static_cast<HostStream*>(stream.native)->synchronize();
    require(call.results() == RankCall::expected(one, comm.rank(), comm.size()), comm.rank(),
            "equal calls gave a wrong result");
  }
}

// The last rank calls the next operation, or the same one with more elements.
void run_different(Communicator& inner, std::size_t index, bool other_operation) {
  CheckedCommunicator comm(inner);
  const Operation own = operations[index];
  const bool odd = comm.rank() == comm.size() - 1;
  const Operation other = other_operation ? operations[(index + 1) % std::size(operations)] : own;
  RankCall call(case_of(odd ? other : own, odd ? 200'000 : 1000), comm.rank(), comm.size());
  std::string message;
  try {
    call.issue(comm, {}, {.name = "different", .timeout = std::chrono::seconds(30)});
  } catch (const CollectiveMismatch& error) {
    message = error.what();
  }
  const bool should_agree = comm.size() == 1 || (own == other && own == Operation::barrier);
  require(message.empty() == should_agree, comm.rank(), "a mismatch was not found: " + message);
  if (should_agree) return;
  for (const Operation each : {own, other}) {
    const std::string text = detail::format("{} #1 \"different\"", name_of(each));
    require(message.find(text) != std::string::npos, comm.rank(), message);
  }
}

}  // namespace

int main() {
  run_mpi([&](Communicator& world) {
    CheckedCommunicator comm(world);
    HostStream worker(HostStream::Mode::worker);
    run_equal(comm, {});
    run_equal(comm, {MemoryKind::host, &worker});
    const auto half = comm.split(comm.rank() % 2, comm.rank(), {.name = "halves"});
    run_equal(*half, {});
    for (std::size_t i = 0; i < std::size(operations); ++i) {
      run_different(world, i, false);
      run_different(world, i, true);
    }
    world.barrier({.name = "end"}, {});  // and MPI is as good as before
  });
  return 0;
}
