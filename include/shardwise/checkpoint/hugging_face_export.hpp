#pragma once

#include <algorithm>
#include <bit>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "../core/dtype.hpp"
#include "../core/error.hpp"
#include "../core/hash.hpp"
#include "../kernels/cast_elements.hpp"
#include "agreement.hpp"
#include "hugging_face_export_plan.hpp"
#include "hugging_face_model.hpp"
#include "hugging_face_options.hpp"
#include "hugging_face_output.hpp"
#include "shown.hpp"

namespace shardwise::inline v0_1 {

namespace detail {

/// Puts elements where the plan has them, converted on the way; one file is open at a time.
class ExportWriter {
 public:
  ExportWriter(std::span<const ModelTensor> tensors, const ExportPlan& plan,
               const OutputFolder& folder)
      : tensors_(tensors), plan_(plan), folder_(folder) {}

  void use(const ModelRange& range, const std::byte* elements) {
    const ExportPlan::Place& place = plan_.places[range.tensor];
    open(place.file);
    const DType type = tensors_[range.tensor].dtype;
    const std::size_t to = size_of(place.dtype);
    const std::uint64_t position = place.position + std::uint64_t{range.first} * to;
    bytes += range.count * to;
    if (type == place.dtype) {
      file_->write(position, {elements, range.count * to});
      return;
    }
    buffer_.resize(buffer_bytes);
    for (std::size_t done = 0; done < range.count;) {
      const std::size_t part = std::min(buffer_bytes / to, range.count - done);
      cast_elements(elements + done * size_of(type), type, buffer_.data(), place.dtype, part);
      file_->write(position + done * to, std::span(buffer_).first(part * to));
      done += part;
    }
  }
  /// What was written is on the disk when it returns.
  void finish() {
    if (file_) file_->sync();
    file_.reset();
  }

  std::uint64_t bytes = 0;

 private:
  static constexpr std::size_t buffer_bytes = std::size_t{1} << 22;

  void open(std::size_t number) {
    if (file_ && number == opened_) return;
    finish();
    file_.emplace(OutputFile::open(folder_.partial(plan_.files[number].name)));
    opened_ = number;
  }

  std::span<const ModelTensor> tensors_;
  const ExportPlan& plan_;
  const OutputFolder& folder_;
  std::optional<OutputFile> file_;
  std::size_t opened_ = 0;
  std::vector<std::byte> buffer_;
};

/// What all ranks must have made alike.
[[nodiscard]] inline std::uint64_t hash_of(const ExportPlan& plan) noexcept {
  Hash hash;
  for (const ExportPlan::File& file : plan.files) {
    hash.add(file.name);
    hash.add(file.begin);
  }
  hash.add(plan.last_name);
  hash.add(plan.last_text);
  return hash.value();
}

/// Rank 0: everything but the elements.
template <class IsTaken>
void prepare(const ExportPlan& plan, const OutputFolder& folder, const IsTaken& is_taken) {
  folder.prepare(is_taken);
  for (const ExportPlan::File& file : plan.files) {
    OutputFile output = OutputFile::create(folder.partial(file.name), file.size);
    output.write(0, std::as_bytes(std::span(file.begin)));
    output.sync();
  }
  if (!plan.last_name.empty()) folder.write(plan.last_name, plan.last_text);
}

template <class Device, class IsTaken>
ExportReport carry_out(ModelTensors<Device>& model, const ExportPlan& plan,
                       const std::string& directory, Writers writers,
                       std::chrono::nanoseconds timeout, const IsTaken& is_taken) {
  static_assert(std::endian::native == std::endian::little, "files are little-endian");
  auto& engine = model.context().engine();
  engine.check();
  const CheckpointGroup group{engine.comm, timeout};
  if (const int other = group.first_that_differs(hash_of(plan), "export: compare")) {
    raise("export: rank {} has other tensors, or options, than rank 0", other);
  }
  const bool leads = engine.rank() == 0;
  const std::vector<std::string> names = plan.names();
  std::string key = leads ? OutputFolder::make_key() : std::string();
  group.share(key, 0, "export: name");
  const OutputFolder folder(directory, std::move(key));
  ExportWriter writer(model.tensors(), plan, folder);
  try {
    Outcome preparing;
    preparing.run([&] {
      if (leads) prepare(plan, folder, is_taken);
    });
    preparing.agree(group, "export: prepare", "");
    Outcome writing;
    // What fails is kept: the calls of all parameters stay the same on all ranks.
    const auto use = [&](const ModelRange& range, const std::byte* elements) {
      writing.run([&] { writer.use(range, elements); });
    };
    for (const ModelParameter& parameter : model.parameters()) {
      if (writers == Writers::all_ranks) {
        parameter.write(use);
      } else if (leads) {
        parameter.gather(use);
      } else {
        parameter.gather([](const ModelRange&, const std::byte*) {});
      }
    }
    writing.run([&] { writer.finish(); });
    writing.agree(group, "export: write", "");
    Outcome publishing;
    publishing.run([&] {
      if (leads) folder.publish(names);
    });
    publishing.agree(group, "export: publish", "");
  } catch (...) {
    if (leads) folder.remove_partial(names);
    throw;
  }
  return {names, plan.bytes, writer.bytes};
}

}  // namespace detail

/// Collective: writes the model to a directory as Hugging Face's tools read it: model.safetensors,
/// or several files and model.safetensors.index.json. Each rank writes the elements that it owns
/// straight from its storage, or through a buffer of 4 MiB where they are converted; nothing is
/// gathered. The files get their names when all of them are on the disk, the index last. FileError
/// on all ranks, with path and reason, where one of them cannot write, or the directory holds a
/// model of this stem; nothing is left of the export then. UsageError where ranks export different
/// models.
template <class Device>
ExportReport export_hugging_face(ModelTensors<Device>& model, const std::string& directory,
                                 const ExportOptions& options = {}) {
  return detail::carry_out(model, detail::plan_hugging_face(model.tensors(), options), directory,
                           options.writers, options.timeout, [&](std::string_view name) {
                             return detail::is_hugging_face_name(name, options.stem);
                           });
}

/// Collective: writes `stem`.bin, the elements of all tensors one after the other without padding,
/// in the model's order or the one given, and `stem`.json, which says of each its name, dtype,
/// shape and offset in bytes. Otherwise as export_hugging_face.
template <class Device>
ExportReport export_flat(ModelTensors<Device>& model, const std::string& directory,
                         const std::string& stem, const FlatExportOptions& options = {}) {
  const auto tensors = model.tensors();
  std::vector<std::size_t> order(tensors.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  if (!options.order.empty()) {
    std::vector<bool> placed(tensors.size());
    order.clear();
    for (const std::string& name : options.order) {
      const std::size_t i = model.find(name);
      if (i == tensors.size() || placed[i]) {
        raise("FlatExportOptions::order: '{}' is {}", detail::shown(name),
              i == tensors.size() ? "not in the model" : "there twice");
      }
      placed[i] = true;
      order.push_back(i);
    }
    for (std::size_t i = 0; i < tensors.size(); ++i) {
      if (!placed[i]) {
        raise("FlatExportOptions::order: '{}' is missing", detail::shown(tensors[i].name));
      }
    }
  }
  const detail::ExportPlan plan = detail::plan_flat(tensors, std::move(order), stem, options.dtype);
  return detail::carry_out(
      model, plan, directory, options.writers, options.timeout,
      [&](std::string_view name) { return name == plan.files[0].name || name == plan.last_name; });
}

}  // namespace shardwise::inline v0_1
