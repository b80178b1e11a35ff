// Small programs with a bug each, and their correct twins: nccl_program SCENARIO correct|bug. What
// the emulation must find is in nccl_negative_test.cpp.

#include <atomic>
#include <cstring>
#include <map>
#include <string>

#include "plain_nccl.hpp"

using plain::Communicator;
using plain::DeviceArray;
using plain::Event;
using plain::PinnedArray;
using plain::Rank;
using plain::Stream;

namespace {

constexpr std::size_t part = 512;
constexpr auto on_device = cudaMemcpyDeviceToDevice;

struct Buffers {
  DeviceArray<float> whole;
  DeviceArray<float> other;
  explicit Buffers(const Rank& own)
      : whole(part * static_cast<std::size_t>(own.ranks)),
        other(part * static_cast<std::size_t>(own.ranks)) {
    PLAIN_CUDA(cudaMemsetAsync(whole.data, 0, whole.bytes(), own.stream));
    PLAIN_CUDA(cudaMemsetAsync(other.data, 0, other.bytes(), own.stream));
    own.stream.synchronize();
  }
  float* mine(const Rank& own) const {
    return whole.data + static_cast<std::size_t>(own.rank) * part;
  }
};

void gather(const Rank& own, const Buffers& buffers, std::size_t count = part) {
  PLAIN_NCCL(ncclAllGather(buffers.whole.data + static_cast<std::size_t>(own.rank) * count,
                           buffers.whole.data, count, ncclFloat32, own.world, own.stream));
}

void reduce(const Rank& own, const Buffers& buffers, ncclRedOp_t reduction = ncclSum) {
  PLAIN_NCCL(ncclAllReduce(buffers.other.data, buffers.other.data, part, ncclFloat32, reduction,
                           own.world, own.stream));
}

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

// Memory: windows, ranges, overlaps, devices.

struct Arena {
  char* memory = nullptr;
  ncclWindow_t window = nullptr;
  static constexpr std::size_t bytes = 1 << 17;
  explicit Arena(const Rank& own) {
    void* pointer = nullptr;
    PLAIN_NCCL(ncclMemAlloc(&pointer, bytes));
    memory = static_cast<char*>(pointer);
    PLAIN_NCCL(ncclCommWindowRegister(own.world, memory, bytes, &window, NCCL_WIN_COLL_SYMMETRIC));
    PLAIN_CUDA(cudaMemsetAsync(memory, 0, bytes, own.stream));
  }
  void release(const Rank& own) const {
    own.stream.synchronize();
    PLAIN_NCCL(ncclCommWindowDeregister(own.world, window));
    PLAIN_NCCL(ncclMemFree(memory));
  }
};

void gather_bytes(const Rank& own, char* all) {
  PLAIN_NCCL(ncclAllGather(all + static_cast<std::size_t>(own.rank) * 4096, all, 4096, ncclInt8,
                           own.world, own.stream));
}

void window_offset(Rank& own, bool bug) {
  const Arena arena(own);
  gather_bytes(own, arena.memory + (bug && own.rank == 2 ? 4096 : 0));
  arena.release(own);
}

void window_unregistered(Rank& own, bool bug) {
  const Arena arena(own);
  const DeviceArray<char> plain_memory(1 << 16);
  PLAIN_CUDA(cudaMemsetAsync(plain_memory.data, 0, plain_memory.bytes(), own.stream));
  gather_bytes(own, bug && own.rank == 1 ? plain_memory.data : arena.memory);
  arena.release(own);
}

void window_sizes(Rank& own, bool bug) {
  void* memory = nullptr;
  PLAIN_NCCL(ncclMemAlloc(&memory, 1 << 16));
  ncclWindow_t window = nullptr;
  PLAIN_NCCL(ncclCommWindowRegister(own.world, memory, bug && own.rank == 3 ? 1 << 15 : 1 << 16,
                                    &window, NCCL_WIN_COLL_SYMMETRIC));
  PLAIN_NCCL(ncclCommWindowDeregister(own.world, window));
  PLAIN_NCCL(ncclMemFree(memory));
}

void window_kept(Rank& own, bool bug) {
  const Arena arena(own);
  gather_bytes(own, arena.memory);
  if (!bug) return arena.release(own);
  own.stream.synchronize();
  PLAIN_NCCL(ncclMemFree(arena.memory));
  PLAIN_NCCL(ncclCommWindowDeregister(own.world, arena.window));
}

void window_in_flight(Rank& own, bool bug) {
  const Arena arena(own);
  static std::atomic<int> deregistered{0};
  if (bug) {
    // Holds the gather up until every rank has taken its window away.
    PLAIN_CUDA(cudaLaunchHostFunc(
        own.stream,
        [](void* ranks) {
          while (deregistered < *static_cast<int*>(ranks)) std::this_thread::yield();
        },
        &own.ranks));
  }
  gather_bytes(own, arena.memory);
  if (!bug) return arena.release(own);
  PLAIN_NCCL(ncclCommWindowDeregister(own.world, arena.window));
  ++deregistered;
  own.stream.synchronize();
  PLAIN_NCCL(ncclMemFree(arena.memory));
}

void registered_twice(Rank& own, bool bug) {
  const DeviceArray<char> memory(1 << 16);
  void* first = nullptr;
  void* second = nullptr;
  PLAIN_NCCL(ncclCommRegister(own.world, memory.data, 1 << 15, &first));
  PLAIN_NCCL(
      ncclCommRegister(own.world, memory.data + (bug ? 1 << 14 : 1 << 15), 1 << 15, &second));
  PLAIN_NCCL(ncclCommDeregister(own.world, second));
  PLAIN_NCCL(ncclCommDeregister(own.world, first));
}

void wrong_deregister(Rank& own, bool bug) {
  const Arena arena(own);
  if (bug && ncclCommDeregister(own.world, arena.window) != ncclInvalidArgument) std::exit(8);
  arena.release(own);
}

void range(Rank& own, bool bug) {
  const Buffers buffers(own);
  gather(own, buffers, bug ? part + 1 : part);
}

void overlap(Rank& own, bool bug) {
  const Buffers buffers(own);
  const float* const send = bug ? buffers.whole.data : buffers.mine(own);
  const ncclResult_t result =
      ncclAllGather(send, buffers.whole.data, part, ncclFloat32, own.world, own.stream);
  if (result != ncclSuccess && own.rank == 1) std::fprintf(stderr, "refused: %d\n", result);
  if (bug && own.rank == 0) gather(own, buffers);  // its place is right: it waits for the others
  if (bug) std::exit(4);
}

void stream_device(Rank& own, bool bug) {
  const Buffers buffers(own);
  PLAIN_CUDA(cudaSetDevice(bug ? (own.rank + 1) % own.ranks : own.rank));
  const Stream stream;
  PLAIN_CUDA(cudaSetDevice(own.rank));
  const ncclResult_t result =
      ncclAllGather(buffers.mine(own), buffers.whole.data, part, ncclFloat32, own.world, stream);
  if (bug != (result == ncclInvalidUsage)) std::exit(5);
  if (!bug) stream.synchronize();
}

void pointer_device(Rank& own, bool bug) {
  static DeviceArray<float>* shared[8] = {};
  static std::mutex mutex;
  const DeviceArray<float> mine(part);
  PLAIN_CUDA(cudaMemsetAsync(mine.data, 0, mine.bytes(), own.stream));
  own.stream.synchronize();
  {
    const std::lock_guard guard(mutex);
    shared[own.rank] = const_cast<DeviceArray<float>*>(&mine);
  }
  reduce(own, Buffers(own));
  own.stream.synchronize();
  const int whose = bug && own.rank == 1 ? 0 : own.rank;
  const float* data = nullptr;
  {
    const std::lock_guard guard(mutex);
    data = shared[whose]->data;
  }
  PLAIN_NCCL(ncclBroadcast(data, mine.data, part, ncclFloat32, 1, own.world, own.stream));
  own.stream.synchronize();
}

void host_pointer(Rank& own, bool bug) {
  const Buffers buffers(own);
  std::vector<float> host(part);
  PLAIN_NCCL(ncclBroadcast(bug ? host.data() : buffers.whole.data, buffers.other.data, part,
                           ncclFloat32, 0, own.world, own.stream));
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

using Scenario = void (*)(Rank&, bool);
const std::map<std::string, Scenario> scenarios{{"order", order},
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
                                                {"window_offset", window_offset},
                                                {"window_unregistered", window_unregistered},
                                                {"window_sizes", window_sizes},
                                                {"window_kept", window_kept},
                                                {"window_in_flight", window_in_flight},
                                                {"registered_twice", registered_twice},
                                                {"wrong_deregister", wrong_deregister},
                                                {"range", range},
                                                {"overlap", overlap},
                                                {"stream_device", stream_device},
                                                {"pointer_device", pointer_device},
                                                {"host_pointer", host_pointer},
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
                                                {"two_threads", two_threads}};

}  // namespace

int main(int argc, char** argv) {
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
