#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "../core/format.hpp"
#include "document.hpp"
#include "key.hpp"
#include "number.hpp"
#include "problem.hpp"
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

/// A value of a file that is of its key's kind and domain.
struct ConfigValue {
  const ConfigKey* key = nullptr;
  std::string path;  ///< as it is spelled in the file
  std::size_t offset = 0;
  bool automatic = false;
  bool flag = false;
  std::uint64_t count = 0;
  double number = 0;
  std::string text;        ///< of a scalar; words are in lower case
  std::size_t report = 0;  ///< index of its report
};

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
  /// True where a boolean is there, and true.
  [[nodiscard]] bool is_true(std::string_view path) const {
    const ConfigValue* value = find(path);
    return value != nullptr && value->flag;
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
    if (!scan(node, member, value)) return;
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

  [[nodiscard]] static bool is_harmless(const ConfigNode& node, const ConfigKey& key) {
    if (node.kind == ConfigNode::Kind::map) return node.members.empty();
    if (node.kind == ConfigNode::Kind::list) return node.items.empty();
    std::string_view rest = key.harmless;
    while (!rest.empty()) {
      const std::size_t end = std::min(rest.find('|'), rest.size());
      if (lower_case(node.text) == rest.substr(0, end)) return true;
      rest.remove_prefix(std::min(end + 1, rest.size()));
    }
    return false;
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

  [[nodiscard]] static std::string lower_case(std::string_view text) {
    std::string result(text);
    for (char& c : result) {
      if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
    }
    return result;
  }

  // Limits of a numeric domain.
  struct Range {
    double least = -std::numeric_limits<double>::infinity();
    double most = std::numeric_limits<double>::infinity();
    bool above = false;  // the least is not of it
    [[nodiscard]] bool has(double value) const noexcept {
      return value <= most && (above ? value > least : value >= least);
    }
  };
  [[nodiscard]] static Range range_of(std::string_view domain) {
    Range range;
    const std::size_t dots = domain.find("..");
    if (dots == std::string_view::npos) return range;
    std::string_view first = domain.substr(0, dots);
    if (first.ends_with('<')) {
      range.above = true;
      first.remove_suffix(1);
    }
    range.least = parse_number(first).value_or(range.least);
    range.most = parse_number(domain.substr(dots + 2)).value_or(range.most);
    return range;
  }
  [[nodiscard]] static std::string range_text(std::string_view domain) {
    const Range range = range_of(domain);
    if (range.above) return format("above {}", range.least);
    if (range.most == std::numeric_limits<double>::infinity()) {
      return format("{} or more", range.least);
    }
    return format("from {} to {}", range.least, range.most);
  }

  // Whether `node` is what the key wants; a problem where it is not.
  bool scan(const ConfigNode& node, const ConfigMember& member, ConfigValue& value) {
    const ConfigKey& key = *value.key;
    const std::string expected = expected_of(key);
    const auto wrong = [&] {
      wrong_kind(value.path, member, expected);
      return false;
    };
    const bool scalar = node.kind == ConfigNode::Kind::scalar;
    value.text = node.text;
    if (scalar && key.automatic && node.text == "auto") {
      value.automatic = true;
      return true;
    }
    switch (key.kind) {
      case ConfigKind::boolean:
      case ConfigKind::map_or_flag:
        if (!scalar || node.quoted || (node.text != "true" && node.text != "false")) return wrong();
        value.flag = node.text == "true";
        return true;
      case ConfigKind::yes_no: {
        if (!scalar) return wrong();
        const std::string word = lower_case(node.text);
        value.flag = word == "true" || word == "yes" || word == "on" || word == "1";
        return value.flag || word == "false" || word == "no" || word == "off" || word == "0" ||
               wrong();
      }
      case ConfigKind::integer:
      case ConfigKind::bytes:
        return (scalar && integer(node, value)) || wrong();
      case ConfigKind::number: {
        const std::optional<double> number =
            scalar && !node.quoted ? parse_number(node.text) : std::nullopt;
        value.number = number.value_or(0);
        return (number && range_of(key.domain).has(*number)) || wrong();
      }
      case ConfigKind::word:
        value.text = lower_case(node.text);
        return (scalar && in_words(value.text, key.domain)) || wrong();
      case ConfigKind::text:
        return scalar || wrong();
      case ConfigKind::list:
        duplicates(value.path, node);
        return node.kind == ConfigNode::Kind::list || wrong();
      case ConfigKind::map:
      case ConfigKind::free_map:
        duplicates(value.path, node);
        return node.kind == ConfigNode::Kind::map || wrong();
      case ConfigKind::value:
        duplicates(value.path, node);
        return true;
    }
    return wrong();
  }

  [[nodiscard]] bool integer(const ConfigNode& node, ConfigValue& value) const {
    const ConfigKey& key = *value.key;
    if (node.quoted) return false;
    const bool negative = node.text.starts_with('-');
    const std::string_view digits = std::string_view(node.text).substr(negative ? 1 : 0);
    const std::optional<std::uint64_t> count =
        key.kind == ConfigKind::bytes && !negative ? parse_bytes(digits) : parse_count(digits);
    constexpr auto largest = static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max());
    if (!count || *count > largest) return false;
    value.number = static_cast<double>(*count) * (negative ? -1 : 1);
    value.count = negative ? 0 : *count;
    return range_of(key.domain).has(value.number);
  }

  [[nodiscard]] static bool in_words(std::string_view word, std::string_view domain) {
    while (!domain.empty()) {
      const std::size_t end = std::min(domain.find('|'), domain.size());
      if (word == lower_case(domain.substr(0, end))) return true;
      domain.remove_prefix(std::min(end + 1, domain.size()));
    }
    return false;
  }

 public:
  /// "an integer, 0 or more, or "auto"".
  [[nodiscard]] static std::string expected_of(const ConfigKey& key) {
    std::string text;
    switch (key.kind) {
      case ConfigKind::boolean:
        text = "true or false";
        break;
      case ConfigKind::yes_no:
        text = "yes or no";
        break;
      case ConfigKind::integer:
      case ConfigKind::bytes:
      case ConfigKind::number:
        text = key.kind == ConfigKind::integer ? "an integer"
               : key.kind == ConfigKind::bytes ? "bytes (a number, or as 25MiB)"
                                               : "a number";
        if (!key.domain.empty()) text += ", " + range_text(key.domain);
        break;
      case ConfigKind::word:
        for (const char c : key.domain) text += c == '|' ? std::string(", ") : std::string(1, c);
        text = "one of " + text;
        break;
      case ConfigKind::text:
        text = "a text";
        break;
      case ConfigKind::list:
        text = "a list";
        break;
      case ConfigKind::map_or_flag:
        text = "a group of keys, or true or false";
        break;
      case ConfigKind::map:
      case ConfigKind::free_map:
        text = "a group of keys";
        break;
      case ConfigKind::value:
        text = "any value";
        break;
    }
    return key.automatic ? text + ", or \"auto\"" : text;
  }

 private:
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
  std::map<std::string, ConfigValue, std::less<>> values_;
  std::vector<const ConfigValue*> refusals_;
  std::vector<ConfigKeyReport> reports_;
  std::vector<std::pair<std::size_t, ConfigProblem>> problems_;
};

}  // namespace detail
}  // namespace shardwise::inline v0_1
