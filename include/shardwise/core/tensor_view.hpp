#pragma once

#include <cstddef>
#include <span>
#include <type_traits>

namespace shardwise::inline v0_1 {

/// A contiguous row-major tensor in memory that somebody else owns: a span with a shape. Valid as
/// long as the lease it came from; the shape as long as the parameter.
template <class T>
class TensorView : public std::span<T> {
 public:
  constexpr TensorView() noexcept = default;
  constexpr TensorView(std::span<T> elements, std::span<const std::size_t> shape) noexcept
      : std::span<T>(elements), shape_(shape) {}
  /// A view that only reads.
  constexpr operator TensorView<const T>() const noexcept requires(!std::is_const_v<T>) {
    return {std::span<const T>(this->data(), this->size()), shape_};
  }

  [[nodiscard]] constexpr std::span<const std::size_t> shape() const noexcept { return shape_; }

 private:
  std::span<const std::size_t> shape_;
};

}  // namespace shardwise::inline v0_1
