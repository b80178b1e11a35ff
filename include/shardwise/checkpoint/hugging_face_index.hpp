#pragma once

#include <algorithm>
#include <cstdint>
#include <deque>
#include <map>
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
#include "json_text.hpp"
#include "shown.hpp"

namespace shardwise::inline v0_1 {

/// What a model.safetensors.index.json says: which file each tensor of a model lies in.
struct HuggingFaceIndex {
  struct Entry {
    std::string tensor;
    std::uint32_t file;  ///< index in files

    [[nodiscard]] bool operator==(const Entry&) const = default;
  };

  std::vector<std::string> files;           ///< in the order of their first tensors in the index
  std::vector<Entry> tensors;               ///< by name
  std::optional<std::uint64_t> total_size;  ///< bytes of all tensors

  /// Null where there is no tensor of this name.
  [[nodiscard]] const Entry* find(std::string_view name) const noexcept {
    const auto found = std::partition_point(tensors.begin(), tensors.end(),
                                            [&](const Entry& e) { return e.tensor < name; });
    return found == tensors.end() || found->tensor != name ? nullptr : &*found;
  }
};

namespace detail {

/// Reads one index; like SafetensorsReader in small allocations until all of it has been checked.
class HuggingFaceIndexReader {
 public:
  // As for the header of a file.
  static constexpr std::uint64_t longest = 100'000'000;
  static constexpr std::size_t longest_file_name = 4096;
  static constexpr std::size_t most_files = 100'000;

  explicit HuggingFaceIndexReader(ByteSource& source) : source_(source) {}

  [[nodiscard]] HuggingFaceIndex read() {
    if (source_.size() > longest) {
      raise<FileError>("{}: index: {} bytes; at most {} are read. Is it an index?", source_.name(),
                       source_.size(), longest);
    }
    JsonReader json(source_, 0, source_.size(), "index");
    bool mapped = false;
    bool described = false;
    std::string key;
    json.open_object();
    while (json.next_member(key)) {
      if (key == "weight_map") {
        if (std::exchange(mapped, true)) json.fail("the key is there twice");
        read_map(json);
      } else if (key == "metadata") {
        if (std::exchange(described, true)) json.fail("the key is there twice");
        read_metadata(json);
      } else {
        json.skip_value();  // others put notes of their own there
      }
    }
    json.finish(false);
    if (!mapped) raise<FileError>("{}: index, weight_map: it is missing", source_.name());
    return finish();
  }

 private:
  void read_metadata(JsonReader& json) {
    std::string key;
    json.open_object();
    while (json.next_member(key)) {
      if (key != "total_size") {
        json.skip_value();
        continue;
      }
      if (index_.total_size) json.fail("the key is there twice");
      index_.total_size = json.unsigned_integer();
    }
  }

  void read_map(JsonReader& json) {
    std::string name;
    std::string file;
    json.open_object();
    while (json.next_member(name)) {
      json.string(file, longest_file_name);
      const auto [known, is_new] =
          numbers_.try_emplace(file, static_cast<std::uint32_t>(index_.files.size()));
      if (is_new) {
        if (file.empty()) json.fail("expected the name of a file, found an empty string");
        if (index_.files.size() == most_files) {
          json.fail(format("more than {} files", most_files));
        }
        index_.files.push_back(file);
      }
      entries_.push_back({name, known->second});
    }
  }

  [[nodiscard]] HuggingFaceIndex finish() {
    std::vector<std::uint32_t> order(entries_.size());
    std::iota(order.begin(), order.end(), 0u);
    std::sort(order.begin(), order.end(),
              [&](auto a, auto b) { return entries_[a].tensor < entries_[b].tensor; });
    for (std::size_t i = 1; i < order.size(); ++i) {
      if (entries_[order[i - 1]].tensor != entries_[order[i]].tensor) continue;
      raise<FileError>("{}: index, weight_map.'{}': the key is there twice", source_.name(),
                       shown(entries_[order[i]].tensor));
    }
    index_.tensors.reserve(entries_.size());
    for (const std::uint32_t i : order) index_.tensors.push_back(std::move(entries_[i]));
    return std::move(index_);
  }

  ByteSource& source_;
  HuggingFaceIndex index_;
  std::deque<HuggingFaceIndex::Entry> entries_;
  std::map<std::string, std::uint32_t> numbers_;
};

}  // namespace detail

/// Reads the index of a model in several files: {"metadata": {"total_size": n}, "weight_map":
/// {"tensor": "file"}}; metadata may be missing and have members of its own. FileError with the
/// file, the field and the cause where it is anything else or a key is there twice. What the names
/// of files may be is for who opens them to check.
[[nodiscard]] inline HuggingFaceIndex read_hugging_face_index(ByteSource& source) {
  return detail::HuggingFaceIndexReader(source).read();
}

/// The text of an index. UsageError where a name is not UTF-8.
[[nodiscard]] inline std::string format_hugging_face_index(const HuggingFaceIndex& index) {
  std::string text = "{\n  \"metadata\": {";
  if (index.total_size) text += detail::format("\n    \"total_size\": {}\n  ", *index.total_size);
  text += "},\n  \"weight_map\": {";
  for (std::size_t i = 0; i < index.tensors.size(); ++i) {
    text += i == 0 ? "\n    " : ",\n    ";
    detail::append_json_string(text, index.tensors[i].tensor);
    text += ": ";
    detail::append_json_string(text, index.files.at(index.tensors[i].file));
  }
  text += "\n  }\n}\n";
  return text;
}

}  // namespace shardwise::inline v0_1
