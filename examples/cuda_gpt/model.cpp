#include "model.hpp"

#include <cmath>

namespace cuda_gpt {
namespace {

using namespace train_gpt::unit_tensors;

constexpr std::size_t vocabulary = GptShape::vocabulary;

/// What the host has, on the device; the host waits.
template <class W>
void fill(DeviceArray<W>& array, float value, shardwise::CudaStream& stream) {
  const std::vector<W> values(array.size(), static_cast<W>(value));
  shardwise::CudaDevice::upload(stream, array.data(), values.data(), values.size() * sizeof(W));
}

}  // namespace

template <class W>
Gpt<W>::Block::Block(const GptShape& shape, std::size_t tokens)
    : norm1(tokens, shape.width),
      heads(3 * tokens * shape.width),
      probabilities(tokens * shape.heads * shape.sequence),
      mixed(tokens * shape.width),
      middle(tokens * shape.width),
      norm2(tokens, shape.width),
      hidden(tokens * 4 * shape.width),
      activated(tokens * 4 * shape.width),
      out(tokens * shape.width) {}

template <class W>
Gpt<W>::Gpt(const GptShape& shape, std::size_t sequences, shardwise::CudaStream& stream)
    : shape_(shape),
      stream_(stream),
      products_(stream.native()),
      sequences_(sequences),
      tokens_(sequences * shape.sequence),
      embedded_(tokens_ * shape.width),
      final_norm_(tokens_, shape.width),
      logits_(tokens_ * vocabulary),
      d_logits_(tokens_ * vocabulary),
      d_stream_(tokens_ * shape.width),
      d_operand_(tokens_ * shape.width),
      product_(tokens_ * 4 * shape.width),
      scores_(tokens_ * shape.heads * shape.sequence),
      d_scores_(scores_.size()),
      d_heads_(tokens_ * shape.width),
      d_wide_(tokens_ * 4 * shape.width),
      weight_terms_(tokens_ * shape.width),
      bias_terms_(tokens_ * shape.width),
      one_hot_(tokens_ * vocabulary),
      ones_(tokens_) {
  blocks_.reserve(shape.layers);
  for (std::size_t layer = 0; layer < shape.layers; ++layer) blocks_.emplace_back(shape, tokens_);
  fill(ones_, 1, stream);
}

template <class W>
const float* Gpt<W>::input_of(std::size_t layer) const {
  return layer == 0 ? embedded_.data() : blocks_[layer - 1].out.data();
}

template <class W>
HeadLayout Gpt<W>::head_layout() const {
  return {tokens_, shape_.sequence, shape_.heads, shape_.width / shape_.heads};
}

/// sum += the sum of the rows of `terms`, [token][column].
template <class W>
void Gpt<W>::sum_over_tokens(const W* terms, W* sum, std::size_t columns) {
  products_.multiply({ones_.data(), 1, tokens_}, {terms, tokens_, columns}, {sum, 1, columns},
                     Into::add);
}

/// product_ = x wᵀ, where w is [out][in]. Whoever reads it adds the bias.
template <class W>
void Gpt<W>::linear_forward(const W* x, const W* weight, std::size_t in, std::size_t out) {
  products_.multiply_by_transpose({x, tokens_, in}, {weight, out, in},
                                  {product_.data(), tokens_, out});
}

/// product_ = dy w; dw += dyᵀ x; db += the sum of dy over tokens.
template <class W>
void Gpt<W>::linear_backward(const W* dy, const W* x, const W* weight, W* dw, W* db, std::size_t in,
                             std::size_t out) {
  products_.multiply({dy, tokens_, out}, {weight, out, in}, {product_.data(), tokens_, in});
  products_.multiply_transpose_by({dy, tokens_, out}, {x, tokens_, in}, {dw, out, in}, Into::add);
  sum_over_tokens(dy, db, out);
}

template <class W>
void Gpt<W>::norm_forward(const float* x, const W* weight, const W* bias, Norm& norm) {
  launch(tokens_, NormForward<W>{x, weight, bias, norm.mean.data(), norm.rate.data(),
                                 norm.out.data(), shape_.width});
}

/// From the gradient of the norm's result, which is in product_, to that of the residual stream.
template <class W>
void Gpt<W>::norm_backward(const float* x, const W* weight, const Norm& norm, W* dw, W* db) {
  launch(tokens_, NormBackward<W>{product_.data(), x, weight, norm.mean.data(), norm.rate.data(),
                                  d_stream_.data(), d_operand_.data(), weight_terms_.data(),
                                  bias_terms_.data(), shape_.width});
  sum_over_tokens(weight_terms_.data(), dw, shape_.width);
  sum_over_tokens(bias_terms_.data(), db, shape_.width);
}

template <class W>
void Gpt<W>::embed_forward(EmbeddingTensors<const W> embedding, const std::uint8_t* inputs,
                           std::size_t sequences) {
  inputs_ = inputs;
  sequences_ = sequences;
  tokens_ = sequences * shape_.sequence;
  launch(tokens_ * shape_.width,
         Embed<W>{inputs, embedding[embedding_unit::token], embedding[embedding_unit::position],
                  embedded_.data(), shape_.width, shape_.sequence});
}

/// `heads` has query, key and value: all heads of all sequences in one product each.
template <class W>
void Gpt<W>::attention_forward(Block& block) {
  const std::size_t rows = shape_.sequence;
  const std::size_t count = sequences_ * shape_.heads;
  const std::size_t columns = shape_.width / shape_.heads;
  const float scale = 1 / std::sqrt(static_cast<float>(columns));
  const W* query = block.heads.data();
  const W* key = query + tokens_ * shape_.width;
  const W* value = key + tokens_ * shape_.width;
  products_.multiply_by_transpose({query, rows, columns, count}, {key, rows, columns, count},
                                  {scores_.data(), rows, rows, count});
  launch(count * rows, SoftmaxCausal<W>{scores_.data(), block.probabilities.data(), rows, scale});
  products_.multiply({block.probabilities.data(), rows, rows, count}, {value, rows, columns, count},
                     {product_.data(), rows, columns, count});
  launch(tokens_ * shape_.width,
         MergeHeads<W>{product_.data(), block.mixed.data(), head_layout(), 1});
}

template <class W>
void Gpt<W>::block_forward(std::size_t layer, BlockTensors<const W> w) {
  using namespace block_unit;
  const std::size_t width = shape_.width;
  const std::size_t size = tokens_ * width;
  const float* x = input_of(layer);
  Block& b = blocks_[layer];

  norm_forward(x, w[norm1_weight], w[norm1_bias], b.norm1);
  linear_forward(b.norm1.out.data(), w[qkv_weight], width, 3 * width);
  launch(3 * size, SplitHeads<W>{product_.data(), w[qkv_bias], b.heads.data(), head_layout(), 3});
  attention_forward(b);
  linear_forward(b.mixed.data(), w[out_weight], width, width);
  launch(size, AddResidual<W>{x, product_.data(), w[out_bias], b.middle.data(), width});

  norm_forward(b.middle.data(), w[norm2_weight], w[norm2_bias], b.norm2);
  linear_forward(b.norm2.out.data(), w[up_weight], width, 4 * width);
  launch(4 * size,
         Gelu<W>{product_.data(), w[up_bias], b.hidden.data(), b.activated.data(), 4 * width});
  linear_forward(b.activated.data(), w[down_weight], 4 * width, width);
  launch(size, AddResidual<W>{b.middle.data(), product_.data(), w[down_bias], b.out.data(), width});
}

template <class W>
void Gpt<W>::head_forward(EmbeddingTensors<const W> embedding, NormTensors<const W> norm) {
  norm_forward(input_of(shape_.layers), norm[norm_unit::weight], norm[norm_unit::bias],
               final_norm_);
  products_.multiply_by_transpose({final_norm_.out.data(), tokens_, shape_.width},
                                  {embedding[embedding_unit::token], vocabulary, shape_.width},
                                  {logits_.data(), tokens_, vocabulary});
}

template <class W>
void Gpt<W>::loss(const std::uint8_t* targets, double scale, double* losses) {
  launch(tokens_, CrossEntropy<W>{logits_.data(), targets, losses, d_logits_.data(), vocabulary,
                                  static_cast<float>(scale)});
}

template <class W>
void Gpt<W>::head_backward(EmbeddingTensors<const W> embedding, NormTensors<const W> norm,
                           EmbeddingTensors<W> embedding_gradient, NormTensors<W> norm_gradient) {
  const Operand d_logits{d_logits_.data(), tokens_, vocabulary};
  products_.multiply_transpose_by(
      d_logits, {final_norm_.out.data(), tokens_, shape_.width},
      {embedding_gradient[embedding_unit::token], vocabulary, shape_.width}, Into::add);
  products_.multiply(d_logits, {embedding[embedding_unit::token], vocabulary, shape_.width},
                     {product_.data(), tokens_, shape_.width});
  shardwise::CudaDevice::zero(stream_, d_stream_.data(), tokens_ * shape_.width * sizeof(float));
  norm_backward(input_of(shape_.layers), norm[norm_unit::weight], final_norm_,
                norm_gradient[norm_unit::weight], norm_gradient[norm_unit::bias]);
}

/// From the gradient of `mixed`, which is in product_, to that of query, key and value in d_wide_.
template <class W>
void Gpt<W>::attention_backward(const Block& block) {
  const std::size_t rows = shape_.sequence;
  const std::size_t count = sequences_ * shape_.heads;
  const std::size_t columns = shape_.width / shape_.heads;
  const std::size_t size = tokens_ * shape_.width;
  const float scale = 1 / std::sqrt(static_cast<float>(columns));
  const Operand query{block.heads.data(), rows, columns, count};
  const Operand key{block.heads.data() + size, rows, columns, count};
  const Operand value{block.heads.data() + 2 * size, rows, columns, count};
  const Operand probabilities{block.probabilities.data(), rows, rows, count};

  launch(size, SplitHeads<W>{product_.data(), nullptr, d_heads_.data(), head_layout(), 1});
  const Operand d_mixed{d_heads_.data(), rows, columns, count};
  products_.multiply_by_transpose(d_mixed, value, {scores_.data(), rows, rows, count});
  launch(count * rows, SoftmaxBackward<W>{block.probabilities.data(), scores_.data(),
                                          d_scores_.data(), rows, scale});
  const Operand d_scores{d_scores_.data(), rows, rows, count};
  products_.multiply(d_scores, key, {product_.data(), rows, columns, count});
  products_.multiply_transpose_by(d_scores, query, {product_.data() + size, rows, columns, count});
  products_.multiply_transpose_by(probabilities, d_mixed,
                                  {product_.data() + 2 * size, rows, columns, count});
  launch(3 * size, MergeHeads<W>{product_.data(), d_wide_.data(), head_layout(), 3});
}

template <class W>
void Gpt<W>::block_backward(std::size_t layer, BlockTensors<const W> w, BlockTensors<W> g) {
  using namespace block_unit;
  const std::size_t width = shape_.width;
  const Block& b = blocks_[layer];

  linear_backward(d_operand_.data(), b.activated.data(), w[down_weight], g[down_weight],
                  g[down_bias], 4 * width, width);
  launch(tokens_ * 4 * width, GeluBackward<W>{b.hidden.data(), product_.data(), d_wide_.data()});
  linear_backward(d_wide_.data(), b.norm2.out.data(), w[up_weight], g[up_weight], g[up_bias], width,
                  4 * width);
  norm_backward(b.middle.data(), w[norm2_weight], b.norm2, g[norm2_weight], g[norm2_bias]);

  linear_backward(d_operand_.data(), b.mixed.data(), w[out_weight], g[out_weight], g[out_bias],
                  width, width);
  attention_backward(b);
  linear_backward(d_wide_.data(), b.norm1.out.data(), w[qkv_weight], g[qkv_weight], g[qkv_bias],
                  width, 3 * width);
  norm_backward(input_of(layer), w[norm1_weight], b.norm1, g[norm1_weight], g[norm1_bias]);
}

template <class W>
void Gpt<W>::embed_backward(EmbeddingTensors<W> gradient) {
  const std::size_t width = shape_.width;
  launch(tokens_ * vocabulary, OneHot<W>{inputs_, one_hot_.data(), vocabulary});
  products_.multiply_transpose_by({one_hot_.data(), tokens_, vocabulary},
                                  {d_operand_.data(), tokens_, width},
                                  {gradient[embedding_unit::token], vocabulary, width}, Into::add);
  // Each sequence is a row here; their sum is the gradient of all positions.
  const std::size_t row = shape_.sequence * width;
  products_.multiply({ones_.data(), 1, sequences_}, {d_operand_.data(), sequences_, row},
                     {gradient[embedding_unit::position], 1, row}, Into::add);
}

template class Gpt<float>;
template class Gpt<shardwise::bf16>;

}  // namespace cuda_gpt
