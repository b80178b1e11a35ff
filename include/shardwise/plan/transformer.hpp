#pragma once

#include <cstddef>
#include <string>
#include <utility>
#include <vector>

#include "../core/error.hpp"
#include "model.hpp"

namespace shardwise::inline v0_1 {

/// The sizes of a decoder-only transformer.
struct TransformerShape {
  std::size_t layers = 0;
  std::size_t width = 0;            ///< of the residual stream
  std::size_t heads = 0;            ///< 0: width / 64, at least 1
  std::size_t key_value_heads = 0;  ///< 0: heads (grouped-query attention has fewer)
  std::size_t feed_forward = 0;     ///< 0: 4 width
  std::size_t vocabulary = 50257;
  std::size_t sequence = 1024;
  bool gated = false;     ///< SwiGLU: three matrices in the MLP, and norms of one tensor
  bool biases = true;     ///< of linear layers and norms
  bool positions = true;  ///< a learned embedding of positions
  bool tied = true;       ///< the head is the token embedding

  [[nodiscard]] bool operator==(const TransformerShape&) const = default;
};

/// How a transformer is trained, as far as its own work goes.
struct TransformerUse {
  std::size_t micro_batch = 1;       ///< sequences of one micro-batch
  std::size_t activation_bytes = 2;  ///< of an element of activations
  bool checkpoints = false;          ///< blocks are computed again in the backward pass
  /// Attention that keeps no probabilities and skips those that a causal mask removes (Dao, 2023).
  bool fused_attention = true;
};

namespace detail {

/// The counts that a TransformerShape stands for.
class TransformerCounts {
 public:
  explicit TransformerCounts(const TransformerShape& given) : shape(given) {
    if (shape.layers == 0 || shape.width == 0 || shape.vocabulary == 0 || shape.sequence == 0) {
      raise(
          "a transformer has layers, a width, a vocabulary and a sequence length, found {} x {}, "
          "{}, {}",
          shape.layers, shape.width, shape.vocabulary, shape.sequence);
    }
    if (shape.heads == 0) shape.heads = shape.width < 64 ? 1 : shape.width / 64;
    if (shape.key_value_heads == 0) shape.key_value_heads = shape.heads;
    if (shape.feed_forward == 0) shape.feed_forward = 4 * shape.width;
    if (shape.width % shape.heads != 0 || shape.heads % shape.key_value_heads != 0) {
      raise("{} heads do not divide a width of {}, or {} heads of keys do not divide them",
            shape.heads, shape.width, shape.key_value_heads);
    }
    qkv = shape.width + 2 * (shape.width / shape.heads * shape.key_value_heads);
    up = (shape.gated ? 2 : 1) * shape.feed_forward;
  }

  /// Elements of a block's matrices.
  [[nodiscard]] double block_matrices() const noexcept {
    const auto w = static_cast<double>(shape.width);
    return w * static_cast<double>(qkv) + w * w + w * static_cast<double>(up) +
           w * static_cast<double>(shape.feed_forward);
  }

  TransformerShape shape;
  std::size_t qkv = 0;  ///< rows of the matrix of queries, keys and values
  std::size_t up = 0;   ///< rows of the matrix, or matrices, before the activation
};

inline void add_norm(std::vector<TensorSpec>& tensors, const std::string& name,
                     const TransformerShape& shape) {
  tensors.push_back({name + ".weight", {shape.width}, {.weight_decay = 0}});
  if (shape.biases) tensors.push_back({name + ".bias", {shape.width}, {.weight_decay = 0}});
}
inline void add_linear(std::vector<TensorSpec>& tensors, const std::string& name, std::size_t out,
                       std::size_t in, bool bias) {
  tensors.push_back({name + ".weight", {out, in}});
  if (bias) tensors.push_back({name + ".bias", {out}, {.weight_decay = 0}});
}

}  // namespace detail

/// The transformer as units that are gathered together: the embedding, each block, the final norm
/// (with the head, where that is not the embedding). Of `gradient` and `state` every parameter has
/// the same.
///
/// Work of a block for each token: two operations for each element of a matrix, and attention's
/// products, forwards; twice that backwards (2.5 times in fused attention, which computes
/// probabilities again). What is no product moves each of the activations that are kept for the
/// backward pass, 34 width bytes of a token at 2 bytes an element (Korthikanti et al., Reducing
/// Activation Recomputation, 2022, section 4.1), once out and once in, forwards, and three times
/// that backwards.
[[nodiscard]] inline PlannedModel plan_transformer(const TransformerShape& given,
                                                   const TransformerUse& use,
                                                   std::optional<DType> gradient,
                                                   const std::vector<DType>& state) {
  const detail::TransformerCounts counts(given);
  const TransformerShape& shape = counts.shape;
  PlannedModel model;
  const auto add = [&](std::string name, std::vector<TensorSpec> tensors, bool tied) {
    PlannedParameter parameter{std::move(tensors)};
    parameter.options.name = std::move(name);
    parameter.options.tied = tied;
    parameter.gradient = gradient;
    parameter.state = state;
    model.parameters.push_back(std::move(parameter));
  };
  std::vector<TensorSpec> embedding{{"token.weight", {shape.vocabulary, shape.width}}};
  if (shape.positions) embedding.push_back({"position.weight", {shape.sequence, shape.width}});
  add("embedding", std::move(embedding), shape.tied);
  for (std::size_t layer = 0; layer < shape.layers; ++layer) {
    std::vector<TensorSpec> block;
    detail::add_norm(block, "norm1", shape);
    detail::add_linear(block, "qkv", counts.qkv, shape.width, shape.biases);
    detail::add_linear(block, "out", shape.width, shape.width, shape.biases);
    detail::add_norm(block, "norm2", shape);
    detail::add_linear(block, "up", counts.up, shape.width, shape.biases);
    detail::add_linear(block, "down", shape.width, shape.feed_forward, shape.biases);
    add(detail::format("block.{}", layer), std::move(block), false);
  }
  std::vector<TensorSpec> last;
  detail::add_norm(last, "norm", shape);
  if (!shape.tied) detail::add_linear(last, "head", shape.vocabulary, shape.width, false);
  add(shape.tied ? "norm" : "head", std::move(last), false);

  const double tokens = static_cast<double>(use.micro_batch * shape.sequence);
  const double width = static_cast<double>(shape.width);
  const double element = static_cast<double>(use.activation_bytes);
  const double stored = tokens * width * 34 * element / 2;  // bytes of a block's activations
  const double pairs = static_cast<double>(shape.sequence) * (use.fused_attention ? 0.5 : 1);
  // The probabilities, where they are kept: before and after softmax.
  const double probabilities =
      use.fused_attention
          ? 0
          : tokens * static_cast<double>(shape.sequence * shape.heads) * 2 * element;

  const PlannedWork embed{0, 0, 2 * tokens * width * element, 0, 0};
  model.visits.push_back({{0}, embed, embed, false});
  PlannedWork forward{2 * tokens * counts.block_matrices(), 4 * tokens * pairs * width,
                      2 * (stored + probabilities),
                      tokens * static_cast<double>(shape.feed_forward) +
                          tokens * pairs * static_cast<double>(shape.heads),
                      0};
  PlannedWork backward = forward * 2;
  backward.bytes = 3 * (stored + probabilities);
  if (use.fused_attention) backward.attention_flops = 2.5 * forward.attention_flops;
  if (use.checkpoints) backward = backward + forward;
  for (std::size_t layer = 0; layer < shape.layers; ++layer) {
    model.visits.push_back({{1 + layer}, forward, backward, true});
  }
  const double logits = tokens * static_cast<double>(shape.vocabulary);
  const PlannedWork head{2 * logits * width, 0, 3 * logits * element, logits, 0};
  std::vector<std::size_t> head_parameters{1 + shape.layers};
  if (shape.tied) head_parameters.insert(head_parameters.begin(), 0);
  PlannedWork head_backward = head * 2;
  head_backward.exponentials = 0;
  model.visits.push_back({std::move(head_parameters), head, head_backward, true});

  const double kept = use.checkpoints ? tokens * width * element : stored + probabilities;
  model.activation_bytes = static_cast<double>(shape.layers) * kept +
                           (use.checkpoints ? stored + probabilities : 0) + 2 * logits * element;
  return model;
}

}  // namespace shardwise::inline v0_1
