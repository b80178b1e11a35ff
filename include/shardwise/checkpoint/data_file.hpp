#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "checksum.hpp"
#include "file.hpp"
#include "manifest.hpp"
#include "safetensors_header.hpp"
#include "safetensors_writer.hpp"
#include "save_names.hpp"
#include "state_tensor.hpp"

namespace shardwise::inline v0_1::detail {

/// Copies bytes of the training state from where they lie to the host's memory; the host waits.
using Download = std::function<void(std::byte* to, const std::byte* from, std::size_t bytes)>;

/// One tensor's elements in a rank's file.
struct DataPiece {
  std::size_t tensor;  ///< index in the list of the training state
  const std::byte* data;
  bool on_device;
  std::uint64_t bytes;
  std::uint64_t position;  ///< in the file
};

/// A rank's file before it is written.
struct DataFilePlan {
  std::string header;
  std::vector<DataPiece> pieces;  ///< in the order of the file
  std::uint64_t bytes = 0;        ///< of the file

  [[nodiscard]] bool empty() const noexcept { return pieces.empty(); }
};

/// What a rank writes of `tensors`. Larger elements first, as other writers of safetensors have it,
/// so that each tensor lies on a multiple of its element's size.
[[nodiscard]] inline DataFilePlan plan_data_file(const std::vector<StateTensor>& tensors,
                                                 const std::string& save, int rank) {
  DataFilePlan plan;
  std::vector<std::size_t> order;
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    if (tensors[i].write_count > 0) order.push_back(i);
  }
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
    return size_of(tensors[a].dtype) > size_of(tensors[b].dtype);
  });
  std::vector<SafetensorsTensor> entries;
  std::uint64_t end = 0;
  for (const std::size_t i : order) {
    const StateTensor& tensor = tensors[i];
    const std::uint64_t bytes = tensor.write_count * size_of(tensor.dtype);
    const bool whole = tensor.write_count == tensor.count;
    entries.push_back({tensor.name, safetensors_dtype(tensor.dtype),
                       whole ? tensor.shape : std::vector<std::uint64_t>{tensor.write_count}, end,
                       end + bytes});
    plan.pieces.push_back({i, tensor.at(tensor.write_first), tensor.on_device, bytes, end});
    end += bytes;
  }
  if (plan.empty()) return plan;
  const std::pair<std::string, std::string> metadata[] = {{"shardwise.save", save},
                                                          {"shardwise.rank", std::to_string(rank)}};
  plan.header = format_safetensors_header(entries, metadata);
  for (DataPiece& piece : plan.pieces) piece.position += plan.header.size();
  plan.bytes = plan.header.size() + end;
  return plan;
}

/// Writes through a buffer of one chunk, past it where a whole chunk lies in the host's memory, and
/// takes each chunk's checksum on the way.
class ChunkWriter {
 public:
  ChunkWriter(File& file, std::uint64_t chunk_bytes, std::vector<std::uint64_t>& sums)
      : file_(file), chunk_(static_cast<std::size_t>(chunk_bytes)), sums_(sums) {}

  /// Bytes of the host's memory.
  void add(std::span<const std::byte> bytes) {
    while (!bytes.empty()) {
      if (filled_ == 0 && bytes.size() >= chunk_) {
        put(bytes.first(chunk_));
        bytes = bytes.subspan(chunk_);
        continue;
      }
      const auto part = bytes.first(std::min(bytes.size(), chunk_ - filled_));
      std::memcpy(room(), part.data(), part.size());
      take(part.size());
      bytes = bytes.subspan(part.size());
    }
  }
  /// Bytes of a device's memory.
  void add(const std::byte* data, std::uint64_t bytes, const Download& download) {
    while (bytes > 0) {
      const auto part = static_cast<std::size_t>(std::min<std::uint64_t>(bytes, chunk_ - filled_));
      download(room(), data, part);
      take(part);
      data += part;
      bytes -= part;
    }
  }
  /// The last chunk.
  void finish() {
    if (filled_ > 0) put(std::span(buffer_).first(filled_));
    filled_ = 0;
  }

 private:
  [[nodiscard]] std::byte* room() {
    buffer_.resize(chunk_);
    return buffer_.data() + filled_;
  }
  void take(std::size_t bytes) {
    filled_ += bytes;
    if (filled_ == chunk_) finish();
  }
  void put(std::span<const std::byte> chunk) {
    sums_.push_back(checksum(chunk));
    file_.write(chunk);
  }

  File& file_;
  std::size_t chunk_;
  std::vector<std::uint64_t>& sums_;
  std::vector<std::byte> buffer_;
  std::size_t filled_ = 0;
};

/// Writes a rank's file into the directory of a save: under its name it is whole, and its name is
/// there for good.
[[nodiscard]] inline Manifest::DataFile write_data_file(FileSystem& files,
                                                        const std::string& directory, int rank,
                                                        const DataFilePlan& plan,
                                                        std::uint64_t chunk_bytes,
                                                        const Download& download) {
  Manifest::DataFile result{format("rank-{:05d}.safetensors", rank), plan.bytes, {}};
  const std::string path = join(directory, result.name);
  const std::string partial = partial_name(path);
  File file = File::create(files, partial);
  ChunkWriter writer(file, chunk_bytes, result.chunks);
  writer.add(std::as_bytes(std::span(plan.header)));
  for (const DataPiece& piece : plan.pieces) {
    if (piece.on_device) {
      writer.add(piece.data, piece.bytes, download);
    } else {
      writer.add({piece.data, static_cast<std::size_t>(piece.bytes)});
    }
  }
  writer.finish();
  file.sync();
  file.close();
  expect_file(files.rename(partial, path), "cannot rename it", partial);
  sync_directory(files, directory);
  return result;
}

}  // namespace shardwise::inline v0_1::detail
