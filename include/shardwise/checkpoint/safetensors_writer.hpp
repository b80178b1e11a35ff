#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <utility>

#include "../core/error.hpp"
#include "../core/format.hpp"
#include "json_text.hpp"
#include "safetensors_header.hpp"
#include "shown.hpp"

namespace shardwise::inline v0_1 {

/// Where the data begin in a file that we write is a multiple of this; so tensors whose offsets are
/// multiples of it lie in memory that is mapped as vectors want it.
inline constexpr std::uint64_t safetensors_alignment = 64;

/// The first bytes of a safetensors file: the length, the header and spaces up to a multiple of
/// safetensors_alignment; the data of `tensors` are to follow, in this order and without gaps.
/// UsageError where a tensor does not begin where the one before it ends (the first at 0), its
/// length is not that of its shape, a name is not UTF-8, or the header would be longer than the
/// format allows (100 MB). That names differ is up to the caller.
[[nodiscard]] inline std::string format_safetensors_header(
    std::span<const SafetensorsTensor> tensors,
    std::span<const std::pair<std::string, std::string>> metadata = {}) {
  constexpr std::size_t longest = 100'000'000;
  std::string text(8, '\0');
  text += '{';
  if (!metadata.empty()) {
    text += "\"__metadata__\":{";
    for (const auto& [key, value] : metadata) {
      if (&key != &metadata.front().first) text += ',';
      detail::append_json_string(text, key);
      text += ':';
      detail::append_json_string(text, value);
    }
    text += '}';
  }
  std::uint64_t end = 0;
  for (const SafetensorsTensor& tensor : tensors) {
    const std::optional<std::uint64_t> bytes =
        detail::safetensors_bytes(tensor.dtype, tensor.shape);
    if (tensor.name == "__metadata__") {
      raise("a safetensors file cannot have a tensor of the name __metadata__");
    }
    if (tensor.begin != end || tensor.end < tensor.begin || bytes != tensor.end - tensor.begin) {
      raise(
          "tensor '{}' of a safetensors file has the bytes {} to {}; it must begin at {}, the end "
          "of the one before, and have as many bytes as its shape",
          detail::shown(tensor.name), tensor.begin, tensor.end, end);
    }
    end = tensor.end;
    if (text.size() > 9) text += ',';
    detail::append_json_string(text, tensor.name);
    text += ":{\"dtype\":\"";
    text += name_of(tensor.dtype);
    text += "\",\"shape\":[";
    for (std::size_t i = 0; i < tensor.shape.size(); ++i) {
      if (i > 0) text += ',';
      text += std::to_string(tensor.shape[i]);
    }
    text += detail::format("],\"data_offsets\":[{},{}]}}", tensor.begin, tensor.end);
  }
  text += '}';
  constexpr std::size_t step = safetensors_alignment;
  text.resize((text.size() + step - 1) / step * step, ' ');
  if (text.size() - 8 > longest) {
    raise("a safetensors header of {} tensors has {} bytes; the format allows {}: use more files",
          tensors.size(), text.size() - 8, longest);
  }
  const std::uint64_t length = text.size() - 8;
  for (std::size_t i = 0; i < 8; ++i) text[i] = static_cast<char>((length >> (8 * i)) & 0xffu);
  return text;
}

}  // namespace shardwise::inline v0_1
