#include "text.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <fstream>
#include <iterator>
#include <stdexcept>
#include <system_error>

#include "random.hpp"

namespace train_gpt {
namespace {

namespace fs = std::filesystem;

std::string read_file(const fs::path& file) {
  std::ifstream stream(file, std::ios::binary);
  if (!stream) throw std::runtime_error(fmt::format("cannot read the text {}", file.string()));
  return {std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>()};
}

// The nearest README.md of the working directory and the folders above it: examples are run from a
// build folder inside the repository.
fs::path find_readme() {
  for (fs::path folder = fs::current_path();; folder = folder.parent_path()) {
    if (fs::is_regular_file(folder / "README.md")) return folder / "README.md";
    if (folder == folder.parent_path()) return {};
  }
}

}  // namespace

Text Text::load(const fs::path& file) {
  if (!file.empty()) return Text(read_file(file));
  Text licences = load_folder("/usr/share/common-licenses");
  if (licences.size() > 0) return licences;
  const fs::path readme = find_readme();
  if (readme.empty()) {
    throw std::runtime_error(
        "found no text to train on: /usr/share/common-licenses is empty and no README.md is in "
        "this folder or above it; name a file with --text FILE");
  }
  return Text(read_file(readme));
}

Text Text::load_folder(const fs::path& folder) {
  std::vector<fs::path> files;
  std::error_code absent;
  for (const auto& entry : fs::directory_iterator(folder, absent)) {
    if (entry.is_regular_file() && !entry.is_symlink()) files.push_back(entry.path());
  }
  std::sort(files.begin(), files.end());
  std::string bytes;
  for (const fs::path& file : files) bytes += read_file(file);
  return Text(std::move(bytes));
}

void Text::require(std::size_t length) const {
  if (size() > length) return;
  throw std::runtime_error(
      fmt::format("the text has {} bytes; a sequence of {} tokens and the one that follows need "
                  "{}: give a longer --text or a smaller --sequence",
                  size(), length, length + 1));
}

void Text::read(std::uint64_t seed, std::size_t step, std::size_t sequence,
                std::span<std::uint8_t> inputs, std::span<std::uint8_t> targets) const {
  const std::size_t length = inputs.size();
  const std::uint64_t starts = size() - length;
  const auto begin =
      bytes_.begin() + static_cast<std::ptrdiff_t>(random_bits(seed, step, sequence) % starts);
  std::copy_n(begin, length, inputs.begin());
  std::copy_n(begin + 1, length, targets.begin());
}

void Batch::read(const Text& text, std::uint64_t seed, std::size_t step, std::size_t first) {
  const std::span<std::uint8_t> inputs(inputs_);
  const std::span<std::uint8_t> targets(targets_);
  for (std::size_t at = 0; at < inputs.size(); at += length_) {
    text.read(seed, step, first + at / length_, inputs.subspan(at, length_),
              targets.subspan(at, length_));
  }
}

}  // namespace train_gpt
