// Small programs on the CUDA runtime, each right or with one bug: cudart_cases NAME right|wrong.
// Status 0: the result is right; 5: it is wrong; anything else comes from the emulation or a
// sanitizer. cudart_negative_test.cpp runs them.

#include "cudart_cases.hpp"

#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <string_view>
#include <thread>
#include <vector>

#include "control.hpp"
#include "plain_cuda.hpp"

using plain::DeviceArray;
using plain::Event;
using plain::PinnedArray;
using plain::Stream;
using namespace cudart_cases;

namespace {

constexpr std::size_t bytes = count * sizeof(float);
constexpr auto to_device = cudaMemcpyHostToDevice;
constexpr auto to_host = cudaMemcpyDeviceToHost;
constexpr auto on_device = cudaMemcpyDeviceToDevice;

void order(cudaStream_t before, cudaStream_t after) {
  const Event event;
  PLAIN_CUDA(cudaEventRecord(event, before));
  PLAIN_CUDA(cudaStreamWaitEvent(after, event, 0));
}

struct Add {
  float* to;
  const float* from;
  void operator()(std::size_t i) const { to[i] += from[i]; }
};

float* allocate(cudaStream_t stream) {
  void* memory = nullptr;
  PLAIN_CUDA(cudaMallocAsync(&memory, bytes, stream));
  return static_cast<float*>(memory);
}

int is_all(const PinnedArray<float>& values, float value) {
  for (std::size_t i = 0; i < values.count; ++i) {
    if (values[i] != value) {
      std::printf("element %zu is %g instead of %g\n", i, static_cast<double>(values[i]),
                  static_cast<double>(value));
      return 5;
    }
  }
  return 0;
}

int check(cudaStream_t stream, const float* values, float value) {
  const PinnedArray<float> out(count);
  PLAIN_CUDA(cudaMemcpyAsync(out.data, values, bytes, to_host, stream));
  PLAIN_CUDA(cudaStreamSynchronize(stream));
  return is_all(out, value);
}

int missing_wait(bool wrong) {
  const Stream writer;
  const Stream reader;
  const DeviceArray<float> data(count);
  const DeviceArray<float> sum(count);
  fill(reader, sum.data, 1);
  delay(writer);
  fill(writer, data.data, 2);
  if (!wrong) order(writer, reader);
  PLAIN_CUDA(emulation_control::launch(reader, "add", count, Add{sum.data, data.data}));
  return check(reader, sum.data, 3);
}

// The next contents of a buffer arrive while it is still being read.
int overwritten_while_read(bool wrong) {
  const Stream writer;
  const Stream reader;
  const DeviceArray<float> slot(count);
  const DeviceArray<float> sum(count);
  fill(reader, sum.data, 1);
  fill(writer, slot.data, 2);
  order(writer, reader);
  delay(reader);
  PLAIN_CUDA(emulation_control::launch(reader, "add", count, Add{sum.data, slot.data}));
  if (!wrong) order(reader, writer);
  fill(writer, slot.data, 100);
  return check(reader, sum.data, 3);
}

int copy_without_wait(bool wrong) {
  const Stream writer;
  const Stream reader;
  const DeviceArray<float> data(count);
  const DeviceArray<float> copy(count);
  delay(writer);
  fill(writer, data.data, 2);
  if (!wrong) order(writer, reader);
  PLAIN_CUDA(cudaMemcpyAsync(copy.data, data.data, bytes, on_device, reader));
  return check(reader, copy.data, 2);
}

int host_reads_early(bool wrong) {
  const Stream stream;
  const DeviceArray<float> data(count);
  const PinnedArray<float> out(count);
  delay(stream);
  fill(stream, data.data, 2);
  PLAIN_CUDA(cudaMemcpyAsync(out.data, data.data, bytes, to_host, stream));
  if (!wrong) stream.synchronize();
  const int result = is_all(out, 2);
  stream.synchronize();
  return result;
}

int host_overwrites_source(bool wrong) {
  const Stream stream;
  const DeviceArray<float> data(count);
  const PinnedArray<float> in(count);
  for (std::size_t i = 0; i < count; ++i) in[i] = 2;
  delay(stream);
  PLAIN_CUDA(cudaMemcpyAsync(data.data, in.data, bytes, to_device, stream));
  if (!wrong) stream.synchronize();
  for (std::size_t i = 0; i < count; ++i) in[i] = 100;
  return check(stream, data.data, 2);
}

// The memory's allocation is an operation of the stream that it was made on.
int used_before_allocated(bool wrong) {
  const Stream first;
  const Stream second;
  delay(first);
  float* const data = allocate(first);
  if (!wrong) order(first, second);
  fill(second, data, 2);
  order(second, first);
  const int result = check(first, data, 2);
  PLAIN_CUDA(cudaFreeAsync(data, first));
  return result;
}

int free_on_wrong_stream(bool wrong) {
  const Stream first;
  const Stream second;
  const DeviceArray<float> sum(count);
  float* const data = allocate(first);
  fill(first, data, 2);
  order(first, second);
  fill(second, sum.data, 1);
  delay(second);
  PLAIN_CUDA(emulation_control::launch(second, "add", count, Add{sum.data, data}));
  PLAIN_CUDA(cudaFreeAsync(data, wrong ? first : second));
  return check(second, sum.data, 3);
}

// cudaFree of pool memory waits for nobody.
int pool_memory_freed_at_once(bool wrong) {
  const Stream stream;
  float* const data = allocate(stream);
  delay(stream);
  fill(stream, data, 2);
  if (!wrong) stream.synchronize();
  PLAIN_CUDA(cudaFree(data));
  stream.synchronize();
  return 0;
}

int pinned_memory_freed_early(bool wrong) {
  const Stream stream;
  const DeviceArray<float> data(count);
  {
    const PinnedArray<float> in(count);
    std::memset(in.data, 0, bytes);
    delay(stream);
    PLAIN_CUDA(cudaMemcpyAsync(data.data, in.data, bytes, to_device, stream));
    if (!wrong) stream.synchronize();
  }
  return check(stream, data.data, 0);
}

int never_written(bool wrong) {
  const Stream stream;
  const DeviceArray<float> data(count);
  if (!wrong) fill(stream, data.data, 0);
  const PinnedArray<float> out(count);
  PLAIN_CUDA(cudaMemcpyAsync(out.data, data.data, bytes, to_host, stream));
  stream.synchronize();
  return std::isnan(out[count / 2]) ? 5 : 0;
}

int kernel_gets_freed_memory(bool wrong) {
  const Stream stream;
  float* const data = allocate(stream);
  if (!wrong) fill(stream, data, 1);
  PLAIN_CUDA(cudaFreeAsync(data, stream));
  if (wrong) fill(stream, data, 1);
  stream.synchronize();
  return 0;
}

int kernel_gets_host_memory(bool wrong) {
  const Stream stream;
  std::vector<float> values(count, 1.0f);
  const PinnedArray<float> pinned(count);
  fill(stream, wrong ? values.data() : pinned.data, 2);
  stream.synchronize();
  return is_all(pinned, 2);
}

int kernel_gets_memory_of_another_device(bool wrong) {
  const Stream stream;
  PLAIN_CUDA(cudaSetDevice(1));
  const DeviceArray<float> data(count);
  PLAIN_CUDA(cudaSetDevice(0));
  if (!wrong) PLAIN_CUDA(cudaDeviceEnablePeerAccess(1, 0));
  fill(stream, data.data, 2);
  return check(stream, data.data, 2);
}

int copy_of_freed_memory(bool wrong) {
  const Stream stream;
  float* data = nullptr;
  {
    const DeviceArray<float> owner(count);
    data = owner.data;
    if (!wrong) PLAIN_CUDA(cudaMemsetAsync(data, 0, bytes, stream));
  }
  if (wrong) PLAIN_CUDA(cudaMemsetAsync(data, 0, bytes, stream));
  stream.synchronize();
  return 0;
}

int copy_overruns(bool wrong) {
  const Stream stream;
  const DeviceArray<float> data(count);
  PLAIN_CUDA(cudaMemsetAsync(data.data, 0, bytes + (wrong ? 4 : 0), stream));
  return check(stream, data.data, 0);
}

int copy_of_the_wrong_kind(bool wrong) {
  const Stream stream;
  const DeviceArray<float> data(count);
  const PinnedArray<float> in(count);
  std::memset(in.data, 0, bytes);
  PLAIN_CUDA(cudaMemcpyAsync(data.data, in.data, bytes, wrong ? to_host : to_device, stream));
  return check(stream, data.data, 0);
}

// Behind the last element, within the 256 bytes that an allocation is rounded up to.
int kernel_overruns(bool wrong) {
  const Stream stream;
  const DeviceArray<float> data(count);
  fill(stream, data.data, 2, count + (wrong ? 1 : 0));
  return check(stream, data.data, 2);
}

int kernel_overruns_far(bool wrong) {
  const Stream stream;
  const DeviceArray<float> data(count);
  fill(stream, data.data, 2, wrong ? 2 * count : count);
  return check(stream, data.data, 2);
}

int host_touches_device_memory(bool wrong) {
  const Stream stream;
  const DeviceArray<float> data(count);
  fill(stream, data.data, 2);
  stream.synchronize();
  if (wrong) return data[3] == 2.0f ? 0 : 5;
  return check(stream, data.data, 2);
}

// Each stream holds up what the other waits for.
int deadlock(bool wrong) {
  static std::atomic<bool> flag{false};
  const Stream first;
  const Stream second;
  if (!wrong) flag = true;
  const auto wait = [](void*) {
    while (!flag) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  };
  PLAIN_CUDA(cudaLaunchHostFunc(first, wait, nullptr));
  order(first, second);
  PLAIN_CUDA(cudaLaunchHostFunc(
      second, [](void*) { flag = true; }, nullptr));
  second.synchronize();
  return 0;
}

int freed_twice(bool wrong) {
  void* memory = nullptr;
  PLAIN_CUDA(cudaMalloc(&memory, bytes));
  PLAIN_CUDA(cudaFree(memory));
  if (wrong && cudaFree(memory) != cudaErrorInvalidValue) return 5;
  return 0;
}

int stream_used_after_destroyed(bool wrong) {
  cudaStream_t stream = nullptr;
  PLAIN_CUDA(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  if (!wrong) PLAIN_CUDA(cudaStreamSynchronize(stream));
  PLAIN_CUDA(cudaStreamDestroy(stream));
  if (wrong && cudaStreamSynchronize(stream) != cudaErrorInvalidResourceHandle) return 5;
  return 0;
}

int wait_for_unrecorded_event(bool wrong) {
  const Stream first;
  const Stream second;
  const Event event;
  if (!wrong) PLAIN_CUDA(cudaEventRecord(event, first));
  PLAIN_CUDA(cudaStreamWaitEvent(second, event, 0));
  return 0;
}

int default_stream(bool wrong) {
  const Stream stream;
  const DeviceArray<float> data(count);
  PLAIN_CUDA(cudaMemsetAsync(data.data, 0, bytes, wrong ? nullptr : stream.handle));
  stream.synchronize();
  return 0;
}

int pageable_copy(bool wrong) {
  const Stream stream;
  const DeviceArray<float> data(count);
  std::vector<float> pageable(count);
  const PinnedArray<float> pinned(count);
  std::memset(pinned.data, 0, bytes);
  PLAIN_CUDA(
      cudaMemcpyAsync(data.data, wrong ? pageable.data() : pinned.data, bytes, to_device, stream));
  stream.synchronize();
  return 0;
}

int leak(bool wrong) {
  void* memory = nullptr;
  PLAIN_CUDA(cudaMalloc(&memory, bytes));
  if (!wrong) PLAIN_CUDA(cudaFree(memory));
  return 0;
}

// On a machine without devices.
int no_device(bool) {
  int devices = -1;
  cudaStream_t stream = nullptr;
  void* memory = nullptr;
  const bool is_told = cudaGetDeviceCount(&devices) == cudaErrorNoDevice && devices == 0 &&
                       cudaSetDevice(0) == cudaErrorNoDevice &&
                       cudaStreamCreateWithFlags(&stream, 0) == cudaErrorNoDevice &&
                       cudaMalloc(&memory, bytes) == cudaErrorNoDevice &&
                       cudaGetLastError() == cudaErrorNoDevice && cudaGetLastError() == cudaSuccess;
  return is_told ? 0 : 5;
}

struct Case {
  std::string_view name;
  int (*run)(bool wrong);
};
#define CASE(name) \
  { #name, name }
constexpr Case cases[] = {
    CASE(missing_wait),
    CASE(overwritten_while_read),
    CASE(copy_without_wait),
    CASE(host_reads_early),
    CASE(host_overwrites_source),
    CASE(used_before_allocated),
    CASE(free_on_wrong_stream),
    CASE(pool_memory_freed_at_once),
    CASE(pinned_memory_freed_early),
    CASE(never_written),
    CASE(kernel_gets_freed_memory),
    CASE(kernel_gets_host_memory),
    CASE(kernel_gets_memory_of_another_device),
    CASE(copy_of_freed_memory),
    CASE(copy_overruns),
    CASE(copy_of_the_wrong_kind),
    CASE(kernel_overruns),
    CASE(kernel_overruns_far),
    CASE(host_touches_device_memory),
    CASE(deadlock),
    CASE(freed_twice),
    CASE(stream_used_after_destroyed),
    CASE(wait_for_unrecorded_event),
    CASE(default_stream),
    CASE(pageable_copy),
    CASE(leak),
    CASE(no_device),
};

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3 || !shardwise_emulation_present()) {
    std::fprintf(stderr, "usage, on the emulation: cudart_cases NAME right|wrong\n");
    return 2;
  }
  const bool wrong = std::string_view(argv[2]) == "wrong";
  for (const Case& c : cases) {
    if (c.name == argv[1]) return c.run(wrong);
  }
  if (const auto status = run_mapped_case(argv[1], wrong)) return *status;
  std::fprintf(stderr, "no case %s\n", argv[1]);
  return 2;
}
