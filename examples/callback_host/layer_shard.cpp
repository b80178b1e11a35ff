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

void LayerShard::make(const dlib::alias_tensor& shape, std::size_t biases,
                      const LayerMultipliers& multipliers, const dlib::tensor& initial) {
  if (parameter_) shardwise::raise("layer '{}' has parameters already: read into a new net", name_);
  shape_ = shape;
  biases_ = biases;
  multipliers_ = multipliers;
  const std::size_t weights = shape.size() - biases;
  std::vector<shardwise::TensorSpec> tensors{{"weights", {weights}, multipliers.of_weights}};
  if (biases > 0) tensors.push_back({"biases", {biases}, multipliers.of_biases});
  const auto residency = shardwise::Residency::host_buffer;
  parameter_.emplace(context_, std::move(tensors),
                     shardwise::ParameterOptions{.name = name_, .residency = residency});
  if (multipliers.of_weights.learning_rate != 0) gradient_.emplace(*parameter_, residency);
  parameter_->broadcast(0, [&](const auto& tensor, std::size_t first, std::span<float> elements) {
    const std::size_t begin = tensor.name == "biases" ? weights : 0;
    std::copy_n(initial.host() + begin + first, elements.size(), elements.begin());
  });
}

void LayerShard::gather(dlib::resizable_tensor& whole) {
  if (!parameter_) return;
  whole.set_size(shape_.num_samples(), shape_.k(), shape_.nr(), shape_.nc());
  parameter_->ensure_gathered_into(parts(whole.host_write_only()));
}

void LayerShard::release(dlib::resizable_tensor& whole) noexcept {
  if (parameter_) parameter_->release();
  whole.clear();
}

void LayerShard::require_gathered(const dlib::tensor& whole) const {
  if (parameter_ && whole.size() == shape_.size()) return;
  shardwise::raise(
      "layer '{}' computes with {} of its {} parameters: gather them first, in the same forward or "
      "backward",
      name_, whole.size(), shape_.size());
}

void LayerShard::require_unchanged(const LayerMultipliers& multipliers) const {
  if (multipliers == multipliers_) return;
  shardwise::raise(
      "layer '{}': its multipliers of learning rate or weight decay have changed since the net's "
      "first forward; set them before, or save the net and read it into a new one",
      name_);
}

void LayerShard::reduce(dlib::tensor& whole) {
  gradient_->consume();
  gradient_->reduce_from(parts(whole.host()));
}

std::span<float* const> LayerShard::parts(float* whole) {
  parts_ = {whole, whole + (shape_.size() - biases_)};
  return std::span(parts_).first(biases_ > 0 ? 2 : 1);
}

}  // namespace callback_host
