#pragma once

#include <algorithm>
#include <cstddef>
#include <shardwise/shardwise.hpp>
#include <span>
#include <type_traits>
#include <utility>
#include <vector>

#ifdef SHARDWISE_TEST_CUDA
#include <shardwise/device/cuda.hpp>
#endif

#include "toy_kernels.hpp"

// The tests of the sharded types are compiled once for each device: what they share is here. On the
// host they touch memory as a host does, by pointer; elsewhere by copies in stream order.

namespace shardwise::test {

#ifdef SHARDWISE_TEST_CUDA
using Device = CudaDevice;
#else
using Device = HostDevice;
#endif

/// Whether the host may read and write the device's memory.
inline constexpr bool on_host = Device::memory == MemoryKind::host;

template <FloatingElement T>
using Parameter = ShardedParameter<T, Device>;
template <FloatingElement G>
using Gradient = ShardedGradient<G, Device>;
template <ElementwiseOptimizer Optimizer>
using State = ShardedOptimizerState<Optimizer, Device>;
template <FloatingElement T, FloatingElement L = T, FloatingElement G = T, FloatingElement GL = L>
using Sequence = ShardedSequence<T, L, G, GL, Device>;
template <FloatingElement L>
using Weights = Gathered<L, Device>;
template <FloatingElement L>
using Contribution = GradientLease<L, Device>;

/// What `elements` are after all that was enqueued on the context's stream; the host waits.
template <class T>
std::vector<std::remove_const_t<T>> to_host(Context<Device>& context, std::span<T> elements) {
  if constexpr (on_host) {
    return {elements.begin(), elements.end()};
  } else {
    std::vector<std::remove_const_t<T>> copy(elements.size());
    Device::download(context.stream(), copy.data(), elements.data(), elements.size_bytes());
    return copy;
  }
}

template <class T>
std::remove_const_t<T> at(Context<Device>& context, std::span<T> elements, std::size_t index) {
  return to_host(context, elements.subspan(index, 1))[0];
}

/// f(elements in the host's memory) changes them, in the order of the context's stream.
template <class T, class F>
void edit(Context<Device>& context, std::span<T> elements, F&& f) {
  if constexpr (on_host) {
    std::forward<F>(f)(elements);
  } else {
    std::vector<T> copy = to_host(context, elements);
    std::forward<F>(f)(std::span<T>(copy));
    Device::upload(context.stream(), elements.data(), copy.data(), elements.size_bytes());
  }
}

/// elements[i] = value_of(i).
template <class T, class F>
void fill(Context<Device>& context, std::span<T> elements, F&& value_of) {
  edit(context, elements, [&](std::span<T> copy) {
    for (std::size_t i = 0; i < copy.size(); ++i) copy[i] = static_cast<T>(value_of(i));
  });
}

/// Whether all of them are `value`; the host waits.
template <class T>
bool all_are(Context<Device>& context, std::span<T> elements, float value) {
  const auto copy = to_host(context, elements);
  return std::all_of(copy.begin(), copy.end(),
                     [&](T found) { return static_cast<float>(found) == value; });
}

/// Adds `value` to each element on the context's stream; the host does not wait.
template <class T>
void add(Context<Device>& context, std::span<T> elements, float value) {
  Device::launch(context.stream(), elements.size(), AddValue<T>{elements.data(), value});
}

/// Memory of the device that a test owns.
template <class T>
class DeviceArray {
 public:
  explicit DeviceArray(std::size_t count)
      : data_(static_cast<T*>(Device::allocate(bytes(count)))), count_(count) {}
  DeviceArray(DeviceArray&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), count_(std::exchange(other.count_, 0)) {}
  DeviceArray& operator=(DeviceArray&&) = delete;
  ~DeviceArray() {
    if (data_ != nullptr) Device::deallocate(data_, bytes(count_));
  }

  /// Null where there are no elements, as a host's own would be.
  [[nodiscard]] T* data() const noexcept { return count_ == 0 ? nullptr : data_; }
  [[nodiscard]] std::span<T> span() const noexcept { return {data_, count_}; }

 private:
  static std::size_t bytes(std::size_t count) { return (count == 0 ? 1 : count) * sizeof(T); }

  T* data_;
  std::size_t count_;
};

}  // namespace shardwise::test
