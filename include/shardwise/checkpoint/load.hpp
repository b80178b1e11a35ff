#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "../core/error.hpp"
#include "agreement.hpp"
#include "checksum.hpp"
#include "file.hpp"
#include "file_system.hpp"
#include "manifest.hpp"
#include "manifest_reader.hpp"
#include "save_names.hpp"
#include "state_tensor.hpp"

namespace shardwise::inline v0_1 {

/// What a load may do beyond the plain case. Equal on all ranks.
struct LoadOptions {
  /// The directory of one save ("step-000120"); empty: the newest that is whole.
  std::string name = {};
  /// Tensors, optimizers or a loss scaler that the save does not have keep what they hold.
  bool allow_missing = false;
  /// What the save has and the training state does not is left out.
  bool allow_extra = false;
  /// Optimizers get the settings that were saved; else they keep their own.
  bool hyperparameters = true;
};

/// What a load found.
struct LoadedCheckpoint {
  std::string directory;
  std::uint64_t step = 0;
  std::uint64_t world = 0;  ///< ranks that wrote it
  CheckpointValues values;
  std::vector<std::string> passed_over;  ///< newer saves that were damaged, and how
};

namespace detail {

/// Bytes of a file that go to one place.
struct LoadPiece {
  std::uint32_t file;
  std::uint64_t position;
  std::uint64_t bytes;
  std::byte* to;
  bool on_device;
  const Manifest::Tensor* tensor;
};

using Upload = std::function<void(std::byte* to, const std::byte* from, std::size_t bytes)>;

/// What this rank needs of a save, in the order of the files.
[[nodiscard]] inline std::vector<LoadPiece> plan_load(const Manifest& manifest,
                                                      const std::vector<StateTensor>& tensors) {
  std::vector<LoadPiece> pieces;
  for (const StateTensor& tensor : tensors) {
    const Manifest::Tensor* const saved = tensor.held > 0 ? manifest.find(tensor.name) : nullptr;
    if (saved == nullptr) continue;
    const std::uint64_t end = tensor.first + tensor.held;
    auto part = std::partition_point(saved->parts.begin(), saved->parts.end(), [&](const auto& p) {
      return p.begin + p.count <= tensor.first;
    });
    for (; part != saved->parts.end() && part->begin < end; ++part) {
      const std::uint64_t from = std::max(part->begin, tensor.first);
      const std::uint64_t to = std::min(part->begin + part->count, end);
      const std::uint64_t size = size_of(tensor.dtype);
      pieces.push_back({part->file, part->position + (from - part->begin) * size,
                        (to - from) * size, tensor.at(from), tensor.on_device, saved});
    }
  }
  std::sort(pieces.begin(), pieces.end(), [](const LoadPiece& a, const LoadPiece& b) {
    return a.file != b.file ? a.file < b.file : a.position < b.position;
  });
  return pieces;
}

/// Reads the chunks that `pieces` of one file lie in, each once, and passes bytes on only from
/// those whose checksum fits.
inline void load_file(FileSystem& files, const std::string& directory, const Manifest& manifest,
                      std::span<const LoadPiece> pieces, const Upload& upload,
                      std::vector<std::byte>& buffer) {
  const Manifest::DataFile& data = manifest.files[pieces.front().file];
  File file = File::open(files, join(directory, data.name));
  if (const std::uint64_t size = file.size(); size != data.bytes) {
    raise<FileError>("{}: it has {} bytes, expected {} (it holds tensor '{}', among others)",
                     file.path(), size, data.bytes, pieces.front().tensor->name);
  }
  std::uint64_t begin = 0;  // of the chunk in the buffer
  std::uint64_t end = 0;
  for (const LoadPiece& piece : pieces) {
    std::uint64_t at = piece.position;
    const std::uint64_t last = piece.position + piece.bytes;
    while (at < last) {
      if (at < begin || at >= end) {  // before it where pieces share bytes
        const std::uint64_t chunk = at / manifest.chunk_bytes;
        begin = chunk * manifest.chunk_bytes;
        end = std::min(begin + manifest.chunk_bytes, data.bytes);
        buffer.resize(static_cast<std::size_t>(end - begin));
        file.read(begin, buffer);
        const std::uint64_t found = checksum(buffer);
        const std::uint64_t expected = data.chunks[static_cast<std::size_t>(chunk)];
        if (found != expected) {
          raise<FileError>(
              "{}: chunk {} (bytes {} to {}) is damaged: its checksum is {}, expected {}; it holds "
              "tensor '{}'",
              file.path(), chunk, begin, end, hex(found), hex(expected), piece.tensor->name);
        }
      }
      const auto part = static_cast<std::size_t>(std::min(last, end) - at);
      const std::byte* const from = buffer.data() + (at - begin);
      std::byte* const to = piece.to + (at - piece.position);
      if (piece.on_device) {
        upload(to, from, part);
      } else {
        std::memcpy(to, from, part);
      }
      at += part;
    }
  }
}

/// UsageError where the save does not fit the training state, by name.
class LoadMatch {
 public:
  LoadMatch(const Manifest& manifest, const std::string& directory, const LoadOptions& options,
            int rank)
      : manifest_(manifest), directory_(directory), options_(options), rank_(rank) {}

  void check(const std::vector<StateTensor>& tensors, const std::vector<StateOptimizer>& optimizers,
             bool has_scaler) const {
    std::vector<std::string_view> missing;
    std::set<std::string_view> wanted;
    for (const StateTensor& tensor : tensors) {
      wanted.insert(tensor.name);
      const Manifest::Tensor* const saved = manifest_.find(tensor.name);
      if (saved == nullptr) {
        missing.push_back(tensor.name);
      } else if (tensor.only_rank.value_or(rank_) == rank_) {
        check(tensor, *saved);
      }
    }
    if (!missing.empty() && !options_.allow_missing) {
      raise(
          "{}: the save has no tensor {}; LoadOptions::allow_missing leaves such tensors as they "
          "are",
          directory_, listed(missing));
    }
    std::vector<std::string_view> extra;
    for (const Manifest::Tensor& saved : manifest_.tensors) {
      if (!wanted.contains(saved.name)) extra.push_back(saved.name);
    }
    if (!extra.empty() && !options_.allow_extra) {
      raise("{}: the training state has no tensor {}; LoadOptions::allow_extra leaves them out",
            directory_, listed(extra));
    }
    for (std::size_t i = 0; i < optimizers.size(); ++i) {
      static_cast<void>(optimizer(tensors, optimizers[i], i));
    }
    if (!options_.allow_extra) require_optimizers(tensors);
    if (has_scaler && !manifest_.loss_scaler && !options_.allow_missing) {
      raise("{}: the save has no loss scaler; LoadOptions::allow_missing leaves it as it is",
            directory_);
    }
    if (!has_scaler && manifest_.loss_scaler && !options_.allow_extra) {
      raise("{}: the training state has no loss scaler; LoadOptions::allow_extra leaves it out",
            directory_);
    }
  }

  /// What was saved of optimizer `index`; null where that is nothing, and may be.
  [[nodiscard]] const Manifest::Optimizer* optimizer(const std::vector<StateTensor>& tensors,
                                                     const StateOptimizer& wanted,
                                                     std::size_t index) const {
    const Manifest::Optimizer* found = nullptr;
    std::string_view first;
    for (const StateTensor& tensor : tensors) {
      if (tensor.optimizer != index) continue;
      const Manifest::Tensor* const saved = manifest_.find(tensor.name);
      if (saved == nullptr) continue;  // which was allowed
      if (!saved->optimizer) {
        if (options_.allow_missing) continue;
        raise("{}: tensor '{}' was saved without an optimizer", directory_, tensor.name);
      }
      const Manifest::Optimizer& its = manifest_.optimizers[*saved->optimizer];
      if (its.kind != wanted.kind) {
        raise("{}: tensor '{}' was saved with the optimizer '{}', expected '{}'", directory_,
              tensor.name, its.kind, wanted.kind);
      }
      if (found != nullptr && found->steps != its.steps) {
        raise("{}: tensors '{}' and '{}' have made {} and {} steps, but are one parameter '{}' now",
              directory_, first, tensor.name, found->steps, its.steps, wanted.parameter);
      }
      if (found == nullptr) {
        first = tensor.name;
        found = &its;
      } else if (found != &its && options_.hyperparameters) {
        require_equal(*found, its, first, tensor.name, wanted.parameter);
      }
    }
    return found;
  }

 private:
  // One without values has no tensor that would be one too many.
  void require_optimizers(const std::vector<StateTensor>& tensors) const {
    for (const StateTensor& tensor : tensors) {
      const Manifest::Tensor* const saved = manifest_.find(tensor.name);
      if (saved == nullptr || !saved->optimizer || tensor.optimizer) continue;
      raise(
          "{}: tensor '{}' was saved with the optimizer '{}', and the training state has none of "
          "it; LoadOptions::allow_extra leaves it out",
          directory_, tensor.name, manifest_.optimizers[*saved->optimizer].kind);
    }
  }
  void require_equal(const Manifest::Optimizer& a, const Manifest::Optimizer& b,
                     std::string_view of_a, std::string_view of_b,
                     std::string_view parameter) const {
    for (const auto& [name, value] : a.hyperparameters) {
      const auto other = b.hyperparameters.find(name);
      if (other != b.hyperparameters.end() && other->second == value) continue;
      raise(
          "{}: tensors '{}' and '{}' were saved with different settings '{}', but are one "
          "parameter '{}' now; LoadOptions::hyperparameters = false keeps its own",
          directory_, of_a, of_b, name, parameter);
    }
  }

  void check(const StateTensor& tensor, const Manifest::Tensor& saved) const {
    if (saved.shape != tensor.shape) {
      raise("{}: tensor '{}' was saved with the shape {}, expected {}", directory_, tensor.name,
            text_of(saved.shape), text_of(tensor.shape));
    }
    if (saved.dtype != tensor.dtype) {
      raise("{}: tensor '{}' was saved as {}, expected {}", directory_, tensor.name,
            name_of(saved.dtype), name_of(tensor.dtype));
    }
  }

  [[nodiscard]] static std::string text_of(const std::vector<std::uint64_t>& shape) {
    std::string text = "[";
    for (const std::uint64_t extent : shape) {
      if (text.size() > 1) text += ", ";
      text += std::to_string(extent);
    }
    return text += ']';
  }
  [[nodiscard]] static std::string listed(const std::vector<std::string_view>& names) {
    constexpr std::size_t shown = 8;
    std::string text;
    for (std::size_t i = 0; i < std::min(shown, names.size()); ++i) {
      text += format("{}'{}'", i == 0 ? "" : ", ", names[i]);
    }
    if (names.size() > shown) text += format(" and {} more", names.size() - shown);
    return text;
  }

  const Manifest& manifest_;
  const std::string& directory_;
  const LoadOptions& options_;
  int rank_;
};

}  // namespace detail
}  // namespace shardwise::inline v0_1
