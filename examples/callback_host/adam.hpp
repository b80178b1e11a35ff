#pragma once

#include <dlib/dnn/core.h>

#include <cmath>
#include <cstddef>

#include "bias.hpp"

namespace callback_host {

/// A solver as dlib has them, one for each layer: the change of the layer's parameters for their
/// gradient. The formula is that of shardwise::Adam (and PyTorch's), which rounds otherwise than
/// that of dlib::adam; computed without the library. At step t:
///
///     g = g + wd * p
///     m = beta1 * m + (1 - beta1) * g
///     v = beta2 * v + (1 - beta2) * (g * g)
///     p = p - lr / (1 - beta1^t) * (m / (sqrt(v) * (1 / sqrt(1 - beta2^t)) + epsilon))
class Adam {
 public:
  explicit Adam(double weight_decay) : weight_decay_(weight_decay) {}

  template <class LAYER>
  const dlib::tensor& operator()(double learning_rate, const LAYER& layer,
                                 const dlib::tensor& gradient) {
    if (step_.size() == 0) {
      for (dlib::resizable_tensor* tensor : {&m_, &v_, &step_}) {
        tensor->copy_size(gradient);
        *tensor = 0;
      }
    }
    ++steps_;
    double rate = learning_rate * get_learning_rate_multiplier(layer);
    double decay = weight_decay_ * get_weight_decay_multiplier(layer);
    const std::size_t biases = bias_count(layer);
    update(0, gradient.size() - biases, rate, decay, layer.get_layer_params(), gradient);
    if constexpr (requires { layer.get_bias_learning_rate_multiplier(); }) {
      rate *= layer.get_bias_learning_rate_multiplier();
      decay *= layer.get_bias_weight_decay_multiplier();
    }
    update(gradient.size() - biases, gradient.size(), rate, decay, layer.get_layer_params(),
           gradient);
    return step_;
  }

 private:
  // What does not depend on the element is computed in double and rounded once.
  void update(std::size_t begin, std::size_t end, double learning_rate, double weight_decay,
              const dlib::tensor& parameters, const dlib::tensor& gradient) {
    constexpr double beta1 = 0.9, beta2 = 0.999;
    constexpr auto b1 = static_cast<float>(beta1), one_minus_b1 = static_cast<float>(1 - beta1);
    constexpr auto b2 = static_cast<float>(beta2), one_minus_b2 = static_cast<float>(1 - beta2);
    constexpr auto epsilon = static_cast<float>(1e-8);
    const auto decay = static_cast<float>(weight_decay);
    const auto step_size =
        static_cast<float>(learning_rate / (1 - std::pow(beta1, static_cast<double>(steps_))));
    const auto inverse_root =
        static_cast<float>(1 / std::sqrt(1 - std::pow(beta2, static_cast<double>(steps_))));
    const float* p = parameters.host();
    const float* gradients = gradient.host();
    float *m = m_.host(), *v = v_.host(), *step = step_.host();
    for (std::size_t i = begin; i < end; ++i) {
      const float g = gradients[i] + decay * p[i];
      m[i] = b1 * m[i] + one_minus_b1 * g;
      v[i] = b2 * v[i] + one_minus_b2 * (g * g);
      step[i] = -(step_size * (m[i] / (std::sqrt(v[i]) * inverse_root + epsilon)));
    }
  }

  double weight_decay_;
  std::size_t steps_ = 0;
  dlib::resizable_tensor m_, v_, step_;
};

}  // namespace callback_host
