#include <algorithm>
#include <catch2/catch_test_macros.hpp>
#include <cmath>
#include <cstddef>
#include <shardwise/device/cuda.hpp>
#include <span>
#include <type_traits>
#include <vector>

#include "../../examples/cuda_gpt/model.hpp"
#include "../examples/gpt_problem.hpp"

namespace {

using cuda_gpt::DeviceArray;
using shardwise::bf16;
using shardwise::CudaDevice;
using shardwise::CudaStream;
using train_gpt::GptShape;
using train_gpt::Problem;
using train_gpt::Values;

void require_device() {
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) SKIP("no CUDA device");
}

template <class T>
DeviceArray<T> to_device(std::span<const T> values, CudaStream& stream) {
  DeviceArray<T> array(values.size());
  CudaDevice::upload(stream, array.data(), values.data(), values.size() * sizeof(T));
  return array;
}

template <class T>
std::vector<T> to_host(const T* values, std::size_t count, CudaStream& stream) {
  std::vector<T> result(count);
  CudaDevice::download(stream, result.data(), values, count * sizeof(T));
  return result;
}

/// Values on the device, as [unit][tensor] spans.
template <class T>
struct DeviceValues {
  DeviceValues(const Values<T>& values, CudaStream& stream)
      : elements(to_device<T>(values.elements, stream)) {
    T* next = elements.data();
    for (const auto& tensors : values.units) {
      auto& spans = units.emplace_back();
      for (const auto& tensor : tensors) {
        spans.emplace_back(next, tensor.size());
        next += tensor.size();
      }
    }
  }
  DeviceArray<T> elements;
  std::vector<std::vector<std::span<T>>> units;
};

/// Forwards and backwards on the device; the gradient is added to.
template <class W>
double run(const Problem& problem, cuda_gpt::Gpt<W>& model, const DeviceValues<W>& weights,
           DeviceValues<W>& gradient, CudaStream& stream) {
  const std::size_t tokens = problem.inputs.size();
  const auto inputs = to_device<std::uint8_t>(problem.inputs, stream);
  const auto targets = to_device<std::uint8_t>(problem.targets, stream);
  const DeviceArray<double> losses(tokens);
  const double scale = 1.0 / static_cast<double>(tokens);
  const auto& w = weights.units;
  const auto& g = gradient.units;
  model.embed_forward(w.front(), inputs.data(), tokens / problem.shape.sequence);
  for (std::size_t i = 0; i < problem.shape.layers; ++i) model.block_forward(i, w[1 + i]);
  model.head_forward(w.front(), w.back());
  model.loss(targets.data(), scale, losses.data());
  model.head_backward(w.front(), w.back(), g.front(), g.back());
  for (std::size_t i = problem.shape.layers; i-- > 0;) model.block_backward(i, w[1 + i], g[1 + i]);
  model.embed_backward(g.front());
  double loss = 0;
  for (const double each : to_host(losses.data(), tokens, stream)) loss += each;
  return loss * scale;
}

double length(std::span<const float> values) {
  double squares = 0;
  for (const float v : values) squares += static_cast<double>(v) * static_cast<double>(v);
  return std::sqrt(squares);
}

/// Loss and each tensor's gradient are those of the host's model, which computes in float with the
/// same weights; `bound` is relative to the length of the tensor's gradient.
template <class W>
void require_same_model(const GptShape& shape, double bound) {
  const Problem problem(shape);
  Values<W> weights(shape);
  Values<float> widened(shape);
  for (std::size_t i = 0; i < weights.elements.size(); ++i) {
    weights.elements[i] = static_cast<W>(problem.weights.elements[i]);
    widened.elements[i] = static_cast<float>(weights.elements[i]);
  }
  Values<float> expected(shape);
  problem.backward(widened, expected);
  train_gpt::Activations activations(shape, 3);
  const double expected_loss = problem.forward(train_gpt::Gpt<float>(shape), widened, activations);

  CudaStream stream;
  cuda_gpt::Gpt<W> model(shape, 4, stream);  // room for more sequences than there are
  const DeviceValues<W> device_weights(weights, stream);
  // A gradient adds to what is there: 1 before, and it runs twice.
  Values<W> start(shape);
  DeviceValues<W> once(start, stream);
  std::fill(start.elements.begin(), start.elements.end(), W(1.0f));
  DeviceValues<W> added(start, stream);
  const double loss = run(problem, model, device_weights, once, stream);
  CHECK(std::abs(loss - expected_loss) < bound * expected_loss);
  CHECK(run(problem, model, device_weights, added, stream) == loss);

  const auto units = shape.units();
  for (std::size_t unit = 0; unit < units.size(); ++unit) {
    for (std::size_t t = 0; t < units[unit].tensors.size(); ++t) {
      const std::span<const float> wanted = expected.units[unit][t];
      const std::span<const W> device = once.units[unit][t];
      const std::vector<W> found = to_host(device.data(), device.size(), stream);
      std::vector<float> difference(found.size());
      for (std::size_t i = 0; i < found.size(); ++i) {
        difference[i] = static_cast<float>(found[i]) - wanted[i];
      }
      CAPTURE(units[unit].tensors[t].name, length(difference), length(wanted));
      CHECK(length(wanted) > 1e-4);
      CHECK(length(difference) < bound * length(wanted));

      if constexpr (std::is_same_v<W, float>) {
        const std::vector<W> sum = to_host(added.units[unit][t].data(), found.size(), stream);
        float worst = 0;
        for (std::size_t i = 0; i < sum.size(); ++i) {
          worst = std::max(worst, std::abs(sum[i] - (1 + found[i])));
        }
        CHECK(worst < 1e-6f);
      }
    }
  }
}

}  // namespace

TEST_CASE("loss and gradients are those of the host's model") {
  require_device();
  SECTION("float: but for the order of sums") {
    require_same_model<float>({.layers = 2, .width = 16, .heads = 2, .sequence = 6}, 1e-5);
    require_same_model<float>({.layers = 1, .width = 24, .heads = 1, .sequence = 9}, 1e-5);
  }
  // Each operand of a product is rounded to 8 bits.
  SECTION("bf16") {
    require_same_model<bf16>({.layers = 2, .width = 16, .heads = 2, .sequence = 6}, 3e-2);
  }
}

TEST_CASE("a product whose shapes do not fit is refused") {
  require_device();
  CudaStream stream;
  cuda_gpt::Products products(stream.native());
  const DeviceArray<float> a(6);
  const DeviceArray<float> b(6);
  const DeviceArray<float> c(4);
  CHECK_NOTHROW(products.multiply({a.data(), 2, 3}, {b.data(), 3, 2}, {c.data(), 2, 2}));
  CHECK_THROWS_AS(products.multiply({a.data(), 2, 3}, {b.data(), 2, 3}, {c.data(), 2, 2}),
                  std::invalid_argument);
  CHECK_THROWS_AS(products.multiply({a.data(), 2, 3}, {b.data(), 3, 2, 2}, {c.data(), 2, 2}),
                  std::invalid_argument);
  CHECK_THROWS_AS(
      products.multiply_by_transpose({a.data(), 2, 3}, {b.data(), 3, 2}, {c.data(), 2, 2}),
      std::invalid_argument);
  stream.synchronize();
}
