// Several ranks on one real device: a stand-in for NCCL, loaded before it, for machines with a
// single GPU, on which NCCL itself runs one rank alone. Ranks are threads of one process; kernels,
// streams, events and copies are the device's own, and calls are as asynchronous as NCCL's: the
// host never waits for peers, streams do. For tests only: it says nothing about links or NCCL's
// speed, and knows just what this library calls.
//
// The process sees SHARDWISE_ONE_DEVICE (8 where it is not set) devices, all of them device 0.
#include <cuda.h>
#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <nccl.h>

#include <atomic>
#include <compare>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "sum.hpp"

namespace {

using one_device::most_ranks;
using one_device::Pointers;

[[noreturn]] void die(const char* what, const char* why) {
  std::fprintf(stderr, "one_device: %s: %s\n", what, why);
  std::abort();
}
void check(cudaError_t status, const char* what) {
  if (status != cudaSuccess) die(what, cudaGetErrorString(status));
}

// Devices.

template <class F>
F* next(const char* name) {
  return reinterpret_cast<F*>(dlsym(RTLD_NEXT, name));
}

int device_count() {
  static const int count = [] {
    const char* const given = std::getenv("SHARDWISE_ONE_DEVICE");
    return given != nullptr ? std::atoi(given) : 8;
  }();
  return count;
}
thread_local int current_device = 0;

/// The streams of each rank's device. They are used again, and never destroyed: a device has 32
/// queues for its streams, in turn, and streams that share one would wait for each other.
class Streams {
 public:
  cudaError_t create(cudaStream_t* stream, int device, unsigned flags, int priority) {
    const std::lock_guard lock(mutex_);
    const Key key{device, flags, priority};
    if (auto found = free_.find(key); found != free_.end()) {
      *stream = found->second;
      free_.erase(found);
    } else {
      const cudaError_t status = next<cudaError_t(cudaStream_t*, unsigned, int)>(
          "cudaStreamCreateWithPriority")(stream, flags, priority);
      if (status != cudaSuccess) return status;
    }
    used_[*stream] = key;
    return cudaSuccess;
  }
  cudaError_t destroy(cudaStream_t stream) {
    const std::lock_guard lock(mutex_);
    const auto found = used_.find(stream);
    if (found == used_.end()) return cudaErrorInvalidResourceHandle;
    free_.emplace(found->second, stream);
    used_.erase(found);
    return cudaSuccess;
  }
  std::vector<cudaStream_t> of_current() {
    const std::lock_guard lock(mutex_);
    std::vector<cudaStream_t> result;
    for (const auto& [stream, key] : used_) {
      if (key.device == current_device) result.push_back(stream);
    }
    return result;
  }

 private:
  struct Key {
    int device;
    unsigned flags;
    int priority;
    auto operator<=>(const Key&) const = default;
  };
  std::mutex mutex_;
  std::multimap<Key, cudaStream_t> free_;
  std::map<cudaStream_t, Key> used_;
};
Streams& streams() {
  static auto* const known = new Streams;  // outlives everything
  return *known;
}

/// One of the stand-in's own, in queues that the library's do not use.
cudaStream_t create_stream() {
  constexpr int no_device = -1;
  constexpr int own_priority = -2;
  cudaStream_t stream;
  check(streams().create(&stream, no_device, cudaStreamNonBlocking, own_priority),
        "cudaStreamCreate");
  return stream;
}

// Memory.

cudaStream_t memory_stream() {
  static const cudaStream_t stream = [] {
    cudaMemPool_t pool;
    check(cudaDeviceGetDefaultMemPool(&pool, 0), "cudaDeviceGetDefaultMemPool");
    std::uint64_t all = ~std::uint64_t{0};
    check(cudaMemPoolSetAttribute(pool, cudaMemPoolAttrReleaseThreshold, &all),
          "cudaMemPoolSetAttribute");
    return create_stream();
  }();
  return stream;
}

/// Pinned blocks are used again, and never freed.
class Pinned {
 public:
  cudaError_t allocate(void** memory, std::size_t bytes, unsigned flags) {
    const std::lock_guard lock(mutex_);
    const std::pair key{bytes, flags};
    if (auto found = free_.find(key); found != free_.end()) {
      *memory = found->second;
      free_.erase(found);
    } else {
      const cudaError_t status =
          next<cudaError_t(void**, std::size_t, unsigned)>("cudaHostAlloc")(memory, bytes, flags);
      if (status != cudaSuccess) return status;
    }
    used_[*memory] = key;
    return cudaSuccess;
  }
  void free(void* memory) {
    const std::lock_guard lock(mutex_);
    const auto found = used_.find(memory);
    if (found == used_.end()) return;
    free_.emplace(found->second, memory);
    used_.erase(found);
  }

 private:
  using Key = std::pair<std::size_t, unsigned>;
  std::mutex mutex_;
  std::multimap<Key, void*> free_;
  std::map<void*, Key> used_;
};
Pinned& pinned() {
  static auto* const pool = new Pinned;  // outlives everything
  return *pool;
}

// The driver.

using DriverEntryPoint = cudaError_t(const char*, void**, unsigned, unsigned long long,
                                     cudaDriverEntryPointQueryResult*);
DriverEntryPoint* driver_entry_point() {
  return next<DriverEntryPoint>("cudaGetDriverEntryPointByVersion");
}

std::atomic<CUresult (*)(std::size_t*, const CUmemAllocationProp*,
                         CUmemAllocationGranularity_flags)>
    granularity{nullptr};
std::atomic<CUresult (*)(CUmemGenericAllocationHandle*, std::size_t, const CUmemAllocationProp*,
                         unsigned long long)>
    create_memory{nullptr};
std::atomic<CUresult (*)(CUdeviceptr, std::size_t, const CUmemAccessDesc*, std::size_t)> set_access{
    nullptr};

CUresult granularity_of_device(std::size_t* result, const CUmemAllocationProp* wanted,
                               CUmemAllocationGranularity_flags flags) {
  CUmemAllocationProp own = *wanted;
  own.location.id = 0;
  return granularity.load()(result, &own, flags);
}
CUresult create_on_device(CUmemGenericAllocationHandle* handle, std::size_t bytes,
                          const CUmemAllocationProp* wanted, unsigned long long flags) {
  CUmemAllocationProp own = *wanted;
  own.location.id = 0;
  return create_memory.load()(handle, bytes, &own, flags);
}
CUresult set_access_of_device(CUdeviceptr address, std::size_t bytes,
                              const CUmemAccessDesc* accesses, std::size_t count) {
  if (count != 1) return CUDA_ERROR_INVALID_VALUE;
  CUmemAccessDesc own = *accesses;
  own.location.id = 0;
  return set_access.load()(address, bytes, &own, 1);
}

// Streams that wait for a word of host memory, and write it.

using StreamValue = CUresult (*)(CUstream, CUdeviceptr, cuuint32_t, unsigned);
StreamValue driver_entry(const char* name) {
  void* entry = nullptr;
  cudaDriverEntryPointQueryResult found;
  check(driver_entry_point()(name, &entry, 12000, cudaEnableDefault, &found), name);
  if (entry == nullptr) die(name, "the driver has no such function");
  return reinterpret_cast<StreamValue>(entry);
}
void stream_waits(cudaStream_t stream, std::uint32_t* word, std::uint32_t value) {
  static const StreamValue wait = driver_entry("cuStreamWaitValue32");
  if (wait(stream, reinterpret_cast<CUdeviceptr>(word), value, CU_STREAM_WAIT_VALUE_GEQ) !=
      CUDA_SUCCESS) {
    die("cuStreamWaitValue32", "refused");
  }
}
void stream_writes(cudaStream_t stream, std::uint32_t* word, std::uint32_t value) {
  static const StreamValue write = driver_entry("cuStreamWriteValue32");
  if (write(stream, reinterpret_cast<CUdeviceptr>(word), value, CU_STREAM_WRITE_VALUE_DEFAULT) !=
      CUDA_SUCCESS) {
    die("cuStreamWriteValue32", "refused");
  }
}

// Communicators.

std::size_t size_of(ncclDataType_t type) {
  switch (type) {
    case ncclFloat64:
    case ncclInt64:
    case ncclUint64:
      return 8;
    case ncclFloat32:
    case ncclInt32:
    case ncclUint32:
      return 4;
    case ncclFloat16:
    case ncclBfloat16:
      return 2;
    default:
      return 1;
  }
}

enum class Kind { gather, scatter, all_reduce, reduce, broadcast, send, receive };

struct Call {
  Kind kind;
  const void* send;
  void* receive;
  std::size_t count;
  ncclDataType_t type;
  int peer;  // of a message, or the root

  bool is_message() const { return kind == Kind::send || kind == Kind::receive; }
  bool fits(const Call& other) const {
    return kind == other.kind && count == other.count && type == other.type && peer == other.peer;
  }
};

/// What one rank issued at once, in the order in which it is matched.
struct Posted {
  Posted(const std::vector<Call>& calls, std::uint32_t number) : ticket(number) {
    left = calls.size();
    for (const Call& call : calls) {
      (call.kind == Kind::send      ? sends[call.peer]
       : call.kind == Kind::receive ? receives[call.peer]
                                    : collectives)
          .push_back(call);
    }
  }

  std::deque<Call> collectives;
  std::map<int, std::deque<Call>> sends;  // by peer
  std::map<int, std::deque<Call>> receives;
  std::vector<cudaEvent_t> ready;
  std::uint32_t ticket;
  std::size_t left;
  bool awaited = false;
};

struct Member {
  std::deque<Posted> posted;
  std::uint32_t tickets = 0;
  std::uint32_t* done = nullptr;  // the last ticket that is complete, in stream order
  std::uint64_t splits = 0;
  bool has_left = false;
};

class Clique : public std::enable_shared_from_this<Clique> {
 public:
  explicit Clique(int size) : members_(static_cast<std::size_t>(size)) {
    check(cudaHostAlloc(reinterpret_cast<void**>(&words_), sizeof(std::uint32_t) * members_.size(),
                        cudaHostAllocMapped),
          "cudaHostAlloc");
    for (std::size_t r = 0; r < members_.size(); ++r) {
      words_[r] = 0;
      members_[r].done = words_ + r;
    }
    stream_ = create_stream();
    worker_ = std::thread([this] { work(); });
  }
  ~Clique() {
    {
      const std::lock_guard lock(mutex_);
      is_over_ = true;
    }
    changed_.notify_all();
    worker_.join();
    check(cudaStreamSynchronize(stream_), "the end of a communicator");
    check(streams().destroy(stream_), "cudaStreamDestroy");
    check(cudaFreeHost(words_), "cudaFreeHost");
  }

  int size() const { return static_cast<int>(members_.size()); }

  /// The streams wait for the calls; the host does not.
  void post(int rank, const std::vector<Call>& calls, const std::vector<cudaStream_t>& streams) {
    const std::lock_guard lock(mutex_);
    Member& own = members_[static_cast<std::size_t>(rank)];
    if (own.has_left) return;
    Posted posted(calls, ++own.tickets);
    for (cudaStream_t stream : streams) {
      cudaEvent_t ready;
      check(cudaEventCreateWithFlags(&ready, cudaEventDisableTiming), "cudaEventCreate");
      check(cudaEventRecord(ready, stream), "cudaEventRecord");
      posted.ready.push_back(ready);
      stream_waits(stream, own.done, posted.ticket);
    }
    own.posted.push_back(std::move(posted));
    changed_.notify_all();
  }

  /// Whether all that the rank posted has been given to the device.
  bool is_flushed(int rank) {
    const std::lock_guard lock(mutex_);
    const Member& own = members_[static_cast<std::size_t>(rank)];
    return own.posted.empty() || own.has_left;
  }
  void flush(int rank) {
    std::unique_lock lock(mutex_);
    Member& own = members_[static_cast<std::size_t>(rank)];
    changed_.wait(lock, [&] { return own.posted.empty() || own.has_left; });
    check(cudaStreamSynchronize(stream_), "flush");
  }

  /// Ends what waits for peers, on this rank.
  void leave(int rank) {
    const std::lock_guard lock(mutex_);
    Member& own = members_[static_cast<std::size_t>(rank)];
    if (own.has_left) return;
    own.has_left = true;
    check(cudaStreamSynchronize(stream_), "an abort");
    for (const Posted& posted : own.posted) destroy(posted);
    own.posted.clear();
    std::atomic_ref<std::uint32_t>(*own.done).store(own.tickets);
    changed_.notify_all();
  }

  /// The group of the ranks of one color, and the rank in it; null where one has left.
  std::pair<std::shared_ptr<Clique>, int> split(int rank, int color, int key) {
    std::unique_lock lock(mutex_);
    Split& round = splits_[members_[static_cast<std::size_t>(rank)].splits++];
    round.requests[rank] = {color, key};
    changed_.notify_all();
    bool lost = false;
    changed_.wait(lock, [&] {
      lost = false;
      for (const Member& member : members_) lost = lost || member.has_left;
      return lost || round.requests.size() == members_.size();
    });
    if (round.requests.size() != members_.size() || color == NCCL_SPLIT_NOCOLOR) return {};
    std::map<std::pair<int, int>, int> places;  // (key, rank)
    for (const auto& [peer, request] : round.requests) {
      if (request.first == color) places[{request.second, peer}] = 0;
    }
    int place = 0;
    for (auto& [who, at] : places) at = place++;
    auto& child = round.children[color];
    if (child == nullptr) child = std::make_shared<Clique>(place);
    return {child, places[{key, rank}]};
  }

 private:
  struct Split {
    std::map<int, std::pair<int, int>> requests;  // color and key, by rank
    std::map<int, std::shared_ptr<Clique>> children;
  };

  static void destroy(const Posted& posted) {
    for (cudaEvent_t event : posted.ready) check(cudaEventDestroy(event), "cudaEventDestroy");
  }

  void work() {
    std::unique_lock lock(mutex_);
    while (!is_over_) {
      bool found = false;
      while (match_collective() || match_message()) found = true;
      if (found) {
        changed_.notify_all();
      } else {
        changed_.wait(lock);
      }
    }
  }

  // The rank's front group; null where it has none.
  Posted* front(std::size_t rank) {
    auto& posted = members_[rank].posted;
    return posted.empty() ? nullptr : &posted.front();
  }

  void await(Posted& posted) {
    if (std::exchange(posted.awaited, true)) return;
    for (cudaEvent_t event : posted.ready) {
      check(cudaStreamWaitEvent(stream_, event, 0), "cudaStreamWaitEvent");
    }
  }

  // So many calls of the rank's front group are with the device.
  void finish(std::size_t rank, std::size_t count) {
    Member& member = members_[rank];
    Posted& posted = member.posted.front();
    posted.left -= count;
    if (posted.left > 0) return;
    stream_writes(stream_, member.done, posted.ticket);
    destroy(posted);
    member.posted.pop_front();
  }

  bool match_collective() {
    std::vector<Call> calls;
    for (std::size_t r = 0; r < members_.size(); ++r) {
      const Posted* const posted = front(r);
      if (posted == nullptr || posted->collectives.empty()) return false;
      calls.push_back(posted->collectives.front());
      if (!calls[r].fits(calls[0])) die("a collective", "ranks made different calls");
    }
    for (std::size_t r = 0; r < members_.size(); ++r) await(*front(r));
    run(calls);
    for (std::size_t r = 0; r < members_.size(); ++r) {
      front(r)->collectives.pop_front();
      finish(r, 1);
    }
    return true;
  }

  bool match_message() {
    for (std::size_t from = 0; from < members_.size(); ++from) {
      Posted* const sender = front(from);
      if (sender == nullptr) continue;
      for (auto& [peer, sends] : sender->sends) {
        const auto to = static_cast<std::size_t>(peer);
        Posted* const receiver = front(to);
        if (sends.empty() || receiver == nullptr) continue;
        auto& receives = receiver->receives[static_cast<int>(from)];
        if (receives.empty()) continue;
        const Call send = sends.front();
        const Call receive = receives.front();
        if (send.count != receive.count || send.type != receive.type) {
          die("a message", "sender and receiver differ");
        }
        sends.pop_front();
        receives.pop_front();
        await(*sender);
        await(*receiver);
        copy(receive.receive, send.send, send.count * size_of(send.type));
        finish(to, from == to ? 2 : 1);
        if (from != to) finish(from, 1);
        return true;
      }
    }
    return false;
  }

  // By a kernel: copies of all streams share few engines, where those that wait are in the way.
  void copy(void* to, const void* from, std::size_t bytes) {
    if (to == from) return;
    Pointers pointers{};
    pointers.inputs = pointers.outputs = 1;
    pointers.in[0] = from;
    pointers.out[0] = to;
    if (!one_device::sum(stream_, ncclUint8, pointers, bytes)) die("a copy", "refused");
  }

  void add(const Call& call, const Pointers& pointers) {
    if (!one_device::sum(stream_, call.type, pointers, call.count)) die("a sum", "refused");
  }

  void run(const std::vector<Call>& calls) {
    const Call& first = calls[0];
    const std::size_t bytes = first.count * size_of(first.type);
    const auto root = static_cast<std::size_t>(first.peer);
    Pointers pointers{};
    pointers.inputs = size();
    switch (first.kind) {
      case Kind::gather:
        for (const Call& to : calls) {
          for (std::size_t r = 0; r < calls.size(); ++r) {
            copy(static_cast<std::byte*>(to.receive) + r * bytes, calls[r].send, bytes);
          }
        }
        return;
      case Kind::broadcast:
        for (const Call& to : calls) copy(to.receive, calls[root].send, bytes);
        return;
      case Kind::scatter:
        pointers.outputs = 1;
        for (std::size_t part = 0; part < calls.size(); ++part) {
          for (std::size_t r = 0; r < calls.size(); ++r) {
            pointers.in[r] = static_cast<const std::byte*>(calls[r].send) + part * bytes;
          }
          pointers.out[0] = calls[part].receive;
          add(first, pointers);
        }
        return;
      default:
        break;
    }
    for (std::size_t r = 0; r < calls.size(); ++r) pointers.in[r] = calls[r].send;
    if (first.kind == Kind::all_reduce) {
      for (const Call& to : calls) pointers.out[pointers.outputs++] = to.receive;
    } else {
      pointers.out[pointers.outputs++] = calls[root].receive;
    }
    add(first, pointers);
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<Member> members_;
  std::map<std::uint64_t, Split> splits_;
  std::uint32_t* words_ = nullptr;
  cudaStream_t stream_ = nullptr;
  bool is_over_ = false;
  std::thread worker_;
};

struct Group {
  int depth = 0;
  std::vector<std::pair<ncclComm_t, std::pair<Call, cudaStream_t>>> calls;
};
thread_local Group group;

}  // namespace

struct ncclComm {
  std::shared_ptr<Clique> clique;
  int rank;
  int device;
  bool blocking;
  std::atomic<bool> aborted{false};
  std::atomic<bool> is_ending{false};
};

namespace {

ncclComm_t make(std::shared_ptr<Clique> clique, int rank, bool blocking) {
  auto* const made = new ncclComm;
  made->clique = std::move(clique);
  made->rank = rank;
  made->device = current_device;
  made->blocking = blocking;
  return made;
}

ncclResult_t flush() {
  const auto calls = std::exchange(group.calls, {});
  std::vector<ncclComm_t> communicators;
  for (const auto& [communicator, call] : calls) {
    bool known = false;
    for (ncclComm_t other : communicators) known = known || other == communicator;
    if (!known) communicators.push_back(communicator);
  }
  for (ncclComm_t communicator : communicators) {
    std::vector<Call> own;
    std::vector<cudaStream_t> streams;
    for (const auto& [other, call] : calls) {
      if (other != communicator) continue;
      own.push_back(call.first);
      bool known = false;
      for (cudaStream_t stream : streams) known = known || stream == call.second;
      if (!known) streams.push_back(call.second);
    }
    communicator->clique->post(communicator->rank, own, streams);
  }
  return ncclSuccess;
}

ncclResult_t submit(ncclComm_t communicator, cudaStream_t stream, const Call& call) {
  if (communicator == nullptr || communicator->aborted.load()) return ncclInvalidUsage;
  group.calls.push_back({communicator, {call, stream}});
  return group.depth > 0 ? ncclSuccess : flush();
}

std::shared_ptr<Clique> join(const ncclUniqueId& id, int size) {
  static std::mutex mutex;
  static std::map<std::string, std::pair<std::shared_ptr<Clique>, int>> known;
  const std::lock_guard lock(mutex);
  auto& [clique, joined] = known[std::string(id.internal, sizeof id.internal)];
  if (clique == nullptr) clique = std::make_shared<Clique>(size);
  const std::shared_ptr<Clique> result = clique;
  if (++joined == size) known.erase(std::string(id.internal, sizeof id.internal));
  return result;
}

}  // namespace

extern "C" {

cudaError_t cudaGetDeviceCount(int* count) {
  const cudaError_t status = next<cudaError_t(int*)>("cudaGetDeviceCount")(count);
  if (status == cudaSuccess && *count > 0) *count = device_count();
  return status;
}
cudaError_t cudaSetDevice(int device) {
  const bool exists = device >= 0 && device < device_count();
  const cudaError_t status = next<cudaError_t(int)>("cudaSetDevice")(exists ? 0 : 1 << 20);
  if (status == cudaSuccess) current_device = device;
  return status;
}
cudaError_t cudaGetDevice(int* device) {
  const cudaError_t status = next<cudaError_t(int*)>("cudaGetDevice")(device);
  if (status == cudaSuccess) *device = current_device;
  return status;
}

// CUDA's own wait for everything that runs on the device, and with it for peers: these wait for the
// rank's own streams, as on a device of its own.
cudaError_t cudaMalloc(void** memory, std::size_t bytes) {
  const cudaError_t status = cudaMallocAsync(memory, bytes, memory_stream());
  return status == cudaSuccess ? cudaStreamSynchronize(memory_stream()) : status;
}
cudaError_t cudaFree(void* memory) {
  if (memory == nullptr) return cudaSuccess;
  for (cudaStream_t stream : streams().of_current()) {
    if (const cudaError_t failed = cudaStreamSynchronize(stream)) return failed;
  }
  return cudaFreeAsync(memory, memory_stream());
}
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags) {
  return streams().create(stream, current_device, flags, 0);
}
cudaError_t cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned flags, int priority) {
  return streams().create(stream, current_device, flags, priority);
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) { return streams().destroy(stream); }

// Memory that is mapped below reserved addresses is device 0's, too.
cudaError_t cudaDeviceCanAccessPeer(int* can, int, int) {
  *can = 0;
  return cudaSuccess;
}
cudaError_t cudaGetDriverEntryPointByVersion(const char* name, void** entry, unsigned version,
                                             unsigned long long flags,
                                             cudaDriverEntryPointQueryResult* found) {
  const cudaError_t status = driver_entry_point()(name, entry, version, flags, found);
  if (status != cudaSuccess || *entry == nullptr) return status;
  const auto replace = [&](auto& real, auto* wrapper) {
    real.store(reinterpret_cast<decltype(real.load())>(*entry));
    *entry = reinterpret_cast<void*>(wrapper);
  };
  if (std::strcmp(name, "cuMemGetAllocationGranularity") == 0) {
    replace(granularity, &granularity_of_device);
  } else if (std::strcmp(name, "cuMemCreate") == 0) {
    replace(create_memory, &create_on_device);
  } else if (std::strcmp(name, "cuMemSetAccess") == 0) {
    replace(set_access, &set_access_of_device);
  }
  return status;
}

cudaError_t cudaHostAlloc(void** memory, std::size_t bytes, unsigned flags) {
  return pinned().allocate(memory, bytes, flags);
}
cudaError_t cudaFreeHost(void* memory) {
  pinned().free(memory);
  return cudaSuccess;
}

// Copies of pageable memory wait for their stream with the driver's lock held, which peers need.
cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream) {
  using Copy = cudaError_t(void*, const void*, std::size_t, cudaMemcpyKind, cudaStream_t);
  static Copy* const copy = next<Copy>("cudaMemcpyAsync");
  const void* const host = kind == cudaMemcpyHostToDevice   ? from
                           : kind == cudaMemcpyDeviceToHost ? to
                                                            : nullptr;
  if (host != nullptr && bytes > 0) {
    cudaPointerAttributes attributes;
    if (cudaPointerGetAttributes(&attributes, host) == cudaSuccess &&
        attributes.type == cudaMemoryTypeUnregistered) {
      if (const cudaError_t failed = cudaStreamSynchronize(stream)) return failed;
    }
  }
  return copy(to, from, bytes, kind, stream);
}

ncclResult_t ncclGetVersion(int* version) {
  *version = NCCL_VERSION_CODE;
  return ncclSuccess;
}
ncclResult_t ncclGetUniqueId(ncclUniqueId* id) {
  static std::atomic<unsigned> made{0};
  std::memset(id, 0, sizeof *id);
  std::snprintf(id->internal, sizeof id->internal, "one device %u", made.fetch_add(1));
  return ncclSuccess;
}
const char* ncclGetErrorString(ncclResult_t result) {
  return result == ncclSuccess ? "no error" : "refused by the stand-in for one device";
}
const char* ncclGetLastError(ncclComm_t) { return ""; }

ncclResult_t ncclCommInitRankConfig(ncclComm_t* made, int size, ncclUniqueId id, int rank,
                                    ncclConfig_t* config) {
  if (size > most_ranks) return ncclInvalidArgument;
  const bool blocking = config == nullptr || config->blocking != 0;
  *made = make(join(id, size), rank, blocking);
  return ncclSuccess;
}
ncclResult_t ncclCommInitRank(ncclComm_t* made, int size, ncclUniqueId id, int rank) {
  return ncclCommInitRankConfig(made, size, id, rank, nullptr);
}
ncclResult_t ncclCommInitAll(ncclComm_t* made, int count, const int* devices) {
  ncclUniqueId id;
  ncclGetUniqueId(&id);
  const int before = current_device;
  for (int r = 0; r < count; ++r) {
    current_device = devices != nullptr ? devices[r] : r;
    ncclCommInitRank(made + r, count, id, r);
  }
  current_device = before;
  return ncclSuccess;
}
ncclResult_t ncclCommSplit(ncclComm_t whole, int color, int key, ncclComm_t* made,
                           ncclConfig_t* config) {
  const bool blocking = config == nullptr ? whole->blocking : config->blocking != 0;
  const auto run = [clique = whole->clique, rank = whole->rank, device = whole->device, color, key,
                    made, blocking] {
    current_device = device;
    auto [child, place] = clique->split(rank, color, key);
    if (child == nullptr) return;
    std::atomic_ref<ncclComm_t>(*made).store(make(std::move(child), place, blocking));
  };
  *made = nullptr;
  if (whole->blocking) {
    run();
  } else {
    std::thread(run).detach();
  }
  return ncclSuccess;
}

ncclResult_t ncclCommCount(const ncclComm_t communicator, int* count) {
  *count = communicator->clique->size();
  return ncclSuccess;
}
ncclResult_t ncclCommUserRank(const ncclComm_t communicator, int* rank) {
  *rank = communicator->rank;
  return ncclSuccess;
}
ncclResult_t ncclCommCuDevice(const ncclComm_t communicator, int* device) {
  *device = communicator->device;
  return ncclSuccess;
}
ncclResult_t ncclCommGetAsyncError(ncclComm_t communicator, ncclResult_t* error) {
  const bool waits =
      communicator->is_ending.load() && !communicator->clique->is_flushed(communicator->rank);
  *error = communicator->aborted.load() ? ncclInvalidUsage : waits ? ncclInProgress : ncclSuccess;
  return ncclSuccess;
}
ncclResult_t ncclCommFinalize(ncclComm_t communicator) {
  communicator->is_ending.store(true);
  if (!communicator->blocking) return ncclInProgress;
  communicator->clique->flush(communicator->rank);
  return ncclSuccess;
}
ncclResult_t ncclCommDestroy(ncclComm_t communicator) {
  communicator->clique->flush(communicator->rank);
  delete communicator;
  return ncclSuccess;
}
ncclResult_t ncclCommRevoke(ncclComm_t communicator, int) {
  communicator->aborted.store(true);
  communicator->clique->leave(communicator->rank);
  return ncclSuccess;
}
ncclResult_t ncclCommAbort(ncclComm_t communicator) {
  ncclCommRevoke(communicator, 0);
  delete communicator;
  return ncclSuccess;
}

ncclResult_t ncclMemAlloc(void** memory, std::size_t bytes) {
  return cudaMalloc(memory, bytes) == cudaSuccess ? ncclSuccess : ncclUnhandledCudaError;
}
ncclResult_t ncclMemFree(void* memory) {
  return cudaFree(memory) == cudaSuccess ? ncclSuccess : ncclUnhandledCudaError;
}
ncclResult_t ncclCommRegister(const ncclComm_t, void* buffer, std::size_t, void** handle) {
  *handle = buffer;
  return ncclSuccess;
}
ncclResult_t ncclCommDeregister(const ncclComm_t, void*) { return ncclSuccess; }
ncclResult_t ncclCommWindowRegister(ncclComm_t, void*, std::size_t, ncclWindow_t* window, int) {
  *window = nullptr;  // no symmetric memory
  return ncclSuccess;
}
ncclResult_t ncclCommWindowDeregister(ncclComm_t, ncclWindow_t) { return ncclSuccess; }

ncclResult_t ncclGroupStart() {
  ++group.depth;
  return ncclSuccess;
}
ncclResult_t ncclGroupEnd() { return --group.depth > 0 ? ncclSuccess : flush(); }

ncclResult_t ncclAllGather(const void* send, void* receive, std::size_t count, ncclDataType_t type,
                           ncclComm_t communicator, cudaStream_t stream) {
  return submit(communicator, stream, {Kind::gather, send, receive, count, type, 0});
}
ncclResult_t ncclReduceScatter(const void* send, void* receive, std::size_t count,
                               ncclDataType_t type, ncclRedOp_t op, ncclComm_t communicator,
                               cudaStream_t stream) {
  if (op != ncclSum) return ncclInvalidArgument;
  return submit(communicator, stream, {Kind::scatter, send, receive, count, type, 0});
}
ncclResult_t ncclAllReduce(const void* send, void* receive, std::size_t count, ncclDataType_t type,
                           ncclRedOp_t op, ncclComm_t communicator, cudaStream_t stream) {
  if (op != ncclSum) return ncclInvalidArgument;
  return submit(communicator, stream, {Kind::all_reduce, send, receive, count, type, 0});
}
ncclResult_t ncclReduce(const void* send, void* receive, std::size_t count, ncclDataType_t type,
                        ncclRedOp_t op, int root, ncclComm_t communicator, cudaStream_t stream) {
  if (op != ncclSum) return ncclInvalidArgument;
  return submit(communicator, stream, {Kind::reduce, send, receive, count, type, root});
}
ncclResult_t ncclBroadcast(const void* send, void* receive, std::size_t count, ncclDataType_t type,
                           int root, ncclComm_t communicator, cudaStream_t stream) {
  return submit(communicator, stream, {Kind::broadcast, send, receive, count, type, root});
}
ncclResult_t ncclSend(const void* send, std::size_t count, ncclDataType_t type, int peer,
                      ncclComm_t communicator, cudaStream_t stream) {
  return submit(communicator, stream, {Kind::send, send, nullptr, count, type, peer});
}
ncclResult_t ncclRecv(void* receive, std::size_t count, ncclDataType_t type, int peer,
                      ncclComm_t communicator, cudaStream_t stream) {
  return submit(communicator, stream, {Kind::receive, nullptr, receive, count, type, peer});
}

}  // extern "C"
