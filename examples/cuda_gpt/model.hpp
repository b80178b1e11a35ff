#pragma once

#include <cstddef>
#include <cstdint>
#include <shardwise/device/cuda.hpp>
#include <vector>

#include "../train_gpt/model.hpp"
#include "array.hpp"
#include "functors.hpp"
#include "products.hpp"

namespace cuda_gpt {

using train_gpt::BlockTensors;
using train_gpt::EmbeddingTensors;
using train_gpt::GptShape;
using train_gpt::NormTensors;

/// The GPT of ../train_gpt on a device, unit by unit, so that the caller decides when a unit's
/// weights are there. Everything is enqueued on one stream and the host waits for nothing; what is
/// given stays alive in stream order. All memory is allocated at the beginning.
///
/// W, float or bf16, is the type of weights, of their gradients, to which it adds, and of what
/// enters matrix products; sums, norms, losses and the residual stream are in float.
template <class W>
class Gpt {
 public:
  /// Room for `sequences` sequences at once, on the device of `stream`, which is the current one.
  Gpt(const GptShape& shape, std::size_t sequences, shardwise::CudaStream& stream);

  /// Starts a pass over `sequences` whole sequences of bytes; `inputs` must last until its end.
  void embed_forward(EmbeddingTensors<const W> embedding, const std::uint8_t* inputs,
                     std::size_t sequences);
  /// Blocks go in order, `layer` = 0, 1, ...
  void block_forward(std::size_t layer, BlockTensors<const W> block);
  void head_forward(EmbeddingTensors<const W> embedding, NormTensors<const W> norm);
  /// Of each token, after head_forward and until loss().
  [[nodiscard]] const float* logits() const noexcept { return logits_.data(); }

  /// losses[t] = the cross entropy of token t's logits with targets[t], the byte that follows.
  /// Their sum times `scale` is what the passes back derive.
  void loss(const std::uint8_t* targets, double scale, double* losses);

  /// The passes back, in the opposite order, after loss().
  void head_backward(EmbeddingTensors<const W> embedding, NormTensors<const W> norm,
                     EmbeddingTensors<W> embedding_gradient, NormTensors<W> norm_gradient);
  void block_backward(std::size_t layer, BlockTensors<const W> block, BlockTensors<W> gradient);
  void embed_backward(EmbeddingTensors<W> embedding_gradient);

 private:
  struct Norm {
    Norm(std::size_t tokens, std::size_t width) : mean(tokens), rate(tokens), out(tokens * width) {}
    DeviceArray<float> mean;
    DeviceArray<float> rate;
    DeviceArray<W> out;
  };
  /// What a block's forward pass leaves for its backward pass.
  struct Block {
    Block(const GptShape& shape, std::size_t tokens);
    Norm norm1;
    DeviceArray<W> heads;          // query, key, value: see HeadLayout
    DeviceArray<W> probabilities;  // [sequence][head][from][to]
    DeviceArray<W> mixed;          // values by attention
    DeviceArray<float> middle;     // the residual stream between attention and MLP
    Norm norm2;
    DeviceArray<W> hidden;     // before GELU
    DeviceArray<W> activated;  // after GELU
    DeviceArray<float> out;    // the residual stream after the block
  };

  template <class Functor>
  void launch(std::size_t count, const Functor& functor) {
    shardwise::CudaDevice::launch(stream_, count, Each<Functor>{functor});
  }
  [[nodiscard]] const float* input_of(std::size_t layer) const;
  [[nodiscard]] HeadLayout head_layout() const;
  void norm_forward(const float* x, const W* weight, const W* bias, Norm& norm);
  void norm_backward(const float* x, const W* weight, const Norm& norm, W* dw, W* db);
  void linear_forward(const W* x, const W* weight, std::size_t in, std::size_t out);
  void linear_backward(const W* dy, const W* x, const W* weight, W* dw, W* db, std::size_t in,
                       std::size_t out);
  void attention_forward(Block& block);
  void attention_backward(const Block& block);
  void sum_over_tokens(const W* terms, W* sum, std::size_t columns);

  GptShape shape_;
  shardwise::CudaStream& stream_;
  Products products_;

  const std::uint8_t* inputs_ = nullptr;  // of this pass
  std::size_t sequences_ = 0;
  std::size_t tokens_ = 0;

  DeviceArray<float> embedded_;  // the residual stream before the first block
  std::vector<Block> blocks_;
  Norm final_norm_;
  DeviceArray<float> logits_;
  DeviceArray<W> d_logits_;

  DeviceArray<float> d_stream_;  // gradient of the residual stream ...
  DeviceArray<W> d_operand_;     // ... and the same for products
  DeviceArray<float> product_;   // what the last product left
  DeviceArray<float> scores_;    // of attention, or the gradient of its probabilities
  DeviceArray<W> d_scores_;
  DeviceArray<W> d_heads_;  // gradient of `mixed`, by heads
  DeviceArray<W> d_wide_;   // gradient of `hidden`, or of query, key and value
  DeviceArray<W> weight_terms_;
  DeviceArray<W> bias_terms_;
  DeviceArray<W> one_hot_;  // [token][symbol]
  DeviceArray<W> ones_;     // a row of ones: its product with a matrix sums the matrix's rows
};

}  // namespace cuda_gpt
