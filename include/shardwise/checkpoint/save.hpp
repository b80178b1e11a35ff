#pragma once

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <random>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "agreement.hpp"
#include "checksum.hpp"
#include "data_file.hpp"
#include "file.hpp"
#include "file_system.hpp"
#include "manifest.hpp"
#include "manifest_json.hpp"
#include "save_names.hpp"
#include "state_tensor.hpp"

namespace shardwise::inline v0_1::detail {

/// What is to be saved, and where. Equal on all ranks, but for `values`: rank 0's count.
struct SaveRequest {
  FileSystem* files;
  std::string folder;
  std::uint64_t step;
  std::size_t keep;
  std::uint64_t chunk_bytes;
  std::string id;  ///< 32 digits; empty: drawn
  /// The save that the state was loaded from; empty once there is a newer one, which is then the
  /// pointer's. Null: never loaded.
  std::shared_ptr<std::string> loaded;
  CheckpointValues values;
  std::vector<StateTensor> tensors;
  std::vector<Manifest::Optimizer> optimizers;
  std::optional<LossScalerState> loss_scaler;
};

/// Where snapshots lie, one at a time. Memory that was used before takes a fraction of the time:
/// the system fills new pages with zeros at the first touch.
class SnapshotMemory {
 public:
  [[nodiscard]] std::byte* room(std::uint64_t bytes) {
    if (bytes > size_) {
      memory_.reset();
      size_ = 0;
      memory_.reset(new std::byte[static_cast<std::size_t>(bytes)]);
      size_ = bytes;
    }
    return memory_.get();
  }

 private:
  std::unique_ptr<std::byte[]> memory_;
  std::uint64_t size_ = 0;
};

/// One save, from its directory to its pointer. Its constructor and commit() are collective;
/// between them write() is for any thread.
class Save {
 public:
  /// Agrees on the name and makes the directory; removes what dead saves have left.
  Save(const CheckpointGroup& group, SaveRequest request)
      : group_(group), request_(std::move(request)) {
    require_equal();
    std::string name;
    Outcome outcome;
    if (group_.rank() == 0) {
      outcome.run([&] {
        static_cast<void>(dump(json_of(request_.values)));  // what cannot be written fails early
        name = make_directory();
        if (request_.id.empty()) request_.id = draw_id();
      });
    }
    outcome.agree(group_, "save: directory", untouched());
    group_.share(name, 0, "save: name");
    group_.share(request_.id, 0, "save: id");
    name_ = *SaveName::parse(name);
    directory_ = join(request_.folder, name);
    outcome_.run([&] { plan_ = plan_data_file(request_.tensors, request_.id, group_.rank()); });
  }

  /// Bytes that this rank writes.
  [[nodiscard]] std::uint64_t bytes() const noexcept { return plan_.bytes; }
  [[nodiscard]] const std::string& directory() const noexcept { return directory_; }

  /// Copies what is to be written to `memory`, which must outlive write(), so that the training may
  /// go on. What fails here comes out of commit(), too.
  void snapshot(SnapshotMemory& memory, const Download& download) {
    outcome_.run([&] {
      std::byte* to = memory.room(plan_.bytes);
      for (DataPiece& piece : plan_.pieces) {
        const auto bytes = static_cast<std::size_t>(piece.bytes);
        if (piece.on_device) {
          download(to, piece.data, bytes);
        } else {
          std::memcpy(to, piece.data, bytes);
        }
        piece.data = to;
        piece.on_device = false;
        to += bytes;
      }
    });
  }

  /// Writes this rank's file. No communication.
  void write(const Download& download) noexcept {
    outcome_.run([&] {
      if (plan_.empty()) return;
      file_ = write_data_file(*request_.files, directory_, group_.rank(), plan_,
                              request_.chunk_bytes, download);
    });
  }

  /// All ranks' files are written, or all ranks throw. The manifest makes them a save, the pointer
  /// the newest one; then old ones go.
  void commit() {
    outcome_.agree(group_, "save: data", untouched());
    Manifest manifest = describe();
    Outcome outcome;
    const bool leads = group_.rank() == 0;
    if (leads) outcome.run([&] { write_manifest(std::move(manifest)); });
    outcome.agree(group_, "save: manifest",
                  "; it is not certain whether this save is there; those before it are as they "
                  "were");
    if (request_.loaded != nullptr) request_.loaded->clear();
    if (leads) {
      outcome.run([&] { retain(*request_.files, request_.folder, name_, base_, request_.keep); });
    }
    outcome.agree(group_, "save: retention", "; the new save is there, an old one could not go");
  }

 private:
  [[nodiscard]] std::string untouched() const {
    return format("; step {} was not saved, and the saves in {} are as they were", request_.step,
                  request_.folder);
  }

  void require_equal() const {
    std::string text =
        format("{} {} {} {}", request_.folder, request_.step, request_.keep, request_.chunk_bytes);
    for (const StateTensor& tensor : request_.tensors) {
      text += format(" {} {}", tensor.name, name_of(tensor.dtype));
      if (tensor.only_rank) continue;
      for (const std::uint64_t extent : tensor.shape) text += format(",{}", extent);
    }
    const auto sums = group_.gather(static_cast<std::int64_t>(checksum(text)), "save: contents");
    for (std::size_t rank = 1; rank < sums.size(); ++rank) {
      if (sums[rank] == sums[0]) continue;
      raise(
          "ranks 0 and {} save different things: all give the same folder, step, options and list "
          "of tensors, in one order",
          rank);
    }
  }

  [[nodiscard]] std::string make_directory() {
    FileSystem& files = *request_.files;
    make_directories(files, request_.folder);
    const SaveList list = list_saves(files, request_.folder);
    remove_leftovers(files, request_.folder, list);
    if (request_.loaded != nullptr && !request_.loaded->empty()) {
      base_ = SaveName::parse(*request_.loaded);
    } else if (list.latest) {
      base_ = SaveName::parse(list.latest->name);
    }
    SaveName name{request_.step};
    for (const SaveName& save : list.saves) {
      if (save.step == name.step) name.attempt = save.attempt + 1;
    }
    while (true) {
      const std::string path = join(request_.folder, name.text());
      const auto status = files.make_directory(path);
      if (status != -EEXIST) {
        expect_file(status, "cannot make the directory", path);
        break;
      }
      ++name.attempt;  // a stranger's, or a save that has lost its manifest
    }
    return name.text();
  }

  [[nodiscard]] static std::string draw_id() {
    std::random_device device;
    std::uint64_t halves[2];
    for (std::uint64_t& half : halves) half = std::uint64_t{device()} << 32 | device();
    return hex(halves[0]) + hex(halves[1]);
  }

  // This rank's part, as text: its file, its parts of tensors, and tensors that are its alone.
  [[nodiscard]] std::string own_part() const {
    nlohmann::ordered_json json;
    if (!plan_.empty()) json["file"] = json_of(file_);
    json["parts"] = nlohmann::ordered_json::array();
    for (const DataPiece& piece : plan_.pieces) {
      const StateTensor& tensor = request_.tensors[piece.tensor];
      json["parts"].push_back(
          {piece.tensor, tensor.write_first, tensor.write_count, piece.position});
    }
    json["shapes"] = nlohmann::ordered_json::object();
    for (std::size_t i = 0; i < request_.tensors.size(); ++i) {
      const StateTensor& tensor = request_.tensors[i];
      if (tensor.only_rank == group_.rank()) json["shapes"][std::to_string(i)] = tensor.shape;
    }
    return dump(json);
  }

  // Rank 0 returns all of it.
  [[nodiscard]] Manifest describe() {
    Manifest manifest;
    for (const StateTensor& tensor : request_.tensors) {
      manifest.tensors.push_back(
          {tensor.name, tensor.dtype, tensor.shape, tensor.count, {}, tensor.optimizer});
    }
    group_.collect(own_part(), "save: parts", [&](std::size_t, std::string_view text) {
      const auto json = nlohmann::json::parse(text);
      if (json.contains("file")) {
        const auto& file = json["file"];
        std::vector<std::uint64_t> chunks;
        for (const auto& chunk : file["chunks"]) {
          chunks.push_back(std::stoull(chunk.template get<std::string>(), nullptr, 16));
        }
        manifest.files.push_back({file["name"], file["bytes"], std::move(chunks)});
      }
      for (const auto& part : json["parts"]) {
        manifest.tensors[part[0]].parts.push_back(
            {part[1], part[2], static_cast<std::uint32_t>(manifest.files.size() - 1), part[3]});
      }
      for (const auto& [index, shape] : json["shapes"].items()) {
        manifest.tensors[std::stoull(index)].shape =
            shape.template get<std::vector<std::uint64_t>>();
      }
    });
    return manifest;
  }

  void write_manifest(Manifest manifest) const {
    FileSystem& files = *request_.files;
    manifest.save = request_.id;
    manifest.step = request_.step;
    manifest.world = group_.size();
    manifest.chunk_bytes = request_.chunk_bytes;
    manifest.values = request_.values;
    manifest.loss_scaler = request_.loss_scaler;
    manifest.optimizers = request_.optimizers;
    for (Manifest::Tensor& tensor : manifest.tensors) {
      std::sort(tensor.parts.begin(), tensor.parts.end(),
                [](const auto& a, const auto& b) { return a.begin < b.begin; });
    }
    std::sort(manifest.tensors.begin(), manifest.tensors.end(),
              [](const auto& a, const auto& b) { return a.name < b.name; });
    const std::string path = join(directory_, manifest_name);
    write_whole(files, path, format_manifest(manifest));
    sync_directory(files, directory_);
    sync_directory(files, request_.folder);  // the directory's name, before something names it
    write_whole(files, join(request_.folder, latest_name),
                format_latest({name_.text(), request_.id}));
    sync_directory(files, request_.folder);
  }

  CheckpointGroup group_;
  SaveRequest request_;
  SaveName name_;
  std::optional<SaveName> base_;  // rank 0: what it continues
  std::string directory_;
  DataFilePlan plan_;
  Manifest::DataFile file_;
  Outcome outcome_;
};

}  // namespace shardwise::inline v0_1::detail
