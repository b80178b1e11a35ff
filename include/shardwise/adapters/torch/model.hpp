#pragma once

#include <torch/nn/module.h>
#include <torch/types.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "../../arena.hpp"
#include "../../context.hpp"
#include "../../core/checked.hpp"
#include "../../host_tensor.hpp"
#include "pass.hpp"

namespace shardwise::inline v0_1 {

/// How TorchAdapter takes a model over.
struct TorchOptions {
  /// Weight decay and learning rate of a parameter, as multiples of the optimizer's, by its name in
  /// model.named_parameters(); none: 1. The library's own optimizers heed them.
  std::function<TensorOptions(const std::string& name, const torch::Tensor& parameter)>
      tensor_options = {};
  int root = 0;  ///< the rank whose initial values all ranks get
};

namespace detail {

template <FloatingElement T>
inline constexpr torch::ScalarType torch_type = dtype_of<T> == DType::f64    ? torch::kDouble
                                                : dtype_of<T> == DType::bf16 ? torch::kBFloat16
                                                : dtype_of<T> == DType::f16  ? torch::kHalf
                                                                             : torch::kFloat;

/// A model whose parameters are sharded: which wrap uses which of them, and where they lie.
template <FloatingElement T>
class TorchModel {
 public:
  TorchModel(Context<>& context, const torch::nn::Module& model, TorchOptions options)
      : context_(context), options_(std::move(options)) {
    for (const auto& item : model.named_parameters()) {
      const auto added = index_.emplace(item.value().unsafeGetTensorImpl(), entries_.size());
      if (added.second) entries_.push_back({item.key(), item.value(), {}});
    }
    for (const auto& item : model.named_modules({}, false)) {
      names_.emplace(item.value().get(), item.key());
    }
  }
  TorchModel(const TorchModel&) = delete;
  TorchModel& operator=(const TorchModel&) = delete;
  /// The model's tensors become empty: their memory goes with the arena.
  ~TorchModel() {
    if (!arena_) return;
    for (Entry& entry : entries_) {
      try {
        entry.tensor.mutable_grad().reset();
        entry.tensor.set_data(torch::empty({0}, entry.tensor.options()));
      } catch (...) {  // no memory for an empty tensor: this one dangles
      }
    }
  }

  [[nodiscard]] Context<>& context() const noexcept { return context_; }
  [[nodiscard]] TorchPass<T>& pass() const noexcept { return *pass_; }
  /// UsageError where the unit cannot be called now.
  [[nodiscard]] TorchUnit<T>& begin_forward(std::size_t index) const {
    TorchUnit<T>& unit = *units_[index];
    pass_->require_ended("a wrapped module is called");
    for (const TorchParameter<T>* parameter : unit.parameters) {
      for (const torch::Tensor& tensor : parameter->tensors) {
        if (tensor.requires_grad() == parameter->gradient.has_value()) continue;
        raise(
            "a tensor of '{}' {} requires_grad after the model's parameters were sharded; set it "
            "before",
            unit.name, tensor.requires_grad() ? "got" : "lost");
      }
    }
    return unit;
  }
  [[nodiscard]] std::span<const std::unique_ptr<TorchParameter<T>>> parameters() const {
    return parameters_;
  }

  /// Modules, with all that is below them, that are gathered together; returns the unit's index.
  std::size_t add_unit(std::span<const std::shared_ptr<torch::nn::Module>> modules) {
    auto unit = std::make_unique<TorchUnit<T>>();
    for (const auto& module : modules) {
      const auto known = names_.find(module.get());
      const std::string name = known != names_.end() ? known->second : module->name();
      if (arena_) raise("wrap of '{}': the model's parameters are sharded already", name);
      unit->name += (unit->name.empty() ? "" : "+") + name;
      for (const auto& item : module->named_parameters()) {
        const auto found = index_.find(item.value().unsafeGetTensorImpl());
        if (found == index_.end()) {
          raise("wrap of '{}': its parameter '{}' is none of the adapter's model", name,
                item.key());
        }
        auto& users = entries_[found->second].users;
        if (users.empty() || users.back() != units_.size()) users.push_back(units_.size());
      }
    }
    if (!units_.empty()) {
      unit->before = units_.back().get();
      unit->before->after = unit.get();
    }
    units_.push_back(std::move(unit));
    return units_.size() - 1;
  }

  /// Moves the values into shards and the tensors into the arena, once.
  void prepare() {
    if (arena_) return;
    check();
    const std::vector<Group> groups = group();
    // Tensors of a group touch, so that their pages come and go together; groups share no page.
    std::vector<std::size_t> places;
    std::size_t end = 0;
    for (const Group& members : groups) {
      places.push_back(end);
      for (const Entry* entry : members) end = checked_add(end, bytes_of(*entry), "model's bytes");
      end = round_up(end, page_size());
    }
    arena_.emplace(context_, std::max(end, page_size()), "the model");
    for (std::size_t i = 0; i < groups.size(); ++i) {
      add_parameter(groups[i], arena_->template as<T>(places[i]));
      for (const std::size_t user : groups[i].front()->users) {
        units_[user]->parameters.push_back(parameters_.back().get());
      }
    }
  }

 private:
  struct Entry {
    std::string name;
    torch::Tensor tensor;
    std::vector<std::size_t> users;  // units, ascending
  };
  using Group = std::vector<const Entry*>;

  [[nodiscard]] static std::size_t bytes_of(const Entry& entry) {
    return static_cast<std::size_t>(entry.tensor.numel()) * sizeof(T);
  }
  [[nodiscard]] static HostTensor host_tensor(const Entry& entry, T* at, TensorOptions options) {
    const auto sizes = entry.tensor.sizes();
    return {entry.name, at, std::vector<Dimension>(sizes.begin(), sizes.end()), options};
  }
  /// Memory of the library's as a tensor, which does not own it.
  [[nodiscard]] static torch::Tensor view(const T* data, torch::IntArrayRef sizes) {
    return torch::from_blob(const_cast<T*>(data), sizes, torch_type<T>);
  }

  void check() const {
    std::string missing;
    std::vector<HostTensor> all;
    for (const Entry& entry : entries_) {
      const torch::Tensor& tensor = entry.tensor;
      if (tensor.scalar_type() != torch_type<T> || !tensor.device().is_cpu() ||
          tensor.layout() != torch::kStrided) {
        raise(
            "TorchAdapter<{}>: parameter '{}' is a {}; it must be a dense {} tensor in host "
            "memory",
            name_of(dtype_of<T>), entry.name, tensor.toString(), name_of(dtype_of<T>));
      }
      if (entry.users.empty()) missing += "\n  " + entry.name;
      all.push_back(host_tensor(entry, static_cast<T*>(tensor.data_ptr()), {}));
    }
    if (deduplicate(all).tensors.size() != all.size()) {
      raise(
          "TorchAdapter: two parameters of the model share memory and are not one tensor; tie "
          "them by registering the same torch::Tensor twice");
    }
    if (missing.empty()) return;
    raise(
        "TorchAdapter: no wrapped module has these parameters of the model, so nobody would "
        "gather or update them; wrap the modules that they belong to:{}",
        missing);
  }

  /// What has the same users, and all learns or all does not; in the order of first use.
  [[nodiscard]] std::vector<Group> group() const {
    std::map<std::pair<std::vector<std::size_t>, bool>, Group> groups;
    for (const Entry& entry : entries_) {
      groups[{entry.users, !entry.tensor.requires_grad()}].push_back(&entry);
    }
    std::vector<Group> result;
    for (auto& item : groups) result.push_back(std::move(item.second));
    return result;
  }

  void add_parameter(const Group& members, T* place) {
    const bool learns = members.front()->tensor.requires_grad();
    const std::vector<std::size_t>& users = members.front()->users;
    std::string name = learns ? "" : "frozen ";
    for (const std::size_t user : users) {
      name += (user == users.front() ? "" : ", ") + units_[user]->name;
    }
    std::vector<HostTensor> tensors;
    for (const Entry* entry : members) {
      tensors.push_back(host_tensor(*entry, place,
                                    options_.tensor_options
                                        ? options_.tensor_options(entry->name, entry->tensor)
                                        : TensorOptions()));
      place += entry->tensor.numel();
    }
    parameters_.push_back(std::make_unique<TorchParameter<T>>(ShardedParameter<T>(
        context_, tensors, {.name = std::move(name), .tied = users.size() > 1})));
    TorchParameter<T>& parameter = *parameters_.back();
    parameter.sharded.broadcast(
        options_.root, [&](const Layout::Tensor& tensor, std::size_t first, std::span<T> elements) {
          const Entry& entry = *members[parameter.sharded.tensor(tensor.name)];
          const torch::Tensor values = entry.tensor.detach().contiguous();
          std::copy_n(static_cast<const T*>(values.data_ptr()) + first, elements.size(),
                      elements.data());
        });
    for (std::size_t i = 0; i < members.size(); ++i) {
      torch::Tensor tensor = members[i]->tensor;
      tensor.mutable_grad().reset();
      tensor.set_data(view(reinterpret_cast<const T*>(tensors[i].data), tensor.sizes()));
      parameter.tensors.push_back(std::move(tensor));
    }
    if (!learns) return;
    parameter.gradient.emplace(parameter.sharded, Residency::host_buffer);
    const auto values = parameter.sharded.segments();
    const auto gradients = parameter.gradient->segments();
    for (std::size_t i = 0; i < values.size(); ++i) {
      const auto count = static_cast<std::int64_t>(values[i].elements.size());
      parameter.shards.push_back({values[i].tensor, view(values[i].elements.data(), count),
                                  view(gradients[i].elements.data(), count)});
      parameter.shards.back().values.set_requires_grad(true);
    }
    pass_->watch(parameter);
  }

  Context<>& context_;
  TorchOptions options_;
  std::vector<Entry> entries_;  // the model's parameters, tied ones once
  std::unordered_map<const void*, std::size_t> index_;
  std::unordered_map<const void*, std::string> names_;  // of modules
  std::vector<std::unique_ptr<TorchUnit<T>>> units_;    // in the order of their wraps
  std::optional<Arena> arena_;
  std::vector<std::unique_ptr<TorchParameter<T>>> parameters_;
  std::shared_ptr<TorchPass<T>> pass_ = std::make_shared<TorchPass<T>>();
};

}  // namespace detail
}  // namespace shardwise::inline v0_1
