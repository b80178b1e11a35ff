#include "model.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numbers>
#include <shardwise/core/dtype.hpp>

#include "matrix.hpp"
#include "random.hpp"

namespace train_gpt {
namespace {

using namespace unit_tensors;

const float* in_float(const float* weights, std::size_t, std::vector<float>&) { return weights; }

template <class W>
const float* in_float(const W* weights, std::size_t count, std::vector<float>& scratch) {
  for (std::size_t i = 0; i < count; ++i) scratch[i] = static_cast<float>(weights[i]);
  return scratch.data();
}

template <class G>
void add(const std::vector<float>& addend, std::size_t count, G* sum) {
  for (std::size_t i = 0; i < count; ++i) {
    sum[i] = static_cast<G>(static_cast<float>(sum[i]) + addend[i]);
  }
}

/// y = x wᵀ + b, where x is [tokens][in], w [out][in].
template <class W>
void linear_forward(const float* x, const W* weight, const W* bias, float* y, std::size_t in,
                    std::size_t out, Activations& a) {
  const float* w = in_float(weight, out * in, a.widened);
  multiply_by_transpose({x, a.tokens, in}, {w, out, in}, {y, a.tokens, out});
  const float* b = in_float(bias, out, a.widened);
  for (std::size_t t = 0; t < a.tokens; ++t) {
    for (std::size_t i = 0; i < out; ++i) y[t * out + i] += b[i];
  }
}

/// dx = dy w; dw += dyᵀ x; db += the sum of dy over tokens.
template <class W, class G>
void linear_backward(const float* dy, const float* x, const W* weight, float* dx, G* dw, G* db,
                     std::size_t in, std::size_t out, Activations& a) {
  const float* w = in_float(weight, out * in, a.widened);
  multiply({dy, a.tokens, out}, {w, out, in}, {dx, a.tokens, in});
  multiply_transpose_by({dy, a.tokens, out}, {x, a.tokens, in}, {a.gradient.data(), out, in});
  add(a.gradient, out * in, dw);
  std::fill_n(a.gradient.begin(), out, 0.0f);
  for (std::size_t t = 0; t < a.tokens; ++t) {
    for (std::size_t i = 0; i < out; ++i) a.gradient[i] += dy[t * out + i];
  }
  add(a.gradient, out, db);
}

template <class W>
void norm_forward(const float* x, const W* weight, const W* bias, Activations::Norm& n,
                  std::size_t width, std::size_t tokens) {
  const float count = static_cast<float>(width);
  for (std::size_t t = 0; t < tokens; ++t) {
    const float* row = x + t * width;
    float sum = 0;
    for (std::size_t i = 0; i < width; ++i) sum += row[i];
    const float mean = sum / count;
    float squares = 0;
    for (std::size_t i = 0; i < width; ++i) squares += (row[i] - mean) * (row[i] - mean);
    const float rate = 1 / std::sqrt(squares / count + 1e-5f);
    float* out = n.out.data() + t * width;
    for (std::size_t i = 0; i < width; ++i) {
      out[i] = (row[i] - mean) * rate * static_cast<float>(weight[i]) + static_cast<float>(bias[i]);
    }
    n.mean[t] = mean;
    n.rate[t] = rate;
  }
}

/// dx += the gradient that dy, that of the norm's result, has with respect to x.
template <class W, class G>
void norm_backward(const float* dy, const float* x, const W* weight, const Activations::Norm& n,
                   float* dx, G* dw, G* db, std::size_t width, Activations& a) {
  float* weight_sum = a.gradient.data();
  float* bias_sum = weight_sum + width;
  std::fill_n(weight_sum, 2 * width, 0.0f);
  const float count = static_cast<float>(width);
  for (std::size_t t = 0; t < a.tokens; ++t) {
    const float* in = x + t * width;
    const float* up = dy + t * width;
    const float mean = n.mean[t];
    const float rate = n.rate[t];
    float sum = 0;
    float along = 0;
    for (std::size_t i = 0; i < width; ++i) {
      const float normed = (in[i] - mean) * rate;
      const float scaled = up[i] * static_cast<float>(weight[i]);
      weight_sum[i] += up[i] * normed;
      bias_sum[i] += up[i];
      sum += scaled;
      along += scaled * normed;
    }
    sum /= count;
    along /= count;
    for (std::size_t i = 0; i < width; ++i) {
      const float normed = (in[i] - mean) * rate;
      dx[t * width + i] += (up[i] * static_cast<float>(weight[i]) - sum - normed * along) * rate;
    }
  }
  add(a.gradient, width, dw);
  std::copy_n(bias_sum, width, weight_sum);
  add(a.gradient, width, db);
}

/// The parts of one head in one sequence: what it reads of `qkv` and writes to `mixed`, or their
/// gradients.
struct Head {
  Head(const GptShape& shape, std::size_t sequence, std::size_t head)
      : rows(shape.sequence),
        columns(shape.width / shape.heads),
        width(shape.width),
        first(sequence * shape.sequence),
        offset(head * columns),
        square((sequence * shape.heads + head) * rows * rows) {}

  template <class T>
  Matrix<T> part(T* qkv, std::size_t which) const {
    return {qkv + first * 3 * width + which * width + offset, rows, columns, 3 * width};
  }
  template <class T>
  Matrix<T> result(T* mixed) const {
    return {mixed + first * width + offset, rows, columns, width};
  }
  template <class T>
  Matrix<T> probabilities(T* attention) const {
    return {attention + square, rows, rows};
  }

  std::size_t rows;     // tokens
  std::size_t columns;  // of the head
  std::size_t width;
  std::size_t first;   // token of the sequence
  std::size_t offset;  // of the head in a token
  std::size_t square;  // offset of its probabilities
};

enum { query, key, value };

void softmax_causal(float* scores, std::size_t rows, float scale) {
  for (std::size_t from = 0; from < rows; ++from) {
    float* row = scores + from * rows;
    const float largest = *std::max_element(row, row + from + 1);
    float sum = 0;
    for (std::size_t to = 0; to <= from; ++to) {
      row[to] = std::exp((row[to] - largest) * scale);
      sum += row[to];
    }
    const float inverse = 1 / sum;
    for (std::size_t to = 0; to <= from; ++to) row[to] *= inverse;
    std::fill(row + from + 1, row + rows, 0.0f);
  }
}

void attention_forward(const GptShape& shape, Activations::Block& block, std::size_t sequences) {
  const std::size_t head_width = shape.width / shape.heads;
  const float scale = 1 / std::sqrt(static_cast<float>(head_width));
  const float* qkv = block.qkv.data();
  for (std::size_t sequence = 0; sequence < sequences; ++sequence) {
    for (std::size_t i = 0; i < shape.heads; ++i) {
      const Head head(shape, sequence, i);
      const Matrix<float> p = head.probabilities(block.attention.data());
      multiply_by_transpose(head.part(qkv, query), head.part(qkv, key), p);
      softmax_causal(p.data, p.rows, scale);
      multiply({p.data, p.rows, p.rows}, head.part(qkv, value), head.result(block.mixed.data()));
    }
  }
}

/// From the gradient of `mixed` to that of `qkv`.
void attention_backward(const GptShape& shape, const Activations::Block& block,
                        const float* d_mixed, float* d_qkv, Activations& a) {
  const std::size_t head_width = shape.width / shape.heads;
  const float scale = 1 / std::sqrt(static_cast<float>(head_width));
  const float* qkv = block.qkv.data();
  const std::size_t rows = shape.sequence;
  for (std::size_t sequence = 0; sequence < a.sequences; ++sequence) {
    for (std::size_t i = 0; i < shape.heads; ++i) {
      const Head head(shape, sequence, i);
      const Matrix<const float> p = head.probabilities(block.attention.data());
      multiply_transpose_by(p, head.result(d_mixed), head.part(d_qkv, value));
      multiply_by_transpose(head.result(d_mixed), head.part(qkv, value),
                            {a.scores.data(), rows, rows});
      for (std::size_t from = 0; from < rows; ++from) {
        const float* probability = p.data + from * rows;
        float* d = a.scores.data() + from * rows;
        float along = 0;
        for (std::size_t to = 0; to <= from; ++to) along += probability[to] * d[to];
        for (std::size_t to = 0; to <= from; ++to) {
          d[to] = probability[to] * (d[to] - along) * scale;
        }
        std::fill(d + from + 1, d + rows, 0.0f);
      }
      const Matrix<const float> d_scores(a.scores.data(), rows, rows);
      multiply(d_scores, head.part(qkv, key), head.part(d_qkv, query));
      multiply_transpose_by(d_scores, head.part(qkv, query), head.part(d_qkv, key));
    }
  }
}

// GELU by tanh: x/2 (1 + tanh u) = x / (1 + exp(-2u)), u = sqrt(2/pi) (x + 0.044715 x^3).
constexpr float gelu_linear = 2 * 0.7978845608f;
constexpr float gelu_cubic = gelu_linear * 0.044715f;

void gelu_forward(const float* x, float* y, std::size_t count) {
  for (std::size_t i = 0; i < count; ++i) {
    y[i] = x[i] / (1 + std::exp(-x[i] * (gelu_linear + gelu_cubic * x[i] * x[i])));
  }
}

/// dx from dy, in place.
void gelu_backward(const float* x, float* d, std::size_t count) {
  for (std::size_t i = 0; i < count; ++i) {
    const float square = x[i] * x[i];
    const float s = 1 / (1 + std::exp(-x[i] * (gelu_linear + gelu_cubic * square)));
    d[i] *= s + x[i] * s * (1 - s) * (gelu_linear + 3 * gelu_cubic * square);
  }
}

}  // namespace

std::size_t Tensor::size() const {
  std::size_t elements = 1;
  for (const std::size_t extent : shape) elements *= extent;
  return elements;
}

std::vector<Unit> GptShape::units() const {
  std::vector<Unit> units;
  units.push_back({{{"token_embedding.weight", {vocabulary, width}},
                    {"position_embedding.weight", {sequence, width}}},
                   true});
  for (std::size_t layer = 0; layer < layers; ++layer) {
    const auto name = [&](const char* tensor) {
      return fmt::format("blocks.{}.{}", layer, tensor);
    };
    units.push_back({{{name("norm1.weight"), {width}},
                      {name("norm1.bias"), {width}},
                      {name("attention.qkv.weight"), {3 * width, width}},
                      {name("attention.qkv.bias"), {3 * width}},
                      {name("attention.out.weight"), {width, width}},
                      {name("attention.out.bias"), {width}},
                      {name("norm2.weight"), {width}},
                      {name("norm2.bias"), {width}},
                      {name("mlp.up.weight"), {4 * width, width}},
                      {name("mlp.up.bias"), {4 * width}},
                      {name("mlp.down.weight"), {width, 4 * width}},
                      {name("mlp.down.bias"), {width}}}});
  }
  units.push_back({{{"final_norm.weight", {width}}, {"final_norm.bias", {width}}}});
  return units;
}

std::size_t GptShape::parameters() const {
  std::size_t elements = 0;
  for (const Unit& unit : units()) {
    for (const Tensor& tensor : unit) elements += tensor.size();
  }
  return elements;
}

float GptShape::initial_value(std::string_view tensor, std::size_t element,
                              std::uint64_t seed) const {
  if (tensor.ends_with(".bias")) return 0;
  if (tensor.find("norm") != std::string_view::npos) return 1;
  double deviation = 0.02;
  if (tensor.ends_with("out.weight") || tensor.ends_with("down.weight")) {
    deviation /= std::sqrt(2 * static_cast<double>(layers));
  } else if (tensor.ends_with("embedding.weight")) {
    // With 0.02, some 20 steps of Adam at 1e-3 carry a row through zero, where the norms that
    // follow turn float noise into different training runs.
    deviation = 0.1;
  }
  const std::uint64_t key = key_of(tensor);
  const double radius = to_unit_interval(random_bits(seed, key, element, 0));
  const double angle = to_unit_interval(random_bits(seed, key, element, 1));
  return static_cast<float>(deviation * std::sqrt(-2 * std::log(radius)) *
                            std::cos(2 * std::numbers::pi * angle));
}

Activations::Block::Block(const GptShape& shape, std::size_t capacity)
    : norm1(capacity * shape.sequence, shape.width),
      qkv(capacity * shape.sequence * 3 * shape.width),
      attention(capacity * shape.heads * shape.sequence * shape.sequence),
      mixed(capacity * shape.sequence * shape.width),
      middle(mixed.size()),
      norm2(capacity * shape.sequence, shape.width),
      hidden(capacity * shape.sequence * 4 * shape.width),
      activated(hidden.size()),
      out(mixed.size()) {}

Activations::Activations(const GptShape& shape, std::size_t capacity)
    : inputs(capacity * shape.sequence),
      embedded(inputs.size() * shape.width),
      blocks(shape.layers, Block(shape, capacity)),
      final_norm(inputs.size(), shape.width),
      logits(inputs.size() * GptShape::vocabulary),
      stream(embedded.size()),
      narrow(embedded.size()),
      wide(4 * embedded.size()),
      scores(shape.sequence * shape.sequence),
      widened(std::max({GptShape::vocabulary, shape.sequence, 4 * shape.width}) * shape.width),
      gradient(widened.size()) {}

template <class W, class G>
void Gpt<W, G>::embed_forward(EmbeddingTensors<const W> embedding,
                              std::span<const std::uint8_t> inputs, Activations& a) const {
  std::copy(inputs.begin(), inputs.end(), a.inputs.begin());
  a.tokens = inputs.size();
  a.sequences = inputs.size() / shape_.sequence;
  const std::size_t width = shape_.width;
  for (std::size_t t = 0; t < a.tokens; ++t) {
    const W* token = embedding[embedding_unit::token] + inputs[t] * width;
    const W* position = embedding[embedding_unit::position] + t % shape_.sequence * width;
    for (std::size_t i = 0; i < width; ++i) {
      a.embedded[t * width + i] = static_cast<float>(token[i]) + static_cast<float>(position[i]);
    }
  }
}

template <class W, class G>
void Gpt<W, G>::block_forward(std::size_t layer, BlockTensors<const W> w, Activations& a) const {
  using namespace block_unit;
  const std::size_t width = shape_.width;
  const float* x = layer == 0 ? a.embedded.data() : a.blocks[layer - 1].out.data();
  Activations::Block& b = a.blocks[layer];

  norm_forward(x, w[norm1_weight], w[norm1_bias], b.norm1, width, a.tokens);
  linear_forward(b.norm1.out.data(), w[qkv_weight], w[qkv_bias], b.qkv.data(), width, 3 * width, a);
  attention_forward(shape_, b, a.sequences);
  linear_forward(b.mixed.data(), w[out_weight], w[out_bias], b.middle.data(), width, width, a);
  for (std::size_t i = 0; i < a.tokens * width; ++i) b.middle[i] += x[i];

  norm_forward(b.middle.data(), w[norm2_weight], w[norm2_bias], b.norm2, width, a.tokens);
  linear_forward(b.norm2.out.data(), w[up_weight], w[up_bias], b.hidden.data(), width, 4 * width,
                 a);
  gelu_forward(b.hidden.data(), b.activated.data(), a.tokens * 4 * width);
  linear_forward(b.activated.data(), w[down_weight], w[down_bias], b.out.data(), 4 * width, width,
                 a);
  for (std::size_t i = 0; i < a.tokens * width; ++i) b.out[i] += b.middle[i];
}

template <class W, class G>
void Gpt<W, G>::head_forward(EmbeddingTensors<const W> embedding, NormTensors<const W> norm,
                             Activations& a) const {
  const std::size_t width = shape_.width;
  const std::size_t vocabulary = GptShape::vocabulary;
  norm_forward(a.blocks.back().out.data(), norm[norm_unit::weight], norm[norm_unit::bias],
               a.final_norm, width, a.tokens);
  const float* token = in_float(embedding[embedding_unit::token], vocabulary * width, a.widened);
  multiply_by_transpose({a.final_norm.out.data(), a.tokens, width}, {token, vocabulary, width},
                        {a.logits.data(), a.tokens, vocabulary});
}

template <class W, class G>
double Gpt<W, G>::loss(std::span<const std::uint8_t> targets, double scale, Activations& a) {
  double total = 0;
  for (std::size_t t = 0; t < a.tokens; ++t) {
    float* row = a.logits.data() + t * GptShape::vocabulary;
    const float largest = *std::max_element(row, row + GptShape::vocabulary);
    const float target = row[targets[t]];
    float sum = 0;
    for (std::size_t i = 0; i < GptShape::vocabulary; ++i) {
      row[i] = std::exp(row[i] - largest);
      sum += row[i];
    }
    total += std::log(static_cast<double>(sum)) + static_cast<double>(largest) -
             static_cast<double>(target);
    const float each = static_cast<float>(scale);
    const float factor = each / sum;
    for (std::size_t i = 0; i < GptShape::vocabulary; ++i) row[i] *= factor;
    row[targets[t]] -= each;
  }
  return total * scale;
}

template <class W, class G>
void Gpt<W, G>::head_backward(EmbeddingTensors<const W> embedding, NormTensors<const W> norm,
                              EmbeddingTensors<G> embedding_gradient, NormTensors<G> norm_gradient,
                              Activations& a) const {
  const std::size_t width = shape_.width;
  const std::size_t vocabulary = GptShape::vocabulary;
  const Matrix<const float> d_logits(a.logits.data(), a.tokens, vocabulary);
  multiply_transpose_by(d_logits, {a.final_norm.out.data(), a.tokens, width},
                        {a.gradient.data(), vocabulary, width});
  add(a.gradient, vocabulary * width, embedding_gradient[embedding_unit::token]);
  const float* token = in_float(embedding[embedding_unit::token], vocabulary * width, a.widened);
  multiply(d_logits, {token, vocabulary, width}, {a.narrow.data(), a.tokens, width});
  std::fill_n(a.stream.begin(), a.tokens * width, 0.0f);
  norm_backward(a.narrow.data(), a.blocks.back().out.data(), norm[norm_unit::weight], a.final_norm,
                a.stream.data(), norm_gradient[norm_unit::weight], norm_gradient[norm_unit::bias],
                width, a);
}

template <class W, class G>
void Gpt<W, G>::block_backward(std::size_t layer, BlockTensors<const W> w, BlockTensors<G> g,
                               Activations& a) const {
  using namespace block_unit;
  const std::size_t width = shape_.width;
  const float* x = layer == 0 ? a.embedded.data() : a.blocks[layer - 1].out.data();
  const Activations::Block& b = a.blocks[layer];
  float* wide = a.wide.data();
  float* narrow = a.narrow.data();

  linear_backward(a.stream.data(), b.activated.data(), w[down_weight], wide, g[down_weight],
                  g[down_bias], 4 * width, width, a);
  gelu_backward(b.hidden.data(), wide, a.tokens * 4 * width);
  linear_backward(wide, b.norm2.out.data(), w[up_weight], narrow, g[up_weight], g[up_bias], width,
                  4 * width, a);
  norm_backward(narrow, b.middle.data(), w[norm2_weight], b.norm2, a.stream.data(), g[norm2_weight],
                g[norm2_bias], width, a);

  linear_backward(a.stream.data(), b.mixed.data(), w[out_weight], narrow, g[out_weight],
                  g[out_bias], width, width, a);
  attention_backward(shape_, b, narrow, wide, a);
  linear_backward(wide, b.norm1.out.data(), w[qkv_weight], narrow, g[qkv_weight], g[qkv_bias],
                  width, 3 * width, a);
  norm_backward(narrow, x, w[norm1_weight], b.norm1, a.stream.data(), g[norm1_weight],
                g[norm1_bias], width, a);
}

template <class W, class G>
void Gpt<W, G>::embed_backward(EmbeddingTensors<G> gradient, Activations& a) const {
  const std::size_t width = shape_.width;
  const auto scatter = [&](std::size_t rows, auto row_of) {
    std::fill_n(a.gradient.begin(), rows * width, 0.0f);
    for (std::size_t t = 0; t < a.tokens; ++t) {
      float* row = a.gradient.data() + row_of(t) * width;
      for (std::size_t i = 0; i < width; ++i) row[i] += a.stream[t * width + i];
    }
  };
  scatter(GptShape::vocabulary, [&](std::size_t t) -> std::size_t { return a.inputs[t]; });
  add(a.gradient, GptShape::vocabulary * width, gradient[embedding_unit::token]);
  scatter(shape_.sequence, [&](std::size_t t) { return t % shape_.sequence; });
  add(a.gradient, shape_.sequence * width, gradient[embedding_unit::position]);
}

template class Gpt<float>;
template class Gpt<shardwise::bf16>;
template class Gpt<shardwise::f16>;
template class Gpt<shardwise::bf16, float>;
template class Gpt<shardwise::f16, float>;

}  // namespace train_gpt
