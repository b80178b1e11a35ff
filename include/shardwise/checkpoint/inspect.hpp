#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "../core/error.hpp"
#include "byte_source.hpp"
#include "checksum.hpp"
#include "file.hpp"
#include "file_system.hpp"
#include "loader.hpp"
#include "manifest.hpp"
#include "manifest_reader.hpp"
#include "safetensors_dtype.hpp"
#include "safetensors_header.hpp"
#include "safetensors_reader.hpp"
#include "save_names.hpp"

namespace shardwise::inline v0_1 {

/// One save as it lies on the disk.
struct InspectedSave {
  std::string name;
  bool is_latest = false;            ///< the pointer names it
  std::optional<Manifest> manifest;  ///< none where it cannot be read
  std::vector<std::string> problems;
};

/// A folder as it lies on the disk.
struct InspectedFolder {
  std::vector<InspectedSave> saves;    ///< in order
  std::vector<std::string> leftovers;  ///< directories that a dead save has left; no harm
  std::vector<std::string> problems;   ///< of the folder itself

  [[nodiscard]] bool whole() const noexcept {
    return problems.empty() && std::all_of(saves.begin(), saves.end(),
                                           [](const auto& save) { return save.problems.empty(); });
  }
};

namespace detail {

class FileSource final : public ByteSource {
 public:
  explicit FileSource(File& file) : file_(file), size_(file.size()) {}
  [[nodiscard]] std::uint64_t size() const override { return size_; }
  void read(std::uint64_t offset, std::span<std::byte> into) override { file_.read(offset, into); }
  [[nodiscard]] std::string_view name() const override { return file_.path(); }

 private:
  File& file_;
  std::uint64_t size_;
};

/// Every byte of a data file against its checksums, and its header against the manifest.
inline void inspect_file(FileSystem& files, const std::string& directory, const Manifest& manifest,
                         std::uint32_t index, std::vector<std::string>& problems) {
  const Manifest::DataFile& data = manifest.files[index];
  File file = File::open(files, join(directory, data.name));
  if (const std::uint64_t size = file.size(); size != data.bytes) {
    raise<FileError>("{}: it has {} bytes, expected {}", file.path(), size, data.bytes);
  }
  std::vector<std::byte> buffer;
  bool damaged = false;
  for (std::size_t chunk = 0; chunk < data.chunks.size(); ++chunk) {
    const std::uint64_t begin = chunk * manifest.chunk_bytes;
    const std::uint64_t end = std::min(begin + manifest.chunk_bytes, data.bytes);
    buffer.resize(static_cast<std::size_t>(end - begin));
    file.read(begin, buffer);
    const std::uint64_t found = checksum(buffer);
    if (found == data.chunks[chunk]) continue;
    damaged = true;
    std::string names;
    for (const Manifest::Tensor& tensor : manifest.tensors) {
      for (const Manifest::Part& part : tensor.parts) {
        const std::uint64_t last = part.position + part.count * size_of(tensor.dtype);
        if (part.file != index || part.position >= end || last <= begin) continue;
        if (names.size() < 200) names += format("{}'{}'", names.empty() ? "" : ", ", tensor.name);
      }
    }
    problems.push_back(
        format("{}: chunk {} (bytes {} to {}) is damaged: its checksum is {}, expected {}; in it: "
               "{}",
               file.path(), chunk, begin, end, hex(found), hex(data.chunks[chunk]),
               names.empty() ? "the header" : names));
  }
  if (damaged) return;  // what the header says is of no use
  FileSource source(file);
  const SafetensorsHeader header = read_safetensors_header(source);
  for (const Manifest::Tensor& tensor : manifest.tensors) {
    for (const Manifest::Part& part : tensor.parts) {
      if (part.file != index) continue;
      const SafetensorsTensor* const entry = header.find(tensor.name);
      const std::uint64_t begin = part.position - std::min(part.position, header.data_begin);
      const std::uint64_t end = begin + part.count * size_of(tensor.dtype);
      if (entry != nullptr && entry->dtype == safetensors_dtype(tensor.dtype) &&
          entry->begin <= begin && end <= entry->end && part.position >= header.data_begin) {
        continue;
      }
      problems.push_back(format("{}: its header and the manifest disagree on tensor '{}'",
                                file.path(), tensor.name));
    }
  }
}

}  // namespace detail

/// Reads and verifies every byte of a folder's saves. No communication. FileError where the folder
/// cannot be listed.
[[nodiscard]] inline InspectedFolder inspect_folder(FileSystem& files, const std::string& folder) {
  const detail::SaveList list = detail::list_saves(files, folder);
  InspectedFolder result;
  if (!list.problem.empty()) result.problems.push_back(list.problem);
  for (const detail::SaveName& name : list.leftovers) result.leftovers.push_back(name.text());
  bool found_latest = !list.latest;
  for (const detail::SaveName& name : list.saves) {
    InspectedSave& save = result.saves.emplace_back();
    save.name = name.text();
    save.is_latest = list.latest && list.latest->name == save.name;
    found_latest = found_latest || save.is_latest;
    const std::string directory = detail::join(folder, save.name);
    try {
      const std::string path = detail::join(directory, detail::manifest_name);
      save.manifest =
          parse_manifest(detail::read_whole(files, path, detail::Loader::largest_manifest), path);
    } catch (const FileError& error) {
      save.problems.emplace_back(error.what());
      continue;
    }
    for (std::uint32_t i = 0; i < save.manifest->files.size(); ++i) {
      try {
        detail::inspect_file(files, directory, *save.manifest, i, save.problems);
      } catch (const FileError& error) {
        save.problems.emplace_back(error.what());
      }
    }
  }
  if (!found_latest) {
    result.problems.push_back(detail::format("{}: it names {}, which has no {}",
                                             detail::join(folder, detail::latest_name),
                                             list.latest->name, detail::manifest_name));
  }
  return result;
}

}  // namespace shardwise::inline v0_1
