#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

namespace train_gpt {

/// The text to learn, as bytes.
class Text {
 public:
  explicit Text(std::string bytes) : bytes_(std::move(bytes)) {}

  /// Reads `file`; if that is empty, the licence texts that every Debian has under
  /// /usr/share/common-licenses, else the repository's own README. Throws std::runtime_error if
  /// nothing can be read.
  [[nodiscard]] static Text load(const std::filesystem::path& file);

  /// The regular files of a folder (no links: they would be duplicates), in order of name, one
  /// after another; empty if there is no such folder.
  [[nodiscard]] static Text load_folder(const std::filesystem::path& folder);

  [[nodiscard]] std::size_t size() const noexcept { return bytes_.size(); }

  /// Throws std::runtime_error if the text is too short for one sequence of `length` tokens.
  void require(std::size_t length) const;

  /// Copies the `inputs.size()` bytes of one sequence, and the byte that follows each of them.
  /// Where it lies in the text depends on (seed, step, sequence) alone, never on the world.
  void read(std::uint64_t seed, std::size_t step, std::size_t sequence,
            std::span<std::uint8_t> inputs, std::span<std::uint8_t> targets) const;

 private:
  std::string bytes_;
};

/// Some sequences side by side: what one micro-batch reads.
class Batch {
 public:
  Batch(std::size_t sequences, std::size_t length)
      : length_(length), inputs_(sequences * length), targets_(sequences * length) {}

  /// Fills the batch with the sequences `first`, `first` + 1, ... of `step`.
  void read(const Text& text, std::uint64_t seed, std::size_t step, std::size_t first);

  /// The tokens, sequence after sequence, and the token that follows each.
  [[nodiscard]] std::span<const std::uint8_t> inputs() const noexcept { return inputs_; }
  [[nodiscard]] std::span<const std::uint8_t> targets() const noexcept { return targets_; }

 private:
  std::size_t length_;
  std::vector<std::uint8_t> inputs_;
  std::vector<std::uint8_t> targets_;
};

}  // namespace train_gpt
