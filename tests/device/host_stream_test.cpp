#include <array>
#include <atomic>
#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <chrono>
#include <cstddef>
#include <numeric>
#include <optional>
#include <shardwise/device/host.hpp>
#include <shardwise/device/host_stream.hpp>
#include <span>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

namespace shardwise::test {
namespace {

using Catch::Matchers::ContainsSubstring;
using Mode = HostStream::Mode;

/// A gate that a test opens; tasks wait at it.
class Gate {
 public:
  void open() noexcept { open_.store(true); }
  void wait() const noexcept {
    while (!open_.load()) std::this_thread::yield();
  }

 private:
  std::atomic<bool> open_{false};
};

TEST_CASE("an inline stream completes every call before it returns") {
  HostStream stream;
  CHECK(stream.is_inline());
  int value = 0;
  stream.enqueue([&value] { value = 1; });
  CHECK(value == 1);
  CHECK_THROWS_AS(stream.enqueue([] { throw std::runtime_error("now"); }), std::runtime_error);
  const HostEvent event = stream.record();
  CHECK(HostStream::reached(event));
  CHECK(stream.idle());
  stream.synchronize();
  stream.drain();
}

TEST_CASE("the caller runs what it begins inline, where the worker has nothing to do") {
  HostStream stream(Mode::worker);
  std::thread::id ran;
  const auto task = [&ran] { ran = std::this_thread::get_id(); };
  stream.enqueue(task);
  stream.synchronize();
  CHECK(ran != std::this_thread::get_id());

  stream.begin_inline();
  CHECK(stream.is_inline());
  stream.enqueue(task);
  CHECK(ran == std::this_thread::get_id());
  CHECK(HostStream::reached(stream.record()));
  CHECK_THROWS_AS(stream.enqueue([] { throw std::runtime_error("now"); }), std::runtime_error);
  stream.end_inline();
  CHECK_FALSE(stream.is_inline());

  // Behind what is queued it comes in order.
  Gate gate;
  std::vector<int> order;
  stream.enqueue([&] {
    gate.wait();
    order.push_back(1);
  });
  stream.begin_inline();
  CHECK_FALSE(stream.is_inline());
  stream.enqueue([&] { order.push_back(2); });
  stream.end_inline();
  gate.open();
  stream.synchronize();
  CHECK(order == std::vector<int>{1, 2});

  // Nothing runs after a failure.
  stream.enqueue([] { throw std::runtime_error("failed"); });
  CHECK_THROWS_AS(stream.synchronize(), std::runtime_error);
  stream.begin_inline();
  CHECK_FALSE(stream.is_inline());
  stream.enqueue([&] { order.push_back(3); });
  stream.end_inline();
  CHECK_THROWS_AS(stream.synchronize(), std::runtime_error);
  CHECK(order.size() == 2);
}

TEST_CASE("a worker runs tasks in order and copies their items") {
  HostStream stream(Mode::worker, 2048);
  CHECK_FALSE(stream.is_inline());
  std::vector<int> seen;
  for (int i = 0; i < 1000; ++i) {
    std::array<int, 11> items{};
    const auto count = static_cast<std::size_t>(i % 12);
    std::iota(items.begin(), items.end(), i);
    stream.enqueue(
        [&seen, i](std::span<const int> copied) {
          seen.push_back(i);
          for (const int item : copied) seen.push_back(item);
        },
        std::span<const int>(items.data(), std::min(count, items.size())));
    items.fill(-1);
  }
  stream.synchronize();
  std::vector<int> expected;
  for (int i = 0; i < 1000; ++i) {
    expected.push_back(i);
    for (int k = 0; k < std::min(i % 12, 11); ++k) expected.push_back(i + k);
  }
  CHECK(seen == expected);
  CHECK(stream.idle());
}

TEST_CASE("rings of any size wrap around without losing a task") {
  for (std::size_t bytes = 1; bytes < 3000; bytes += 97) {
    HostStream stream(Mode::worker, bytes);
    int sum = 0;
    std::array<char, 200> items{};
    for (int i = 0; i < 300; ++i) {
      const auto count = static_cast<std::size_t>(i * 7 % 200);
      stream.enqueue([&sum, i](std::span<const char>) { sum += i; },
                     std::span<const char>(items.data(), count));
    }
    stream.synchronize();
    REQUIRE(sum == 300 * 299 / 2);
  }
}

TEST_CASE("a call that cannot fit the ring is refused, and the stream goes on") {
  HostStream stream(Mode::worker, 1024);
  const std::vector<std::byte> items(5000);
  CHECK_THROWS_WITH(
      stream.enqueue([](std::span<const std::byte>) {}, std::span<const std::byte>(items)),
      ContainsSubstring("1024 bytes") && ContainsSubstring("group fewer"));
  int value = 0;
  stream.enqueue([&value] { value = 3; });
  stream.synchronize();
  CHECK(value == 3);
}

TEST_CASE("events order streams and let the host ask") {
  for (const Mode mode : {Mode::inline_calls, Mode::worker}) {
    HostStream first(Mode::worker);
    HostStream second(mode);
    Gate gate;
    std::atomic<int> value{0};
    CHECK(HostStream::reached(HostEvent()));
    first.enqueue([&] {
      gate.wait();
      value.store(5);
    });
    const HostEvent event = first.record();
    CHECK_FALSE(HostStream::reached(event));
    CHECK_FALSE(first.idle());
    first.wait(event);  // its own: nothing to do
    if (mode == Mode::inline_calls) gate.open();
    second.wait(event);
    int seen = 0;
    second.enqueue([&] { seen = value.load(); });
    gate.open();
    second.synchronize();
    CHECK(seen == 5);
    CHECK(HostStream::reached(event));
  }
}

TEST_CASE("a task that throws ends the stream: later tasks are skipped, waits rethrow") {
  HostStream stream(Mode::worker);
  HostStream other(Mode::worker);
  HostStream at_once;
  int ran = 0;
  stream.enqueue([&] { ++ran; });
  stream.enqueue([] { throw std::runtime_error("broken task"); });
  stream.enqueue([&] { ++ran; });
  const HostEvent event = stream.record();
  CHECK_THROWS_WITH(stream.synchronize(), "broken task");
  CHECK_THROWS_WITH(at_once.wait(event), "broken task");
  other.wait(event);
  CHECK_THROWS_WITH(other.synchronize(), "broken task");
  stream.drain();
  CHECK(HostStream::reached(event));
  CHECK(ran == 1);
}

/// Says what became of it.
struct Witness {
  std::atomic<int>* ran;
  std::atomic<int>* not_run;
  std::string* why;

  void operator()(std::span<const std::byte>) const { ran->fetch_add(1); }
  void skipped(const std::exception_ptr& failure) const noexcept {
    not_run->fetch_add(1);
    try {
      std::rethrow_exception(failure);
    } catch (const std::exception& error) {
      *why = error.what();
    }
  }
};

/// Waits for ever unless it is interrupted.
struct Stubborn {
  std::atomic<bool>* started;
  std::atomic<bool>* stopped;

  void operator()(std::span<const std::byte>) const {
    started->store(true);
    while (!stopped->load()) std::this_thread::yield();
  }
  void interrupted() const noexcept { stopped->store(true); }
};

TEST_CASE("a task that never runs is told why, in stream order") {
  std::atomic<int> ran{0};
  std::atomic<int> skipped{0};
  std::string why;
  const Witness witness{&ran, &skipped, &why};
  {
    HostStream stream(Mode::worker);
    stream.enqueue(witness, std::span<const std::byte>());
    stream.enqueue([] { throw std::runtime_error("first failure"); });
    stream.enqueue(witness, std::span<const std::byte>());
    CHECK_THROWS(stream.synchronize());
    CHECK(ran == 1);
    CHECK(skipped == 1);
    CHECK(why == "first failure");
  }
  {
    Gate gate;
    std::thread opener;
    {
      HostStream stream(Mode::worker);
      stream.enqueue([&gate] { gate.wait(); });
      stream.enqueue(witness, std::span<const std::byte>());
      opener = std::thread([&gate] {
        std::this_thread::sleep_for(std::chrono::milliseconds(200));
        gate.open();
      });
    }
    opener.join();
    CHECK(ran == 1);
    CHECK(skipped == 2);
    CHECK_THAT(why, ContainsSubstring("destroyed with work queued"));
  }
}

TEST_CASE("unwinding interrupts the running task, also through another stream's wait") {
  for (const bool through_wait : {false, true}) {
    std::atomic<bool> started{false};
    std::atomic<bool> stopped{false};
    try {
      HostStream stream(Mode::worker);
      std::optional<HostStream> waiting;
      stream.enqueue(Stubborn{&started, &stopped}, std::span<const std::byte>());
      if (through_wait) {
        waiting.emplace(Mode::worker);
        waiting->wait(stream.record());
      }
      while (!started) std::this_thread::yield();
      throw std::runtime_error("unwinding");
    } catch (const std::runtime_error&) {
    }
    CHECK(stopped);
  }
}

struct AddIndex {
  float* values;
  template <std::size_t Width>
  void run(std::size_t first) const {
    for (std::size_t k = 0; k < Width; ++k) values[first + k] += static_cast<float>(first + k);
  }
};

TEST_CASE("the host device zeroes, copies and launches in stream order") {
  for (const Mode mode : {Mode::inline_calls, Mode::worker}) {
    HostStream stream(mode);
    constexpr std::size_t count = 1000;
    void* memory = HostDevice::allocate(count * sizeof(float));
    CHECK(reinterpret_cast<std::uintptr_t>(memory) % HostDevice::alignment == 0);
    auto* values = static_cast<float*>(memory);
    std::vector<float> copy(count, -1);
    HostDevice::zero(stream, values, count * sizeof(float));
    HostDevice::launch(stream, count, AddIndex{values});
    HostDevice::copy(stream, copy.data(), values, count * sizeof(float));
    HostDevice::zero(stream, values, 0);
    stream.synchronize();
    for (std::size_t i = 0; i < count; ++i) REQUIRE(copy[i] == static_cast<float>(i));
    HostDevice::deallocate(memory, count * sizeof(float));
  }
}

}  // namespace
}  // namespace shardwise::test
