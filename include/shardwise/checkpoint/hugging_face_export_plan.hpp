#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "../core/checked.hpp"
#include "../core/dtype.hpp"
#include "../core/error.hpp"
#include "../core/format.hpp"
#include "hugging_face_index.hpp"
#include "hugging_face_model.hpp"
#include "hugging_face_options.hpp"
#include "json_text.hpp"
#include "safetensors_writer.hpp"
#include "shown.hpp"

namespace shardwise::inline v0_1::detail {

/// Which bytes of which file each tensor of a model becomes. The same on all ranks.
struct ExportPlan {
  struct File {
    std::string name;
    std::string begin;       ///< its first bytes
    std::uint64_t size = 0;  ///< all bytes
  };
  struct Place {
    std::size_t file;
    std::uint64_t position;  ///< of the first element, in the file
    DType dtype;             ///< there
  };

  std::vector<File> files;
  std::vector<Place> places;  ///< of each tensor of the model
  std::uint64_t bytes = 0;    ///< of all tensors
  std::string last_name;      ///< a small file that ends the export; empty: none
  std::string last_text;

  [[nodiscard]] std::vector<std::string> names() const {
    std::vector<std::string> all;
    for (const File& file : files) all.push_back(file.name);
    if (!last_name.empty()) all.push_back(last_name);
    return all;
  }
};

/// Bytes of one tensor, as `dtype`.
[[nodiscard]] inline std::uint64_t exported_bytes(const ModelTensor& tensor, DType dtype) {
  return checked_multiply(tensor.tensor->count, size_of(dtype), tensor.name.c_str());
}

inline void check_exported_type(const std::optional<DType>& type) {
  if (!type || is_floating(*type)) return;
  raise("an export's dtype is a floating one (f64, f32, bf16 or f16), found {}", name_of(*type));
}

/// Tensors `order` of the model one after the other in file `number`, larger elements first, so
/// that each begins on a multiple of its element's size.
inline void place_tensors(ExportPlan& plan, std::size_t number, std::vector<std::size_t> order,
                          std::span<const ModelTensor> tensors, const ExportOptions& options) {
  const auto type_of = [&](std::size_t i) { return options.dtype.value_or(tensors[i].dtype); };
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
    return size_of(type_of(a)) > size_of(type_of(b));
  });
  std::vector<SafetensorsTensor> entries;
  std::uint64_t end = 0;
  for (const std::size_t i : order) {
    const std::uint64_t bytes = exported_bytes(tensors[i], type_of(i));
    entries.push_back(
        {tensors[i].name, safetensors_dtype(type_of(i)), tensors[i].shape(), end, end + bytes});
    plan.places[i] = {number, end, type_of(i)};
    end += bytes;
  }
  ExportPlan::File& file = plan.files[number];
  file.begin = format_safetensors_header(entries, options.metadata);
  file.size = file.begin.size() + end;
  for (const std::size_t i : order) plan.places[i].position += file.begin.size();
  plan.bytes += end;
}

/// One file, or as many as max_file_bytes asks for and an index.
[[nodiscard]] inline ExportPlan plan_hugging_face(std::span<const ModelTensor> tensors,
                                                  const ExportOptions& options) {
  check_exported_type(options.dtype);
  if (options.max_file_bytes == 0) raise("ExportOptions::max_file_bytes must be at least 1");
  std::vector<std::vector<std::size_t>> groups(1);
  std::uint64_t filled = 0;
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    const std::uint64_t bytes =
        exported_bytes(tensors[i], options.dtype.value_or(tensors[i].dtype));
    const bool fits = bytes <= options.max_file_bytes && filled <= options.max_file_bytes - bytes;
    if (bytes > 0 && !fits && !groups.back().empty()) {
      groups.emplace_back();
      filled = 0;
    }
    groups.back().push_back(i);
    filled += bytes;
  }
  ExportPlan plan;
  plan.places.resize(tensors.size());
  plan.files.resize(groups.size());
  for (std::size_t i = 0; i < groups.size(); ++i) {
    plan.files[i].name = groups.size() == 1 ? options.stem + ".safetensors"
                                            : format("{}-{:05}-of-{:05}.safetensors", options.stem,
                                                     i + 1, groups.size());
    place_tensors(plan, i, groups[i], tensors, options);
  }
  if (groups.size() == 1) return plan;
  HuggingFaceIndex index;
  for (const ExportPlan::File& file : plan.files) index.files.push_back(file.name);
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    index.tensors.push_back({tensors[i].name, static_cast<std::uint32_t>(plan.places[i].file)});
  }
  std::sort(index.tensors.begin(), index.tensors.end(),
            [](const auto& a, const auto& b) { return a.tensor < b.tensor; });
  index.total_size = plan.bytes;
  plan.last_name = options.stem + ".safetensors.index.json";
  plan.last_text = format_hugging_face_index(index);
  return plan;
}

/// Whether a file of this name belongs to a model called `stem`.
[[nodiscard]] inline bool is_hugging_face_name(std::string_view name, std::string_view stem) {
  if (!name.starts_with(stem)) return false;
  name.remove_prefix(stem.size());
  constexpr std::string_view ending = ".safetensors";
  if (name == ending || name == ".safetensors.index.json") return true;
  if (!name.starts_with('-') || !name.ends_with(ending)) return false;
  name = name.substr(1, name.size() - 1 - ending.size());
  constexpr std::string_view digits = "0123456789";
  const std::size_t of = name.find("-of-");
  return of != std::string_view::npos && of > 0 && of + 4 < name.size() &&
         name.find_first_not_of(digits) == of &&
         name.find_first_not_of(digits, of + 4) == std::string_view::npos;
}

/// One file of elements alone, and its description.
[[nodiscard]] inline ExportPlan plan_flat(std::span<const ModelTensor> tensors,
                                          std::vector<std::size_t> order, const std::string& stem,
                                          const std::optional<DType>& dtype) {
  check_exported_type(dtype);
  ExportPlan plan;
  plan.places.resize(tensors.size());
  std::string list;
  for (const std::size_t i : order) {
    const DType type = dtype.value_or(tensors[i].dtype);
    list += list.empty() ? "\n    {\"name\": " : ",\n    {\"name\": ";
    append_json_string(list, tensors[i].name);
    list += format(", \"dtype\": \"{}\", \"shape\": [", name_of(safetensors_dtype(type)));
    const char* comma = "";
    for (const std::uint64_t extent : tensors[i].shape()) {
      list += format("{}{}", comma, extent);
      comma = ", ";
    }
    list += format("], \"offset\": {}}}", plan.bytes);
    plan.places[i] = {0, plan.bytes, type};
    plan.bytes = checked_add(plan.bytes, exported_bytes(tensors[i], type), stem.c_str());
  }
  plan.files.push_back({stem + ".bin", "", plan.bytes});
  plan.last_name = stem + ".json";
  plan.last_text = "{\n  \"format\": \"flat\",\n  \"byte_order\": \"little\",\n  \"file\": ";
  append_json_string(plan.last_text, plan.files[0].name);
  plan.last_text += format(",\n  \"bytes\": {},\n  \"tensors\": [", plan.bytes);
  plan.last_text += list + "\n  ]\n}\n";
  return plan;
}

}  // namespace shardwise::inline v0_1::detail
