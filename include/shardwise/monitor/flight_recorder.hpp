#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace shardwise::inline v0_1::monitor {

/// The last so many values: memory of fixed size, allocated when it is made.
template <class T>
class FlightRecorder {
 public:
  explicit FlightRecorder(std::size_t capacity) : values_(capacity > 0 ? capacity : 1) {}

  void add(const T& value) noexcept {
    values_[next_] = value;
    next_ = next_ + 1 == values_.size() ? 0 : next_ + 1;
    ++count_;
  }

  /// How many there were.
  [[nodiscard]] std::uint64_t count() const noexcept { return count_; }

  /// Those that are still there, oldest first.
  [[nodiscard]] std::vector<T> values() const {
    const auto middle = values_.begin() + static_cast<std::ptrdiff_t>(next_);
    if (count_ < values_.size()) return {values_.begin(), middle};
    std::vector<T> result(middle, values_.end());
    result.insert(result.end(), values_.begin(), middle);
    return result;
  }

 private:
  std::vector<T> values_;
  std::size_t next_ = 0;
  std::uint64_t count_ = 0;
};

/// A series of any length in memory of fixed size: where it is full every second value goes, and
/// of those that follow every second, fourth, ... one is kept.
template <class T>
class ThinnedSeries {
 public:
  explicit ThinnedSeries(std::size_t capacity) : capacity_(capacity < 2 ? 2 : capacity) {
    values_.reserve(capacity_);
  }

  void add(const T& value) noexcept {
    if (seen_++ % stride_ != 0) return;
    if (values_.size() == capacity_) {
      std::size_t kept = 0;
      for (std::size_t i = 0; i < values_.size(); i += 2) values_[kept++] = values_[i];
      values_.resize(kept);
      stride_ *= 2;
      if ((seen_ - 1) % stride_ != 0) return;
    }
    values_.push_back(value);
  }

  [[nodiscard]] const std::vector<T>& values() const noexcept { return values_; }

 private:
  std::size_t capacity_;
  std::vector<T> values_;
  std::uint64_t seen_ = 0;
  std::uint64_t stride_ = 1;
};

}  // namespace shardwise::inline v0_1::monitor
