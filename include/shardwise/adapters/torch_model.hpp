#pragma once

#include <torch/csrc/autograd/engine.h>
#include <torch/nn/module.h>
#include <torch/types.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "../arena.hpp"
#include "../context.hpp"
#include "../host_tensor.hpp"
#include "../sharded_gradient.hpp"
#include "../sharded_parameter.hpp"
#include "torch_graph.hpp"

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

/// float, double, bfloat16 and half.
template <FloatingElement T>
inline constexpr torch::ScalarType torch_type = dtype_of<T> == DType::f64    ? torch::kDouble
                                                : dtype_of<T> == DType::bf16 ? torch::kBFloat16
                                                : dtype_of<T> == DType::f16  ? torch::kHalf
                                                                             : torch::kFloat;

/// Memory of the library's as a tensor. Does not own it.
template <FloatingElement T>
[[nodiscard]] torch::Tensor torch_view(const T* data, torch::IntArrayRef sizes) {
  return torch::from_blob(const_cast<T*>(data), sizes, torch_type<T>);
}

/// Tensors of a model that the same wraps use, and that all learn or all do not: gathered and
/// reduced together.
template <FloatingElement T>
struct TorchParameter {
  /// A segment of this rank's shard.
  struct Shard {
    const Layout::Tensor* source;
    torch::Tensor values;
    torch::Tensor gradient;
  };

  void acquire() {
    if (uses == 0) sharded.ensure_gathered();
    ++uses;
  }
  void release() noexcept {
    if (--uses == 0) sharded.release();
  }

  ShardedParameter<T> sharded;
  std::vector<torch::Tensor> tensors = {};                    // the model's
  std::optional<ShardedGradient<T>> gradient = std::nullopt;  // none: frozen
  std::vector<std::shared_ptr<torch::autograd::Node>> accumulators = {};
  std::vector<Shard> shards = {};
  std::size_t uses = 0;       // forwards and backwards that need it now
  std::size_t ready = 0;      // tensors whose gradient waits for the others'
  std::uint64_t pass = 0;     // the backward pass of its last reduction
  bool has_gradient = false;  // something was reduced since the last update
};

/// What one wrap covers.
template <FloatingElement T>
struct TorchUnit {
  void acquire() {
    std::size_t done = 0;
    try {
      for (; done < parameters.size(); ++done) parameters[done]->acquire();
    } catch (...) {
      while (done > 0) parameters[--done]->release();
      throw;
    }
  }
  void release() noexcept {
    for (TorchParameter<T>* parameter : parameters) parameter->release();
  }

  std::string name = {};
  std::vector<TorchParameter<T>*> parameters = {};
};

/// What TorchAdapter, its wrapped modules and the graph share. Wrapped modules and the graph may
/// outlive it: they hold weak pointers.
template <FloatingElement T>
class TorchModel : public std::enable_shared_from_this<TorchModel<T>> {
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

  [[nodiscard]] static std::shared_ptr<TorchModel> lock(const std::weak_ptr<TorchModel>& model) {
    if (auto locked = model.lock()) return locked;
    raise("the TorchAdapter of this module, or of this graph, is gone");
  }

  std::size_t add_unit(std::span<torch::nn::Module* const> modules);
  void prepare();

  [[nodiscard]] TorchUnit<T>& unit(std::size_t index) { return *units_[index]; }
  [[nodiscard]] std::span<const std::unique_ptr<TorchParameter<T>>> parameters() const {
    return parameters_;
  }
  void require_no_backward(const char* what) const {
    if (!in_backward_) return;
    raise(
        "{} while a backward pass has not ended: either it threw, and then this rank cannot go on, "
        "or this is a call from within it, and then it is not supported",
        what);
  }

  /// What the graph is given for a forward pass that it records. `has_entry`: TorchEntry will tell
  /// when backward is done with it.
  [[nodiscard]] c10::intrusive_ptr<TorchCall> make_call(std::size_t index, bool has_entry) {
    return c10::make_intrusive<Call>(this->weak_from_this(), *units_[index], has_entry);
  }

  bool accumulate = false;  // backward leaves gradients where autograd puts them
  std::optional<ReductionWeight> weight = std::nullopt;

 private:
  struct Entry {
    std::string name;
    torch::Tensor tensor;
    std::vector<std::size_t> users;  // units
  };
  using Group = std::vector<const Entry*>;

  struct Call final : TorchCall {
    Call(std::weak_ptr<TorchModel> of, TorchUnit<T>& its_unit, bool with_entry)
        : model(std::move(of)), unit(its_unit), has_entry(with_entry) {}
    void enter() override { lock(model)->open(*this); }
    void leave() override { lock(model)->close(*this); }

    std::weak_ptr<TorchModel> model;
    TorchUnit<T>& unit;  // while the model is there
    bool has_entry;
    bool is_open = false;
  };

  [[nodiscard]] std::vector<Group> group() const;
  void add_parameter(const Group& group, std::byte* place);
  void begin_backward();
  void end_backward();
  void open(Call& call);
  void close(Call& call) noexcept;
  void add_gradient(TorchParameter<T>& parameter, const torch::Tensor& tensor);
  void reduce(TorchParameter<T>& parameter);

  Context<>& context_;
  TorchOptions options_;
  std::vector<Entry> entries_;
  std::unordered_map<const void*, std::size_t> index_;
  std::unordered_map<const void*, std::string> names_;  // of modules
  std::vector<std::unique_ptr<TorchUnit<T>>> units_;
  std::optional<Arena> arena_;
  std::vector<std::unique_ptr<TorchParameter<T>>> parameters_;
  std::vector<c10::intrusive_ptr<Call>> open_;  // calls whose backward needs their weights
  std::uint64_t pass_ = 0;
  bool in_backward_ = false;
};

/// Modules, with all below them, that are gathered together; returns the unit's index.
template <FloatingElement T>
std::size_t TorchModel<T>::add_unit(std::span<torch::nn::Module* const> modules) {
  auto unit = std::make_unique<TorchUnit<T>>();
  for (torch::nn::Module* const module : modules) {
    const auto known = names_.find(module);
    const std::string name = known != names_.end() ? known->second : module->name();
    if (arena_) raise("wrap of '{}': the model's parameters have been sharded already", name);
    unit->name += (unit->name.empty() ? "" : "+") + name;
    for (const auto& item : module->named_parameters()) {
      const auto found = index_.find(item.value().unsafeGetTensorImpl());
      if (found == index_.end()) {
        raise("wrap of '{}': its parameter '{}' is none of the adapter's model", name, item.key());
      }
      auto& users = entries_[found->second].users;
      if (users.empty() || users.back() != units_.size()) users.push_back(units_.size());
    }
  }
  units_.push_back(std::move(unit));
  return units_.size() - 1;
}

/// Moves the model's values into shards and its tensors into the arena, once.
template <FloatingElement T>
void TorchModel<T>::prepare() {
  if (arena_) return;
  std::string missing;
  for (const Entry& entry : entries_) {
    if (entry.users.empty()) missing += "\n  " + entry.name;
    const torch::Tensor& tensor = entry.tensor;
    if (tensor.scalar_type() == torch_type<T> && tensor.device().is_cpu() && !tensor.is_sparse()) {
      continue;
    }
    raise(
        "TorchAdapter: parameter '{}' is a {}, but this adapter shards dense {} tensors in host "
        "memory",
        entry.name, tensor.toString(), name_of(dtype_of<T>));
  }
  if (!missing.empty()) {
    raise(
        "TorchAdapter: no wrapped module has these parameters of the model, so nobody would gather "
        "or update them; wrap the modules that they belong to:{}",
        missing);
  }
  // Tensors of a group touch, so that their pages come and go together; groups share no page.
  const std::vector<Group> groups = group();
  const std::size_t page = page_size();
  std::vector<std::size_t> places;
  std::size_t end = 0;
  for (const Group& group : groups) {
    places.push_back(end);
    for (const Entry* entry : group) {
      end = checked_add(end, entry->tensor.nbytes(), "bytes of the model");
    }
    end = round_up(end, page);
  }
  arena_.emplace(context_, std::max(end, page), "the model");
  for (std::size_t i = 0; i < groups.size(); ++i) {
    add_parameter(groups[i], arena_->data() + places[i]);
    for (const std::size_t user : groups[i].front()->users) {
      units_[user]->parameters.push_back(parameters_.back().get());
    }
  }
}

/// What has the same users, and all learns or all does not; in the order of first use.
template <FloatingElement T>
auto TorchModel<T>::group() const -> std::vector<Group> {
  std::map<std::pair<std::vector<std::size_t>, bool>, Group> groups;
  for (const Entry& entry : entries_) {
    groups[{entry.users, !entry.tensor.requires_grad()}].push_back(&entry);
  }
  std::vector<Group> result;
  for (auto& item : groups) result.push_back(std::move(item.second));
  return result;
}

template <FloatingElement T>
void TorchModel<T>::add_parameter(const Group& group, std::byte* place) {
  std::vector<HostTensor> tensors;
  std::string name;
  for (const std::size_t user : group.front()->users) {
    name += (name.empty() ? "" : " and ") + units_[user]->name;
  }
  for (const Entry* entry : group) {
    const auto sizes = entry->tensor.sizes();
    tensors.emplace_back(entry->name, reinterpret_cast<T*>(place),
                         std::vector<Dimension>(sizes.begin(), sizes.end()),
                         options_.tensor_options
                             ? options_.tensor_options(entry->name, entry->tensor)
                             : TensorOptions());
    place += entry->tensor.nbytes();
  }
  const bool learns = group.front()->tensor.requires_grad();
  auto made = std::make_unique<TorchParameter<T>>(TorchParameter<T>{ShardedParameter<T>(
      context_, tensors,
      {.name = learns ? name : name + " (frozen)", .tied = group.front()->users.size() > 1})});
  TorchParameter<T>& parameter = *made;
  parameters_.push_back(std::move(made));
  parameter.sharded.broadcast(options_.root, [&](const Layout::Tensor& tensor, std::size_t first,
                                                 std::span<T> elements) {
    const std::size_t i = parameter.sharded.tensor(tensor.name);
    const torch::Tensor values = group[i]->tensor.detach().contiguous();
    std::copy_n(static_cast<const T*>(values.data_ptr()) + first, elements.size(), elements.data());
  });
  for (std::size_t i = 0; i < group.size(); ++i) {
    torch::Tensor tensor = group[i]->tensor;
    tensor.mutable_grad().reset();
    tensor.set_data(torch_view(reinterpret_cast<const T*>(tensors[i].data), tensor.sizes()));
    parameter.tensors.push_back(std::move(tensor));
  }
  if (!learns) return;
  parameter.gradient.emplace(parameter.sharded, Residency::host_buffer);
  const auto values = parameter.sharded.segments();
  const auto gradients = parameter.gradient->segments();
  for (std::size_t i = 0; i < values.size(); ++i) {
    const std::int64_t sizes[] = {static_cast<std::int64_t>(values[i].elements.size())};
    parameter.shards.push_back({values[i].tensor, torch_view(values[i].elements.data(), sizes),
                                torch_view(gradients[i].elements.data(), sizes)});
    parameter.shards.back().values.set_requires_grad(true);
  }
  for (const torch::Tensor& tensor : parameter.tensors) {
    // The tensor itself only knows of its accumulator.
    parameter.accumulators.push_back(torch::autograd::impl::grad_accumulator(tensor));
    parameter.accumulators.back()->add_post_hook(std::make_unique<TorchLeafHook>(
        [model = this->weak_from_this(), &parameter, impl = tensor.unsafeGetTensorImpl()] {
          static_cast<void>(impl);
          lock(model);
        }));
  }
}

}  // namespace detail
}  // namespace shardwise::inline v0_1
