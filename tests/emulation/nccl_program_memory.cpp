// Programs of nccl_program.cpp about windows, ranges, overlaps and devices.

#include <atomic>
#include <cstdlib>
#include <map>
#include <string>

#include "nccl_program.hpp"

namespace program {

namespace {

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

void window_of_plain_memory(Rank& own, bool bug) {
  constexpr std::size_t bytes = 1 << 16;
  void* memory = nullptr;
  if (bug) {
    PLAIN_CUDA(cudaMalloc(&memory, bytes));
  } else {
    PLAIN_NCCL(ncclMemAlloc(&memory, bytes));
  }
  ncclWindow_t window = nullptr;
  PLAIN_NCCL(ncclCommWindowRegister(own.world, memory, bytes, &window, NCCL_WIN_COLL_SYMMETRIC));
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

}  // namespace

std::map<std::string, Scenario> memory_scenarios() {
  return {{"window_offset", window_offset},
          {"window_unregistered", window_unregistered},
          {"window_sizes", window_sizes},
          {"window_of_plain_memory", window_of_plain_memory},
          {"window_kept", window_kept},
          {"window_in_flight", window_in_flight},
          {"registered_twice", registered_twice},
          {"wrong_deregister", wrong_deregister},
          {"range", range},
          {"overlap", overlap},
          {"stream_device", stream_device},
          {"pointer_device", pointer_device},
          {"host_pointer", host_pointer}};
}

}  // namespace program
