#pragma once

#include <algorithm>
#include <cstddef>
#include <functional>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "../core/format.hpp"
#include "document.hpp"
#include "key.hpp"
#include "problem.hpp"
#include "scan.hpp"
#include "suggest.hpp"

namespace shardwise::inline v0_1 {

/// What became of one key of a file.
struct ConfigKeyReport {
  std::string path;
  std::string value;  ///< as it stands there, in short
  std::size_t line = 0;
  std::size_t column = 0;  ///< of the key
  ConfigOutcome outcome = ConfigOutcome::applied;
  std::string note;
};

namespace detail {

/// Reads a tree by a form's table: keys, duplicates, kinds, domains and what is not built; finds
/// all that is wrong. What the values mean is the form's business.
class ConfigReading {
 public:
  /// Turns a key of the file, below a path, into the table's word.
  using Spell = std::string (*)(std::string_view path, std::string_view key);

  ConfigReading(std::string file, std::string_view text, std::span<const ConfigKey> table)
      : file_(std::move(file)), text_(text), table_(table) {}

  void spell_keys(Spell spell) noexcept { spell_ = spell; }

  void read(const ConfigNode& root) { map({}, {}, root); }

  /// The value of the key with this path in the table, however it is spelled in the file.
  [[nodiscard]] const ConfigValue* find(std::string_view path) const {
    const auto found = values_.find(path);
    return found == values_.end() ? nullptr : &found->second;
  }

  /// What a value did, in the report: "bucket_bytes = 1000000000".
  void applied(const ConfigValue& value, std::string note) {
    say(value, ConfigOutcome::applied, std::move(note));
  }
  void without_effect(const ConfigValue& value, std::string reason) {
    say(value, ConfigOutcome::without_effect, std::move(reason));
  }
  /// Asks for what is not built; a problem, unless the user allows it.
  void refuse(const ConfigValue& value, std::string what) {
    say(value, ConfigOutcome::refused, std::move(what));
    refusals_.push_back(&value);
  }
  void problem(const ConfigValue& value, std::string message) {
    problem(value.offset, value.path, std::move(message));
  }
  void problem(std::size_t offset, std::string path, std::string message) {
    problems_.emplace_back(offset, make_problem(offset, std::move(path), std::move(message)));
  }
  /// Of the file as a whole.
  void problem(std::string message) {
    problems_.emplace_back(0, ConfigProblem{file_, 0, 0, {}, std::move(message)});
  }

  /// "z3.json:12:5: zero_optimization.stage".
  [[nodiscard]] std::string source(const ConfigValue& value) const {
    const TextPosition position = position_of(text_, value.offset);
    return format("{}:{}:{}: {}", file_, position.line, position.column, value.path);
  }

  /// Turns each refusal into a problem that says what would work; to be called once, last.
  void settle_refusals(bool allowed, std::string_view works) {
    for (const ConfigValue* value : refusals_) {
      ConfigKeyReport& report = reports_[value->report];
      if (allowed) {
        report.note += "; goes on without, as allowed";
        continue;
      }
      problem(*value,
              format("{} is refused: {} is not built yet; nearest file that works: shardwise's {}; "
                     "--allow-unsupported goes on without",
                     report.value, report.note, works));
    }
  }

  [[nodiscard]] bool failed() const noexcept { return !problems_.empty(); }
  /// In the file's order.
  [[nodiscard]] std::vector<ConfigProblem> problems() const {
    std::vector<std::pair<std::size_t, ConfigProblem>> sorted = problems_;
    std::stable_sort(sorted.begin(), sorted.end(),
                     [](const auto& a, const auto& b) { return a.first < b.first; });
    std::vector<ConfigProblem> result;
    result.reserve(sorted.size());
    for (auto& [offset, problem] : sorted) result.push_back(std::move(problem));
    return result;
  }
  [[nodiscard]] std::vector<ConfigKeyReport> take_reports() { return std::move(reports_); }

 private:
  [[nodiscard]] ConfigProblem make_problem(std::size_t offset, std::string path,
                                           std::string message) const {
    const TextPosition position = position_of(text_, offset);
    return {file_, position.line, position.column, std::move(path), std::move(message)};
  }
  void say(const ConfigValue& value, ConfigOutcome outcome, std::string note) {
    ConfigKeyReport& report = reports_[value.report];
    report.outcome = outcome;
    report.note = std::move(note);
  }

  [[nodiscard]] const ConfigKey* row(std::string_view path) const noexcept {
    const auto found = std::find_if(table_.begin(), table_.end(),
                                    [&](const ConfigKey& key) { return key.path == path; });
    return found == table_.end() ? nullptr : &*found;
  }
  // The last word of a path that lies directly below `parent`; empty where it does not.
  [[nodiscard]] static std::string_view child(std::string_view path, std::string_view parent) {
    if (!parent.empty()) {
      if (!path.starts_with(parent) || path.size() <= parent.size() || path[parent.size()] != '.') {
        return {};
      }
      path.remove_prefix(parent.size() + 1);
    }
    return path.find('.') == std::string_view::npos ? path : std::string_view();
  }

  // `path` is the table's, `spelled` the file's.
  void map(const std::string& path, const std::string& spelled, const ConfigNode& node) {
    std::map<std::string, std::size_t> seen;
    for (const ConfigMember& member : node.members) {
      const std::string shown = joined_path(spelled, member.key);
      if (const auto [first, fresh] = seen.emplace(member.key, member.offset); !fresh) {
        const TextPosition position = position_of(text_, first->second);
        problem(member.offset, shown,
                format("given twice; first at {}:{}", position.line, position.column));
        continue;
      }
      const std::string word = spell_ != nullptr ? spell_(path, member.key) : member.key;
      const std::string full = joined_path(path, word);
      const ConfigKey* key = word.find('.') == std::string::npos ? row(full) : nullptr;
      if (key != nullptr) {
        known(*key, full, shown, member);
      } else if (member.key.starts_with("_comment") || member.key.starts_with("x-")) {
        report(shown, member, ConfigOutcome::without_effect, "a comment");
        duplicates(shown, member.value);
      } else {
        unknown(path, word, shown, member);
      }
    }
  }

  void unknown(const std::string& path, const std::string& word, const std::string& shown,
               const ConfigMember& member) {
    // More of them are another kind of file; looking for what was meant takes time.
    if (++unknown_ > 100) return problem(member.offset, shown, "unknown key");
    std::vector<std::string_view> words;
    std::string elsewhere;
    for (const ConfigKey& key : table_) {
      const std::string_view last = child(key.path, path);
      if (!last.empty()) words.push_back(last);
      const std::string_view name = key.path.substr(key.path.rfind('.') + 1);
      if (elsewhere.empty() && name == word) elsewhere = key.path;
    }
    std::string meant = nearest_word(word, words);
    if (!elsewhere.empty() && (meant.empty() || edit_distance(word, meant) > 1)) meant = elsewhere;
    if (!meant.empty()) {
      problem(member.offset, shown, format("unknown key; did you mean \"{}\"?", meant));
    } else {
      problem(member.offset, shown, "unknown key; remove it, or call it x-... to keep it");
    }
  }

  std::size_t report(const std::string& shown, const ConfigMember& member, ConfigOutcome outcome,
                     std::string note) {
    const TextPosition position = position_of(text_, member.offset);
    reports_.push_back(
        {shown, member.value.shown(), position.line, position.column, outcome, std::move(note)});
    return reports_.size() - 1;
  }

  void known(const ConfigKey& key, const std::string& path, const std::string& shown,
             const ConfigMember& member) {
    const ConfigNode& node = member.value;
    if (node.kind == ConfigNode::Kind::null && key.nullable) {
      report(shown, member, ConfigOutcome::without_effect, "null: as if it were not there");
      return;
    }
    const bool grouped = node.kind == ConfigNode::Kind::map;
    if (key.kind == ConfigKind::map || (key.kind == ConfigKind::map_or_flag && grouped)) {
      if (node.kind == ConfigNode::Kind::map) {
        map(path, shown, node);
        if (node.members.empty()) {
          report(shown, member, ConfigOutcome::without_effect, "it has no keys");
        }
      } else {
        wrong_kind(shown, member, "a group of keys");
      }
      return;
    }
    ConfigValue value;
    value.key = &key;
    value.path = shown;
    // What is nothing, or a group, is shown by its key.
    value.offset = node.kind == ConfigNode::Kind::null ? member.offset : node.offset;
    if (!scan_value(node, value)) return wrong_kind(shown, member, expected_of(key));
    duplicates(shown, node);
    const std::string_view target = key.means.empty() ? std::string_view(path) : key.means;
    if (const ConfigValue* other = find(target)) {
      problem(member.offset, shown,
              format("given twice; it is another spelling of {}", other->path));
      return;
    }
    const bool harmful = key.outcome == ConfigOutcome::refused && !is_harmless(node, key);
    const bool plain = key.outcome == ConfigOutcome::refused && !harmful;
    value.report = report(shown, member, plain ? ConfigOutcome::without_effect : key.outcome,
                          plain ? "it asks for nothing" : std::string(key.note));
    const ConfigValue& kept = values_.emplace(std::string(target), std::move(value)).first->second;
    if (harmful) refusals_.push_back(&kept);
  }

  void wrong_kind(const std::string& shown, const ConfigMember& member, std::string_view expected) {
    const ConfigNode& node = member.value;
    const bool nothing = node.kind == ConfigNode::Kind::null;
    const std::string_view kind = node.kind == ConfigNode::Kind::map    ? "a group of keys"
                                  : node.kind == ConfigNode::Kind::list ? "a list"
                                                                        : std::string_view();
    problem(nothing ? member.offset : node.offset, shown,
            format("expected {}, found {}", expected,
                   kind.empty() ? (nothing ? "nothing (null)" : node.shown()) : kind));
  }

  // Of what is not read any further.
  void duplicates(const std::string& shown, const ConfigNode& node) {
    std::map<std::string, std::size_t> seen;
    for (const ConfigMember& member : node.members) {
      const std::string path = joined_path(shown, member.key);
      if (const auto [first, fresh] = seen.emplace(member.key, member.offset); !fresh) {
        const TextPosition position = position_of(text_, first->second);
        problem(member.offset, path,
                format("given twice; first at {}:{}", position.line, position.column));
      }
      duplicates(path, member.value);
    }
    for (std::size_t i = 0; i < node.items.size(); ++i) {
      duplicates(format("{}[{}]", shown, i), node.items[i]);
    }
  }

  std::string file_;
  std::string_view text_;
  std::span<const ConfigKey> table_;
  Spell spell_ = nullptr;
  std::size_t unknown_ = 0;
  std::map<std::string, ConfigValue, std::less<>> values_;
  std::vector<const ConfigValue*> refusals_;
  std::vector<ConfigKeyReport> reports_;
  std::vector<std::pair<std::size_t, ConfigProblem>> problems_;
};

}  // namespace detail
}  // namespace shardwise::inline v0_1
