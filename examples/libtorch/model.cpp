#include "model.hpp"

#include <cmath>
#include <limits>
#include <mutex>
#include <unordered_set>

namespace libtorch_gpt {
namespace {

namespace nn = torch::nn;

nn::LayerNorm make_norm(std::int64_t width) { return nn::LayerNorm(nn::LayerNormOptions({width})); }

std::int64_t to_int(std::size_t value) { return static_cast<std::int64_t>(value); }

}  // namespace

EmbeddingImpl::EmbeddingImpl(const Options& options, std::size_t vocabulary)
    : token(register_module("token", nn::Embedding(to_int(vocabulary), to_int(options.width)))),
      position(register_module("position",
                               nn::Embedding(to_int(options.sequence), to_int(options.width)))) {}

torch::Tensor EmbeddingImpl::forward(const torch::Tensor& tokens) {
  return token(tokens) + position(torch::arange(tokens.size(1)));
}

BlockImpl::BlockImpl(const Options& options)
    : heads(to_int(options.heads)),
      norm1(register_module("norm1", make_norm(to_int(options.width)))),
      norm2(register_module("norm2", make_norm(to_int(options.width)))),
      qkv(register_module("qkv", nn::Linear(to_int(options.width), 3 * to_int(options.width)))),
      projection(
          register_module("projection", nn::Linear(to_int(options.width), to_int(options.width)))),
      up(register_module("up", nn::Linear(to_int(options.width), 4 * to_int(options.width)))),
      down(register_module("down", nn::Linear(4 * to_int(options.width), to_int(options.width)))),
      future(register_buffer(
          "future", torch::ones({to_int(options.sequence), to_int(options.sequence)}, torch::kBool)
                        .triu(1))) {}

torch::Tensor BlockImpl::forward(const torch::Tensor& x) {
  const auto split = [&](const torch::Tensor& part) {
    return part.view({x.size(0), x.size(1), heads, -1}).transpose(1, 2);
  };
  const auto parts = qkv(norm1(x)).chunk(3, -1);
  const auto q = split(parts[0]);
  const auto k = split(parts[1]);
  const auto v = split(parts[2]);
  const double scale = 1 / std::sqrt(static_cast<double>(q.size(3)));
  const auto scores = (q.matmul(k.transpose(2, 3)) * scale)
                          .masked_fill(future, -std::numeric_limits<float>::infinity());
  const auto mixed = scores.softmax(-1).matmul(v).transpose(1, 2).reshape(x.sizes());
  const auto y = x + projection(mixed);
  return y + down(torch::gelu(up(norm2(y))));
}

HeadImpl::HeadImpl(const Options& options, std::size_t vocabulary, const torch::Tensor& tied)
    : norm(register_module("norm", make_norm(to_int(options.width)))),
      weight(register_parameter(
          "weight",
          tied.defined() ? tied : torch::empty({to_int(vocabulary), to_int(options.width)}))) {}

torch::Tensor HeadImpl::forward(const torch::Tensor& x) { return torch::linear(norm(x), weight); }

GptImpl::GptImpl(const Options& options, std::size_t vocabulary)
    : embedding(register_module("embedding", Embedding(options, vocabulary))), head(nullptr) {
  for (std::size_t layer = 0; layer < options.layers; ++layer) {
    blocks.push_back(register_module("block" + std::to_string(layer), Block(options)));
  }
  const torch::Tensor tied = options.tied ? embedding->token->weight : torch::Tensor();
  head = register_module("head", Head(options, vocabulary, tied));
}

Gpt make_model(const Options& options, std::size_t vocabulary) {
  static std::mutex generator;
  const std::lock_guard lock(generator);
  torch::manual_seed(options.seed);
  Gpt model(options, vocabulary);
  const torch::NoGradGuard no_grad;
  for (torch::Tensor& parameter : unique_parameters(model)) {
    if (parameter.dim() > 1) parameter.normal_(0, 0.02);
  }
  return model;
}

std::vector<torch::Tensor> unique_parameters(const Gpt& model) {
  std::vector<torch::Tensor> unique;
  std::unordered_set<const void*> seen;
  for (const torch::Tensor& parameter : model->parameters()) {
    if (seen.insert(parameter.unsafeGetTensorImpl()).second) unique.push_back(parameter);
  }
  return unique;
}

std::vector<torch::Tensor> unique_parameters(
    const Gpt& model, const std::function<bool(const torch::Tensor&)>& choose) {
  std::vector<torch::Tensor> chosen;
  for (const torch::Tensor& parameter : unique_parameters(model)) {
    if (choose(parameter)) chosen.push_back(parameter);
  }
  return chosen;
}

torch::optim::AdamW make_optimizer(const Options& options, std::vector<torch::Tensor> decaying,
                                   std::vector<torch::Tensor> others) {
  using torch::optim::AdamWOptions;
  const auto group = [&](std::vector<torch::Tensor> tensors, double decay) {
    return torch::optim::OptimizerParamGroup(
        std::move(tensors),
        std::make_unique<AdamWOptions>(AdamWOptions(options.learning_rate).weight_decay(decay)));
  };
  std::vector<torch::optim::OptimizerParamGroup> groups;
  groups.push_back(group(std::move(decaying), options.weight_decay));
  groups.push_back(group(std::move(others), 0));
  return torch::optim::AdamW(std::move(groups), AdamWOptions(options.learning_rate));
}

std::size_t bytes_of(torch::optim::AdamW& optimizer) {
  std::size_t bytes = 0;
  for (const auto& item : optimizer.state()) {
    const auto& state = static_cast<const torch::optim::AdamWParamState&>(*item.second);
    bytes += state.exp_avg().nbytes() + state.exp_avg_sq().nbytes();
  }
  return bytes;
}

std::vector<float> values_of(const Gpt& model) {
  std::vector<float> values;
  for (const torch::Tensor& parameter : unique_parameters(model)) {
    const float* const data = parameter.data_ptr<float>();
    values.insert(values.end(), data, data + parameter.numel());
  }
  return values;
}

}  // namespace libtorch_gpt
