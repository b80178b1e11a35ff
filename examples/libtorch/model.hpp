#pragma once

#include <torch/torch.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

#include "options.hpp"

namespace libtorch_gpt {

/// Tokens (batch, length) -> (batch, length, width).
struct EmbeddingImpl : torch::nn::Module {
  EmbeddingImpl(const Options& options, std::size_t vocabulary);
  torch::Tensor forward(const torch::Tensor& tokens);

  torch::nn::Embedding token;
  torch::nn::Embedding position;
};
TORCH_MODULE(Embedding);

/// A pre-norm transformer block with causal attention.
struct BlockImpl : torch::nn::Module {
  explicit BlockImpl(const Options& options);
  torch::Tensor forward(const torch::Tensor& x);

  std::int64_t heads;
  torch::nn::LayerNorm norm1, norm2;
  torch::nn::Linear qkv, projection, up, down;
  torch::Tensor future;  // a buffer: true where a token must not look
};
TORCH_MODULE(Block);

/// The final norm and the logits.
struct HeadImpl : torch::nn::Module {
  /// `tied`: the weight to use instead of one of its own, or undefined.
  HeadImpl(const Options& options, std::size_t vocabulary, const torch::Tensor& tied);
  torch::Tensor forward(const torch::Tensor& x);

  torch::nn::LayerNorm norm;
  torch::Tensor weight;
};
TORCH_MODULE(Head);

/// The parts in order; their parent's loop is the trainer's.
struct GptImpl : torch::nn::Module {
  GptImpl(const Options& options, std::size_t vocabulary);

  Embedding embedding;
  std::vector<Block> blocks;
  Head head;
};
TORCH_MODULE(Gpt);

/// A model with initial values that depend on the seed alone. The generator behind them is the
/// process's: ranks that are threads make their models one after the other.
[[nodiscard]] Gpt make_model(const Options& options, std::size_t vocabulary);

/// Each parameter once, a tied one under its first name.
[[nodiscard]] std::vector<torch::Tensor> unique_parameters(const Gpt& model);
/// Those that `choose` picks.
[[nodiscard]] std::vector<torch::Tensor> unique_parameters(
    const Gpt& model, const std::function<bool(const torch::Tensor&)>& choose);

/// AdamW for tensors that decay and tensors that do not.
[[nodiscard]] torch::optim::AdamW make_optimizer(const Options& options,
                                                 std::vector<torch::Tensor> decaying,
                                                 std::vector<torch::Tensor> others);

/// Bytes of its moments.
[[nodiscard]] std::size_t bytes_of(torch::optim::AdamW& optimizer);

/// The values of all parameters, one after the other.
[[nodiscard]] std::vector<float> values_of(const Gpt& model);

}  // namespace libtorch_gpt
