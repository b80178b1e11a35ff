#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "core/checked.hpp"
#include "core/error.hpp"
#include "core/hash.hpp"
#include "core/tensor_options.hpp"

namespace shardwise::inline v0_1 {

/// A tensor as a host describes it: `{"w", {3 * d, d}}` or `{"b", {3 * d}, {.weight_decay = 0}}`.
/// An empty shape is a scalar, of one element; an extent of 0 makes a tensor without elements.
struct TensorSpec {
  std::string name;
  std::vector<Dimension> shape;
  TensorOptions options = {};
};

/// Where the tensors of one flat parameter lie and which part of them each rank owns. Arithmetic
/// alone: it holds no element and is the same on all ranks. Offsets and counts are in elements.
///
/// Tensors follow each other in the order given, each from a multiple of `alignment` on; the buffer
/// is padded at its end so that all `world` shards have one size, a multiple of `alignment`.
class Layout {
 public:
  /// 32 elements: 64 bytes of bf16, 128 of fp32, so that neither vectors nor cache lines straddle
  /// tensors or shards.
  static constexpr std::size_t alignment = 32;

  struct Tensor {
    std::string name;
    std::vector<std::size_t> shape;
    TensorOptions options;
    std::size_t offset;  ///< of its first element in the flat buffer
    std::size_t count;   ///< the product of its extents
  };

  /// Elements of one tensor that follow each other.
  struct Segment {
    std::size_t tensor;         ///< index in tensors()
    std::size_t tensor_offset;  ///< of the first element, in the tensor
    std::size_t offset;         ///< of the first element, in the flat buffer
    std::size_t count;          ///< at least 1

    [[nodiscard]] bool operator==(const Segment&) const = default;
  };

  /// Elements that follow each other, of one or more tensors with equal options.
  struct Run {
    TensorOptions options;
    std::size_t offset;  ///< of the first element, in the flat buffer
    std::size_t count;   ///< at least 1

    [[nodiscard]] bool operator==(const Run&) const = default;
  };

  /// UsageError where world < 1, a name is empty or given twice, an option is negative or not
  /// finite, or the buffer would not fit into the address space (at 8 bytes an element).
  Layout(std::vector<TensorSpec> tensors, int world) : world_(world) {
    if (world < 1) raise("a layout needs a world of at least 1 rank, found {}", world);
    tensors_.reserve(tensors.size());
    std::size_t end = 0;
    for (TensorSpec& spec : tensors) end = append(std::move(spec), end);
    const std::size_t step =
        checked_multiply(static_cast<std::size_t>(world), alignment, "world x alignment");
    padded_size_ = round_up(end, step);
    shard_size_ = padded_size_ / static_cast<std::size_t>(world);
    if (padded_size_ > PTRDIFF_MAX / 8) {
      raise("a flat parameter of {} elements does not fit into the address space", padded_size_);
    }
    sort_names();
  }

  [[nodiscard]] std::span<const Tensor> tensors() const noexcept { return tensors_; }

  /// The index in tensors() of the tensor with this name; UsageError that lists the names where
  /// there is none.
  [[nodiscard]] std::size_t find(std::string_view name) const {
    if (tensors_.size() == 1 && tensors_[0].name == name) return 0;
    const auto found = std::partition_point(by_name_.begin(), by_name_.end(),
                                            [&](std::size_t i) { return tensors_[i].name < name; });
    if (found == by_name_.end() || tensors_[*found].name != name) raise_unknown(name);
    return *found;
  }

  /// Elements of all tensors, without padding.
  [[nodiscard]] std::size_t size() const noexcept { return size_; }
  /// Elements of the flat buffer: world() * shard_size().
  [[nodiscard]] std::size_t padded_size() const noexcept { return padded_size_; }
  /// Elements of each rank's shard, padding included; a multiple of `alignment`.
  [[nodiscard]] std::size_t shard_size() const noexcept { return shard_size_; }
  [[nodiscard]] int world() const noexcept { return world_; }

  /// Where the shard of `rank` begins in the flat buffer; UsageError where there is no such rank.
  [[nodiscard]] std::size_t shard_begin(int rank) const {
    if (rank < 0 || rank >= world_) {
      raise("rank {} is not in a world of {}: ranks go from 0 to {}", rank, world_, world_ - 1);
    }
    return static_cast<std::size_t>(rank) * shard_size_;
  }

  /// Calls f(const Segment&) for each tensor's part of [begin, end) of the flat buffer, in order;
  /// padding and tensors without elements are left out. Does not allocate. UsageError where the
  /// range is not within the buffer.
  template <class F>
  void for_each_segment(std::size_t begin, std::size_t end, F&& f) const {
    check_range(begin, end);
    auto tensor = std::partition_point(tensors_.begin(), tensors_.end(), [&](const Tensor& t) {
      return t.offset + t.count <= begin;
    });
    for (; tensor != tensors_.end() && tensor->offset < end; ++tensor) {
      const std::size_t first = std::max(begin, tensor->offset);
      const std::size_t last = std::min(end, tensor->offset + tensor->count);
      if (first >= last) continue;
      const auto index = static_cast<std::size_t>(tensor - tensors_.begin());
      f(Segment{index, first - tensor->offset, first, last - first});
    }
  }

  /// Calls f(const Run&) likewise, with segments merged where one follows the other at once and
  /// their options are equal. A run never covers padding: an optimizer may turn zeros into
  /// something else (AdamW with epsilon 0 makes them NaN), and padding must stay zero.
  template <class F>
  void for_each_run(std::size_t begin, std::size_t end, F&& f) const {
    Run run{};
    for_each_segment(begin, end, [&](const Segment& segment) {
      const TensorOptions& options = tensors_[segment.tensor].options;
      if (run.count > 0 && run.offset + run.count == segment.offset && run.options == options) {
        run.count += segment.count;
        return;
      }
      if (run.count > 0) f(std::as_const(run));
      run = {options, segment.offset, segment.count};
    });
    if (run.count > 0) f(std::as_const(run));
  }

  /// What for_each_segment passes, as a list.
  [[nodiscard]] std::vector<Segment> segments(std::size_t begin, std::size_t end) const {
    std::vector<Segment> result;
    for_each_segment(begin, end, [&](const Segment& segment) { result.push_back(segment); });
    return result;
  }
  /// The segments of the shard of `rank`.
  [[nodiscard]] std::vector<Segment> segments(int rank) const {
    const std::size_t begin = shard_begin(rank);
    return segments(begin, begin + shard_size_);
  }
  /// What for_each_run passes, as a list.
  [[nodiscard]] std::vector<Run> runs(std::size_t begin, std::size_t end) const {
    std::vector<Run> result;
    for_each_run(begin, end, [&](const Run& run) { result.push_back(run); });
    return result;
  }

  /// Of names, shapes, options and world, in order: equal on ranks whose layouts are equal.
  [[nodiscard]] std::uint64_t hash() const noexcept {
    // Lengths go in before what they count, so that no two layouts give one sequence.
    detail::Hash hash;
    hash.add(static_cast<std::uint64_t>(world_));
    hash.add(tensors_.size());
    for (const Tensor& tensor : tensors_) {
      hash.add(tensor.name);
      hash.add(tensor.shape.size());
      for (const std::size_t extent : tensor.shape) hash.add(extent);
      // + 0: -0 compares equal to 0 and must hash alike.
      hash.add(std::bit_cast<std::uint32_t>(tensor.options.weight_decay + 0.0f));
      hash.add(std::bit_cast<std::uint32_t>(tensor.options.learning_rate + 0.0f));
    }
    return hash.value();
  }

 private:
  // Returns the end of the tensor.
  std::size_t append(TensorSpec spec, std::size_t end) {
    if (spec.name.empty()) raise("tensor {} has no name; give each tensor one", tensors_.size());
    check_multiplier(spec, "weight_decay", spec.options.weight_decay);
    check_multiplier(spec, "learning_rate", spec.options.learning_rate);
    const std::string what = detail::format("elements up to the end of tensor '{}'", spec.name);
    Tensor tensor{std::move(spec.name), {}, spec.options, round_up(end, alignment), 1};
    tensor.shape.assign(spec.shape.begin(), spec.shape.end());
    // An extent of 0 first: the other extents' product may be anything then.
    const bool empty =
        std::find(tensor.shape.begin(), tensor.shape.end(), 0u) != tensor.shape.end();
    if (empty) tensor.count = 0;
    for (std::size_t i = 0; i < tensor.shape.size() && !empty; ++i) {
      tensor.count = checked_multiply(tensor.count, tensor.shape[i], what.c_str());
    }
    end = checked_add(tensor.offset, tensor.count, what.c_str());
    size_ += tensor.count;
    tensors_.push_back(std::move(tensor));
    return end;
  }

  static void check_multiplier(const TensorSpec& spec, const char* what, float value) {
    const bool good = value >= 0 && value <= std::numeric_limits<float>::max();
    if (good) return;
    raise(
        "tensor '{}': {} multiplies the optimizer's and must be finite and not negative, found {}",
        spec.name, what, value);
  }

  void check_range(std::size_t begin, std::size_t end) const {
    if (begin > end || end > padded_size_) {
      raise("elements [{}, {}) are not a range of a flat buffer of {} elements", begin, end,
            padded_size_);
    }
  }

  void sort_names() {
    if (tensors_.size() == 1) return;
    by_name_.resize(tensors_.size());
    for (std::size_t i = 0; i < by_name_.size(); ++i) by_name_[i] = i;
    const auto name = [&](std::size_t i) -> const std::string& { return tensors_[i].name; };
    std::sort(by_name_.begin(), by_name_.end(), [&](std::size_t a, std::size_t b) {
      return name(a) != name(b) ? name(a) < name(b) : a < b;
    });
    for (std::size_t i = 1; i < by_name_.size(); ++i) {
      if (name(by_name_[i - 1]) != name(by_name_[i])) continue;
      raise("tensors {} and {} have the same name '{}'; names are unique within a parameter",
            by_name_[i - 1], by_name_[i], name(by_name_[i]));
    }
  }

  [[noreturn]] void raise_unknown(std::string_view name) const {
    constexpr std::size_t shown = 32;
    std::string names;
    for (std::size_t i = 0; i < std::min(shown, tensors_.size()); ++i) {
      names += detail::format("{}'{}'", i == 0 ? "" : ", ", tensors_[i].name);
    }
    if (tensors_.size() > shown) names += detail::format(" and {} more", tensors_.size() - shown);
    raise("there is no tensor '{}' here; there is {}", name, names.empty() ? "none at all" : names);
  }

  int world_;
  std::vector<Tensor> tensors_;
  std::vector<std::size_t> by_name_;  // empty where there is one tensor
  std::size_t size_ = 0;
  std::size_t padded_size_ = 0;
  std::size_t shard_size_ = 0;
};

}  // namespace shardwise::inline v0_1
