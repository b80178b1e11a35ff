#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <cstddef>
#include <cstring>
#include <optional>
#include <shardwise/device/cuda.hpp>
#include <shardwise/kernels/cast_elements.hpp>
#include <shardwise/memory.hpp>
#include <shardwise/optim/sgd.hpp>
#include <string>
#include <utility>
#include <vector>

#include "../emulation/control.hpp"
#include "device_bytes.hpp"

namespace shardwise::test {
namespace {

using Catch::Matchers::ContainsSubstring;

Bytes filled(std::size_t bytes, unsigned char value) { return Bytes(bytes, std::byte{value}); }

/// Makes the next call of a function fail, as long as it lives.
class Failing {
 public:
  explicit Failing(const char* what) { emulation_control::set_option("fail", what); }
  Failing(const Failing&) = delete;
  Failing& operator=(const Failing&) = delete;
  ~Failing() { emulation_control::set_option("fail", ""); }
};

/// Nothing is allocated as long as it lives: neither memory nor events. With an event its stream
/// makes the record that stands for it.
class Frozen {
 public:
  Frozen() {
    emulation_control::set_option("fail",
                                  "cudaMalloc:1:2,cudaHostAlloc:1:2,cudaEventCreateWithFlags:1:2");
  }
  Frozen(const Frozen&) = delete;
  Frozen& operator=(const Frozen&) = delete;
  ~Frozen() { emulation_control::set_option("fail", ""); }
};

void require_emulation() {
  if (!shardwise_emulation_present()) SKIP("only the emulation can be told to fail");
}

int device_count() {
  int count = 0;
  cuda_check(cudaGetDeviceCount(&count), "cudaGetDeviceCount");
  return count;
}

/// What another thread's work in a stream would be: it takes a while on a device.
void keep_busy(CudaStream& stream, const DeviceBytes& memory, std::size_t bytes) {
  for (int i = 0; i < 20; ++i) CudaDevice::zero(stream, memory.data(), bytes);
}

TEST_CASE("memory is filled, copied and brought to the host in stream order") {
  CudaStream stream;
  constexpr std::size_t bytes = 10000;
  const DeviceBytes a(stream, filled(bytes, 1));
  const DeviceBytes b(stream, filled(bytes, 2));
  CHECK(reinterpret_cast<std::uintptr_t>(a.data()) % CudaDevice::alignment == 0);
  CudaDevice::copy(stream, b.data(), a.data(), bytes);
  CudaDevice::zero(stream, a.data(), bytes / 2);
  CHECK(b.content() == filled(bytes, 1));
  Bytes expected = filled(bytes, 1);
  std::fill_n(expected.begin(), bytes / 2, std::byte{0});
  CHECK(a.content() == expected);
  CudaDevice::poison(stream, a.data(), bytes);
  CHECK(a.content() == filled(bytes, 0xff));
  // Nothing to do is nothing to enqueue.
  CudaDevice::zero(stream, nullptr, 0);
  CudaDevice::poison(stream, nullptr, 0);
  CudaDevice::copy(stream, nullptr, nullptr, 0);
  CudaDevice::copy(stream, a.data(), a.data(), bytes);
  CudaDevice::upload(stream, nullptr, nullptr, 0);
  CudaDevice::download(stream, nullptr, nullptr, 0);
  CudaDevice::convert(stream, nullptr, DType::f32, nullptr, DType::bf16, 0);
  stream.synchronize();
  CHECK(stream.idle());
}

TEST_CASE("events order streams and let the host ask") {
  CudaStream first;
  CudaStream second(CudaStream::Priority::high);
  constexpr std::size_t bytes = std::size_t{1} << 16;
  const DeviceBytes memory(first, filled(bytes, 7));
  const DeviceBytes copy(first, bytes);
  for (int round = 0; round < 20; ++round) {
    keep_busy(first, memory, bytes);
    CudaDevice::poison(first, memory.data(), bytes);
    const CudaEvent poisoned = first.record();
    second.wait(poisoned);
    CudaDevice::copy(second, copy.data(), memory.data(), bytes);
    const CudaEvent copied = second.record();
    first.wait(copied);
    first.wait(poisoned);  // its own: nothing to do
    CudaDevice::zero(first, memory.data(), bytes);
    first.synchronize();
    CHECK(CudaStream::reached(poisoned));
    CHECK(CudaStream::reached(copied));
    CHECK(copy.content() == filled(bytes, 0xff));
  }
}

TEST_CASE("an event that nobody recorded is reached") {
  CudaStream stream;
  const CudaEvent event;
  CHECK(CudaStream::reached(event));
  stream.wait(event);
  CHECK_FALSE(CudaStream::is_inline());
  stream.synchronize();
}

TEST_CASE("copies of an event stand for one point, whoever goes first") {
  CudaStream stream;
  CudaStream other;
  constexpr std::size_t bytes = 4096;
  const DeviceBytes memory(stream, filled(bytes, 3));
  CudaEvent kept;
  {
    keep_busy(stream, memory, bytes);
    CudaEvent event = stream.record();
    kept = event;
    const CudaEvent moved = std::move(event);
    CudaEvent again(kept);
    again = moved;
    CudaEvent& same = again;
    again = same;
  }
  // Records after it do not change it, though their events are used again.
  for (int i = 0; i < 10; ++i) {
    keep_busy(stream, memory, bytes);
    static_cast<void>(stream.record());
  }
  other.wait(kept);
  other.synchronize();
  CHECK(CudaStream::reached(kept));
  kept = CudaEvent();
  CHECK(CudaStream::reached(kept));
}

TEST_CASE("an event outlives its stream") {
  CudaStream other;
  CudaEvent late;
  CudaEvent asked;
  constexpr std::size_t bytes = 4096;
  std::optional<DeviceBytes> memory;
  {
    CudaStream stream;
    memory.emplace(other, filled(bytes, 1));
    other.synchronize();
    CudaDevice::poison(stream, memory->data(), bytes);
    asked = stream.record();
    late = stream.record();
    const CudaEvent early = stream.record();
  }
  other.wait(late);
  CHECK(memory->content() == filled(bytes, 0xff));
  CHECK(CudaStream::reached(asked));
  CHECK(CudaStream::reached(late));
}

TEST_CASE("a stream of the host is used, and stays the host's") {
  cudaStream_t theirs = nullptr;
  cuda_check(cudaStreamCreateWithFlags(&theirs, cudaStreamNonBlocking), "cudaStreamCreate");
  {
    CudaStream adopted(theirs);
    CHECK(adopted.native() == theirs);
    CHECK(adopted.ref().native == theirs);
    CHECK(adopted.ref().memory == MemoryKind::cuda);
    const DeviceBytes memory(adopted, filled(100, 9));
    CHECK(memory.content() == filled(100, 9));
    const CudaEvent event = adopted.record();
    adopted.synchronize();
    CHECK(CudaStream::reached(event));
  }
  cuda_check(cudaStreamSynchronize(theirs), "cudaStreamSynchronize");
  cuda_check(cudaStreamDestroy(theirs), "cudaStreamDestroy");
  CHECK_THROWS_WITH(CudaStream(cudaStream_t{nullptr}), ContainsSubstring("cudaStreamLegacy"));
}

TEST_CASE("the streams of a context: the host's or new ones, one beside the other") {
  CudaStream theirs;
  CudaStream compute = CudaDevice::compute_stream(theirs.ref());
  CHECK(compute.native() == theirs.native());
  CudaStream own = CudaDevice::compute_stream({});
  CHECK(own.native() != nullptr);
  CHECK(own.native() != theirs.native());
  CudaStream beside = CudaDevice::communication_stream(true, compute);
  CHECK(beside.native() != compute.native());
  CudaStream same = CudaDevice::communication_stream(false, compute);
  CHECK(same.native() == compute.native());
  int host_stream = 0;
  CHECK_THROWS_WITH(CudaDevice::compute_stream({MemoryKind::host, &host_stream}),
                    ContainsSubstring("stream of the CPU") && ContainsSubstring("cudaStream_t"));
}

TEST_CASE("a stream works on its device, whichever is current") {
  if (device_count() < 2) SKIP("there is one device only");
  cuda_check(cudaSetDevice(1), "cudaSetDevice");
  CudaStream stream;
  CHECK(stream.device() == 1);
  constexpr std::size_t count = 3000;
  const Bytes values = contribution(DType::f32, 1, 1, count);
  const DeviceBytes memory(stream, values);
  const DeviceBytes narrow(stream, count * sizeof(bf16));
  cuda_check(cudaSetDevice(0), "cudaSetDevice");
  CudaStream first;

  CudaDevice::convert(stream, narrow.data(), DType::bf16, memory.data(), DType::f32, count);
  Bytes expected(count * sizeof(bf16));
  cast_elements(values.data(), DType::f32, expected.data(), DType::bf16, count);
  CHECK(narrow.content() == expected);
  double sum = 0;
  const NormRange range{memory.data(), DType::f32, count};
  CudaDevice::sums_of_squares(stream, {&range, 1}, &sum);
  CHECK(sum == sum_of_squares(values.data(), DType::f32, count));
  CHECK(CudaDevice::is_finite(stream, memory.data(), DType::f32, count));
  CudaDevice::poison(stream, memory.data(), values.size());
  const CudaEvent poisoned = stream.record();
  CHECK(CudaDevice::is_poisoned(stream, memory.data(), values.size()));
  first.wait(poisoned);
  first.synchronize();
  CudaStream beside = CudaDevice::communication_stream(true, stream);
  CHECK(beside.device() == 1);
  const UpdateOf<Sgd, float, float> step{memory.as<float>(), memory.as<float>(), {nullptr}, 1, {}};
  CudaDevice::launch(stream, count, step);
  stream.synchronize();
  CHECK(current_cuda_device() == 0);
  {
    const CudaDeviceGuard guard(1);
    CHECK(current_cuda_device() == 1);
  }
  CHECK(current_cuda_device() == 0);
  CHECK_THROWS_WITH(CudaDeviceGuard(1000), ContainsSubstring("cudaSetDevice") &&
                                               ContainsSubstring("cudaErrorInvalidDevice") &&
                                               ContainsSubstring("one rank for each visible GPU"));
  CHECK(cudaGetLastError() == cudaSuccess);
}

TEST_CASE("an error says call, name, text and what to do, and is reported once") {
  CHECK_NOTHROW(cuda_check(cudaSuccess, "cudaAnything"));
  CHECK_THROWS_AS(cuda_check(cudaErrorInvalidValue, "cudaAnything"), BackendError);
  CHECK_THROWS_WITH(cuda_check(cudaErrorInvalidValue, "cudaAnything"),
                    ContainsSubstring("cudaAnything: cudaErrorInvalidValue (1): invalid argument"));
  CHECK_THROWS_WITH(cuda_check(cudaErrorNoDevice, "cudaGetDevice"),
                    ContainsSubstring("CUDA_VISIBLE_DEVICES"));
  CHECK_THROWS_WITH(cuda_check(cudaErrorInsufficientDriver, "cudaGetDevice"),
                    ContainsSubstring("driver"));
  CHECK_THROWS_WITH(cuda_check(cudaErrorNoKernelImageForDevice, "cudaLaunchKernel"),
                    ContainsSubstring("cuda_kernels.cu"));
  CHECK_THROWS_WITH(
      CudaDevice::allocate(std::size_t{1} << 46),
      ContainsSubstring("cudaMalloc of 70368744177664 bytes") && ContainsSubstring("bytes free") &&
          ContainsSubstring("cudaErrorMemoryAllocation") && ContainsSubstring("Context::plan()"));
  CHECK(cudaGetLastError() == cudaSuccess);
}

TEST_CASE("a recording that fails is thrown by the next wait, of whomever") {
  require_emulation();
  CudaStream stream;
  CudaStream other;
  CudaEvent event;
  {
    const Failing failing("cudaEventRecord:1:400");
    event = stream.record();
  }
  CHECK(cudaGetLastError() == cudaSuccess);
  CHECK(CudaStream::reached(event));
  CHECK_THROWS_WITH(other.wait(event), ContainsSubstring("cudaEventRecord") &&
                                           ContainsSubstring("cudaErrorInvalidResourceHandle"));
  CHECK_THROWS_AS(stream.synchronize(), BackendError);
  CHECK_THROWS_AS(stream.wait(CudaEvent()), BackendError);
  stream.drain();
  CHECK(stream.idle());
  other.synchronize();
}

TEST_CASE("an event that cannot be made fails its recording alone") {
  require_emulation();
  CudaEvent event;
  {
    CudaStream stream;
    {
      const Failing failing("cudaEventCreateWithFlags:1:2");
      event = stream.record();
    }
    const CudaEvent second = stream.record();
    CHECK_THROWS_AS(stream.synchronize(), BackendError);
    stream.drain();
    CHECK(CudaStream::reached(second));
  }
  CudaStream other;
  CHECK_THROWS_WITH(other.wait(event), ContainsSubstring("cudaErrorMemoryAllocation"));
}

TEST_CASE("calls that CUDA refuses are named") {
  require_emulation();
  CudaStream stream;
  const DeviceBytes memory(stream, std::size_t{4096});
  const auto expect = [&](const char* call, auto&& f) {
    const std::string what = std::string(call) + ":1:1";
    const Failing failing(what.c_str());
    CHECK_THROWS_WITH(f(), ContainsSubstring(call) && ContainsSubstring("cudaErrorInvalidValue"));
    CHECK(cudaGetLastError() == cudaSuccess);
  };
  expect("cudaMemsetAsync", [&] { CudaDevice::zero(stream, memory.data(), 100); });
  expect("cudaMemcpyAsync",
         [&] { CudaDevice::copy(stream, memory.data(), memory.data() + 200, 100); });
  expect("cudaLaunchKernel", [&] {
    CudaDevice::convert(stream, memory.data(), DType::bf16, memory.data() + 2048, DType::f32, 10);
  });
  expect("cudaStreamSynchronize", [&] { stream.synchronize(); });
  expect("cudaHostAlloc", [&] { static_cast<void>(CudaPinnedMemory::allocate(100)); });
  expect("cudaStreamCreateWithPriority", [] { CudaStream refused; });
  CudaStream other;
  const CudaEvent event = other.record();
  expect("cudaStreamWaitEvent", [&] { stream.wait(event); });
}

TEST_CASE("an error of the host's own calls is left to the host") {
  CHECK(cudaSetDevice(-1) != cudaSuccess);
  CudaStream stream;
  const DeviceBytes memory(stream, filled(64, 1));
  const DeviceBytes wide(stream, std::size_t{128});
  CudaDevice::convert(stream, wide.data(), DType::f32, memory.data(), DType::bf16, 32);
  stream.synchronize();
  static_cast<void>(CudaStream::reached(stream.record()));
  CHECK(cudaGetLastError() == cudaErrorInvalidDevice);
}

TEST_CASE("in a steady state nothing is allocated") {
  require_emulation();
  CudaStream stream;
  CudaStream other;
  constexpr std::size_t count = 5000;
  const DeviceBytes memory(stream, contribution(DType::f32, 1, 1, count));
  const DeviceBytes narrow(stream, count * sizeof(bf16));
  std::vector<CudaEvent> held(4);
  const auto step = [&](int number) {
    double sums[2];
    const NormRange ranges[] = {{memory.data(), DType::f32, count},
                                {narrow.data(), DType::bf16, count - 3}};
    CudaDevice::convert(stream, narrow.data(), DType::bf16, memory.data(), DType::f32, count);
    CudaEvent& latest = held[static_cast<std::size_t>(number) % held.size()];
    latest = stream.record();
    other.wait(latest);
    CudaDevice::copy(other, narrow.data(), memory.data(), 100);
    stream.wait(other.record());
    CudaDevice::sums_of_squares(stream, ranges, sums);
    CHECK(CudaDevice::is_finite(stream, memory.data(), DType::f32, count));
    CHECK_FALSE(CudaDevice::is_poisoned(stream, memory.data(), 1000));
    return sums[0];
  };
  double first = 0;
  for (int i = 0; i < 8; ++i) first = step(i);
  const std::size_t used = emulation_control::used_bytes(0);
  {
    const Frozen frozen;
    for (int i = 0; i < 50; ++i) REQUIRE(step(i) == first);
    CHECK(emulation_control::used_bytes(0) == used);
    // It would have been seen: more is asked for than there was before.
    const NormRange many[20] = {{memory.data(), DType::f32, count}};
    double sums[20];
    CHECK_THROWS_AS(CudaDevice::sums_of_squares(stream, many, sums), BackendError);
  }
}

TEST_CASE("memory of the device and pinned memory belong to buffers and ledgers") {
  Ledger ledger;
  {
    const Buffer<CudaDevice> device(ledger, StateKind::slots, 1000);
    const Buffer<CudaPinnedMemory> pinned(ledger, StateKind::slots, 500);
    CHECK(ledger.held().slots == 1500);
    CudaStream stream;
    std::memset(pinned.data(), 0x2b, 500);
    CudaDevice::upload(stream, device.data(), pinned.data(), 500);
    Bytes back(500);
    CudaDevice::download(stream, back.data(), device.data(), 500);
    CHECK(back == filled(500, 0x2b));
  }
  CHECK(ledger.held().slots == 0);
  CHECK(ledger.peak() == 1500);
}

}  // namespace
}  // namespace shardwise::test
