#pragma once

#include <torch/types.h>

#include <cstddef>
#include <string>
#include <vector>

#include "options.hpp"

namespace libtorch_gpt {

/// Some sequences side by side: tokens, and the token that follows each; (sequences, length),
/// int64.
struct Batch {
  torch::Tensor inputs;
  torch::Tensor targets;
};

/// The text to learn, as one token for each character that occurs in it.
class Text {
 public:
  /// Reads the file that the options name, else the README.md of this repository, which is above
  /// every build folder. std::runtime_error where there is none or it is too short.
  explicit Text(const Options& options);

  [[nodiscard]] std::size_t vocabulary() const noexcept { return vocabulary_; }

  /// The sequences `first`, `first` + 1, ... of a step. Where each lies in the text depends on
  /// seed, step and its number alone, whoever reads it.
  [[nodiscard]] Batch batch(std::size_t step, std::size_t first, std::size_t sequences) const;

 private:
  std::vector<std::int64_t> tokens_;
  std::size_t vocabulary_ = 0;
  std::size_t length_;
  std::uint64_t seed_;
};

}  // namespace libtorch_gpt
