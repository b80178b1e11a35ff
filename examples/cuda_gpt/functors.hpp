#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <shardwise/core/dtype.hpp>
#include <shardwise/core/host_device.hpp>

/// @file
/// The model's mathematics without the matrix products, as functors of one index: an element or,
/// for norms, softmax and cross entropy, a row. They run on the host and on the device alike;
/// kernels.cu lists them for nvcc. One thread for a whole row is the clearest form, not the
/// fastest: a trainer at scale gives each row a warp.
///
/// W is the type of weights and of what enters a product, float or bf16; sums and what leaves a
/// product are float. Matrices are row-major; a token is a row, its channels are the columns.
namespace cuda_gpt {

/// What CudaDevice::launch runs: `functor` for each of Width indices.
template <class Functor>
struct Each {
  Functor functor;

  template <std::size_t Width>
  SHARDWISE_HOST_DEVICE void run(std::size_t first) const {
    for (std::size_t i = first; i < first + Width; ++i) functor(i);
  }
};

/// Channels: the residual stream is the sum of the token's and its position's embedding.
template <class W>
struct Embed {
  const std::uint8_t* inputs;
  const W* token;
  const W* position;
  float* out;
  std::size_t width;
  std::size_t sequence;

  SHARDWISE_HOST_DEVICE void operator()(std::size_t i) const {
    const std::size_t t = i / width;
    const std::size_t channel = i % width;
    out[i] = static_cast<float>(token[inputs[t] * width + channel]) +
             static_cast<float>(position[t % sequence * width + channel]);
  }
};

/// [token][symbol]: 1 where the token is the symbol. With it a product sums the embedding's
/// gradient: no atomics, and the same order in every run.
template <class W>
struct OneHot {
  const std::uint8_t* inputs;
  W* out;
  std::size_t vocabulary;

  SHARDWISE_HOST_DEVICE void operator()(std::size_t i) const {
    out[i] = static_cast<W>(inputs[i / vocabulary] == i % vocabulary ? 1.0f : 0.0f);
  }
};

/// Rows: layer norm.
template <class W>
struct NormForward {
  const float* x;
  const W* weight;
  const W* bias;
  float* mean;
  float* rate;  ///< 1 / deviation
  W* out;
  std::size_t width;

  SHARDWISE_HOST_DEVICE void operator()(std::size_t t) const {
    const float* row = x + t * width;
    const float count = static_cast<float>(width);
    float sum = 0;
    for (std::size_t i = 0; i < width; ++i) sum += row[i];
    const float center = sum / count;
    float squares = 0;
    for (std::size_t i = 0; i < width; ++i) squares += (row[i] - center) * (row[i] - center);
    const float scale = 1 / std::sqrt(squares / count + 1e-5f);
    for (std::size_t i = 0; i < width; ++i) {
      out[t * width + i] = static_cast<W>(
          (row[i] - center) * scale * static_cast<float>(weight[i]) + static_cast<float>(bias[i]));
    }
    mean[t] = center;
    rate[t] = scale;
  }
};

/// Rows: from dy, the gradient of the norm's result, the gradient of x is added to the residual
/// stream's. The terms, summed over tokens, are the gradients of weight and bias.
template <class W>
struct NormBackward {
  const float* dy;
  const float* x;
  const W* weight;
  const float* mean;
  const float* rate;
  float* stream;  ///< gradient of the residual stream ...
  W* operand;     ///< ... and the same for the next product
  W* weight_terms;
  W* bias_terms;
  std::size_t width;

  SHARDWISE_HOST_DEVICE void operator()(std::size_t t) const {
    const std::size_t first = t * width;
    const float count = static_cast<float>(width);
    float sum = 0;
    float along = 0;
    for (std::size_t i = 0; i < width; ++i) {
      const float up = dy[first + i];
      const float normed = (x[first + i] - mean[t]) * rate[t];
      const float scaled = up * static_cast<float>(weight[i]);
      weight_terms[first + i] = static_cast<W>(up * normed);
      bias_terms[first + i] = static_cast<W>(up);
      sum += scaled;
      along += scaled * normed;
    }
    sum /= count;
    along /= count;
    for (std::size_t i = 0; i < width; ++i) {
      const float normed = (x[first + i] - mean[t]) * rate[t];
      const float scaled = dy[first + i] * static_cast<float>(weight[i]);
      const float d = stream[first + i] + (scaled - sum - normed * along) * rate[t];
      stream[first + i] = d;
      operand[first + i] = static_cast<W>(d);
    }
  }
};

/// Where a token's channel lies when each head of each sequence is a matrix of its own:
/// [part][sequence][head][position][column], the parts being query, key and value. One batched
/// product then serves all heads of all sequences.
struct HeadLayout {
  std::size_t tokens;
  std::size_t sequence;
  std::size_t heads;
  std::size_t columns;  ///< of one head

  [[nodiscard]] SHARDWISE_HOST_DEVICE std::size_t operator()(std::size_t part, std::size_t token,
                                                             std::size_t channel) const {
    const std::size_t matrix =
        (part * tokens / sequence + token / sequence) * heads + channel / columns;
    return (matrix * sequence + token % sequence) * columns + channel % columns;
  }
};

/// Elements of `x`, [token][part][channel], plus the bias of their column where there is one, to
/// matrices of heads.
template <class W>
struct SplitHeads {
  const float* x;
  const W* bias;  ///< or null
  W* heads;
  HeadLayout layout;
  std::size_t parts;

  SHARDWISE_HOST_DEVICE void operator()(std::size_t i) const {
    const std::size_t width = layout.heads * layout.columns;
    const std::size_t column = i % (parts * width);
    const float value = bias == nullptr ? x[i] : x[i] + static_cast<float>(bias[column]);
    heads[layout(column / width, i / (parts * width), column % width)] = static_cast<W>(value);
  }
};

/// The way back, to elements of `out`.
template <class W>
struct MergeHeads {
  const float* heads;
  W* out;
  HeadLayout layout;
  std::size_t parts;

  SHARDWISE_HOST_DEVICE void operator()(std::size_t i) const {
    const std::size_t width = layout.heads * layout.columns;
    const std::size_t column = i % (parts * width);
    out[i] = static_cast<W>(heads[layout(column / width, i / (parts * width), column % width)]);
  }
};

/// Rows of the matrices [from][to] of all heads: attention to the tokens so far.
template <class W>
struct SoftmaxCausal {
  float* scores;
  W* probabilities;
  std::size_t sequence;
  float scale;

  SHARDWISE_HOST_DEVICE void operator()(std::size_t index) const {
    const std::size_t seen = index % sequence + 1;
    float* row = scores + index * sequence;
    W* out = probabilities + index * sequence;
    float largest = row[0];
    for (std::size_t to = 1; to < seen; ++to) largest = row[to] > largest ? row[to] : largest;
    float sum = 0;
    for (std::size_t to = 0; to < seen; ++to) {
      row[to] = std::exp((row[to] - largest) * scale);
      sum += row[to];
    }
    const float inverse = 1 / sum;
    for (std::size_t to = 0; to < seen; ++to) out[to] = static_cast<W>(row[to] * inverse);
    for (std::size_t to = seen; to < sequence; ++to) out[to] = static_cast<W>(0.0f);
  }
};

/// Rows: from the gradient of the probabilities to that of the scores.
template <class W>
struct SoftmaxBackward {
  const W* probabilities;
  const float* d_probabilities;
  W* d_scores;
  std::size_t sequence;
  float scale;

  SHARDWISE_HOST_DEVICE void operator()(std::size_t index) const {
    const std::size_t seen = index % sequence + 1;
    const W* p = probabilities + index * sequence;
    const float* d = d_probabilities + index * sequence;
    W* out = d_scores + index * sequence;
    float along = 0;
    for (std::size_t to = 0; to < seen; ++to) along += static_cast<float>(p[to]) * d[to];
    for (std::size_t to = 0; to < seen; ++to) {
      out[to] = static_cast<W>(static_cast<float>(p[to]) * (d[to] - along) * scale);
    }
    for (std::size_t to = seen; to < sequence; ++to) out[to] = static_cast<W>(0.0f);
  }
};

/// Elements: a layer's result, a product without its bias, joins the residual stream.
template <class W>
struct AddResidual {
  const float* residual;
  const float* product;
  const W* bias;
  float* out;
  std::size_t width;

  SHARDWISE_HOST_DEVICE void operator()(std::size_t i) const {
    out[i] = product[i] + static_cast<float>(bias[i % width]) + residual[i];
  }
};

/// The logistic function of 2u, u being what GELU by tanh takes the tanh of:
/// x/2 (1 + tanh u) = x / (1 + exp(-2u)), u = sqrt(2/pi) (x + 0.044715 x^3).
struct GeluGate {
  static constexpr float linear = 2 * 0.7978845608f;
  static constexpr float cubic = linear * 0.044715f;

  [[nodiscard]] SHARDWISE_HOST_DEVICE static float of(float x) {
    return 1 / (1 + std::exp(-x * (linear + cubic * x * x)));
  }
};

/// Elements: a product plus its bias, before and after GELU.
template <class W>
struct Gelu {
  const float* product;
  const W* bias;
  W* hidden;
  W* activated;
  std::size_t width;

  SHARDWISE_HOST_DEVICE void operator()(std::size_t i) const {
    hidden[i] = static_cast<W>(product[i] + static_cast<float>(bias[i % width]));
    const float x = static_cast<float>(hidden[i]);
    activated[i] = static_cast<W>(x * GeluGate::of(x));
  }
};

/// Elements: from the gradient after GELU to that before it.
template <class W>
struct GeluBackward {
  const W* hidden;
  const float* dy;
  W* dx;

  SHARDWISE_HOST_DEVICE void operator()(std::size_t i) const {
    const float x = static_cast<float>(hidden[i]);
    const float gate = GeluGate::of(x);
    const float slope =
        gate + x * gate * (1 - gate) * (GeluGate::linear + 3 * GeluGate::cubic * x * x);
    dx[i] = static_cast<W>(dy[i] * slope);
  }
};

/// Rows: the cross entropy of a token's logits with the byte that follows, and `scale` times its
/// gradient. The logits are used up.
template <class W>
struct CrossEntropy {
  float* logits;
  const std::uint8_t* targets;
  double* losses;
  W* gradient;
  std::size_t vocabulary;
  float scale;

  SHARDWISE_HOST_DEVICE void operator()(std::size_t t) const {
    float* row = logits + t * vocabulary;
    W* d = gradient + t * vocabulary;
    float largest = row[0];
    for (std::size_t i = 1; i < vocabulary; ++i) largest = row[i] > largest ? row[i] : largest;
    const float target = row[targets[t]];
    float sum = 0;
    for (std::size_t i = 0; i < vocabulary; ++i) {
      row[i] = std::exp(row[i] - largest);
      sum += row[i];
    }
    losses[t] = std::log(static_cast<double>(sum)) + static_cast<double>(largest) -
                static_cast<double>(target);
    const float factor = scale / sum;
    for (std::size_t i = 0; i < vocabulary; ++i) {
      const float hit = i == targets[t] ? scale : 0.0f;
      d[i] = static_cast<W>(row[i] * factor - hit);
    }
  }
};

}  // namespace cuda_gpt
