#pragma once

#include <cstddef>
#include <exception>
#include <optional>
#include <span>
#include <string_view>
#include <utility>

#include "context.hpp"
#include "core/piece.hpp"
#include "core/tensor_view.hpp"

namespace shardwise::inline v0_1 {

namespace detail {

/// The tensors of a whole parameter or gradient of T, in one flat buffer or wherever they are.
template <class T>
class FlatView {
 public:
  FlatView() = default;
  /// `pieces`: the place of each tensor, or null where they are in the buffer `flat`.
  FlatView(std::byte* flat, const Piece* pieces, const Layout& layout)
      : data_(pieces == nullptr ? reinterpret_cast<T*>(flat) : nullptr),
        pieces_(pieces),
        layout_(&layout) {}

  /// Tensors of the parameter.
  [[nodiscard]] std::size_t size() const noexcept { return layout_->tensors().size(); }
  /// Tensor `index` (below size()), in the order in which the parameter lists them; look an index
  /// up once with ShardedParameter::tensor.
  [[nodiscard]] TensorView<T> operator[](std::size_t index) const {
    const auto& tensor = layout_->tensors()[index];
    T* const begin =
        pieces_ == nullptr ? data_ + tensor.offset : reinterpret_cast<T*>(pieces_[index].data);
    return {std::span<T>(begin, tensor.count), tensor.shape};
  }
  /// Looks the name up; UsageError that lists the names.
  [[nodiscard]] TensorView<T> operator[](std::string_view name) const {
    return (*this)[layout_->find(name)];
  }
  /// The flat buffer: Layout::padded_size() elements, tensors at Layout::Tensor::offset. Null where
  /// the tensors lie in the host's memory (residency in_place, host_buffer).
  [[nodiscard]] T* data() const noexcept { return data_; }

 protected:
  T* data_ = nullptr;
  const Piece* pieces_ = nullptr;
  const Layout* layout_ = nullptr;
};

/// What a lease of this parameter, or of this gradient, shows.
template <class T, class Flat>
[[nodiscard]] FlatView<T> view_of(const Flat& flat, const Layout& layout) {
  return {flat.whole(), flat.in_pieces() ? flat.pieces().data() : nullptr, layout};
}

}  // namespace detail

/// A whole parameter, lent to read in stream order. Move-only; made by gather(). Gives the slot
/// back when it is destroyed or released: that records one event and never waits.
template <FloatingElement T, class Device = HostDevice>
class [[nodiscard]] Gathered : public detail::FlatView<const T> {
 public:
  /// Lends nothing.
  Gathered() = default;
  Gathered(detail::ParameterStore<Device>& store, detail::FlatParameter<Device>& parameter)
      : detail::FlatView<const T>(detail::view_of<const T>(parameter, parameter.layout)),
        store_(&store),
        parameter_(&parameter) {}
  Gathered(Gathered&& other) noexcept
      : detail::FlatView<const T>(other),
        store_(other.store_),
        parameter_(std::exchange(other.parameter_, nullptr)) {}
  Gathered& operator=(Gathered&& other) noexcept {
    if (this != &other) {
      release();
      detail::FlatView<const T>::operator=(other);
      store_ = other.store_;
      parameter_ = std::exchange(other.parameter_, nullptr);
    }
    return *this;
  }
  ~Gathered() { release(); }

  /// Ends the lease now; its views must not be used afterwards. Idempotent.
  void release() noexcept {
    if (auto* parameter = std::exchange(parameter_, nullptr)) store_->close(*parameter);
  }

 private:
  detail::ParameterStore<Device>* store_ = nullptr;
  detail::FlatParameter<Device>* parameter_ = nullptr;
};

/// A whole gradient, zeroed, lent to be added to in stream order. Move-only; made by
/// ShardedGradient::lease(). Ends with reduce() or discard(); one that is dropped is an error at
/// the context's next call, unless an exception unwinds.
template <FloatingElement T, class Device = HostDevice>
class [[nodiscard]] GradientLease : public detail::FlatView<T> {
 public:
  /// Lends nothing.
  GradientLease() = default;
  GradientLease(Context<Device>& context, detail::FlatGradient<Device>& gradient)
      : detail::FlatView<T>(detail::view_of<T>(gradient, gradient.parameter.layout)),
        context_(&context),
        gradient_(&gradient),
        exceptions_(std::uncaught_exceptions()) {}
  GradientLease(GradientLease&& other) noexcept
      : detail::FlatView<T>(other),
        context_(other.context_),
        gradient_(std::exchange(other.gradient_, nullptr)),
        exceptions_(other.exceptions_) {}
  GradientLease& operator=(GradientLease&& other) noexcept {
    if (this != &other) {
      drop();
      detail::FlatView<T>::operator=(other);
      context_ = other.context_;
      gradient_ = std::exchange(other.gradient_, nullptr);
      exceptions_ = other.exceptions_;
    }
    return *this;
  }
  ~GradientLease() { drop(); }

  /// The contribution is complete: reduced over ranks to the mean and added to what each rank
  /// stores. The host waits as in ShardedParameter::prefetch. The stored gradient, and the slot,
  /// follow in stream order.
  void reduce() && { reduce_with(std::nullopt); }
  /// The same for batches of different sizes: see Context::weigh.
  void reduce(ReductionWeight weight) && { reduce_with(weight); }

  /// Ends the lease without a contribution. Idempotent.
  void discard() noexcept {
    if (auto* gradient = std::exchange(gradient_, nullptr)) {
      context_->gradient_store().discard(*gradient);
    }
  }

  /// Whether it lends something.
  [[nodiscard]] explicit operator bool() const noexcept { return gradient_ != nullptr; }

 private:
  void reduce_with(std::optional<ReductionWeight> weight) {
    if (gradient_ == nullptr) raise("reduce() of a gradient lease that has ended already");
    context_->gradient_store().check_reduction(*gradient_, weight);
    context_->gradient_store().reduce(*std::exchange(gradient_, nullptr), weight);
  }
  void drop() noexcept {
    if (gradient_ == nullptr) return;
    if (std::uncaught_exceptions() <= exceptions_) {
      context_->engine().dropped = gradient_->parameter.name();
    }
    discard();
  }

  Context<Device>* context_ = nullptr;
  detail::FlatGradient<Device>* gradient_ = nullptr;
  int exceptions_ = 0;
};

}  // namespace shardwise::inline v0_1
