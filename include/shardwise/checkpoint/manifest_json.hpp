#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "../core/error.hpp"
#include "checksum.hpp"
#include "manifest.hpp"

namespace shardwise::inline v0_1 {

namespace detail {

inline constexpr std::string_view manifest_format = "shardwise checkpoint";
/// Before the checksum of everything before it, which ends the file.
inline constexpr std::string_view manifest_seal = ",\"checksum\":\"";
inline constexpr std::string_view manifest_end = "\"}\n";

[[nodiscard]] inline std::string hex_of(const CheckpointValue::Bytes& bytes) {
  constexpr char digits[] = "0123456789abcdef";
  std::string text;
  text.reserve(bytes.size() * 2);
  for (const std::byte byte : bytes) {
    text += digits[std::to_integer<unsigned>(byte) >> 4];
    text += digits[std::to_integer<unsigned>(byte) & 15u];
  }
  return text;
}

[[nodiscard]] inline nlohmann::ordered_json json_of(const CheckpointValue& value) {
  using Json = nlohmann::ordered_json;
  return std::visit(
      [](const auto& held) -> Json {
        using Held = std::decay_t<decltype(held)>;
        if constexpr (std::same_as<Held, double>) {
          // JSON has no infinities and no NaN.
          const bool finite = held - held == 0;
          if (!finite) return {{"bits", hex(std::bit_cast<std::uint64_t>(held))}};
          return held;
        } else if constexpr (std::same_as<Held, CheckpointValue::Bytes>) {
          return {{"bytes", hex_of(held)}};
        } else {
          return held;
        }
      },
      value.held());
}

[[nodiscard]] inline nlohmann::ordered_json json_of(const CheckpointValues& values) {
  auto json = nlohmann::ordered_json::object();
  for (const auto& [name, value] : values) json[name] = json_of(value);
  return json;
}

[[nodiscard]] inline nlohmann::ordered_json json_of(const Manifest::DataFile& file) {
  auto chunks = nlohmann::ordered_json::array();
  for (const std::uint64_t chunk : file.chunks) chunks.push_back(hex(chunk));
  return {{"name", file.name}, {"bytes", file.bytes}, {"chunks", std::move(chunks)}};
}

[[nodiscard]] inline nlohmann::ordered_json json_of(const Manifest::Tensor& tensor) {
  nlohmann::ordered_json json = {
      {"name", tensor.name}, {"dtype", name_of(tensor.dtype)}, {"shape", tensor.shape}};
  if (tensor.optimizer) json["optimizer"] = *tensor.optimizer;
  auto parts = nlohmann::ordered_json::array();
  for (const Manifest::Part& part : tensor.parts) {
    parts.push_back({part.begin, part.count, part.file, part.position});
  }
  json["parts"] = std::move(parts);
  return json;
}

/// One line of JSON; UsageError where a name or a text is no UTF-8.
[[nodiscard]] inline std::string dump(const nlohmann::ordered_json& json) {
  try {
    return json.dump();
  } catch (const nlohmann::ordered_json::exception& error) {
    raise("a name or a text of a checkpoint is no UTF-8 ({}): give such values as bytes",
          error.what());
  }
}

}  // namespace detail

/// The text of manifest.json: one JSON object that ends with a checksum of all before it. A
/// tensor's parts are arrays [first element, elements, index of the file, first byte in it].
[[nodiscard]] inline std::string format_manifest(const Manifest& manifest) {
  using Json = nlohmann::ordered_json;
  Json json = {{"format", detail::manifest_format},
               {"version", Manifest::version},
               {"save", manifest.save},
               {"step", manifest.step},
               {"world", manifest.world},
               {"chunk_bytes", manifest.chunk_bytes},
               {"values", detail::json_of(manifest.values)}};
  if (manifest.loss_scaler) {
    const LossScalerState& scaler = *manifest.loss_scaler;
    json["loss_scaler"] = {{"scale", detail::json_of(CheckpointValue(scaler.scale))},
                           {"good", scaler.good},
                           {"skipped", scaler.skipped}};
  }
  json["optimizers"] = Json::array();
  for (const Manifest::Optimizer& optimizer : manifest.optimizers) {
    json["optimizers"].push_back({{"kind", optimizer.kind},
                                  {"steps", optimizer.steps},
                                  {"hyperparameters", detail::json_of(optimizer.hyperparameters)}});
  }
  std::string text = detail::dump(json);
  text.pop_back();  // the brace: files and tensors follow, one a line
  const auto append = [&](const char* name, const auto& list) {
    text += detail::format(",\n\"{}\":[", name);
    for (std::size_t i = 0; i < list.size(); ++i) {
      text += i == 0 ? "\n" : ",\n";
      text += detail::dump(detail::json_of(list[i]));
    }
    text += ']';
  };
  append("files", manifest.files);
  append("tensors", manifest.tensors);
  text += '\n';
  const std::string sum = detail::hex(detail::checksum(text));
  text += detail::manifest_seal;
  text += sum;
  text += detail::manifest_end;
  return text;
}

}  // namespace shardwise::inline v0_1
