// Small programs with a bug each, and their correct twins: nccl_program SCENARIO correct|bug
// [RANKS]. What the emulation must find is in nccl_negative_test.cpp.

#include "nccl_program.hpp"

#include <cstring>
#include <map>
#include <string>

using namespace program;

namespace {

// Protocol: the ranks' calls do not fit together.

void order(Rank& own, bool bug) {
  const Buffers buffers(own);
  if (bug && own.rank == 1) {
    reduce(own, buffers);
    gather(own, buffers);
  } else {
    gather(own, buffers);
    reduce(own, buffers);
  }
}

void count(Rank& own, bool bug) {
  const Buffers buffers(own);
  gather(own, buffers, bug && own.rank == 2 ? part - 1 : part);
}

void reduction(Rank& own, bool bug) {
  const Buffers buffers(own);
  reduce(own, buffers, bug && own.rank == 1 ? ncclMax : ncclSum);
}

void skip(Rank& own, bool bug) {
  const Buffers buffers(own);
  gather(own, buffers);
  if (!(bug && own.rank == 2)) reduce(own, buffers);
}

void two_communicators(Rank& own, bool bug) {
  const Buffers buffers(own);
  Communicator second;
  PLAIN_NCCL(ncclCommSplit(own.world, 0, own.rank, &second.handle, nullptr));
  const Stream stream;
  const auto other = [&] {
    PLAIN_NCCL(ncclAllReduce(buffers.other.data, buffers.other.data, part, ncclFloat32, ncclSum,
                             second, stream));
  };
  for (int i = 0; i < 3; ++i) {
    if (bug && own.rank == 1) {
      other();
      gather(own, buffers);
    } else {
      gather(own, buffers);
      other();
    }
  }
  own.stream.synchronize();
  stream.synchronize();
}

void ungrouped(Rank& own, bool bug) {
  const Buffers buffers(own);
  const int next = (own.rank + 1) % own.ranks;
  const int before = (own.rank + own.ranks - 1) % own.ranks;
  if (!bug) PLAIN_NCCL(ncclGroupStart());
  PLAIN_NCCL(ncclSend(buffers.whole.data, part, ncclFloat32, next, own.world, own.stream));
  PLAIN_NCCL(ncclRecv(buffers.other.data, part, ncclFloat32, before, own.world, own.stream));
  if (!bug) PLAIN_NCCL(ncclGroupEnd());
}

void message_count(Rank& own, bool bug) {
  const Buffers buffers(own);
  const int next = (own.rank + 1) % own.ranks;
  const int before = (own.rank + own.ranks - 1) % own.ranks;
  PLAIN_NCCL(ncclGroupStart());
  PLAIN_NCCL(ncclSend(buffers.whole.data, part, ncclFloat32, next, own.world, own.stream));
  PLAIN_NCCL(ncclRecv(buffers.other.data, bug && own.rank == 0 ? part + 1 : part, ncclFloat32,
                      before, own.world, own.stream));
  PLAIN_NCCL(ncclGroupEnd());
}

/// One id for all ranks of the process.
ncclUniqueId shared_id() {
  static const ncclUniqueId id = plain::unique_id();
  return id;
}

void same_device(Rank& own, bool bug) {
  PLAIN_CUDA(cudaSetDevice(bug && own.rank == 3 ? 0 : own.rank));
  const Communicator second(own.ranks, shared_id(), own.rank);
}

void world_size(Rank& own, bool bug) {
  const Communicator second(bug && own.rank == 1 ? own.ranks + 1 : own.ranks, shared_id(),
                            own.rank);
}

void rank_twice(Rank& own, bool bug) {
  const Communicator second(own.ranks, shared_id(), bug && own.rank == 3 ? 2 : own.rank);
}

void excluded_ranks(Rank& own, bool bug) {
  int excluded = bug && own.rank == 2 ? 0 : 1;
  if (own.rank == 1) return;
  Communicator rest;
  PLAIN_NCCL(ncclCommShrink(own.world, &excluded, 1, &rest.handle, nullptr, NCCL_SHRINK_DEFAULT));
}

// Order: an event wait is missing. Only ThreadSanitizer is sure to see it.

void wait_before_gather(Rank& own, bool bug) {
  const Buffers buffers(own);
  const Stream compute;
  const Event filled;
  for (int step = 0; step < 3; ++step) {
    PLAIN_CUDA(cudaMemcpyAsync(buffers.mine(own), buffers.other.data, part * sizeof(float),
                               on_device, compute));
    PLAIN_CUDA(cudaEventRecord(filled, compute));
    if (!bug) PLAIN_CUDA(cudaStreamWaitEvent(own.stream, filled, 0));
    gather(own, buffers);
    own.stream.synchronize();
  }
  compute.synchronize();
}

void wait_after_gather(Rank& own, bool bug) {
  const Buffers buffers(own);
  const Stream compute;
  const Event gathered;
  gather(own, buffers);
  PLAIN_CUDA(cudaEventRecord(gathered, own.stream));
  if (!bug) PLAIN_CUDA(cudaStreamWaitEvent(compute, gathered, 0));
  PLAIN_CUDA(cudaMemcpyAsync(buffers.other.data, buffers.whole.data, buffers.whole.bytes(),
                             on_device, compute));
  compute.synchronize();
}

/// In place the own part is only read: who reads it too need not wait. Another's part is written.
void own_part(Rank& own, bool bug) {
  const Buffers buffers(own);
  const Stream compute;
  gather(own, buffers);
  const int whose = bug ? (own.rank + 1) % own.ranks : own.rank;
  PLAIN_CUDA(cudaMemcpyAsync(buffers.other.data,
                             buffers.whole.data + static_cast<std::size_t>(whose) * part,
                             part * sizeof(float), on_device, compute));
  compute.synchronize();
}

void overwrite(Rank& own, bool bug) {
  const Buffers buffers(own);
  const Stream compute;
  const Event gathered;
  const Event read;
  for (int step = 0; step < 3; ++step) {
    gather(own, buffers);
    PLAIN_CUDA(cudaEventRecord(gathered, own.stream));
    PLAIN_CUDA(cudaStreamWaitEvent(compute, gathered, 0));
    PLAIN_CUDA(cudaMemcpyAsync(buffers.other.data, buffers.whole.data, buffers.whole.bytes(),
                               on_device, compute));
    PLAIN_CUDA(cudaEventRecord(read, compute));
    if (!bug) PLAIN_CUDA(cudaStreamWaitEvent(own.stream, read, 0));
  }
  compute.synchronize();
}

void wait_before_reduce(Rank& own, bool bug) {
  const Buffers buffers(own);
  const Stream compute;
  const Event filled;
  PLAIN_CUDA(cudaMemsetAsync(buffers.whole.data, 1, buffers.whole.bytes(), compute));
  PLAIN_CUDA(cudaEventRecord(filled, compute));
  if (!bug) PLAIN_CUDA(cudaStreamWaitEvent(own.stream, filled, 0));
  PLAIN_NCCL(ncclReduceScatter(buffers.whole.data, buffers.mine(own), part, ncclFloat32, ncclSum,
                               own.world, own.stream));
  compute.synchronize();
}

void wait_after_receive(Rank& own, bool bug) {
  const Buffers buffers(own);
  const Stream compute;
  const Event received;
  PLAIN_NCCL(ncclGroupStart());
  PLAIN_NCCL(ncclSend(buffers.whole.data, part, ncclFloat32, (own.rank + 1) % own.ranks, own.world,
                      own.stream));
  PLAIN_NCCL(ncclRecv(buffers.other.data, part, ncclFloat32, (own.rank + own.ranks - 1) % own.ranks,
                      own.world, own.stream));
  PLAIN_NCCL(ncclGroupEnd());
  PLAIN_CUDA(cudaEventRecord(received, own.stream));
  if (!bug) PLAIN_CUDA(cudaStreamWaitEvent(compute, received, 0));
  PLAIN_CUDA(cudaMemsetAsync(buffers.other.data, 0, buffers.other.bytes(), compute));
  compute.synchronize();
}

// A broadcast orders what its root did before; it says nothing about the other ranks.
void broadcast_as_barrier(Rank& own, bool bug) {
  static int written[8];
  const Buffers buffers(own);
  written[own.rank] = own.rank;
  if (bug) {
    PLAIN_NCCL(ncclBroadcast(buffers.whole.data, buffers.whole.data, part, ncclFloat32, 0,
                             own.world, own.stream));
  } else {
    reduce(own, buffers);
  }
  own.stream.synchronize();
  for (int rank = 0; rank < own.ranks; ++rank) {
    if (written[rank] != rank) std::fprintf(stderr, "rank %d was not there\n", rank);
  }
}

// Lifetime.

void leak(Rank& own, bool bug) {
  auto* const second = new Communicator;
  PLAIN_NCCL(ncclCommSplit(own.world, 0, own.rank, &second->handle, nullptr));
  if (bug) second->handle = nullptr;
  delete second;
}

void too_early(Rank& own, bool bug) {
  const Buffers buffers(own);
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  config.blocking = 0;
  ncclComm_t polled = nullptr;
  PLAIN_NCCL(ncclCommSplit(own.world, 0, own.rank, &polled, &config));
  const ncclResult_t first = ncclAllReduce(buffers.other.data, buffers.other.data, part,
                                           ncclFloat32, ncclSum, polled, own.stream);
  if (!bug) PLAIN_NCCL(plain::poll(polled, first));
  PLAIN_NCCL(plain::poll(polled, ncclAllReduce(buffers.other.data, buffers.other.data, part,
                                               ncclFloat32, ncclSum, polled, own.stream)));
  own.stream.synchronize();
  PLAIN_NCCL(ncclCommDestroy(polled));
}

void after_destroy(Rank& own, bool bug) {
  ncclComm_t second = nullptr;
  PLAIN_NCCL(ncclCommSplit(own.world, 0, own.rank, &second, nullptr));
  const Buffers buffers(own);
  reduce(own, buffers);
  own.stream.synchronize();
  PLAIN_NCCL(ncclCommDestroy(second));
  int size = 0;
  const ncclResult_t result = bug ? ncclCommCount(second, &size) : ncclInvalidArgument;
  if (result != ncclInvalidArgument) std::exit(6);
}

// Two threads use one communicator without a lock.
void two_threads(Rank& own, bool bug) {
  const Buffers buffers(own);
  std::thread other([&] {
    PLAIN_CUDA(cudaSetDevice(own.rank));
    reduce(own, buffers);
  });
  if (!bug) other.join();
  reduce(own, buffers);
  if (bug) other.join();
}

std::map<std::string, Scenario> all_scenarios() {
  std::map<std::string, Scenario> all = memory_scenarios();
  all.merge(std::map<std::string, Scenario>{{"order", order},
                                            {"count", count},
                                            {"reduction", reduction},
                                            {"skip", skip},
                                            {"two_communicators", two_communicators},
                                            {"ungrouped", ungrouped},
                                            {"message_count", message_count},
                                            {"same_device", same_device},
                                            {"world_size", world_size},
                                            {"rank_twice", rank_twice},
                                            {"excluded_ranks", excluded_ranks},
                                            {"wait_before_gather", wait_before_gather},
                                            {"wait_after_gather", wait_after_gather},
                                            {"own_part", own_part},
                                            {"overwrite", overwrite},
                                            {"wait_before_reduce", wait_before_reduce},
                                            {"wait_after_receive", wait_after_receive},
                                            {"broadcast_as_barrier", broadcast_as_barrier},
                                            {"leak", leak},
                                            {"too_early", too_early},
                                            {"after_destroy", after_destroy},
                                            {"two_threads", two_threads}});
  return all;
}

}  // namespace

int main(int argc, char** argv) {
  const auto scenarios = all_scenarios();
  const auto scenario = argc == 3 || argc == 4 ? scenarios.find(argv[1]) : scenarios.end();
  if (scenario == scenarios.end()) {
    std::fprintf(stderr, "usage: nccl_program SCENARIO correct|bug [RANKS]\n");
    return 2;
  }
  const bool bug = std::strcmp(argv[2], "bug") == 0;
  plain::on_ranks(argc == 4 ? std::atoi(argv[3]) : 4, [&](Rank& own, const plain::Check&) {
    scenario->second(own, bug);
    own.stream.synchronize();
  });
  std::puts("complete");
}
