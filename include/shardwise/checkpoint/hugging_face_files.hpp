#pragma once

#include <sys/stat.h>

#include <cerrno>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include "../core/error.hpp"
#include "../core/format.hpp"
#include "../core/hash.hpp"
#include "hugging_face_index.hpp"
#include "regular_file.hpp"
#include "safetensors_reader.hpp"
#include "shown.hpp"

namespace shardwise::inline v0_1 {

/// A model's files, opened and checked against each other: `stem`.safetensors, or else the files
/// that `stem`.safetensors.index.json lists. Elements are read on demand.
class HuggingFaceFiles {
 public:
  struct File {
    RegularFile source;
    SafetensorsHeader header;
  };
  struct Location {
    const SafetensorsTensor* tensor;  ///< null: there is none
    std::size_t file = 0;             ///< index in files()
  };

  /// FileError with the file, the field and the cause where a file is missing, malformed or not a
  /// regular file below the directory, or where the index and the files disagree. `check_total`:
  /// the index's total_size must be the tensors' bytes, if it is there (some writers count tied
  /// tensors twice).
  explicit HuggingFaceFiles(const std::string& directory, const std::string& stem = "model",
                            bool check_total = true) {
    const std::string single = stem + ".safetensors";
    const std::string index = single + ".index.json";
    if (is_there(directory, single)) {
      open(directory, single);
      return;
    }
    if (!is_there(directory, index)) {
      raise<FileError>("{}: there is neither {} nor {}", detail::shown(directory), single, index);
    }
    RegularFile source(directory, index);
    open_all(directory, source, read_hugging_face_index(source), check_total);
  }

  [[nodiscard]] const std::vector<std::unique_ptr<File>>& files() const noexcept { return files_; }

  [[nodiscard]] Location find(std::string_view name) const noexcept {
    if (!index_.tensors.empty()) {
      const HuggingFaceIndex::Entry* entry = index_.find(name);
      if (entry == nullptr) return {nullptr};
      return {files_[entry->file]->header.find(name), entry->file};
    }
    for (std::size_t i = 0; i < files_.size(); ++i) {
      if (const auto* tensor = files_[i]->header.find(name)) return {tensor, i};
    }
    return {nullptr};
  }

  /// Of everything that the files say of themselves: equal where they do.
  [[nodiscard]] std::uint64_t hash() const noexcept {
    detail::Hash hash;
    for (const auto& file : files_) {
      hash.add(file->source.size());
      hash.add(file->header.data_begin);
      hash.add(file->header.tensors.size());
      for (const SafetensorsTensor& tensor : file->header.tensors) {
        hash.add(tensor.name);
        hash.add(static_cast<std::uint64_t>(tensor.dtype));
        hash.add(tensor.shape.size());
        for (const std::uint64_t extent : tensor.shape) hash.add(extent);
        hash.add(tensor.begin);
      }
    }
    return hash.value();
  }

 private:
  // A link counts: that it is one is for RegularFile to say.
  [[nodiscard]] static bool is_there(const std::string& directory, const std::string& name) {
    struct stat info {};
    if (::lstat((directory + '/' + name).c_str(), &info) == 0) return true;
    const int error = errno;
    if (error == ENOENT || error == ENOTDIR) return false;
    raise<FileError>("{}: cannot look for {}: {}", detail::shown(directory), name,
                     std::generic_category().message(error));
  }

  void open(const std::string& directory, const std::string& name) {
    auto file = std::make_unique<File>(File{RegularFile(directory, name), {}});
    file->header = read_safetensors_header(file->source);
    files_.push_back(std::move(file));
  }

  void open_all(const std::string& directory, const RegularFile& index, HuggingFaceIndex content,
                bool check_total) {
    index_ = std::move(content);
    if (index_.files.empty()) {
      raise<FileError>("{}: index, weight_map: it names no file", index.name());
    }
    for (const std::string& name : index_.files) open(directory, name);
    for (const HuggingFaceIndex::Entry& entry : index_.tensors) {
      if (files_[entry.file]->header.find(entry.tensor) != nullptr) continue;
      raise<FileError>("{}: index, weight_map.'{}': '{}' has no such tensor", index.name(),
                       detail::shown(entry.tensor), detail::shown(index_.files[entry.file]));
    }
    std::uint64_t total = 0;
    for (std::size_t i = 0; i < files_.size(); ++i) {
      for (const SafetensorsTensor& tensor : files_[i]->header.tensors) {
        const HuggingFaceIndex::Entry* entry = index_.find(tensor.name);
        if (entry == nullptr || entry->file != i) {
          raise<FileError>("{}: index, weight_map: tensor '{}' of '{}' {}", index.name(),
                           detail::shown(tensor.name), detail::shown(index_.files[i]),
                           entry == nullptr ? "is not listed" : "is listed as another file's");
        }
        total += tensor.end - tensor.begin;
      }
    }
    if (check_total && index_.total_size && *index_.total_size != total) {
      raise<FileError>(
          "{}: index, metadata.total_size: {}, but the tensors have {} bytes; if only that is "
          "wrong, import with check_total_size = false",
          index.name(), *index_.total_size, total);
    }
  }

  HuggingFaceIndex index_;  // empty: one file
  std::vector<std::unique_ptr<File>> files_;
};

}  // namespace shardwise::inline v0_1
