#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "../core/dtype.hpp"
#include "../core/error.hpp"
#include "../core/format.hpp"
#include "../kernels/cast_elements.hpp"
#include "agreement.hpp"
#include "hugging_face_files.hpp"
#include "hugging_face_model.hpp"
#include "hugging_face_options.hpp"
#include "safetensors_header.hpp"
#include "shown.hpp"

namespace shardwise::inline v0_1 {

namespace detail {

/// Names, shapes and types of a host's model against those of the files.
class ImportPlan {
 public:
  struct Source {
    HuggingFaceFiles::Location at;
    DType dtype = DType::f32;
  };

  /// FileError that names every tensor which does not fit, up to a few.
  ImportPlan(std::span<const ModelTensor> tensors, const HuggingFaceFiles& files,
             const ImportOptions& options) {
    for (const ModelTensor& tensor : tensors) {
      Source source{files.find(tensor.name)};
      if (source.at.tensor != nullptr) {
        source.dtype = check(tensor, *source.at.tensor, options.conversion);
      } else if (options.may_be_missing && options.may_be_missing(tensor.name)) {
        report.missing.push_back(tensor.name);
      } else {
        complain(format("'{}' is missing", shown(tensor.name)));
      }
      sources.push_back(source);
    }
    complain_about_extra(tensors, files, options);
    if (problems_ == 0) return;
    raise<FileError>("{}: the model and the files do not fit ({} differences): {}{}",
                     files.files().front()->source.name(), problems_, text_,
                     problems_ > shown_problems ? "; ..." : "");
  }

  std::vector<Source> sources;  ///< of each tensor of the model
  ImportReport report;

 private:
  static constexpr std::size_t shown_problems = 8;

  void complain(const std::string& problem) {
    if (++problems_ > shown_problems) return;
    if (!text_.empty()) text_ += "; ";
    text_ += problem;
  }

  [[nodiscard]] static std::string shape_of(const std::vector<std::uint64_t>& shape) {
    std::string text = "[";
    for (std::size_t i = 0; i < shape.size(); ++i) {
      text += (i == 0 ? "" : ", ") + std::to_string(shape[i]);
    }
    return text + "]";
  }

  DType check(const ModelTensor& tensor, const SafetensorsTensor& found, Conversion conversion) {
    if (tensor.shape() != found.shape) {
      complain(format("'{}' has the shape {} in the file and {} in the model", shown(tensor.name),
                      shape_of(found.shape), shape_of(tensor.shape())));
    }
    const std::optional<DType> type = dtype_in(found.dtype);
    if (!type || !is_floating(*type)) {
      complain(format("'{}' is of type {} in the file, and parameters are F64, F32, BF16 or F16",
                      shown(tensor.name), name_of(found.dtype)));
      return tensor.dtype;
    }
    const bool exact = *type == tensor.dtype || tensor.dtype == DType::f64 ||
                       (tensor.dtype == DType::f32 && size_of(*type) == 2);
    const bool allowed = *type == tensor.dtype || conversion == Conversion::rounding ||
                         (conversion == Conversion::exact && exact);
    if (!allowed) {
      complain(
          format("'{}' is of type {} in the file and {} in the model; import with "
                 "Conversion::{} to convert it",
                 shown(tensor.name), name_of(found.dtype), name_of(safetensors_dtype(tensor.dtype)),
                 exact ? "exact" : "rounding"));
    }
    return *type;
  }

  void complain_about_extra(std::span<const ModelTensor> tensors, const HuggingFaceFiles& files,
                            const ImportOptions& options) {
    std::vector<std::string_view> names;
    for (const ModelTensor& tensor : tensors) names.emplace_back(tensor.name);
    std::sort(names.begin(), names.end());
    for (const auto& file : files.files()) {
      for (const SafetensorsTensor& tensor : file->header.tensors) {
        if (std::binary_search(names.begin(), names.end(), std::string_view(tensor.name))) continue;
        if (options.may_be_extra && options.may_be_extra(tensor.name)) {
          report.extra.push_back(tensor.name);
        } else {
          complain(format("'{}' is not in the model", shown(tensor.name)));
        }
      }
    }
  }

  std::size_t problems_ = 0;
  std::string text_;
};

/// Reads elements of the files, converted on the way.
class ImportReader {
 public:
  ImportReader(std::span<const ModelTensor> tensors, const HuggingFaceFiles& files,
               ImportPlan& plan)
      : tensors_(tensors), files_(files), plan_(plan) {}

  void fill(const ModelRange& range, std::byte* elements) {
    const ImportPlan::Source& source = plan_.sources[range.tensor];
    if (source.at.tensor == nullptr) return;
    const DType type = tensors_[range.tensor].dtype;
    auto& file = *files_.files()[source.at.file];
    const std::size_t from = size_of(source.dtype);
    const std::uint64_t position =
        file.header.data_begin + source.at.tensor->begin + std::uint64_t{range.first} * from;
    plan_.report.bytes_read += range.count * from;
    if (source.dtype == type) {
      file.source.read(position, {elements, range.count * from});
      return;
    }
    buffer_.resize(buffer_bytes);
    for (std::size_t done = 0; done < range.count;) {
      const std::size_t part = std::min(buffer_bytes / from, range.count - done);
      file.source.read(position + done * from, std::span(buffer_).first(part * from));
      cast_elements(buffer_.data(), source.dtype, elements + done * size_of(type), type, part);
      done += part;
    }
  }

 private:
  static constexpr std::size_t buffer_bytes = std::size_t{1} << 22;

  std::span<const ModelTensor> tensors_;
  const HuggingFaceFiles& files_;
  ImportPlan& plan_;
  std::vector<std::byte> buffer_;
};

}  // namespace detail

/// Collective: fills the model from a directory with model.safetensors, or with
/// model.safetensors.index.json and the files that it lists. Each rank reads the elements that it
/// stores, and no others, through a buffer of 4 MiB at most. FileError on all ranks, and nothing
/// written, where a file is malformed, ranks see different files, or a tensor is missing, extra, of
/// another shape or of a type that the options do not convert; also where reading fails later, with
/// the parameters partly written. UsageError where a lease of a parameter is open.
template <class Device>
ImportReport import_hugging_face(ModelTensors<Device>& model, const std::string& directory,
                                 const ImportOptions& options = {}) {
  static_assert(std::endian::native == std::endian::little, "files are little-endian");
  auto& engine = model.context().engine();
  engine.check();
  const detail::CheckpointGroup group{engine.comm, options.timeout};
  std::unique_ptr<HuggingFaceFiles> files;
  std::optional<detail::ImportPlan> plan;
  detail::Outcome opening;
  opening.run([&] {
    files = std::make_unique<HuggingFaceFiles>(directory, options.stem, options.check_total_size);
    plan.emplace(model.tensors(), *files, options);
  });
  opening.agree(group, "import: open", "");
  if (const int other = group.first_that_differs(files->hash(), "import: compare")) {
    raise<FileError>("{}: rank {} sees other files there than rank 0", detail::shown(directory),
                     other);
  }
  detail::ImportReader reader(model.tensors(), *files, *plan);
  detail::Outcome reading;
  for (const detail::ModelParameter& parameter : model.parameters()) {
    // What fails is kept: the calls of all parameters stay the same on all ranks.
    parameter.load([&](const detail::ModelRange& range, std::byte* elements) {
      reading.run([&] { reader.fill(range, elements); });
    });
  }
  reading.agree(group, "import: read", "; the parameters are partly written");
  return std::move(plan->report);
}

}  // namespace shardwise::inline v0_1
