#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "../core/dtype.hpp"

namespace shardwise::inline v0_1 {

/// What may happen to elements whose type in a file is not the parameter's.
enum class Conversion : std::uint8_t {
  none,     ///< nothing: it is an error
  exact,    ///< to a type that holds every value: bf16 and f16 to f32, those to f64
  rounding  ///< to any floating type, rounded once to nearest, ties to even
};

/// Chooses tensors by their names in files.
using TensorFilter = std::function<bool(std::string_view)>;

struct ImportOptions {
  /// The files are called so: stem.safetensors, or stem.safetensors.index.json and what it lists.
  std::string stem = "model";
  Conversion conversion = Conversion::none;
  /// Tensors of the model that may be missing in the files; their elements stay what they are.
  /// Empty: none.
  TensorFilter may_be_missing = {};
  /// Tensors of the files that need not be in the model (masks, tied copies). Empty: none.
  TensorFilter may_be_extra = {};
  /// The index's metadata.total_size, if it is there, must be right.
  bool check_total_size = true;
  /// How long ranks wait for the slowest one's reading.
  std::chrono::nanoseconds timeout = std::chrono::hours(1);
};

struct ImportReport {
  std::vector<std::string> missing;  ///< in the order of the model
  std::vector<std::string> extra;    ///< in the order of the files
  std::uint64_t bytes_read = 0;      ///< of elements, by this rank
};

/// Who writes an export.
enum class Writers : std::uint8_t {
  all_ranks,  ///< each its own part of every tensor: the directory is shared by all machines
  one_rank    ///< rank 0: all elements travel to it through a small buffer
};

struct ExportOptions {
  /// As in ImportOptions.
  std::string stem = "model";
  /// Elements are rounded to this type; none: each tensor keeps the parameter's storage type.
  std::optional<DType> dtype = std::nullopt;
  /// More bytes of tensors than this go to several files and an index. A tensor is never divided.
  std::uint64_t max_file_bytes = 5'000'000'000;
  /// Of every file; some readers want to know which framework's layout it is.
  std::vector<std::pair<std::string, std::string>> metadata = {{"format", "pt"}};
  Writers writers = Writers::all_ranks;
  /// How long ranks wait for the slowest one's writing.
  std::chrono::nanoseconds timeout = std::chrono::hours(1);
};

struct FlatExportOptions {
  /// As in ExportOptions.
  std::optional<DType> dtype = std::nullopt;
  /// The names of all tensors, as in files, in the order wanted; empty: the model's.
  std::vector<std::string> order = {};
  Writers writers = Writers::all_ranks;
  std::chrono::nanoseconds timeout = std::chrono::hours(1);
};

struct ExportReport {
  std::vector<std::string> files;   ///< names in the directory; the index or description last
  std::uint64_t total_bytes = 0;    ///< of all tensors
  std::uint64_t bytes_written = 0;  ///< of elements, by this rank
};

}  // namespace shardwise::inline v0_1
