#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

namespace train_gpt {

/// One named tensor of the model.
struct Tensor {
  std::string name;
  std::vector<std::size_t> shape;

  [[nodiscard]] std::size_t size() const;
  /// Weight decay is for matrices: biases and norms keep their scale.
  [[nodiscard]] bool decays() const { return shape.size() > 1; }
};

/// The tensors that the model uses together: what a sharded trainer gathers in one piece.
struct Unit {
  std::vector<Tensor> tensors;
  bool tied = false;  ///< used at both ends: its gradient is complete at the end of a pass only

  [[nodiscard]] auto begin() const { return tensors.begin(); }
  [[nodiscard]] auto end() const { return tensors.end(); }
};

/// The tensors of each unit, in the order of GptShape::units().
namespace unit_tensors {
namespace embedding_unit {
enum { token, position };
}
namespace norm_unit {
enum { weight, bias };
}
namespace block_unit {
enum {
  norm1_weight,
  norm1_bias,
  qkv_weight,
  qkv_bias,
  out_weight,
  out_bias,
  norm2_weight,
  norm2_bias,
  up_weight,
  up_bias,
  down_weight,
  down_bias
};
}
}  // namespace unit_tensors

/// The sizes of a byte-level GPT.
struct GptShape {
  static constexpr std::size_t vocabulary = 256;

  std::size_t layers = 0;
  std::size_t width = 0;
  std::size_t heads = 0;     ///< divides the width
  std::size_t sequence = 0;  ///< tokens of one sequence

  /// The model's tensors, in order of use: the embedding (its token table is the head too), the
  /// blocks, the final norm.
  [[nodiscard]] std::vector<Unit> units() const;

  [[nodiscard]] std::size_t parameters() const;

  /// The initial value of an element, as GPT-2's: matrices normal with deviation 0.02, smaller
  /// where they add to the residual stream; norms 1, biases 0. Embeddings have deviation 0.1.
  /// Depends on its arguments alone.
  [[nodiscard]] float initial_value(std::string_view tensor, std::size_t element,
                                    std::uint64_t seed) const;
};

/// One pointer to each of a unit's tensors, in the order of its table. Made from any list of spans,
/// a lease too; valid as long as what they point to.
template <class T, std::size_t Count>
class Tensors {
 public:
  template <class List>
  requires(!std::is_same_v<std::remove_cvref_t<List>, Tensors>)
      Tensors(List&& list) {  // implicit: the model's functions are called with leases
    for (std::size_t i = 0; i < Count; ++i) pointers_[i] = list[{i}].data();
  }
  [[nodiscard]] T* operator[](std::size_t tensor) const { return pointers_[tensor]; }

 private:
  std::array<T*, Count> pointers_{};
};

template <class T>
using EmbeddingTensors = Tensors<T, 2>;
template <class T>
using BlockTensors = Tensors<T, 12>;
template <class T>
using NormTensors = Tensors<T, 2>;

/// What the forward pass leaves for the backward pass, and scratch memory for both. Everything is
/// allocated here, nothing in a step.
struct Activations {
  /// Room for `capacity` sequences at once.
  Activations(const GptShape& shape, std::size_t capacity);

  struct Norm {
    Norm(std::size_t tokens, std::size_t width) : mean(tokens), rate(tokens), out(tokens * width) {}
    std::vector<float> mean;
    std::vector<float> rate;  // 1 / deviation
    std::vector<float> out;
  };
  struct Block {
    Block(const GptShape& shape, std::size_t capacity);
    Norm norm1;
    std::vector<float> qkv;        // [token][query, key, value][head][...]
    std::vector<float> attention;  // [sequence][head][from][to]: the probabilities
    std::vector<float> mixed;      // [token][head][...]: values by attention
    std::vector<float> middle;     // the residual stream between attention and MLP
    Norm norm2;
    std::vector<float> hidden;     // before GELU
    std::vector<float> activated;  // after GELU
    std::vector<float> out;        // the residual stream after the block
  };

  std::size_t sequences = 0;  // in use
  std::size_t tokens = 0;
  std::vector<std::uint8_t> inputs;
  std::vector<float> embedded;  // the residual stream before the first block
  std::vector<Block> blocks;
  Norm final_norm;
  std::vector<float> logits;  // after head_forward: their gradient

  std::vector<float> stream;    // gradient of the residual stream
  std::vector<float> narrow;    // scratch of the sizes named: tokens x width
  std::vector<float> wide;      // tokens x 4 width
  std::vector<float> scores;    // sequence x sequence
  std::vector<float> widened;   // a tensor in float
  std::vector<float> gradient;  // the gradient of a tensor, before it is added
};

/// The mathematics of a GPT (pre-norm, GELU, learned positions, tied head; Radford et al., 2019),
/// forwards and backwards, unit by unit, so that the caller decides when a unit's weights are
/// there. Activations are float. W is the type of the weights that it reads, G of the gradients,
/// to which it adds: compute is in float, each tensor's gradient is rounded once per call.
template <class W, class G = W>
class Gpt {
 public:
  explicit Gpt(const GptShape& shape) : shape_(shape) {}

  /// Starts a pass over `inputs`: whole sequences, at most the capacity of `a`.
  void embed_forward(EmbeddingTensors<const W> embedding, std::span<const std::uint8_t> inputs,
                     Activations& a) const;

  /// Blocks go in order, `layer` = 0, 1, ...
  void block_forward(std::size_t layer, BlockTensors<const W> block, Activations& a) const;

  /// The logits of every token into `a.logits`.
  void head_forward(EmbeddingTensors<const W> embedding, NormTensors<const W> norm,
                    Activations& a) const;

  /// The cross entropy of the logits with the bytes that follow, summed over tokens and multiplied
  /// by `scale`; `a.logits` becomes its gradient.
  [[nodiscard]] static double loss(std::span<const std::uint8_t> targets, double scale,
                                   Activations& a);

  /// The passes back, in the opposite order, after `loss`.
  void head_backward(EmbeddingTensors<const W> embedding, NormTensors<const W> norm,
                     EmbeddingTensors<G> embedding_gradient, NormTensors<G> norm_gradient,
                     Activations& a) const;
  void block_backward(std::size_t layer, BlockTensors<const W> block, BlockTensors<G> gradient,
                      Activations& a) const;
  void embed_backward(EmbeddingTensors<G> embedding_gradient, Activations& a) const;

 private:
  GptShape shape_;
};

}  // namespace train_gpt
