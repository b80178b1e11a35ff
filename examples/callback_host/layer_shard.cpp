#include "layer_shard.hpp"

#include <algorithm>
#include <cstdint>
#include <vector>

namespace callback_host {

std::string LayerShard::broadcast(std::string bytes) const {
  auto& comm = context_.communicator();
  const std::string call = "set-up of " + name_;
  std::array count{static_cast<std::int64_t>(bytes.size())};
  shardwise::broadcast(comm, count, 0, {.name = call});
  bytes.resize(static_cast<std::size_t>(count[0]));
  const std::span raw(reinterpret_cast<std::uint8_t*>(bytes.data()), bytes.size());
  shardwise::broadcast(comm, raw, 0, {.name = call});
  return bytes;
}

void LayerShard::make(const LayerParameters& parameters, const dlib::tensor& initial) {
  if (parameter_) shardwise::raise("layer '{}' has parameters already: read into a new net", name_);
  described_ = parameters;
  const std::size_t weights = parameters.shape.size() - parameters.biases;
  std::vector<shardwise::TensorSpec> tensors{{"weights", {weights}, parameters.of_weights}};
  if (parameters.biases > 0) {
    tensors.push_back({"biases", {parameters.biases}, parameters.of_biases});
  }
  parameter_.emplace(
      context_, std::move(tensors),
      shardwise::ParameterOptions{.name = name_, .residency = shardwise::Residency::host_buffer});
  if (parameters.learns) gradient_.emplace(*parameter_, shardwise::Residency::host_buffer);
  parameter_->broadcast(0, [&](const auto& tensor, std::size_t first, std::span<float> elements) {
    const std::size_t begin = tensor.name == "biases" ? weights : 0;
    std::copy_n(initial.host() + begin + first, elements.size(), elements.begin());
  });
}

void LayerShard::gather(dlib::resizable_tensor& whole) {
  const dlib::alias_tensor& shape = described_.shape;
  whole.set_size(shape.num_samples(), shape.k(), shape.nr(), shape.nc());
  parameter_->ensure_gathered_into(parts(whole.host_write_only()));
}

void LayerShard::release(dlib::resizable_tensor& whole) noexcept {
  parameter_->release();
  whole.clear();
}

void LayerShard::require_gathered(const dlib::tensor& whole) const {
  if (parameter_ && whole.size() == described_.shape.size()) return;
  shardwise::raise(
      "layer '{}' computes with {} of its {} parameters: gather them first, in the same forward or "
      "backward",
      name_, whole.size(), described_.shape.size());
}

void LayerShard::reduce(dlib::tensor& whole) {
  gradient_->consume();
  gradient_->reduce_from(parts(whole.host()));
}

std::span<float* const> LayerShard::parts(float* whole) {
  parts_ = {whole, whole + (described_.shape.size() - described_.biases)};
  return std::span(parts_).first(described_.biases > 0 ? 2 : 1);
}

}  // namespace callback_host
