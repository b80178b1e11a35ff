#pragma once

#include <algorithm>
#include <cstddef>
#include <string>
#include <string_view>

#include "../core/format.hpp"
#include "key.hpp"
#include "load.hpp"
#include "scan.hpp"

namespace shardwise::inline v0_1 {

/// Every key that a form has, as a table of Markdown: the key, what may stand there, what becomes
/// of it, and what it sets or why it has no effect. examples/configuration.md is made of these.
[[nodiscard]] inline std::string config_key_table(ConfigForm form) {
  const auto cell = [](std::string text) {
    for (std::size_t at = 0; (at = text.find('|', at)) != std::string::npos; at += 2) {
      text.insert(at, 1, '\\');
    }
    return text;
  };
  std::string table = "| key | value | outcome | what it does, or why it does nothing |\n";
  table += "|---|---|---|---|\n";
  for (const ConfigKey& key : detail::keys_of(form)) {
    if (key.kind == ConfigKind::map) continue;
    std::string outcome(name_of(key.outcome));
    if (key.outcome == ConfigOutcome::refused && !key.harmless.empty()) {
      std::string values(key.harmless);
      for (std::size_t at = 0; (at = values.find('|', at)) != std::string::npos; at += 2) {
        values.replace(at, 1, ", ");
      }
      outcome += ", but for " + values;
    }
    std::string note(key.note);
    if (key.outcome == ConfigOutcome::refused) note += ": not built yet";
    if (!key.means.empty()) note = detail::format("older spelling of `{}`", key.means);
    table += detail::format("| `{}` | {} | {} | {} |\n", key.path, cell(detail::expected_of(key)),
                            outcome, cell(note));
  }
  return table;
}

}  // namespace shardwise::inline v0_1
