#pragma once

#include <algorithm>
#include <cstddef>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "core/checked.hpp"
#include "core/dtype.hpp"
#include "core/error.hpp"
#include "layout.hpp"

namespace shardwise::inline v0_1 {

/// A tensor that lies in the host's own memory, contiguous and row-major:
/// `{"wte", params.wte, {V, C}}` or `{"ln1b", params.ln1b, {C}, {.weight_decay = 0}}`. Does not own
/// the memory.
struct HostTensor {
  template <FloatingElement T>
  HostTensor(std::string name, T* at, std::vector<Dimension> shape, TensorOptions options = {})
      : spec{std::move(name), std::move(shape), options},
        data(reinterpret_cast<std::byte*>(at)),
        dtype(dtype_of<T>) {}

  /// The product of its extents; UsageError where that does not fit.
  [[nodiscard]] std::size_t count() const {
    std::size_t product = 1;
    for (const Dimension& extent : spec.shape) {
      if (extent == 0) return 0;
    }
    for (const Dimension& extent : spec.shape) {
      product = checked_multiply(product, extent, spec.name.c_str());
    }
    return product;
  }
  [[nodiscard]] std::size_t bytes() const {
    return checked_multiply(count(), size_of(dtype), spec.name.c_str());
  }

  TensorSpec spec;
  std::byte* data;
  DType dtype;
};

/// Layer-stacked arrays, as a trainer with one flat allocation has them: each given tensor is layer
/// 0's part of an array in which layer l's part begins l * count() elements further. Returns the
/// tensors of each layer; their names get the layer's number ("qkvw" is "qkvw.3" in layer 3).
[[nodiscard]] inline std::vector<std::vector<HostTensor>> stacked(
    std::size_t layers, const std::vector<HostTensor>& first_layer) {
  std::vector<std::vector<HostTensor>> result(layers, first_layer);
  for (std::size_t layer = 0; layer < layers; ++layer) {
    for (HostTensor& tensor : result[layer]) {
      tensor.data += checked_multiply(layer, tensor.bytes(), tensor.spec.name.c_str());
      tensor.spec.name += '.' + std::to_string(layer);
    }
  }
  return result;
}

namespace detail {

/// Which of them have elements, by address; equal addresses in the order given.
[[nodiscard]] inline std::vector<std::size_t> order_by_address(
    std::span<const HostTensor> tensors) {
  std::vector<std::size_t> order;
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    if (tensors[i].count() > 0) order.push_back(i);
  }
  std::sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
    return tensors[a].data != tensors[b].data ? tensors[a].data < tensors[b].data : a < b;
  });
  return order;
}

}  // namespace detail

/// A list of tensors without those that appear a second time.
struct UniqueTensors {
  std::vector<HostTensor> tensors;  ///< each memory once, in the order of first appearance
  std::vector<std::size_t> index;   ///< of each given tensor, in `tensors`
};

/// Frameworks list a tied tensor under every name that it has; the address tells. Tensors without
/// elements are never tied. UsageError, with both names, where two have the same address and not
/// the same type and shape, or where they overlap otherwise.
[[nodiscard]] inline UniqueTensors deduplicate(const std::vector<HostTensor>& given) {
  UniqueTensors unique;
  unique.index.resize(given.size());
  const std::vector<std::size_t> by_address = detail::order_by_address(given);
  std::vector<std::size_t> first(given.size());  // who is listed for each
  for (std::size_t i = 0; i < given.size(); ++i) first[i] = i;
  for (std::size_t i = 1; i < by_address.size(); ++i) {
    const HostTensor& before = given[first[by_address[i - 1]]];
    const HostTensor& tensor = given[by_address[i]];
    if (before.data == tensor.data) {
      const bool same = before.dtype == tensor.dtype &&
                        std::equal(before.spec.shape.begin(), before.spec.shape.end(),
                                   tensor.spec.shape.begin(), tensor.spec.shape.end());
      if (!same) {
        raise(
            "tensors '{}' and '{}' begin at one address, but are not of one type and shape; views "
            "of a tensor cannot be parameters of their own",
            before.spec.name, tensor.spec.name);
      }
      first[by_address[i]] = first[by_address[i - 1]];
    } else if (before.data + before.bytes() > tensor.data) {
      raise("tensors '{}' and '{}' overlap in memory; a parameter's tensors are apart",
            before.spec.name, tensor.spec.name);
    }
  }
  for (std::size_t i = 0; i < given.size(); ++i) {
    if (first[i] != i) {
      unique.index[i] = unique.index[first[i]];
      continue;
    }
    unique.index[i] = unique.tensors.size();
    unique.tensors.push_back(given[i]);
  }
  return unique;
}

}  // namespace shardwise::inline v0_1
