#pragma once

#include <cstddef>
#include <cstdint>
#include <shardwise/core/dtype.hpp>
#include <shardwise/core/host_device.hpp>

namespace shardwise::test {

/// A number in [-0.5, 0.5) that depends on its arguments alone.
SHARDWISE_HOST_DEVICE inline float noise(std::uint64_t a, std::uint64_t b, std::uint64_t c = 0) {
  std::uint64_t x =
      a * 0x9e3779b97f4a7c15ull + b * 0xbf58476d1ce4e5b9ull + c * 0x94d049bb133111ebull;
  x ^= x >> 31;
  x *= 0xd6e8feb86659fd93ull;
  x ^= x >> 32;
  return static_cast<float>(x >> 40) / 16777216.0f - 0.5f;
}

// What the toy model computes, as functors for Device::launch.

/// Launched over one element: the activation of a sample, before the first layer.
struct ToyStart {
  float* x;
  float value;

  template <std::size_t>
  SHARDWISE_HOST_DEVICE void run(std::size_t) const {
    *x = value;
  }
};

/// Launched over one element: a layer's tensor adds to the activation, in order.
template <class L>
struct ToyForward {
  const L* weights;
  std::size_t count;
  float* x;

  template <std::size_t>
  SHARDWISE_HOST_DEVICE void run(std::size_t) const {
    float sum = *x;
    for (std::size_t i = 0; i < count; ++i) sum += 0.125f * static_cast<float>(weights[i]);
    *x = sum;
  }
};

/// Launched over a tensor: the "gradient" of its weights is added to what is there.
template <class L, class G>
struct ToyBackward {
  const L* weights;
  G* gradient;
  const float* x;
  std::uint64_t sample;
  std::uint64_t layer;
  float micro_batches;

  template <std::size_t Width>
  SHARDWISE_HOST_DEVICE void run(std::size_t first) const {
    for (std::size_t k = first; k < first + Width; ++k) {
      const float value =
          static_cast<float>(gradient[k]) +
          (static_cast<float>(weights[k]) * *x + noise(sample, layer, k)) / micro_batches;
      gradient[k] = static_cast<G>(value);
    }
  }
};

/// elements[i] += value.
template <class T>
struct AddValue {
  T* elements;
  float value;

  template <std::size_t Width>
  SHARDWISE_HOST_DEVICE void run(std::size_t first) const {
    for (std::size_t i = first; i < first + Width; ++i) {
      elements[i] = static_cast<T>(static_cast<float>(elements[i]) + value);
    }
  }
};

/// elements[i] += other[i].
template <class T, class Other = T>
struct AddElements {
  T* elements;
  const Other* other;

  template <std::size_t Width>
  SHARDWISE_HOST_DEVICE void run(std::size_t first) const {
    for (std::size_t i = first; i < first + Width; ++i) {
      elements[i] = static_cast<T>(static_cast<float>(elements[i]) + static_cast<float>(other[i]));
    }
  }
};

}  // namespace shardwise::test
