#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <fstream>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "../core/error.hpp"
#include "../core/format.hpp"
#include "accelerate.hpp"
#include "deepspeed.hpp"
#include "document.hpp"
#include "draft.hpp"
#include "json_syntax.hpp"
#include "loaded_configuration.hpp"
#include "own_form.hpp"
#include "problem.hpp"
#include "reading.hpp"
#include "yaml_reader.hpp"

namespace shardwise::inline v0_1 {

/// How a file is read.
struct ConfigOptions {
  /// A key that asks for what is not built is listed (ConfigOutcome::refused), and the rest goes on
  /// without it.
  bool allow_unsupported = false;
  /// Whose keys the file has; none: told by them.
  std::optional<ConfigForm> form = std::nullopt;
};

namespace detail {

inline constexpr std::size_t largest_config = std::size_t{1} << 18;

[[nodiscard]] inline std::span<const ConfigKey> keys_of(ConfigForm form) noexcept {
  if (form == ConfigForm::deepspeed) return keys::deepspeed;
  if (form == ConfigForm::accelerate) return keys::accelerate;
  return keys::own;
}

/// JSON begins with a bracket, behind blanks and comments; anything else is YAML.
[[nodiscard]] inline bool is_json(std::string_view text) noexcept {
  for (std::size_t i = 0; i < text.size();) {
    const std::string_view rest = text.substr(i);
    if (rest[0] == ' ' || rest[0] == '\t' || rest[0] == '\r' || rest[0] == '\n') {
      ++i;
    } else if (rest[0] == '#' || rest.starts_with("//")) {
      i = std::min(text.find('\n', i), text.size());
    } else if (rest.starts_with("/*")) {
      const std::size_t end = text.find("*/", i + 2);
      if (end == std::string_view::npos) return true;
      i = end + 2;
    } else {
      return rest[0] == '{' || rest[0] == '[';
    }
  }
  return false;
}

/// The form whose table has the most of the top keys; one that is nearly spelled counts half.
[[nodiscard]] inline std::optional<ConfigForm> form_of(const ConfigNode& root) {
  std::optional<ConfigForm> best;
  std::size_t most = 0;
  for (const ConfigForm form :
       {ConfigForm::shardwise, ConfigForm::deepspeed, ConfigForm::accelerate}) {
    std::vector<std::string_view> words;
    for (const ConfigKey& key : keys_of(form)) {
      if (key.path.find('.') == std::string_view::npos) words.push_back(key.path);
    }
    std::size_t score = 0;
    std::size_t looked = 0;
    for (const ConfigMember& member : root.members) {
      if (std::find(words.begin(), words.end(), member.key) != words.end()) {
        score += 2;
      } else if (looked++ < 100 && !nearest_word(member.key, words).empty()) {
        score += 1;
      }
    }
    if (score > most) {
      most = score;
      best = form;
    }
  }
  return best;
}

/// The text as a tree; ConfigErrors where it is none.
[[nodiscard]] inline ConfigNode parse_document(std::string_view text, const std::string& name) {
  const auto fail = [&](std::size_t offset, std::string path, std::string message) {
    const TextPosition position = position_of(text, offset);
    throw ConfigErrors(
        {{name, position.line, position.column, std::move(path), std::move(message)}});
  };
  if (text.size() > largest_config) {
    throw ConfigErrors({{name, 0, 0, {}, format("{} bytes are no configuration", text.size())}});
  }
  if (const std::optional<std::size_t> bad = find_non_utf8(text)) {
    fail(*bad, {}, "the file is not UTF-8 text here");
  }
  std::optional<SyntaxProblem> problem;
  std::optional<ConfigNode> root;
  if (is_json(text)) {
    std::string blanked(text);
    problem = JsonSyntax(text, blanked).check();
    if (!problem) root = YamlReader::read(blanked, problem);
  } else {
    root = YamlReader::read(text, problem);
  }
  if (problem) fail(problem->offset, std::move(problem->path), std::move(problem->message));
  if (!root || root->kind != ConfigNode::Kind::map) {
    fail(root ? root->offset : 0, {}, "expected keys and values; an empty file says nothing");
  }
  return *std::move(root);
}

template <class Rules>
[[nodiscard]] LoadedConfiguration interpret(const ConfigNode& root, std::string_view text,
                                            const std::string& name, ConfigForm form,
                                            const Hints& hints, const ConfigOptions& options) {
  ConfigReading reading(name, text, keys_of(form));
  if constexpr (requires { Rules::spell; }) reading.spell_keys(&Rules::spell);
  reading.read(root);
  ConfigDraft draft{reading, hints};
  Rules rules(draft);
  rules.apply();
  reading.settle_refusals(options.allow_unsupported, rules.nearest());
  if (!reading.failed()) {
    try {
      draft.configuration.strategy.validate();
    } catch (const UsageError& error) {
      reading.problem(error.what());
    }
  }
  if (reading.failed()) throw ConfigErrors(reading.problems());
  return {name, form, draft.configuration, std::move(draft.sources), reading.take_reports()};
}

}  // namespace detail

/// Reads a text of configuration: DeepSpeed's JSON, accelerate's YAML for FSDP, or shardwise's own
/// form (write_config), in JSON or YAML. `name` stands for the file in messages.
///
/// ConfigErrors, with all that is wrong: syntax; keys that are unknown or come twice; values of a
/// wrong kind or out of range; "auto" without its hint; what is not built. Nothing is read from
/// anywhere else: equal arguments give equal results on every rank.
[[nodiscard]] inline LoadedConfiguration parse_config(std::string_view text,
                                                      const std::string& name,
                                                      const Hints& hints = {},
                                                      const ConfigOptions& options = {}) {
  if (text.starts_with("\xef\xbb\xbf")) text.remove_prefix(3);
  const detail::ConfigNode root = detail::parse_document(text, name);
  const std::optional<ConfigForm> form = options.form ? options.form : detail::form_of(root);
  if (!form) {
    throw ConfigErrors(
        {{name,
          0,
          0,
          {},
          "no key of it is known; expected shardwise's own form (strategy: zero3), "
          "DeepSpeed's (zero_optimization) or accelerate's for FSDP (fsdp_config)"}});
  }
  switch (*form) {
    case ConfigForm::deepspeed:
      return detail::interpret<detail::DeepSpeedRules>(root, text, name, *form, hints, options);
    case ConfigForm::accelerate:
      return detail::interpret<detail::AccelerateRules>(root, text, name, *form, hints, options);
    case ConfigForm::shardwise:
      break;
  }
  return detail::interpret<detail::OwnRules>(root, text, name, *form, hints, options);
}

/// The same for a file; ConfigError where it cannot be read.
[[nodiscard]] inline LoadedConfiguration load_config(const std::string& file,
                                                     const Hints& hints = {},
                                                     const ConfigOptions& options = {}) {
  std::ifstream stream(file, std::ios::binary);
  std::string text;
  if (stream) {
    std::array<char, 4096> part{};
    while (stream.read(part.data(), part.size()), stream.gcount() > 0) {
      text.append(part.data(), static_cast<std::size_t>(stream.gcount()));
      if (text.size() > detail::largest_config) break;
    }
  }
  if (!stream.is_open() || stream.bad()) {
    raise<ConfigError>("{}: the file cannot be read", file);
  }
  return parse_config(text, file, hints, options);
}

}  // namespace shardwise::inline v0_1
