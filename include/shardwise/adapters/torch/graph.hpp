#pragma once

#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/function_hook.h>
#include <torch/types.h>

#include <functional>
#include <tuple>
#include <type_traits>
#include <utility>

// What TorchAdapter puts into the graph of autograd. It knows no sharded type.
namespace shardwise::inline v0_1::detail {

/// One forward pass of a wrapped module, as the graph remembers it.
class TorchCall : public torch::CustomClassHolder {
 public:
  /// A gradient of an output is there: backward needs the module's weights.
  virtual void enter() = 0;
  /// Every node of the module has run: it does not need them any longer.
  virtual void leave() = 0;
};

/// The identity, on what goes into a wrapped module. Its backward comes after all other nodes of
/// the module: the engine takes nodes that were made later first, and accumulates the gradients of
/// leaves before anything else.
struct TorchEntry : torch::autograd::Function<TorchEntry> {
  static torch::autograd::variable_list forward(torch::autograd::AutogradContext* context,
                                                const c10::intrusive_ptr<TorchCall>& call,
                                                at::TensorList inputs) {
    context->set_materialize_grads(false);
    context->saved_data["call"] = c10::IValue::make_capsule(call);
    torch::autograd::variable_list outputs;
    // Neither the input itself nor a view of it: modules may change theirs in place.
    for (const torch::Tensor& input : inputs) outputs.push_back(input.detach());
    return outputs;
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list gradients) {
    const auto call = context->saved_data["call"].toCapsule();
    c10::static_intrusive_pointer_cast<TorchCall>(call)->leave();
    gradients.insert(gradients.begin(), torch::Tensor());  // of `call`
    return gradients;
  }
};

/// Runs a function each time that backward has added to a leaf's gradient.
class TorchLeafHook final : public torch::autograd::FunctionPostHook {
 public:
  explicit TorchLeafHook(std::function<void()> run) : run_(std::move(run)) {}
  torch::autograd::variable_list operator()(
      const torch::autograd::variable_list& outputs,
      const torch::autograd::variable_list& /*inputs*/) override {
    run_();
    return outputs;
  }

 private:
  std::function<void()> run_;
};

template <class V>
concept TorchOptional = requires(V& value) {
  value.has_value();
  *value;
};
template <class V>
concept TorchTuple = requires {
  std::tuple_size<V>::value;
};
template <class V>
concept TorchRange = requires(V& value) {
  value.begin();
  value.end();
};

/// f(tensor) for each tensor in a value: a tensor, or tuples, optionals and containers, nested as
/// one likes. Values of other types hold none, as far as it knows.
template <class V, class F>
void for_each_torch_tensor(V& value, F& f) {
  using Value = std::remove_const_t<V>;
  if constexpr (std::is_same_v<Value, torch::Tensor>) {
    if (value.defined()) f(value);
  } else if constexpr (TorchTuple<Value>) {
    std::apply([&](auto&... part) { (for_each_torch_tensor(part, f), ...); }, value);
  } else if constexpr (TorchRange<V>) {
    for (auto& part : value) for_each_torch_tensor(part, f);
  } else if constexpr (TorchOptional<V>) {
    if (value.has_value()) for_each_torch_tensor(*value, f);
  } else {
    static_assert(!std::is_base_of_v<at::TensorBase, Value>, "pass a torch::Tensor");
  }
}

/// Whether for_each_torch_tensor sees all tensors that such a value may hold.
template <class V>
[[nodiscard]] consteval bool torch_tensors_are_seen() {
  if constexpr (std::is_same_v<V, torch::Tensor> || std::is_arithmetic_v<V> || std::is_enum_v<V>) {
    return true;
  } else if constexpr (TorchTuple<V>) {
    return []<std::size_t... i>(std::index_sequence<i...>) {
      return (torch_tensors_are_seen<std::tuple_element_t<i, V>>() && ...);
    }
    (std::make_index_sequence<std::tuple_size_v<V>>());
  } else if constexpr (TorchRange<V>) {
    return torch_tensors_are_seen<std::remove_cvref_t<decltype(*std::declval<V&>().begin())>>();
  } else if constexpr (TorchOptional<V>) {
    return torch_tensors_are_seen<std::remove_cvref_t<decltype(*std::declval<V&>())>>();
  } else {
    return false;
  }
}

}  // namespace shardwise::inline v0_1::detail
