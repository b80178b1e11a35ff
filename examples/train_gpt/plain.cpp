#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>
#include <type_traits>
#include <vector>

#include "model.hpp"
#include "options.hpp"
#include "report.hpp"
#include "text.hpp"
#include "train.hpp"

namespace train_gpt {
namespace {

/// One value for each element of a unit; a span for each of its tensors.
template <class T>
class Buffer {
 public:
  explicit Buffer(const Unit& unit) {
    for (const Tensor& tensor : unit) elements_.resize(elements_.size() + tensor.size());
    T* next = elements_.data();
    for (const Tensor& tensor : unit) {
      tensors_.emplace_back(next, tensor.size());
      next += tensor.size();
    }
  }
  Buffer(Buffer&&) noexcept = default;

  [[nodiscard]] std::span<T> operator[](std::size_t tensor) const { return tensors_[tensor]; }
  [[nodiscard]] const std::vector<std::span<T>>& tensors() const { return tensors_; }
  [[nodiscard]] std::span<T> elements() { return elements_; }
  [[nodiscard]] std::size_t bytes() const { return elements_.size() * sizeof(T); }
  void zero() { std::fill(elements_.begin(), elements_.end(), T(0.0f)); }

 private:
  std::vector<T> elements_;
  std::vector<std::span<T>> tensors_;
};

/// AdamW (Loshchilov, Hutter, 2019; the formula is PyTorch's). What does not depend on the element
/// is computed in double and rounded once; the update is in float, as it is written.
struct AdamW {
  AdamW(const Options& o, std::size_t step)  // 1, 2, ...
      : decay(static_cast<float>(1 - o.learning_rate * o.weight_decay)),
        beta1(static_cast<float>(o.beta1)),
        beta2(static_cast<float>(o.beta2)),
        one_minus_beta1(static_cast<float>(1 - o.beta1)),
        one_minus_beta2(static_cast<float>(1 - o.beta2)),
        step_size(static_cast<float>(o.learning_rate /
                                     (1 - std::pow(o.beta1, static_cast<double>(step))))),
        inverse_root(
            static_cast<float>(1 / std::sqrt(1 - std::pow(o.beta2, static_cast<double>(step))))),
        epsilon(static_cast<float>(o.epsilon)) {}

  void update(float& p, float g, float& m, float& v, bool decays) const {
    if (decays) p = p * decay;
    m = beta1 * m + one_minus_beta1 * g;
    v = beta2 * v + one_minus_beta2 * (g * g);
    p = p - step_size * (m / (std::sqrt(v) * inverse_root + epsilon));
  }

  float decay, beta1, beta2, one_minus_beta1, one_minus_beta2, step_size, inverse_root, epsilon;
};

/// A unit's weights: in float, and as W, what the compute sees.
template <class W>
class Parameter {
 public:
  explicit Parameter(const Unit& unit)
      : values(unit), tensors_(unit.tensors), copy_(is_float ? Unit{} : unit) {}

  /// value(tensor, element) for every element.
  template <class F>
  void initialize(F&& value) {
    for (std::size_t t = 0; t < tensors_.size(); ++t) {
      for (std::size_t i = 0; i < tensors_[t].size(); ++i) values[t][i] = value(tensors_[t], i);
    }
    cast();
  }

  [[nodiscard]] const Buffer<W>& weights() const {
    if constexpr (is_float) {
      return values;
    } else {
      return copy_;
    }
  }
  /// After each change of the values.
  void cast() {
    const std::span<W> copy = copy_.elements();
    for (std::size_t i = 0; i < copy.size(); ++i) copy[i] = static_cast<W>(values.elements()[i]);
  }

  [[nodiscard]] const std::vector<Tensor>& tensors() const { return tensors_; }
  [[nodiscard]] std::size_t bytes() const { return values.bytes() + copy_.bytes(); }

  Buffer<float> values;

 private:
  static constexpr bool is_float = std::is_same_v<W, float>;

  std::vector<Tensor> tensors_;
  Buffer<W> copy_;  // empty where it would be the values
};

template <class W, class S>
void add(Buffer<W>& addend, Buffer<S>& sum) {
  for (std::size_t i = 0; i < sum.elements().size(); ++i) {
    S& element = sum.elements()[i];
    element =
        static_cast<S>(static_cast<float>(element) + static_cast<float>(addend.elements()[i]));
  }
}

/// The sum of squares: tensor by tensor, each in eight lanes that are added pairwise.
template <class S>
double sum_of_squares(const Buffer<S>& gradient) {
  double sum = 0;
  for (const auto& tensor : gradient.tensors()) {
    double lane[8] = {};
    for (std::size_t i = 0; i < tensor.size(); ++i) {
      const double g = static_cast<double>(static_cast<float>(tensor[i]));
      lane[i % 8] += g * g;
    }
    sum +=
        ((lane[0] + lane[1]) + (lane[2] + lane[3])) + ((lane[4] + lane[5]) + (lane[6] + lane[7]));
  }
  return sum;
}

/// A unit's moments.
class State {
 public:
  explicit State(const Unit& unit) : m_(unit), v_(unit) {}

  /// Updates the weights with `coefficient` times the gradient, which becomes zero.
  template <class W, class S>
  void step(Parameter<W>& parameter, Buffer<S>& gradient, const AdamW& adamw, float coefficient) {
    for (std::size_t t = 0; t < parameter.tensors().size(); ++t) {
      const bool decays = parameter.tensors()[t].decays();
      for (std::size_t i = 0; i < gradient[t].size(); ++i) {
        const float g = static_cast<float>(gradient[t][i]) * coefficient;
        adamw.update(parameter.values[t][i], g, m_[t][i], v_[t][i], decays);
      }
    }
    gradient.zero();
    parameter.cast();
  }

  [[nodiscard]] std::size_t bytes() const { return m_.bytes() + v_.bytes(); }

 private:
  Buffer<float> m_;
  Buffer<float> v_;
};

template <class W, class S>
Report run(const Options& options, const Text& text) {
  const Share share(options, 0, 1);
  const GptShape shape{options.layers, options.width, options.heads, options.sequence};
  const std::vector<Unit> units = shape.units();
  std::vector<Parameter<W>> parameters;
  std::vector<Buffer<S>> gradients;
  std::vector<State> states;
  for (const Unit& unit : units) {
    parameters.emplace_back(unit);
    parameters.back().initialize([&](const auto& tensor, std::size_t element) {
      return shape.initial_value(tensor.name, element, options.seed);
    });
    gradients.emplace_back(unit);
    states.emplace_back(unit);
  }
  const std::size_t embedding = 0;
  const std::size_t final_norm = options.layers + 1;  // the blocks are between them

  // A gradient is running, whole, from its first contribution to its last: in a micro-batch or,
  // held, in the step.
  std::vector<Buffer<W>> running(units.begin(), units.end());
  std::size_t micro = 0;
  const bool hold = options.accumulate == Accumulate::hold;
  const auto weights = [&](std::size_t unit) -> auto& { return parameters[unit].weights(); };
  const auto open = [&](std::size_t unit) -> auto& {
    if (!hold || micro == 0) running[unit].zero();
    return running[unit];
  };
  const auto close = [&](std::size_t unit) {
    if (!hold || micro + 1 == options.micro_batches) add(running[unit], gradients[unit]);
  };

  const Gpt<W> model(shape);
  Activations activations(shape, share.at_once);
  const auto forward = [&](std::span<const std::uint8_t> inputs) {
    model.embed_forward(weights(embedding), inputs, activations);
    for (std::size_t layer = 0; layer < options.layers; ++layer) {
      model.block_forward(layer, weights(1 + layer), activations);
    }
  };

  Batch batch(share.at_once, options.sequence);
  Recorder recorder(options, share.rank == 0);
  for (std::size_t step = 0; step < options.steps; ++step) {
    recorder.begin_step();
    double loss = 0;
    for (micro = 0; micro < options.micro_batches; ++micro) {
      batch.read(text, options.seed, step, share.first(micro));
      forward(batch.inputs());
      {
        const auto& token = weights(embedding);
        const auto& norm = weights(final_norm);
        model.head_forward(token, norm, activations);
        loss += model.loss(batch.targets(), share.loss_scale, activations);
        auto& token_gradient = open(embedding);
        auto& norm_gradient = open(final_norm);
        model.head_backward(token, norm, token_gradient, norm_gradient, activations);
      }
      close(final_norm);
      for (std::size_t unit = options.layers; unit > 0; --unit) {
        auto& gradient = open(unit);
        model.block_backward(unit - 1, weights(unit), gradient, activations);
        close(unit);
      }
      model.embed_backward(running[embedding], activations);
      close(embedding);
    }
    recorder.end_compute();

    double squares = 0;
    for (const auto& gradient : gradients) squares += sum_of_squares(gradient);
    const double norm = std::sqrt(squares);
    const double coefficient = std::min(1.0, options.max_norm() / (norm + 1e-6));
    const AdamW adamw(options, step + 1);
    for (std::size_t unit = 0; unit < parameters.size(); ++unit) {
      states[unit].step(parameters[unit], gradients[unit], adamw, static_cast<float>(coefficient));
    }
    recorder.end_step(loss, norm);
  }

  Report report = recorder.finish();
  report.strategy = "plain";
  Bytes& bytes = report.bytes_per_rank;
  for (std::size_t unit = 0; unit < parameters.size(); ++unit) {
    bytes.parameters += parameters[unit].bytes();
    bytes.gradients += gradients[unit].bytes();
    bytes.optimizer_state += states[unit].bytes();
    bytes.slots += running[unit].bytes();
  }
  bytes.peak = bytes.parameters + bytes.gradients + bytes.optimizer_state + bytes.slots;
  report.planned_bytes_per_rank = bytes;
  report.world = share.world;
  report.parameters = shape.parameters();
  report.sample = generate(options, [&](std::span<const std::uint8_t> inputs) {
    forward(inputs);
    const auto& token = weights(embedding);
    const auto& norm = weights(final_norm);
    model.head_forward(token, norm, activations);
    return std::span<const float>(activations.logits);
  });
  ParametersHash hash(options.keep_parameters ? &report.values : nullptr);
  for (auto& parameter : parameters) {
    for (const auto& tensor : parameter.values.tensors()) hash.add(tensor);
  }
  report.parameters_hash = hash.hex();
  return report;
}

}  // namespace

Report plain::train(const Options& options) {
  validate(options);
  const Text text = Text::load(options.text);
  text.require(options.sequence);
  return with_types(options, [&]<class W, class S>() {
    // W: of the weights and gradients that the compute sees; S: of the stored gradient.
    return run<W, S>(options, text);
  });
}

}  // namespace train_gpt
