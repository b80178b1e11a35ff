#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "../core/error.hpp"
#include "checksum.hpp"
#include "manifest.hpp"
#include "manifest_json.hpp"

namespace shardwise::inline v0_1 {

namespace detail {

/// Digits of `text` to bytes, two for each; none where there is anything else.
[[nodiscard]] inline std::optional<CheckpointValue::Bytes> bytes_of_hex(std::string_view text) {
  if (text.size() % 2 != 0) return std::nullopt;
  const auto digit = [](char c) -> int {
    if (c >= '0' && c <= '9') return c - '0';
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
  };
  CheckpointValue::Bytes bytes(text.size() / 2);
  for (std::size_t i = 0; i < bytes.size(); ++i) {
    const int high = digit(text[2 * i]);
    const int low = digit(text[2 * i + 1]);
    if (high < 0 || low < 0) return std::nullopt;
    bytes[i] = static_cast<std::byte>(high * 16 + low);
  }
  return bytes;
}

[[nodiscard]] inline std::optional<std::uint64_t> number_of_hex(std::string_view text) {
  const auto bytes = text.size() == 16 ? bytes_of_hex(text) : std::nullopt;
  if (!bytes) return std::nullopt;
  std::uint64_t number = 0;
  for (const std::byte byte : *bytes) number = number << 8 | std::to_integer<std::uint64_t>(byte);
  return number;
}

/// The name of a file in the directory of a save, and of nothing elsewhere.
[[nodiscard]] inline bool is_plain_name(std::string_view name) noexcept {
  return !name.empty() && name.size() <= 255 && name.front() != '.' &&
         std::all_of(name.begin(), name.end(), [](char c) {
           return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
                  c == '-' || c == '_' || c == '.';
         });
}

/// Turns the JSON of a manifest into one. Errors name the file, the field and the cause.
class ManifestReader {
 public:
  using Json = nlohmann::json;

  explicit ManifestReader(std::string_view path) : path_(path) {}

  [[nodiscard]] Manifest read(const Json& json) {
    const Field top{nullptr, "manifest"};
    const std::string found = text(json, top, "format");
    if (found != manifest_format) {
      fail({&top, "format"}, "expected '{}', found '{}'", manifest_format, found);
    }
    const std::uint64_t version = number(json, top, "version");
    if (version != Manifest::version) {
      fail({&top, "version"}, "expected {}, found {}: it was written by another release",
           Manifest::version, version);
    }
    result_.save = text(json, top, "save");
    if (result_.save.size() != 32 || !bytes_of_hex(result_.save)) {
      fail({&top, "save"}, "expected 32 hexadecimal digits, found '{}'", result_.save);
    }
    result_.step = number(json, top, "step");
    result_.world = number(json, top, "world");
    if (result_.world == 0) fail({&top, "world"}, "expected at least 1 rank, found {}", 0);
    result_.chunk_bytes = number(json, top, "chunk_bytes");
    if (result_.chunk_bytes < Manifest::smallest_chunk ||
        result_.chunk_bytes > Manifest::largest_chunk) {
      fail({&top, "chunk_bytes"}, "expected {} to {}, found {}", Manifest::smallest_chunk,
           Manifest::largest_chunk, result_.chunk_bytes);
    }
    result_.values = values(member(json, top, "values", Json::value_t::object), {&top, "values"});
    if (json.contains("loss_scaler")) read_loss_scaler(json, top);
    for_each(json, top, "optimizers", [&](const Json& item, const Field& at) {
      result_.optimizers.push_back(
          {text(item, at, "kind"), number(item, at, "steps"),
           values(member(item, at, "hyperparameters", Json::value_t::object),
                  {&at, "hyperparameters"})});
    });
    for_each(json, top, "files", [&](const Json& item, const Field& at) { read_file(item, at); });
    for_each(json, top, "tensors",
             [&](const Json& item, const Field& at) { read_tensor(item, at); });
    return std::move(result_);
  }

 private:
  /// A place in the document, as a chain to the top.
  struct Field {
    const Field* parent;
    std::string_view name;
    std::optional<std::size_t> index = std::nullopt;

    [[nodiscard]] std::string path() const {
      std::string result = parent == nullptr || parent->parent == nullptr
                               ? std::string(name)
                               : parent->path() + (name.empty() ? "" : ".") + std::string(name);
      if (index) result += detail::format("[{}]", *index);
      return result;
    }
  };

  template <class... Args>
  [[noreturn]] void fail(const Field& field, FormatFor<Args...> cause, const Args&... args) const {
    raise<FileError>("{}: {}: {}", path_, field.path(), detail::format(cause, args...));
  }

  const Json& member(const Json& json, const Field& at, const char* name,
                     Json::value_t type) const {
    if (!json.is_object()) fail(at, "expected an object, found {}", json.type_name());
    const auto found = json.find(name);
    if (found == json.end()) fail({&at, name}, "it is missing{}", "");
    if (found->type() != type) {
      fail({&at, name}, "expected {}, found {}", Json(type).type_name(), found->type_name());
    }
    return *found;
  }
  [[nodiscard]] std::string text(const Json& json, const Field& at, const char* name) const {
    return member(json, at, name, Json::value_t::string).get<std::string>();
  }
  [[nodiscard]] std::uint64_t number(const Json& json, const Field& at, const char* name) const {
    if (!json.is_object()) fail(at, "expected an object, found {}", json.type_name());
    const auto found = json.find(name);
    if (found == json.end()) fail({&at, name}, "it is missing{}", "");
    return number(*found, {&at, name});
  }
  [[nodiscard]] std::uint64_t number(const Json& json, const Field& at) const {
    if (!json.is_number_unsigned()) {
      fail(at, "expected a whole number that is not negative, found {}", json.dump());
    }
    return json.get<std::uint64_t>();
  }
  template <class F>
  void for_each(const Json& json, const Field& at, const char* name, F&& f) const {
    const Json& list = member(json, at, name, Json::value_t::array);
    for (std::size_t i = 0; i < list.size(); ++i) f(list[i], Field{&at, name, i});
  }

  [[nodiscard]] CheckpointValues values(const Json& json, const Field& at) const {
    CheckpointValues result;
    for (const auto& [name, value] : json.items()) {
      result.emplace(name, this->value(value, {&at, name}));
    }
    return result;
  }
  [[nodiscard]] CheckpointValue value(const Json& json, const Field& at) const {
    switch (json.type()) {
      case Json::value_t::boolean:
        return json.get<bool>();
      case Json::value_t::number_integer:
        return json.get<std::int64_t>();
      case Json::value_t::number_unsigned:
        return json.get<std::uint64_t>();
      case Json::value_t::number_float:
        return json.get<double>();
      case Json::value_t::string:
        return json.get<std::string>();
      default:
        break;
    }
    if (json.is_object() && json.size() == 1) {
      const std::string kind = json.begin().key();
      const Json& inner = json.begin().value();
      if (inner.is_string() && kind == "bytes") {
        if (auto bytes = bytes_of_hex(inner.get<std::string>())) return *std::move(bytes);
      }
      if (inner.is_string() && kind == "bits") {
        if (const auto bits = number_of_hex(inner.get<std::string>())) {
          return std::bit_cast<double>(*bits);
        }
      }
    }
    fail(at, "expected a number, a text, a truth or bytes in hexadecimal digits, found {}",
         json.type_name());
  }

  void read_loss_scaler(const Json& json, const Field& top) {
    const Json& scaler = member(json, top, "loss_scaler", Json::value_t::object);
    const Field at{&top, "loss_scaler"};
    const Field scale{&at, "scale"};
    const auto found = scaler.find("scale");
    if (found == scaler.end()) fail(scale, "it is missing{}", "");
    const CheckpointValue held = value(*found, scale);
    const double* const number_of_scale = std::get_if<double>(&held.held());
    if (number_of_scale == nullptr || !(*number_of_scale > 0)) {
      fail(scale, "expected a real number above 0, found {}", found->dump());
    }
    result_.loss_scaler = {*number_of_scale, number(scaler, at, "good"),
                           number(scaler, at, "skipped")};
  }

  void read_file(const Json& json, const Field& at) {
    Manifest::DataFile file{text(json, at, "name"), number(json, at, "bytes"), {}};
    if (!is_plain_name(file.name)) {
      fail({&at, "name"}, "'{}' is not the name of a file in this directory", file.name);
    }
    const Json& chunks = member(json, at, "chunks", Json::value_t::array);
    const std::uint64_t expected =
        file.bytes / result_.chunk_bytes + (file.bytes % result_.chunk_bytes == 0 ? 0 : 1);
    if (chunks.size() != expected) {
      fail({&at, "chunks"}, "expected {} of them for {} bytes, found {}", expected, file.bytes,
           chunks.size());
    }
    file.chunks.reserve(chunks.size());
    for (const Json& chunk : chunks) {
      const auto sum = chunk.is_string() ? number_of_hex(chunk.get_ref<const std::string&>())
                                         : std::optional<std::uint64_t>();
      if (!sum) {
        fail({&at, "chunks", file.chunks.size()}, "expected 16 hexadecimal digits, found {}",
             chunk.dump());
      }
      file.chunks.push_back(*sum);
    }
    result_.files.push_back(std::move(file));
  }

  void read_tensor(const Json& json, const Field& at) {
    Manifest::Tensor tensor;
    tensor.name = text(json, at, "name");
    if (!result_.tensors.empty() && result_.tensors.back().name >= tensor.name) {
      fail({&at, "name"}, "'{}' comes after '{}': names are in order, each once", tensor.name,
           result_.tensors.back().name);
    }
    tensor.dtype = dtype(json, at);
    for_each(json, at, "shape", [&](const Json& extent, const Field& field) {
      tensor.shape.push_back(number(extent, field));
    });
    tensor.count = count(tensor, at);
    if (json.contains("optimizer")) {
      const std::uint64_t index = number(json, at, "optimizer");
      if (index >= result_.optimizers.size()) {
        fail({&at, "optimizer"}, "there is no optimizer {}, only {} of them", index,
             result_.optimizers.size());
      }
      tensor.optimizer = static_cast<std::uint32_t>(index);
    }
    std::uint64_t begin = 0;
    for_each(json, at, "parts", [&](const Json& part, const Field& field) {
      tensor.parts.push_back(read_part(part, field, tensor));
      if (tensor.parts.back().begin != begin) {
        fail(field, "it begins at element {}, expected {}: every element once, in order",
             tensor.parts.back().begin, begin);
      }
      begin += tensor.parts.back().count;
    });
    if (begin != tensor.count) {
      fail({&at, "parts"}, "they hold {} elements of tensor '{}', expected its {}", begin,
           tensor.name, tensor.count);
    }
    result_.tensors.push_back(std::move(tensor));
  }

  [[nodiscard]] Manifest::Part read_part(const Json& json, const Field& at,
                                         const Manifest::Tensor& tensor) const {
    if (!json.is_array() || json.size() != 4) {
      fail(at, "expected [first element, elements, file, position], found {}", json.dump());
    }
    const std::uint64_t file = number(json[2], {&at, "", 2});
    const Manifest::Part part{number(json[0], {&at, "", 0}), number(json[1], {&at, "", 1}),
                              static_cast<std::uint32_t>(file), number(json[3], {&at, "", 3})};
    if (file >= result_.files.size()) {
      fail(at, "there is no file {}, only {} of them", file, result_.files.size());
    }
    if (part.count == 0 || part.count > tensor.count || part.begin > tensor.count - part.count) {
      fail(at, "{} elements from {} on are not a part of tensor '{}' with {}", part.count,
           part.begin, tensor.name, tensor.count);
    }
    const Manifest::DataFile& data = result_.files[part.file];
    const std::uint64_t bytes = part.count * size_of(tensor.dtype);
    if (bytes > data.bytes || part.position > data.bytes - bytes) {
      fail(at, "{} bytes from {} on are not in {} with {}", bytes, part.position, data.name,
           data.bytes);
    }
    return part;
  }

  [[nodiscard]] DType dtype(const Json& json, const Field& at) const {
    const std::string name = text(json, at, "dtype");
    for (const DType type : {DType::f64, DType::f32, DType::bf16, DType::f16, DType::i64,
                             DType::i32, DType::i8, DType::u8}) {
      if (name_of(type) == name) return type;
    }
    fail({&at, "dtype"}, "there is no element type '{}'", name);
  }

  // At 8 bytes an element they fit into 63 bits.
  [[nodiscard]] std::uint64_t count(const Manifest::Tensor& tensor, const Field& at) const {
    const auto& shape = tensor.shape;
    if (std::find(shape.begin(), shape.end(), 0u) != shape.end()) return 0;
    std::uint64_t product = 1;
    for (const std::uint64_t extent : shape) {
      if (__builtin_mul_overflow(product, extent, &product) || product >> 60 != 0) {
        fail({&at, "shape"}, "tensor '{}' would have more than 2^60 elements", tensor.name);
      }
    }
    return product;
  }

  std::string_view path_;
  Manifest result_;
};

/// FileError where the text is no JSON, a key is there twice, or values lie deeper in each other
/// than those of manifests: what prints or frees them afterwards goes as deep.
[[nodiscard]] inline nlohmann::json parse_manifest_json(std::string_view text,
                                                        std::string_view path) {
  using Json = nlohmann::json;
  constexpr int deepest = 16;
  std::vector<std::set<std::string>> open;  // the keys of each object that has not ended
  const auto look = [&](int depth, Json::parse_event_t event, Json& value) {
    if (depth > deepest) raise<FileError>("{}: more than {} levels of values", path, deepest);
    if (event == Json::parse_event_t::object_start) {
      open.emplace_back();
    } else if (event == Json::parse_event_t::object_end) {
      open.pop_back();
    } else if (event == Json::parse_event_t::key) {
      const auto& key = value.get_ref<const std::string&>();
      if (!open.back().insert(key).second) {
        raise<FileError>("{}: {}: the key is there twice", path, key);
      }
    }
    return true;
  };
  Json json = Json::parse(text, look, false);
  if (json.is_discarded()) raise<FileError>("{}: it is no JSON", path);
  return json;
}

}  // namespace detail

/// Reads the text of a manifest; `path` is for messages. FileError where it is not whole (the
/// checksum at its end does not fit) or anything in it is not as format_manifest writes it.
[[nodiscard]] inline Manifest parse_manifest(std::string_view text, std::string_view path) {
  using detail::manifest_end;
  using detail::manifest_seal;
  constexpr std::size_t digits = 16;
  constexpr std::size_t tail = manifest_seal.size() + digits + manifest_end.size();
  if (text.size() <= tail || !text.ends_with(manifest_end) ||
      text.substr(text.size() - tail, manifest_seal.size()) != manifest_seal) {
    raise<FileError>("{}: it has no checksum at its end ({} bytes): it is cut off or damaged", path,
                     text.size());
  }
  const std::string_view body = text.substr(0, text.size() - tail);
  const std::string_view expected = text.substr(text.size() - digits - manifest_end.size(), digits);
  if (const std::string found = detail::hex(detail::checksum(body)); found != expected) {
    raise<FileError>("{}: its checksum is {}, expected {}: it is damaged", path, found, expected);
  }
  return detail::ManifestReader(path).read(detail::parse_manifest_json(text, path));
}

}  // namespace shardwise::inline v0_1
