#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <numeric>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "../core/error.hpp"
#include "../core/format.hpp"
#include "byte_source.hpp"
#include "json_reader.hpp"
#include "safetensors_header.hpp"
#include "shown.hpp"

namespace shardwise::inline v0_1 {

namespace detail {

/// Reads one header. Until all of it has been checked nothing of more than 16 MiB is allocated at
/// once, whatever the file says of its sizes.
class SafetensorsReader {
 public:
  /// By the format.
  static constexpr std::uint64_t longest_header = 100'000'000;
  // Beyond the format, so that no entry of a hostile header costs many times its bytes.
  static constexpr std::size_t most_extents = 64;
  static constexpr std::size_t most_metadata = std::size_t{1} << 16;
  static constexpr std::size_t longest_value = std::size_t{1} << 23;

  explicit SafetensorsReader(ByteSource& source) : source_(source) {}

  [[nodiscard]] SafetensorsHeader read() {
    const std::uint64_t length = read_length();
    header_.data_begin = 8 + length;
    JsonReader json(source_, 8, header_.data_begin, "header");
    json.open_object();
    std::string key;
    while (json.next_member(key)) {
      if (key == "__metadata__") {
        read_metadata(json);
      } else {
        read_tensor(json, key);
      }
    }
    json.finish(true);
    check_names();
    check_offsets();
    return std::move(header_);
  }

 private:
  [[noreturn]] void fail(std::string_view field, std::string_view cause) const {
    raise<FileError>("{}: {}: {}", source_.name(), field, cause);
  }
  [[noreturn]] void fail(const SafetensorsTensor& tensor, std::string_view field,
                         std::string_view cause) const {
    fail(format("tensor '{}', {}", shown(tensor.name), field), cause);
  }

  [[nodiscard]] std::uint64_t read_length() {
    const std::uint64_t size = source_.size();
    if (size < 8) {
      fail("header length", format("the file has {} bytes; expected 8 bytes that tell the length "
                                   "of the header, and the header",
                                   size));
    }
    std::array<std::byte, 9> begin{};
    source_.read(0, std::span(begin).first(std::min<std::size_t>(begin.size(), size)));
    std::uint64_t length = 0;
    for (std::size_t i = 8; i-- > 0;) {
      length = (length << 8) | std::to_integer<std::uint64_t>(begin[i]);
    }
    if (length > longest_header) {
      fail("header length", format("{} bytes; the format allows {}. Is it a safetensors file?",
                                   length, longest_header));
    }
    if (length > size - 8) {
      fail("header length",
           format("{} bytes, but only {} follow in the file; it is cut short", length, size - 8));
    }
    if (length == 0) fail("header", "it is empty; expected an object of JSON");
    if (begin[8] != std::byte{'{'}) fail("header", "expected { as its first byte");
    return length;
  }

  void read_metadata(JsonReader& json) {
    if (std::exchange(seen_metadata_, true)) json.fail("the key is there twice");
    std::string key;
    json.open_object();
    while (json.next_member(key)) {
      if (header_.metadata.size() == most_metadata) {
        json.fail(format("more than {} entries", most_metadata));
      }
      std::string value;
      json.string(value, longest_value);
      value.shrink_to_fit();
      header_.metadata.emplace_back(key, std::move(value));
    }
    const auto& entries = header_.metadata;
    std::vector<std::uint32_t> order = numbers(entries.size());
    std::sort(order.begin(), order.end(),
              [&](auto a, auto b) { return entries[a].first < entries[b].first; });
    for (std::size_t i = 1; i < order.size(); ++i) {
      if (entries[order[i - 1]].first != entries[order[i]].first) continue;
      fail(format("header, __metadata__.{}", shown(entries[order[i]].first)),
           "the key is there twice");
    }
  }

  void read_tensor(JsonReader& json, const std::string& name) {
    SafetensorsTensor tensor;
    tensor.name = name;
    std::optional<std::vector<std::uint64_t>> offsets;
    bool typed = false;
    bool shaped = false;
    std::string key;
    json.open_object();
    while (json.next_member(key)) {
      if (key == "dtype") {
        if (std::exchange(typed, true)) json.fail("the key is there twice");
        std::string type;
        json.string(type, 64);
        const std::optional<SafetensorsDType> known = parse_safetensors_dtype(type);
        if (!known) json.fail(format("the format has no type '{}'", shown(type)));
        tensor.dtype = *known;
      } else if (key == "shape") {
        if (std::exchange(shaped, true)) json.fail("the key is there twice");
        tensor.shape = read_integers(json, most_extents);
      } else if (key == "data_offsets") {
        if (offsets) json.fail("the key is there twice");
        offsets = read_integers(json, 2);
        if (offsets->size() != 2) {
          json.fail(format("expected two offsets, found {}", offsets->size()));
        }
      } else {
        json.fail("the format has no such key; expected dtype, shape and data_offsets");
      }
    }
    if (!typed) fail(tensor, "dtype", "it is missing");
    if (!shaped) fail(tensor, "shape", "it is missing");
    if (!offsets) fail(tensor, "data_offsets", "it is missing");
    tensor.begin = (*offsets)[0];
    tensor.end = (*offsets)[1];
    check_length(tensor);
    tensors_.push_back(std::move(tensor));
  }
  [[nodiscard]] static std::vector<std::uint64_t> read_integers(JsonReader& json,
                                                                std::size_t most) {
    std::vector<std::uint64_t> values;
    json.open_array();
    while (json.next_item()) {
      if (values.size() == most) json.fail(format("more than {} numbers", most));
      values.push_back(json.unsigned_integer());
    }
    values.shrink_to_fit();
    return values;
  }

  void check_length(const SafetensorsTensor& tensor) const {
    if (tensor.begin > tensor.end) {
      fail(tensor, "data_offsets",
           format("it ends at {}, before its beginning {}", tensor.end, tensor.begin));
    }
    const std::optional<std::uint64_t> bytes = safetensors_bytes(tensor.dtype, tensor.shape);
    if (!bytes) {
      fail(tensor, "shape",
           format("its {} elements do not fill whole bytes, or more than 64 bits can count",
                  name_of(tensor.dtype)));
    }
    if (*bytes == tensor.end - tensor.begin) return;
    fail(tensor, "data_offsets",
         format("{} bytes, but its shape of type {} takes {}", tensor.end - tensor.begin,
                name_of(tensor.dtype), *bytes));
  }

  [[nodiscard]] static std::vector<std::uint32_t> numbers(std::size_t count) {
    std::vector<std::uint32_t> result(count);
    std::iota(result.begin(), result.end(), 0u);
    return result;
  }

  void check_names() const {
    const std::vector<std::uint32_t> order = ordered_by_name(tensors_);
    for (std::size_t i = 1; i < order.size(); ++i) {
      const SafetensorsTensor& tensor = tensors_[order[i]];
      if (tensors_[order[i - 1]].name != tensor.name) continue;
      fail(format("header, '{}'", shown(tensor.name)), "the key is there twice");
    }
  }
  template <class Tensors>
  [[nodiscard]] static std::vector<std::uint32_t> ordered_by_name(const Tensors& tensors) {
    std::vector<std::uint32_t> order = numbers(tensors.size());
    std::sort(order.begin(), order.end(),
              [&](auto a, auto b) { return tensors[a].name < tensors[b].name; });
    return order;
  }

  // The tensors follow each other from 0 to the end of the file.
  void check_offsets() {
    std::vector<std::uint32_t> order = numbers(tensors_.size());
    std::sort(order.begin(), order.end(), [&](auto a, auto b) {
      const SafetensorsTensor& x = tensors_[a];
      const SafetensorsTensor& y = tensors_[b];
      return x.begin != y.begin ? x.begin < y.begin : x.end != y.end ? x.end < y.end : a < b;
    });
    const std::uint64_t data = source_.size() - header_.data_begin;
    const SafetensorsTensor* before = nullptr;
    for (const std::uint32_t i : order) {
      const SafetensorsTensor& tensor = tensors_[i];
      const std::uint64_t expected = before == nullptr ? 0 : before->end;
      if (tensor.begin < expected) {
        fail(tensor, "data_offsets",
             format("it begins at {}, within tensor '{}', which ends at {}", tensor.begin,
                    shown(before->name), expected));
      }
      if (tensor.begin > expected) {
        fail(tensor, "data_offsets",
             format("it begins at {}: bytes {} to {} of the data belong to no tensor", tensor.begin,
                    expected, tensor.begin));
      }
      if (tensor.end > data) {
        fail(tensor, "data_offsets",
             format("it ends at byte {} of the data, and the file has {}; it is cut short",
                    tensor.end, data));
      }
      before = &tensor;
    }
    const std::uint64_t end = before == nullptr ? 0 : before->end;
    if (end != data) {
      fail("data", format("{} bytes, but the tensors end at {}: {} bytes belong to no tensor", data,
                          end, data - end));
    }
    header_.tensors.reserve(tensors_.size());
    for (const std::uint32_t i : order) header_.tensors.push_back(std::move(tensors_[i]));
    tensors_.clear();
    header_.by_name = ordered_by_name(header_.tensors);
  }

  ByteSource& source_;
  SafetensorsHeader header_;
  std::deque<SafetensorsTensor> tensors_;  // in the order of the file; grows by small pieces
  bool seen_metadata_ = false;
};

}  // namespace detail

/// Reads the header of a safetensors file and checks it against the file's length, strictly: every
/// byte of the data belongs to one tensor, every key is known and there once. FileError with the
/// file, the field and the cause else; nothing of more than 16 MiB is allocated at once before
/// everything is found in order. The data are not read.
/// (The format: https://github.com/huggingface/safetensors#format)
[[nodiscard]] inline SafetensorsHeader read_safetensors_header(ByteSource& source) {
  return detail::SafetensorsReader(source).read();
}

}  // namespace shardwise::inline v0_1
