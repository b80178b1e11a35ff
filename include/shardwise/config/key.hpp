#pragma once

#include <cstdint>
#include <string_view>

namespace shardwise::inline v0_1 {

/// What becomes of a key of a file.
enum class ConfigOutcome : std::uint8_t {
  applied,         ///< it sets something
  without_effect,  ///< accepted; there is a reason why nothing here depends on it
  refused          ///< it asks for something that is not built
};

/// "applied", "accepted without effect" or "refused".
[[nodiscard]] constexpr std::string_view name_of(ConfigOutcome outcome) noexcept {
  return outcome == ConfigOutcome::applied          ? "applied"
         : outcome == ConfigOutcome::without_effect ? "accepted without effect"
                                                    : "refused";
}

/// Who a file was written for.
enum class ConfigForm : std::uint8_t {
  shardwise,  ///< shardwise's own form
  deepspeed,  ///< DeepSpeed's JSON
  accelerate  ///< Hugging Face accelerate's YAML for FSDP
};

/// "shardwise", "DeepSpeed" or "accelerate FSDP".
[[nodiscard]] constexpr std::string_view name_of(ConfigForm form) noexcept {
  return form == ConfigForm::deepspeed    ? "DeepSpeed"
         : form == ConfigForm::accelerate ? "accelerate FSDP"
                                          : "shardwise";
}

/// What may stand behind a key.
enum class ConfigKind : std::uint8_t {
  boolean,      ///< true, false
  yes_no,       ///< true, false, yes, no, on, off, in any case, quoted or not
  integer,      ///< also 5e8
  bytes,        ///< also 25MiB
  number,       ///< finite
  word,         ///< one of the domain
  text,         ///< any
  list,         ///< any list
  map,          ///< keys of this table
  map_or_flag,  ///< the same, or a boolean
  free_map,     ///< a map of any keys
  value         ///< anything
};

/// One row of a form's table of keys: what the reader knows of a key, and what the documentation
/// says of it.
struct ConfigKey {
  std::string_view path;
  ConfigKind kind = ConfigKind::boolean;
  ConfigOutcome outcome = ConfigOutcome::applied;
  /// What it sets; why nothing depends on it; what is not built.
  std::string_view note = {};
  /// Words: "fp16|bf16". Numbers: "0..", "1..", "0..3", "0<..": above 0. Empty: any.
  std::string_view domain = {};
  /// Of a key that is refused: the values that ask for nothing: "false|0".
  std::string_view harmless = {};
  bool automatic = false;  ///< may be "auto"
  bool nullable = false;   ///< may be null, which is as if it were not there
  /// Of an older spelling: the path of the key that it means.
  std::string_view means = {};
};

}  // namespace shardwise::inline v0_1
