#include "text.hpp"

#include <algorithm>
#include <array>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <stdexcept>

namespace libtorch_gpt {
namespace {

namespace fs = std::filesystem;

fs::path find_readme() {
  for (fs::path folder = fs::current_path();; folder = folder.parent_path()) {
    if (fs::is_regular_file(folder / "README.md")) return folder / "README.md";
    if (folder == folder.parent_path()) return {};
  }
}

// The output function of SplitMix64 (Steele, Lea, Flood, 2014).
std::uint64_t scramble(std::uint64_t value) {
  value += 0x9e3779b97f4a7c15u;
  value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9u;
  value = (value ^ (value >> 27)) * 0x94d049bb133111ebu;
  return value ^ (value >> 31);
}

}  // namespace

Text::Text(const Options& options) : length_(options.sequence), seed_(options.seed) {
  const fs::path file = options.text.empty() ? find_readme() : fs::path(options.text);
  std::ifstream stream(file, std::ios::binary);
  if (!stream) {
    throw std::runtime_error("cannot read a text from '" + file.string() +
                             "'; name a file with --text FILE");
  }
  const std::string bytes{std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>()};
  if (bytes.size() <= length_) {
    throw std::runtime_error(file.string() + " is too short for --sequence " +
                             std::to_string(length_));
  }
  std::array<std::int64_t, 256> token{};
  for (const char byte : bytes) token[static_cast<unsigned char>(byte)] = 1;
  std::int64_t next = 0;
  for (std::int64_t& entry : token) entry = entry == 0 ? 0 : next++;
  vocabulary_ = static_cast<std::size_t>(next);
  for (const char byte : bytes) tokens_.push_back(token[static_cast<unsigned char>(byte)]);
}

Batch Text::batch(std::size_t step, std::size_t first, std::size_t sequences) const {
  const auto rows = static_cast<std::int64_t>(sequences);
  const auto columns = static_cast<std::int64_t>(length_);
  Batch batch{torch::empty({rows, columns}, torch::kLong),
              torch::empty({rows, columns}, torch::kLong)};
  for (std::size_t row = 0; row < sequences; ++row) {
    const std::uint64_t random = scramble(scramble(scramble(seed_) + step) + first + row);
    const std::int64_t* const begin = &tokens_[random % (tokens_.size() - length_)];
    std::copy_n(begin, length_, batch.inputs.data_ptr<std::int64_t>() + row * length_);
    std::copy_n(begin + 1, length_, batch.targets.data_ptr<std::int64_t>() + row * length_);
  }
  return batch;
}

}  // namespace libtorch_gpt
