#pragma once

#include <nccl.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "plain_cuda.hpp"

/// More owners for the tests of the emulation, those of NCCL. Nothing of the library.
namespace plain {

inline void expect(ncclResult_t result, const char* call) {
  if (result == ncclSuccess) return;
  std::fprintf(stderr, "%s: %s (%s)\n", call, ncclGetErrorString(result),
               ncclGetLastError(nullptr));
  std::exit(3);
}
#define PLAIN_NCCL(call) plain::expect(call, #call)

inline ncclUniqueId unique_id() {
  ncclUniqueId id;
  PLAIN_NCCL(ncclGetUniqueId(&id));
  return id;
}

/// Waits for a call on a non-blocking communicator.
inline ncclResult_t poll(ncclComm_t communicator, ncclResult_t result) {
  while (result == ncclInProgress) {
    std::this_thread::yield();
    if (ncclCommGetAsyncError(communicator, &result) != ncclSuccess) return ncclInternalError;
  }
  return result;
}

/// The child of a non-blocking communicator, which NCCL writes when it is complete.
inline ncclComm_t await(ncclComm_t& child) {
  const std::atomic_ref<ncclComm_t> written(child);
  while (written.load(std::memory_order_acquire) == nullptr) std::this_thread::yield();
  return child;
}

struct Communicator {
  ncclComm_t handle = nullptr;
  Communicator() = default;
  Communicator(int ranks, ncclUniqueId id, int rank) {
    PLAIN_NCCL(ncclCommInitRank(&handle, ranks, id, rank));
  }
  ~Communicator() {
    if (handle != nullptr) PLAIN_NCCL(ncclCommDestroy(handle));
  }
  Communicator(const Communicator&) = delete;
  Communicator& operator=(const Communicator&) = delete;
  operator ncclComm_t() const { return handle; }
};

/// What a rank has on its device: a stream and a world communicator.
struct Rank {
  int rank;
  int ranks;
  Communicator world;
  Stream stream;
  Rank(int of, int size, ncclUniqueId id) : rank(of), ranks(size), world(size, id, of) {}

  /// Elements onto the device; the host waits.
  template <class T>
  void upload(const DeviceArray<T>& to, const std::vector<T>& values) const {
    const PinnedArray<T> host(values.size());
    std::memcpy(host.data, values.data(), host.bytes());
    PLAIN_CUDA(cudaMemcpyAsync(to.data, host.data, host.bytes(), cudaMemcpyHostToDevice, stream));
    stream.synchronize();
  }
  template <class T>
  std::vector<T> download(const T* from, std::size_t count) const {
    const PinnedArray<T> host(count);
    PLAIN_CUDA(cudaMemcpyAsync(host.data, from, host.bytes(), cudaMemcpyDeviceToHost, stream));
    stream.synchronize();
    return {host.data, host.data + count};
  }
  template <class T>
  std::vector<T> download(const DeviceArray<T>& from) const {
    return download(from.data, from.count);
  }
};

/// Runs `body(rank)` on a thread for each rank, rank r on device r; what it says is wrong comes
/// back: assertions belong to the main thread.
inline std::vector<std::string> on_threads(
    int ranks,
    const std::function<void(int, const std::function<void(bool, std::string)>&)>& body) {
  std::vector<std::string> wrong;
  std::mutex mutex;
  std::vector<std::thread> threads;
  for (int rank = 0; rank < ranks; ++rank) {
    threads.emplace_back([&, rank] {
      PLAIN_CUDA(cudaSetDevice(rank));
      body(rank, [&, rank](bool right, const std::string& what) {
        if (right) return;
        const std::lock_guard guard(mutex);
        wrong.push_back("rank " + std::to_string(rank) + ": " + what);
      });
    });
  }
  for (std::thread& thread : threads) thread.join();
  return wrong;
}

using Check = std::function<void(bool right, std::string what)>;

/// The same with a world communicator and a stream each.
inline std::vector<std::string> on_ranks(int ranks,
                                         const std::function<void(Rank&, const Check&)>& body) {
  const ncclUniqueId id = unique_id();
  return on_threads(ranks, [&](int rank, const Check& check) {
    Rank own(rank, ranks, id);
    body(own, check);
    own.stream.synchronize();
  });
}

/// The worlds that there are devices for.
inline std::vector<int> worlds() {
  std::vector<int> result;
  for (const int ranks : {1, 2, 3, 4, 8}) {
    if (ranks <= device_count()) result.push_back(ranks);
  }
  return result;
}

}  // namespace plain
