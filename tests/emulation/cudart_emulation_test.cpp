// What the emulation adds to the runtime: modelled time, counts, faults on request. On a device
// these tests are skipped.

#include <catch2/catch_test_macros.hpp>
#include <cstring>
#include <string>
#include <vector>

#include "control.hpp"
#include "plain_cuda.hpp"

using plain::DeviceArray;
using plain::Event;
using plain::PinnedArray;
using plain::Stream;
namespace control = emulation_control;

namespace {

#define ON_THE_EMULATION_ONLY() \
  if (plain::device_count() < 2 || !shardwise_emulation_present()) SKIP("not the emulation")

/// An option for the time of a test.
class Option {
 public:
  Option(const char* name, const char* value) : name_(name) { control::set_option(name, value); }
  ~Option() { control::set_option(name_, nullptr); }
  Option(const Option&) = delete;
  Option& operator=(const Option&) = delete;

 private:
  const char* name_;
};

/// Work of so many microseconds and nothing else.
void work(cudaStream_t stream, double microseconds) {
  PLAIN_CUDA(cudaLaunchHostFunc(
      stream,
      [](void* argument) {
        auto* const time = static_cast<double*>(argument);
        control::spend(*time);
        delete time;
      },
      new double(microseconds)));
}

void order(cudaStream_t before, cudaStream_t after) {
  const Event event;
  PLAIN_CUDA(cudaEventRecord(event, before));
  PLAIN_CUDA(cudaStreamWaitEvent(after, event, 0));
}

/// Modelled time of a loop over layers that fetches each before it computes, or one layer ahead.
double fetch_and_compute(bool ahead) {
  const Stream fetch;
  const Stream compute;
  const Event begin(cudaEventDefault);
  const Event end(cudaEventDefault);
  PLAIN_CUDA(cudaEventRecord(begin, compute));
  order(compute, fetch);
  constexpr int layers = 5;
  for (int layer = 0; layer < layers; ++layer) {
    if (!ahead) order(compute, fetch);
    work(fetch, 30);
    order(fetch, compute);
    work(compute, 40);
  }
  PLAIN_CUDA(cudaEventRecord(end, compute));
  PLAIN_CUDA(cudaEventSynchronize(end));
  float milliseconds = 0;
  PLAIN_CUDA(cudaEventElapsedTime(&milliseconds, begin, end));
  return static_cast<double>(milliseconds) * 1000;
}

bool near(double a, double b) { return a > b - 0.5 && a < b + 0.5; }

struct Store {
  float* to;
  float value;
  void operator()(std::size_t i) const { to[i] = value; }
};

}  // namespace

TEST_CASE("modelled time shows what overlaps, the same in every run") {
  ON_THE_EMULATION_ONLY();
  const Option free_calls("kernel_us", "0");
  CHECK(near(fetch_and_compute(false), 5 * (30 + 40)));
  CHECK(near(fetch_and_compute(true), 30 + 5 * 40));
  const Option jitter("jitter_us", "200");
  CHECK(near(fetch_and_compute(true), 30 + 5 * 40));
}

TEST_CASE("what the host waited for delays what it enqueues then") {
  ON_THE_EMULATION_ONLY();
  const Option free_calls("kernel_us", "0");
  const Stream first;
  const Stream second;
  work(second, 0);
  work(first, 100);
  const double before = control::host_time();
  first.synchronize();
  CHECK(control::host_time() >= before + 100);
  work(second, 10);
  second.synchronize();
  CHECK(near(control::virtual_time(second), control::virtual_time(first) + 10));
  SECTION("also when it polled") {
    work(first, 50);
    while (cudaStreamQuery(first) == cudaErrorNotReady) {
    }
    CHECK(near(control::host_time(), control::virtual_time(first)));
  }
}

TEST_CASE("copies, fills and kernels take time by their size") {
  ON_THE_EMULATION_ONLY();
  const Option kernel("kernel_us", "3");
  const Option threads("threads_per_us", "256");
  const Option copies("copy_bytes_per_us", "100");
  const Option memory("memory_bytes_per_us", "400");
  const Stream stream;
  const DeviceArray<float> a(1000);
  const DeviceArray<float> b(1000);
  const PinnedArray<float> host(1000);
  std::memset(host.data, 0, host.bytes());
  auto takes = [&, last = 0.0](double microseconds) mutable {
    stream.synchronize();
    const double now = control::virtual_time(stream);
    const bool result = near(now - last, microseconds);
    last = now;
    return result;
  };
  work(stream, 0);
  (void)takes(0);
  PLAIN_CUDA(cudaMemcpyAsync(a.data, host.data, 4000, cudaMemcpyHostToDevice, stream));
  CHECK(takes(40));
  PLAIN_CUDA(cudaMemcpyAsync(b.data, a.data, 4000, cudaMemcpyDeviceToDevice, stream));
  CHECK(takes(10));
  PLAIN_CUDA(cudaMemsetAsync(b.data, 0, 4000, stream));
  CHECK(takes(10));
  PLAIN_CUDA(control::launch(stream, "store", 1000, Store{a.data, 1}));
  CHECK(takes(3 + 1024.0 / 256));
}

TEST_CASE("memory in use is counted in the order of calls") {
  ON_THE_EMULATION_ONLY();
  const Stream stream;
  const std::size_t used = control::used_bytes(0);
  control::reset();
  void* first = nullptr;
  void* second = nullptr;
  PLAIN_CUDA(cudaMallocAsync(&first, 1000, stream));
  PLAIN_CUDA(cudaFreeAsync(first, stream));
  PLAIN_CUDA(cudaMallocAsync(&second, 300, stream));
  CHECK(control::used_bytes(0) == used + 512);
  CHECK(control::peak_bytes(0) == used + 1024);
  PLAIN_CUDA(cudaFreeAsync(second, stream));
  CHECK(control::used_bytes(0) == used);
  stream.synchronize();
}

TEST_CASE("a call fails on request, once") {
  ON_THE_EMULATION_ONLY();
  const Option fault("fail", "cudaMalloc:2:2");
  void* first = nullptr;
  void* second = nullptr;
  CHECK(cudaMalloc(&first, 64) == cudaSuccess);
  CHECK(cudaMalloc(&second, 64) == cudaErrorMemoryAllocation);
  CHECK(cudaGetLastError() == cudaErrorMemoryAllocation);
  CHECK(cudaMalloc(&second, 64) == cudaSuccess);
  CHECK(cudaFree(first) == cudaSuccess);
  CHECK(cudaFree(second) == cudaSuccess);
}

TEST_CASE("a kernel that fails breaks its device, and no other") {
  ON_THE_EMULATION_ONLY();
  const Stream stream;
  const DeviceArray<float> memory(10);
  PinnedArray<float> host(10);
  {
    const Option fault("fail_task", "kernel:1:719");
    CHECK(control::launch(stream, "store", 10, Store{memory.data, 1}) == cudaSuccess);
    CHECK(cudaStreamSynchronize(stream) == cudaErrorLaunchFailure);
  }
  CHECK(cudaMemsetAsync(memory.data, 0, 40, stream) == cudaErrorLaunchFailure);
  CHECK(cudaDeviceSynchronize() == cudaErrorLaunchFailure);
  PLAIN_CUDA(cudaSetDevice(1));
  CHECK(cudaDeviceSynchronize() == cudaSuccess);
  PLAIN_CUDA(cudaSetDevice(0));
  control::reset();
  (void)cudaGetLastError();
  PLAIN_CUDA(cudaMemcpyAsync(host.data, memory.data, 40, cudaMemcpyDeviceToHost, stream));
  stream.synchronize();
  CHECK(host[0] != 1);  // it did not run
}

TEST_CASE("use of the default stream and of pageable memory is counted on request") {
  ON_THE_EMULATION_ONLY();
  const Stream stream;
  const DeviceArray<float> memory(10);
  std::vector<float> pageable(10);
  control::reset();
  PLAIN_CUDA(cudaMemset(memory.data, 0, 40));
  PLAIN_CUDA(cudaMemcpyAsync(memory.data, pageable.data(), 40, cudaMemcpyHostToDevice, stream));
  stream.synchronize();
  CHECK(control::errors() == 0);
  const Option legacy("legacy_stream", "error");
  const Option strict("pageable", "error");
  PLAIN_CUDA(cudaMemset(memory.data, 0, 40));
  CHECK(control::errors() == 1);
  PLAIN_CUDA(cudaMemcpyAsync(memory.data, pageable.data(), 40, cudaMemcpyHostToDevice, stream));
  stream.synchronize();
  CHECK(control::errors() == 2);
  control::reset();
}

TEST_CASE("a wait for an event that was never recorded is noted once") {
  ON_THE_EMULATION_ONLY();
  const Stream stream;
  const Event event;
  control::reset();
  PLAIN_CUDA(cudaStreamWaitEvent(stream, event, 0));
  PLAIN_CUDA(cudaStreamWaitEvent(stream, event, 0));
  CHECK(control::notes() == 1);
  CHECK(control::errors() == 0);
}

TEST_CASE("an event and a stream of two devices do not go together") {
  ON_THE_EMULATION_ONLY();
  const Stream stream;
  const DeviceArray<float> memory(10);
  PLAIN_CUDA(cudaSetDevice(1));
  {
    const Event event;
    CHECK(cudaEventRecord(event, stream) == cudaErrorInvalidResourceHandle);
    CHECK(control::launch(stream, "store", 10, Store{memory.data, 1}) ==
          cudaErrorInvalidResourceHandle);
  }
  PLAIN_CUDA(cudaSetDevice(0));
  (void)cudaGetLastError();
}

TEST_CASE("a kernel's functor is copied at the launch") {
  ON_THE_EMULATION_ONLY();
  const Stream stream;
  const DeviceArray<float> memory(100);
  const PinnedArray<float> host(100);
  Store store{memory.data, 4};
  const Option late("jitter_us", "300");
  PLAIN_CUDA(control::launch(stream, "store", 100, store));
  store = {nullptr, 0};
  PLAIN_CUDA(cudaMemcpyAsync(host.data, memory.data, 400, cudaMemcpyDeviceToHost, stream));
  stream.synchronize();
  CHECK(host[99] == 4);
}

TEST_CASE("a number that looks like an address is none") {
  ON_THE_EMULATION_ONLY();
  struct Numbers {
    float* to;
    std::uint64_t odd[4];
    double real;
    void operator()(std::size_t i) const {
      to[i] = static_cast<float>(odd[3] % 7) + 0 * static_cast<float>(real);
    }
  };
  const Stream stream;
  const DeviceArray<float> memory(100);
  const Numbers numbers{memory.data, {1, ~std::uint64_t{0}, 0x3f800000, 0x00017fff00000000}, 1.5};
  PLAIN_CUDA(control::launch(stream, "numbers", 100, numbers));
  stream.synchronize();
  // one past the end is no use of the memory behind
  PLAIN_CUDA(control::launch(stream, "nothing", 0, Store{memory.data + 100, 1}));
  stream.synchronize();
}

TEST_CASE("a kernel that nobody registered is unknown") {
  ON_THE_EMULATION_ONLY();
  static int stub = 0;
  CHECK(cudaLaunchKernel(&stub, dim3(1), dim3(1), nullptr, 0, nullptr) ==
        cudaErrorInvalidDeviceFunction);
  (void)cudaGetLastError();
}
