#pragma once

#include <cstddef>
#include <optional>
#include <utility>
#include <vector>

#include "core/error.hpp"
#include "device/host.hpp"
#include "sharded_gradient.hpp"

namespace shardwise::inline v0_1 {

/// For frameworks whose hooks fire once for each tensor whose gradient is there, in any order,
/// where one that fires for the whole layer would come too early: counts the tensors of one
/// parameter down and reduces its gradient when the last one is ready. Refers to the gradient,
/// which must be open (ensure_open()) or live in the host's buffers, and outlive it. Ranks may see
/// the tensors in different orders, but parameters become complete in one order on all of them.
template <FloatingElement G, class Device = HostDevice>
class GradientCountdown {
 public:
  /// `uses[i]`: how many calls tensor i takes, where a tied one is used more than once; empty: one
  /// for each tensor that has elements. UsageError where the list is of another length.
  explicit GradientCountdown(ShardedGradient<G, Device>& gradient,
                             std::vector<std::size_t> uses = {})
      : context_(&gradient.context()), gradient_(&gradient.flat()), uses_(std::move(uses)) {
    const auto tensors = gradient.layout().tensors();
    if (uses_.empty()) {
      for (const Layout::Tensor& tensor : tensors) uses_.push_back(tensor.count > 0 ? 1 : 0);
    }
    if (uses_.size() != tensors.size()) {
      raise("a countdown for '{}' was given the uses of {} tensors, but there are {}",
            gradient.name(), uses_.size(), tensors.size());
    }
    reset();
  }

  /// The gradient of this tensor has got another contribution. True where it was the last one: the
  /// gradient was reduced then (residency slots and in_place), or is to be reduced by the host with
  /// reduce_from (host_buffer), and the count begins anew. UsageError where the tensor was ready
  /// already.
  bool ready(std::size_t tensor, std::optional<ReductionWeight> weight = std::nullopt) {
    const auto tensors = gradient_->parameter.layout.tensors();
    if (tensor >= tensors.size()) {
      raise("a countdown for '{}': there is no tensor {}, there are {}",
            gradient_->parameter.name(), tensor, tensors.size());
    }
    if (left_[tensor] == 0) {
      raise(
          "a countdown for '{}': tensor '{}' is ready more often than it is used ({} time(s)); "
          "give "
          "the number of its uses, or find the hook that fires twice",
          gradient_->parameter.name(), tensors[tensor].name, uses_[tensor]);
    }
    const bool by_host = gradient_->parameter.gradient_residency == Residency::host_buffer;
    if (!by_host && !gradient_->held) {
      raise(
          "a countdown for '{}': tensor '{}' is ready, but the gradient is not open: call "
          "ensure_open() before the backward pass writes to it",
          gradient_->parameter.name(), tensors[tensor].name);
    }
    --left_[tensor];
    if (--waiting_ > 0) return false;
    reset();
    if (!by_host) context_->gradient_store().reduce_held(*gradient_, weight);
    return true;
  }

  /// Calls that are still missing.
  [[nodiscard]] std::size_t waiting() const noexcept { return waiting_; }

  /// Begins anew: after a backward pass that was given up.
  void reset() {
    left_ = uses_;
    waiting_ = 0;
    for (const std::size_t uses : uses_) waiting_ += uses;
  }

 private:
  Context<Device>* context_;
  detail::FlatGradient<Device>* gradient_;
  std::vector<std::size_t> uses_;
  std::vector<std::size_t> left_;
  std::size_t waiting_ = 0;
};

template <FloatingElement G, class Device>
GradientCountdown(ShardedGradient<G, Device>&) -> GradientCountdown<G, Device>;
template <FloatingElement G, class Device>
GradientCountdown(ShardedGradient<G, Device>&, std::vector<std::size_t>)
    -> GradientCountdown<G, Device>;

}  // namespace shardwise::inline v0_1
