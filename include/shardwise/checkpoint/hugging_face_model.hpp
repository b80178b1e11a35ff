#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "../context.hpp"
#include "../core/dtype.hpp"
#include "../core/error.hpp"
#include "../layout.hpp"
#include "../sharded_parameter.hpp"
#include "shown.hpp"

namespace shardwise::inline v0_1 {

namespace detail {

/// Elements [first, first + count) of the tensor at this place of the list.
struct ModelRange {
  std::size_t tensor;
  std::size_t first;
  std::size_t count;
};
using FillRange = std::function<void(const ModelRange&, std::byte* elements)>;
using UseRange = std::function<void(const ModelRange&, const std::byte* elements)>;

/// A tensor of a host's model, whatever its parameter's type.
struct ModelTensor {
  std::string name;  ///< in files
  DType dtype;       ///< of the storage
  const Layout::Tensor* tensor;

  [[nodiscard]] std::vector<std::uint64_t> shape() const {
    return {tensor->shape.begin(), tensor->shape.end()};
  }
};

/// A parameter of the model: what is done with its elements, through buffers of a few MiB at most.
struct ModelParameter {
  std::function<void(const FillRange&)> load;   ///< writes what this rank stores
  std::function<void(const UseRange&)> write;   ///< reads what is for this rank to write
  std::function<void(const UseRange&)> gather;  ///< collective: reads everything, on all ranks
};

}  // namespace detail

/// The tensors of a host's model, in its own order, with the names that they have in files. It
/// refers to the parameters: they must outlive it and stay where they are. All ranks add the same
/// ones in the same order.
template <class Device = HostDevice>
class ModelTensors {
 public:
  explicit ModelTensors(Context<Device>& context) : context_(&context) {}
  ModelTensors(const ModelTensors&) = delete;
  ModelTensors& operator=(const ModelTensors&) = delete;

  /// `file_name` makes a tensor's name in files of its own: "attn.weight" of the third block is
  /// "h.2.attn.weight" there. UsageError where a name of files is empty or there already, or the
  /// parameter is another context's. (A tied parameter is added once, under the name that the files
  /// have for it.)
  template <FloatingElement T>
  void add(ShardedParameter<T, Device>& parameter,
           const std::function<std::string(std::string_view)>& file_name = {}) {
    if (&parameter.context() != context_) {
      raise("parameter '{}' belongs to another context than this model", parameter.name());
    }
    const std::size_t base = tensors_.size();
    for (const Layout::Tensor& tensor : parameter.layout().tensors()) {
      std::string name = file_name ? file_name(tensor.name) : tensor.name;
      if (name.empty()) {
        raise("tensor '{}' of parameter '{}' has an empty name in files", tensor.name,
              parameter.name());
      }
      if (!names_.emplace(name, tensors_.size()).second) {
        raise(
            "tensor '{}' of parameter '{}': the model has a tensor '{}' already; names in files "
            "are unique, so add the parameter with a function that makes them so",
            tensor.name, parameter.name(), detail::shown(name));
      }
      tensors_.push_back({std::move(name), dtype_of<T>, &tensor});
    }
    add_parameter(parameter, base);
  }

  [[nodiscard]] Context<Device>& context() const noexcept { return *context_; }

  /// The library's own side; not for hosts.
  [[nodiscard]] std::span<const detail::ModelTensor> tensors() const noexcept { return tensors_; }
  [[nodiscard]] std::span<const detail::ModelParameter> parameters() const noexcept {
    return parameters_;
  }
  /// The place of this name of files in tensors(); their number where there is none.
  [[nodiscard]] std::size_t find(std::string_view name) const noexcept {
    const auto found = names_.find(name);
    return found == names_.end() ? tensors_.size() : found->second;
  }

 private:
  static constexpr std::size_t staging_elements = std::size_t{1} << 18;

  template <FloatingElement T>
  void add_parameter(ShardedParameter<T, Device>& parameter, std::size_t base) {
    detail::ModelParameter entry;
    const Layout::Tensor* const first_tensor = parameter.layout().tensors().data();
    const auto range = [base, first_tensor](const Layout::Tensor& tensor, std::size_t first,
                                            std::size_t count) {
      return detail::ModelRange{base + static_cast<std::size_t>(&tensor - first_tensor), first,
                                count};
    };
    entry.load = [&parameter, range](const detail::FillRange& fill) {
      parameter.load([&](const Layout::Tensor& tensor, std::size_t first, std::span<T> elements) {
        if constexpr (Device::memory != MemoryKind::host) {
          // What is not filled must stay what it is.
          download(parameter, tensor, first, elements);
        }
        fill(range(tensor, first, elements.size()), reinterpret_cast<std::byte*>(elements.data()));
      });
    };
    entry.write = [&parameter, range](const detail::UseRange& use) {
      auto& engine = parameter.context().engine();
      engine.check();
      const auto& flat = parameter.flat();
      // Every element once over all ranks, also where several hold it: of a replicated copy each
      // rank is sure of its own shard alone.
      const std::size_t begin = flat.layout.shard_begin(flat.layout_shard_of(engine.rank()));
      std::vector<T> staging;
      flat.layout.for_each_segment(
          begin, begin + flat.layout.shard_size(), [&](const Layout::Segment& segment) {
            const Layout::Tensor& tensor = flat.layout.tensors()[segment.tensor];
            if constexpr (Device::memory == MemoryKind::host) {
              use(range(tensor, segment.tensor_offset, segment.count), flat.stored(segment));
            } else {
              staging.resize(std::min(staging_elements, flat.layout.shard_size()));
              for (std::size_t done = 0; done < segment.count; done += staging.size()) {
                const auto part =
                    std::span(staging).first(std::min(staging.size(), segment.count - done));
                download(parameter, tensor, segment.tensor_offset + done, part);
                use(range(tensor, segment.tensor_offset + done, part.size()),
                    reinterpret_cast<const std::byte*>(part.data()));
              }
            }
          });
    };
    entry.gather = [&parameter, range](const detail::UseRange& use) {
      parameter.read(
          [&](const Layout::Tensor& tensor, std::size_t first, std::span<const T> elements) {
            use(range(tensor, first, elements.size()),
                reinterpret_cast<const std::byte*>(elements.data()));
          });
    };
    parameters_.push_back(std::move(entry));
  }

  template <class T>
  static void download(ShardedParameter<T, Device>& parameter, const Layout::Tensor& tensor,
                       std::size_t first, std::span<T> elements) {
    const auto& flat = parameter.flat();
    const auto index = static_cast<std::size_t>(&tensor - flat.layout.tensors().data());
    const Layout::Segment segment{index, first, tensor.offset + first, elements.size()};
    Device::download(parameter.context().engine().compute, elements.data(), flat.stored(segment),
                     elements.size_bytes());
    parameter.context().engine().check_peers();  // an aborted collective ends the wait, too
  }

  Context<Device>* context_;
  std::vector<detail::ModelTensor> tensors_;
  std::vector<detail::ModelParameter> parameters_;
  std::map<std::string, std::size_t, std::less<>> names_;  // -> index in tensors_
};

}  // namespace shardwise::inline v0_1
