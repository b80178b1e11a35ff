// What the CUDA runtime promises, as plain programs: they hold on a device and on the emulation.

#include <atomic>
#include <catch2/catch_test_macros.hpp>
#include <chrono>
#include <cstring>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "plain_cuda.hpp"

using plain::DeviceArray;
using plain::Event;
using plain::PinnedArray;
using plain::Stream;

namespace {

/// Holds a stream up until the test opens it.
struct Gate {
  std::atomic<bool> is_open{false};
  void close_in(cudaStream_t stream) {
    PLAIN_CUDA(cudaLaunchHostFunc(
        stream,
        [](void* gate) {
          while (!static_cast<Gate*>(gate)->is_open) {
            std::this_thread::sleep_for(std::chrono::microseconds(50));
          }
        },
        this));
  }
  ~Gate() { is_open = true; }
};

PinnedArray<int> numbers(std::size_t count, int first) {
  PinnedArray<int> result(count);
  for (std::size_t i = 0; i < count; ++i) result[i] = first + static_cast<int>(i);
  return result;
}

bool holds(const PinnedArray<int>& values, int first) {
  for (std::size_t i = 0; i < values.count; ++i) {
    if (values[i] != first + static_cast<int>(i)) return false;
  }
  return true;
}

constexpr auto to_device = cudaMemcpyHostToDevice;
constexpr auto to_host = cudaMemcpyDeviceToHost;
constexpr auto on_device = cudaMemcpyDeviceToDevice;

}  // namespace

TEST_CASE("a thread's current device is its own") {
  const int count = plain::device_count();
  REQUIRE(count >= 1);
  REQUIRE(cudaSetDevice(count - 1) == cudaSuccess);
  int elsewhere = -1;
  std::thread([&] { PLAIN_CUDA(cudaGetDevice(&elsewhere)); }).join();
  CHECK(elsewhere == 0);
  int here = -1;
  REQUIRE(cudaGetDevice(&here) == cudaSuccess);
  CHECK(here == count - 1);
  REQUIRE(cudaSetDevice(0) == cudaSuccess);
}

TEST_CASE("a failure is returned, kept for the thread and forgotten once asked for") {
  CHECK(cudaSetDevice(plain::device_count()) == cudaErrorInvalidDevice);
  CHECK(cudaPeekAtLastError() == cudaErrorInvalidDevice);
  cudaError_t elsewhere = cudaErrorUnknown;
  std::thread([&] { elsewhere = cudaPeekAtLastError(); }).join();
  CHECK(elsewhere == cudaSuccess);
  CHECK(cudaGetLastError() == cudaErrorInvalidDevice);
  CHECK(cudaGetLastError() == cudaSuccess);
}

TEST_CASE("statuses have names and texts") {
  CHECK(std::string(cudaGetErrorName(cudaErrorMemoryAllocation)) == "cudaErrorMemoryAllocation");
  CHECK(std::string(cudaGetErrorString(cudaErrorMemoryAllocation)) == "out of memory");
  CHECK(std::string(cudaGetErrorString(cudaSuccess)) == "no error");
  CHECK(std::string(cudaGetErrorString(cudaErrorInvalidValue)) == "invalid argument");
  CHECK(std::string(cudaGetErrorName(static_cast<cudaError_t>(1001))) == "unrecognized error code");
}

TEST_CASE("devices say what they are") {
  cudaDeviceProp properties;
  REQUIRE(cudaGetDeviceProperties(&properties, 0) == cudaSuccess);
  int value = 0;
  REQUIRE(cudaDeviceGetAttribute(&value, cudaDevAttrComputeCapabilityMajor, 0) == cudaSuccess);
  CHECK(value == properties.major);
  REQUIRE(cudaDeviceGetAttribute(&value, cudaDevAttrWarpSize, 0) == cudaSuccess);
  CHECK(value == 32);
  REQUIRE(cudaDeviceGetAttribute(&value, cudaDevAttrMemoryPoolsSupported, 0) == cudaSuccess);
  CHECK(value == 1);
  CHECK(cudaDeviceGetAttribute(&value, cudaDevAttrWarpSize, -1) == cudaErrorInvalidDevice);
  CHECK(cudaGetLastError() == cudaErrorInvalidDevice);
}

TEST_CASE("streams have flags, a priority within the range, a device") {
  int least = 0;
  int greatest = 0;
  REQUIRE(cudaDeviceGetStreamPriorityRange(&least, &greatest) == cudaSuccess);
  CHECK(greatest <= least);
  cudaStream_t stream = nullptr;
  REQUIRE(cudaStreamCreateWithPriority(&stream, cudaStreamNonBlocking, greatest - 100) ==
          cudaSuccess);
  int priority = 1;
  CHECK(cudaStreamGetPriority(stream, &priority) == cudaSuccess);
  CHECK(priority == greatest);
  unsigned flags = 0;
  CHECK(cudaStreamGetFlags(stream, &flags) == cudaSuccess);
  CHECK(flags == cudaStreamNonBlocking);
  int device = -1;
  CHECK(cudaStreamGetDevice(stream, &device) == cudaSuccess);
  CHECK(device == 0);
  unsigned long long id = 0;
  unsigned long long other_id = 0;
  const Stream other;
  CHECK(cudaStreamGetId(stream, &id) == cudaSuccess);
  CHECK(cudaStreamGetId(other, &other_id) == cudaSuccess);
  CHECK(id != other_id);
  CHECK(cudaStreamDestroy(stream) == cudaSuccess);
}

TEST_CASE("copies and fills of a stream run in order") {
  const Stream stream;
  const PinnedArray<int> in = numbers(1000, 7);
  const PinnedArray<int> out(1000);
  const DeviceArray<int> a(1000);
  const DeviceArray<int> b(1000);
  REQUIRE(cudaMemsetAsync(a.data, 0, a.bytes(), stream) == cudaSuccess);
  REQUIRE(cudaMemcpyAsync(a.data, in.data, a.bytes(), to_device, stream) == cudaSuccess);
  REQUIRE(cudaMemcpyAsync(b.data, a.data, a.bytes(), on_device, stream) == cudaSuccess);
  REQUIRE(cudaMemsetAsync(a.data, 0, a.bytes(), stream) == cudaSuccess);
  REQUIRE(cudaMemcpyAsync(out.data, b.data, a.bytes(), to_host, stream) == cudaSuccess);
  stream.synchronize();
  CHECK(holds(out, 7));
  SECTION("the kind follows from the pointers") {
    REQUIRE(cudaMemcpyAsync(b.data, in.data, a.bytes(), cudaMemcpyDefault, stream) == cudaSuccess);
    REQUIRE(cudaMemcpyAsync(a.data, b.data, a.bytes(), cudaMemcpyDefault, stream) == cudaSuccess);
    REQUIRE(cudaMemcpyAsync(out.data, a.data, a.bytes(), cudaMemcpyDefault, stream) == cudaSuccess);
    stream.synchronize();
    CHECK(holds(out, 7));
  }
  SECTION("a part, and rows") {
    REQUIRE(cudaMemsetAsync(a.data, 0, a.bytes(), stream) == cudaSuccess);
    REQUIRE(cudaMemcpyAsync(a.data + 10, in.data, 5 * sizeof(int), to_device, stream) ==
            cudaSuccess);
    // rows of 2 ints out of rows of 10
    REQUIRE(cudaMemcpy2DAsync(out.data, 2 * sizeof(int), a.data, 10 * sizeof(int), 2 * sizeof(int),
                              2, to_host, stream) == cudaSuccess);
    stream.synchronize();
    CHECK(out[0] == 0);
    CHECK(out[1] == 0);
    CHECK(out[2] == 7);
    CHECK(out[3] == 8);
  }
  SECTION("a batch") {
    void* to[] = {a.data, a.data + 500};
    const void* from[] = {in.data, in.data + 500};
    const std::size_t bytes[] = {500 * sizeof(int), 500 * sizeof(int)};
    cudaMemcpyAttributes attributes = {};
    attributes.srcAccessOrder = cudaMemcpySrcAccessOrderStream;
    std::size_t first = 0;
    REQUIRE(cudaMemcpyBatchAsync(to, from, bytes, 2, &attributes, &first, 1, stream) ==
            cudaSuccess);
    REQUIRE(cudaMemcpyAsync(out.data, a.data, a.bytes(), to_host, stream) == cudaSuccess);
    stream.synchronize();
    CHECK(holds(out, 7));
  }
}

TEST_CASE("copies without a stream wait for the host") {
  std::vector<int> in(100, 5);
  std::vector<int> out(100);
  const DeviceArray<int> memory(100);
  REQUIRE(cudaMemcpy(memory.data, in.data(), memory.bytes(), to_device) == cudaSuccess);
  REQUIRE(cudaMemcpy(out.data(), memory.data, memory.bytes(), to_host) == cudaSuccess);
  CHECK(out == in);
  REQUIRE(cudaMemset(memory.data, 0, memory.bytes()) == cudaSuccess);
  REQUIRE(cudaMemcpy(out.data(), memory.data, memory.bytes(), to_host) == cudaSuccess);
  CHECK(out == std::vector<int>(100));
}

TEST_CASE("what makes no sense is refused") {
  const Stream stream;
  const DeviceArray<int> memory(10);
  const PinnedArray<int> host(10);
  CHECK(cudaMemcpyAsync(memory.data, host.data, 4, static_cast<cudaMemcpyKind>(7), stream) ==
        cudaErrorInvalidMemcpyDirection);
  CHECK(cudaMemcpyAsync(memory.data, host.data, 0, to_device, stream) == cudaSuccess);
  CHECK(cudaMemcpyAsync(nullptr, host.data, 4, to_device, stream) == cudaErrorInvalidValue);
  cudaEvent_t event = nullptr;
  CHECK(cudaEventCreateWithFlags(&event, 0x100) == cudaErrorInvalidValue);
  (void)cudaGetLastError();
}

TEST_CASE("an event orders two streams") {
  const Stream first;
  const Stream second;
  const Event event;
  const PinnedArray<int> in = numbers(1 << 16, 1);
  const PinnedArray<int> out(in.count);
  const DeviceArray<int> memory(in.count);
  Gate gate;
  gate.close_in(first);
  REQUIRE(cudaMemcpyAsync(memory.data, in.data, in.bytes(), to_device, first) == cudaSuccess);
  REQUIRE(cudaEventRecord(event, first) == cudaSuccess);
  REQUIRE(cudaStreamWaitEvent(second, event, 0) == cudaSuccess);
  REQUIRE(cudaMemcpyAsync(out.data, memory.data, in.bytes(), to_host, second) == cudaSuccess);
  CHECK(cudaEventQuery(event) == cudaErrorNotReady);
  CHECK(cudaStreamQuery(second) == cudaErrorNotReady);
  gate.is_open = true;
  second.synchronize();
  CHECK(holds(out, 1));
  CHECK(cudaEventQuery(event) == cudaSuccess);
  CHECK(cudaStreamQuery(second) == cudaSuccess);
  CHECK(cudaPeekAtLastError() == cudaSuccess);  // not ready is no failure
}

TEST_CASE("a wait binds to the record before it, not to a later one") {
  const Stream first;
  const Stream second;
  const Event event;
  Gate gate;
  REQUIRE(cudaEventRecord(event, first) == cudaSuccess);
  REQUIRE(cudaStreamWaitEvent(second, event, 0) == cudaSuccess);
  gate.close_in(first);
  REQUIRE(cudaEventRecord(event, first) == cudaSuccess);
  second.synchronize();  // does not wait for the gate
  CHECK(cudaEventQuery(event) == cudaErrorNotReady);
  gate.is_open = true;
  CHECK(cudaEventSynchronize(event) == cudaSuccess);
  CHECK(cudaEventQuery(event) == cudaSuccess);
}

TEST_CASE("a wait outlives its event") {
  const Stream first;
  const Stream second;
  Gate gate;
  gate.close_in(first);
  std::atomic<bool> is_done{false};
  const auto mark = [](void* flag) { *static_cast<std::atomic<bool>*>(flag) = true; };
  REQUIRE(cudaLaunchHostFunc(first, mark, &is_done) == cudaSuccess);
  {
    const Event event;
    REQUIRE(cudaEventRecord(event, first) == cudaSuccess);
    REQUIRE(cudaStreamWaitEvent(second, event, 0) == cudaSuccess);
  }
  CHECK(cudaStreamQuery(second) == cudaErrorNotReady);
  gate.is_open = true;
  second.synchronize();
  CHECK(is_done);
}

TEST_CASE("an event that was never recorded is reached") {
  const Stream stream;
  const Event event;
  CHECK(cudaEventQuery(event) == cudaSuccess);
  CHECK(cudaEventSynchronize(event) == cudaSuccess);
  CHECK(cudaStreamWaitEvent(stream, event, 0) == cudaSuccess);
  stream.synchronize();
}

TEST_CASE("time passes between timed events alone") {
  const Stream stream;
  const Event begin(cudaEventDefault);
  const Event end(cudaEventDefault);
  const Event untimed;
  const DeviceArray<char> memory(1 << 20);
  float milliseconds = -1;
  CHECK(cudaEventElapsedTime(&milliseconds, begin, end) == cudaErrorInvalidResourceHandle);
  REQUIRE(cudaEventRecord(begin, stream) == cudaSuccess);
  REQUIRE(cudaMemsetAsync(memory.data, 1, memory.bytes(), stream) == cudaSuccess);
  REQUIRE(cudaEventRecord(end, stream) == cudaSuccess);
  REQUIRE(cudaEventRecord(untimed, stream) == cudaSuccess);
  stream.synchronize();
  CHECK(cudaEventElapsedTime(&milliseconds, begin, end) == cudaSuccess);
  CHECK(milliseconds > 0);
  CHECK(cudaEventElapsedTime(&milliseconds, begin, untimed) == cudaErrorInvalidResourceHandle);
  (void)cudaGetLastError();
}

TEST_CASE("host functions run in order, after what was enqueued before them") {
  const Stream stream;
  const PinnedArray<int> in = numbers(64, 3);
  const PinnedArray<int> out(64);
  const DeviceArray<int> memory(64);
  struct Seen {
    const PinnedArray<int>* values;
    std::vector<bool> was;
  } seen{&out, {}};
  const auto look = [](void* argument) {
    auto* const s = static_cast<Seen*>(argument);
    s->was.push_back(holds(*s->values, 3));
  };
  std::memset(out.data, 0, out.bytes());
  REQUIRE(cudaLaunchHostFunc(stream, look, &seen) == cudaSuccess);
  REQUIRE(cudaMemcpyAsync(memory.data, in.data, in.bytes(), to_device, stream) == cudaSuccess);
  REQUIRE(cudaMemcpyAsync(out.data, memory.data, in.bytes(), to_host, stream) == cudaSuccess);
  REQUIRE(cudaLaunchHostFunc(stream, look, &seen) == cudaSuccess);
  stream.synchronize();
  CHECK(seen.was == std::vector<bool>{false, true});
}

TEST_CASE("a destroyed stream still runs what it was given") {
  static std::atomic<int> runs{0};
  runs = 0;
  Gate gate;
  {
    const Stream stream;
    gate.close_in(stream);
    REQUIRE(cudaLaunchHostFunc(
                stream, [](void*) { ++runs; }, nullptr) == cudaSuccess);
  }  // does not wait
  CHECK(runs == 0);
  gate.is_open = true;
  while (runs == 0) std::this_thread::yield();
}

TEST_CASE("the host can wait for all streams of a device") {
  std::atomic<int> runs{0};
  const auto count = [](void* counter) {
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
    ++*static_cast<std::atomic<int>*>(counter);
  };
  const Stream a;
  const Stream b;
  REQUIRE(cudaLaunchHostFunc(a, count, &runs) == cudaSuccess);
  REQUIRE(cudaLaunchHostFunc(b, count, &runs) == cudaSuccess);
  REQUIRE(cudaDeviceSynchronize() == cudaSuccess);
  CHECK(runs == 2);
}

TEST_CASE("stream-ordered memory can be used and freed in stream order") {
  const Stream first;
  const Stream second;
  const Event event;
  const PinnedArray<int> in = numbers(5000, -3);
  const PinnedArray<int> out(in.count);
  void* memory = nullptr;
  REQUIRE(cudaMallocAsync(&memory, in.bytes(), first) == cudaSuccess);
  REQUIRE(memory != nullptr);
  CHECK(reinterpret_cast<std::uintptr_t>(memory) % 256 == 0);
  REQUIRE(cudaMemcpyAsync(memory, in.data, in.bytes(), to_device, first) == cudaSuccess);
  REQUIRE(cudaEventRecord(event, first) == cudaSuccess);
  REQUIRE(cudaStreamWaitEvent(second, event, 0) == cudaSuccess);
  REQUIRE(cudaMemcpyAsync(out.data, memory, in.bytes(), to_host, second) == cudaSuccess);
  REQUIRE(cudaFreeAsync(memory, second) == cudaSuccess);
  second.synchronize();
  CHECK(holds(out, -3));
}

TEST_CASE("memory that is not there is refused") {
  std::size_t free = 0;
  std::size_t total = 0;
  REQUIRE(cudaMemGetInfo(&free, &total) == cudaSuccess);
  CHECK(free <= total);
  void* memory = &free;
  CHECK(cudaMalloc(&memory, total * 2) == cudaErrorMemoryAllocation);
  CHECK(memory == nullptr);
  CHECK(cudaGetLastError() == cudaErrorMemoryAllocation);
  CHECK(cudaMalloc(&memory, 0) == cudaSuccess);
  CHECK(memory == nullptr);
  CHECK(cudaFree(nullptr) == cudaSuccess);
  CHECK(cudaFreeHost(nullptr) == cudaSuccess);
}

TEST_CASE("pointers say what memory they are of") {
  const DeviceArray<int> memory(100);
  const PinnedArray<int> pinned(100);
  std::vector<int> pageable(100);
  cudaPointerAttributes attributes;
  REQUIRE(cudaPointerGetAttributes(&attributes, memory.data + 50) == cudaSuccess);
  CHECK(attributes.type == cudaMemoryTypeDevice);
  CHECK(attributes.device == 0);
  REQUIRE(cudaPointerGetAttributes(&attributes, pinned.data) == cudaSuccess);
  CHECK(attributes.type == cudaMemoryTypeHost);
  CHECK(attributes.hostPointer == pinned.data);
  REQUIRE(cudaPointerGetAttributes(&attributes, pageable.data()) == cudaSuccess);
  CHECK(attributes.type == cudaMemoryTypeUnregistered);
  SECTION("also of memory that was registered") {
    REQUIRE(cudaHostRegister(pageable.data(), 400, cudaHostRegisterDefault) == cudaSuccess);
    REQUIRE(cudaPointerGetAttributes(&attributes, pageable.data()) == cudaSuccess);
    CHECK(attributes.type == cudaMemoryTypeHost);
    CHECK(cudaHostRegister(pageable.data(), 400, cudaHostRegisterDefault) ==
          cudaErrorHostMemoryAlreadyRegistered);
    CHECK(cudaHostUnregister(pageable.data()) == cudaSuccess);
    CHECK(cudaHostUnregister(pageable.data()) == cudaErrorHostMemoryNotRegistered);
    (void)cudaGetLastError();
  }
}

TEST_CASE("the legacy stream and blocking streams wait for each other") {
  const Stream blocking(cudaStreamDefault);
  const Stream free_running(cudaStreamNonBlocking);
  const PinnedArray<int> in = numbers(1 << 14, 2);
  const PinnedArray<int> out(in.count);
  const DeviceArray<int> a(in.count);
  const DeviceArray<int> b(in.count);
  Gate gate;
  gate.close_in(blocking);
  REQUIRE(cudaMemcpyAsync(a.data, in.data, in.bytes(), to_device, blocking) == cudaSuccess);
  REQUIRE(cudaMemcpyAsync(b.data, a.data, in.bytes(), on_device, cudaStreamLegacy) == cudaSuccess);
  REQUIRE(cudaMemcpyAsync(out.data, b.data, in.bytes(), to_host, blocking) == cudaSuccess);
  free_running.synchronize();  // is not held up
  CHECK(cudaStreamQuery(cudaStreamLegacy) == cudaErrorNotReady);
  gate.is_open = true;
  blocking.synchronize();
  CHECK(holds(out, 2));
}

TEST_CASE("a blocking stream waits for the legacy stream, another does not") {
  const Stream blocking(cudaStreamDefault);
  const Stream free_running(cudaStreamNonBlocking);
  const DeviceArray<int> a(64);
  const DeviceArray<int> b(64);
  Gate gate;  // a host function: a device may run them one after the other, whatever their streams
  gate.close_in(cudaStreamLegacy);
  REQUIRE(cudaMemsetAsync(a.data, 0, a.bytes(), blocking) == cudaSuccess);
  REQUIRE(cudaMemsetAsync(b.data, 0, b.bytes(), free_running) == cudaSuccess);
  free_running.synchronize();
  std::this_thread::sleep_for(std::chrono::milliseconds(5));
  CHECK(cudaStreamQuery(blocking) == cudaErrorNotReady);
  gate.is_open = true;
  blocking.synchronize();
}

TEST_CASE("what is polled for has happened") {
  const Stream stream;
  const Event event;
  const PinnedArray<int> in = numbers(2000, 5);
  const PinnedArray<int> out(in.count);
  const DeviceArray<int> memory(in.count);
  REQUIRE(cudaMemcpyAsync(memory.data, in.data, in.bytes(), to_device, stream) == cudaSuccess);
  REQUIRE(cudaMemcpyAsync(out.data, memory.data, in.bytes(), to_host, stream) == cudaSuccess);
  REQUIRE(cudaEventRecord(event, stream) == cudaSuccess);
  SECTION("a stream") {
    while (cudaStreamQuery(stream) == cudaErrorNotReady) std::this_thread::yield();
    CHECK(holds(out, 5));
  }
  SECTION("an event") {
    while (cudaEventQuery(event) == cudaErrorNotReady) std::this_thread::yield();
    CHECK(holds(out, 5));
  }
}

TEST_CASE("streams of two devices are ordered by events") {
  if (plain::device_count() < 2) SKIP("one device");
  const PinnedArray<int> in = numbers(4096, 9);
  const PinnedArray<int> out(in.count);
  const Stream first;
  const Event event;
  const DeviceArray<int> memory(in.count);
  Gate gate;
  gate.close_in(first);
  REQUIRE(cudaMemcpyAsync(memory.data, in.data, in.bytes(), to_device, first) == cudaSuccess);
  REQUIRE(cudaEventRecord(event, first) == cudaSuccess);
  REQUIRE(cudaSetDevice(1) == cudaSuccess);
  {
    const Stream second;
    const DeviceArray<int> other(in.count);
    REQUIRE(cudaStreamWaitEvent(second, event, 0) == cudaSuccess);
    REQUIRE(cudaMemcpyPeerAsync(other.data, 1, memory.data, 0, in.bytes(), second) == cudaSuccess);
    REQUIRE(cudaMemcpyAsync(out.data, other.data, in.bytes(), to_host, second) == cudaSuccess);
    gate.is_open = true;
    second.synchronize();
  }
  CHECK(holds(out, 9));
  REQUIRE(cudaSetDevice(0) == cudaSuccess);
}

TEST_CASE("peer access is given once") {
  int can = 0;
  if (plain::device_count() < 2) SKIP("one device");
  REQUIRE(cudaDeviceCanAccessPeer(&can, 0, 1) == cudaSuccess);
  if (can == 0) SKIP("the devices have no peer access");
  CHECK(cudaDeviceEnablePeerAccess(1, 0) == cudaSuccess);
  CHECK(cudaDeviceEnablePeerAccess(1, 0) == cudaErrorPeerAccessAlreadyEnabled);
  CHECK(cudaDeviceDisablePeerAccess(1) == cudaSuccess);
  CHECK(cudaDeviceDisablePeerAccess(1) == cudaErrorPeerAccessNotEnabled);
  (void)cudaGetLastError();
}

TEST_CASE("host threads drive streams at once") {
  constexpr int threads = 4;
  std::vector<int> good(threads);
  std::vector<std::thread> running;
  for (int t = 0; t < threads; ++t) {
    running.emplace_back([t, &good] {
      PLAIN_CUDA(cudaSetDevice(t % plain::device_count()));
      const Stream stream;
      const PinnedArray<int> in = numbers(2000, t);
      const PinnedArray<int> out(in.count);
      int rounds = 0;
      for (int round = 0; round < 20; ++round) {
        void* memory = nullptr;
        PLAIN_CUDA(cudaMallocAsync(&memory, in.bytes(), stream));
        PLAIN_CUDA(cudaMemcpyAsync(memory, in.data, in.bytes(), to_device, stream));
        PLAIN_CUDA(cudaMemcpyAsync(out.data, memory, in.bytes(), to_host, stream));
        PLAIN_CUDA(cudaFreeAsync(memory, stream));
        stream.synchronize();
        rounds += holds(out, t) ? 1 : 0;
      }
      good[static_cast<std::size_t>(t)] = rounds;
    });
  }
  for (auto& thread : running) thread.join();
  CHECK(good == std::vector<int>(threads, 20));
}
