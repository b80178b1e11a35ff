#pragma once

#include <array>
#include <cstddef>
#include <memory>
#include <random>
#include <shardwise/device/cuda.hpp>
#include <shardwise/optim/optimizer.hpp>
#include <span>
#include <vector>

#include "../optim/stepping.hpp"
#include "device_bytes.hpp"

namespace shardwise::test {

/// Steps on the device, cut into ranges as they come, in one launch or in one each.
template <class Optimizer, class Gradient>
class SteppingOnDevice {
 public:
  using Host = Stepping<Optimizer, float, Gradient>;
  using Functor = typename Host::Functor;

  SteppingOnDevice(CudaStream& stream, const Host& host)
      : stream_(stream), optimizer_(host.optimizer), parameter_(stream, bytes_of(host.parameter)) {
    std::apply(
        [&](const auto&... state) {
          (states_.push_back(std::make_unique<DeviceBytes>(stream, bytes_of(state))), ...);
          ((state_sizes_.push_back(sizeof(state[0]))), ...);
        },
        host.states);
  }

  void step(std::uint64_t t, const std::vector<Gradient>& gradient,
            const std::vector<std::size_t>& cuts, float coefficient, bool at_once) {
    const DeviceBytes g(stream_, bytes_of(gradient));
    std::vector<detail::cuda::ElementSegment<Functor>> segments;
    std::size_t begin = 0;
    for (std::size_t i = 0; i <= cuts.size(); ++i) {
      const std::size_t end = i < cuts.size() ? cuts[i] : gradient.size();
      // Every range has learning rates of its own, as tensors have.
      TensorOptions options;
      options.learning_rate = 1 + static_cast<float>(i % 3);
      Functor functor{parameter_.as<float>() + begin,
                      g.as<const Gradient>() + begin,
                      {},
                      coefficient,
                      optimizer_.template constants<float>(t, options)};
      for (std::size_t s = 0; s < states_.size(); ++s) {
        functor.states[s] = states_[s]->data() + begin * state_sizes_[s];
      }
      segments.push_back({functor, end - begin});
      begin = end;
    }
    if (at_once) {
      detail::cuda::launch_segments(
          stream_.native(), std::span<const detail::cuda::ElementSegment<Functor>>(segments));
    } else {
      for (const auto& segment : segments) {
        CudaDevice::launch(stream_, segment.count, segment.functor);
      }
    }
  }

  [[nodiscard]] bool same_as(const Host& host) const {
    bool same = parameter_.content() == bytes_of(host.parameter);
    std::size_t index = 0;
    std::apply(
        [&](const auto&... state) {
          ((same = same && states_[index++]->content() == bytes_of(state)), ...);
        },
        host.states);
    return same;
  }

 private:
  CudaStream& stream_;
  Optimizer optimizer_;
  DeviceBytes parameter_;
  std::vector<std::unique_ptr<DeviceBytes>> states_;
  std::vector<std::size_t> state_sizes_;
};

/// The host's steps over the same ranges.
template <class Host, class Gradient>
void step_on_host(Host& host, std::uint64_t t, const std::vector<Gradient>& gradient,
                  const std::vector<std::size_t>& cuts, float coefficient) {
  std::size_t begin = 0;
  for (std::size_t i = 0; i <= cuts.size(); ++i) {
    const std::size_t end = i < cuts.size() ? cuts[i] : gradient.size();
    TensorOptions options;
    options.learning_rate = 1 + static_cast<float>(i % 3);
    typename Host::Functor functor{host.parameter.data() + begin,
                                   gradient.data() + begin,
                                   {},
                                   coefficient,
                                   host.optimizer.template constants<float>(t, options)};
    std::size_t index = 0;
    std::apply([&](auto&... state) { ((functor.states[index++] = state.data() + begin), ...); },
               host.states);
    HostDevice::run(end - begin, functor);
    begin = end;
  }
}

/// Some steps, with cuts of every kind: none, at multiples of a block, anywhere, and more than one
/// launch has room for.
template <class Optimizer, class Gradient>
[[nodiscard]] bool device_steps_as_the_host() {
  CudaStream stream;
  constexpr std::size_t count = 2049;
  Stepping<Optimizer, float, Gradient> host(count);
  SteppingOnDevice<Optimizer, Gradient> device(stream, host);
  std::mt19937 random(5);
  for (std::uint64_t t = 1; t <= 8; ++t) {
    std::vector<std::size_t> cuts;
    if (t % 4 == 1) cuts = {32, 96, 96, 1024};
    if (t % 4 == 2) {
      for (std::size_t at = random() % 40; at < count; at += random() % 40) cuts.push_back(at);
    }
    if (t % 4 == 3) {
      for (std::size_t at = 1; at < 300; ++at) cuts.push_back(at);
    }
    const auto gradient = host.gradient(t);
    const float coefficient = t % 2 == 0 ? 1.0f : 0.7f;
    step_on_host(host, t, gradient, cuts, coefficient);
    device.step(t, gradient, cuts, coefficient, t < 5);
    if (!device.same_as(host)) return false;
  }
  return true;
}

}  // namespace shardwise::test
