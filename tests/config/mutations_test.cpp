// Every valid file, with one fault at a time: each is refused, by the path and the place of the
// fault.
#include <algorithm>
#include <catch2/catch_test_macros.hpp>
#include <cstddef>
#include <cstdio>
#include <map>
#include <optional>
#include <shardwise/config.hpp>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "fixtures.hpp"
#include "support/sanitized.hpp"

using namespace shardwise;
using namespace shardwise::test;
using namespace shardwise::detail;

namespace {

struct Fault {
  std::string kind;
  std::string text;
  std::string path;
  std::size_t offset;   // in text, where it must be found
  std::string message;  // that it must have
};

// A valid text, and one fault of each kind at each of its keys.
class Mutations {
 public:
  Mutations(std::string text, ConfigForm form)
      : text_(std::move(text)), form_(form), json_(is_json(text_)) {
    visit(parse_document(text_, "f"), {}, {});
    if (json_) add_syntax_of_json();
  }
  [[nodiscard]] const std::vector<Fault>& faults() const { return faults_; }

 private:
  void visit(const ConfigNode& map, const std::string& path, const std::string& shown) {
    for (const ConfigMember& member : map.members) {
      if (member.key.starts_with("_comment") || member.key.starts_with("x-")) continue;
      std::string word = member.key;
      if (form_ == ConfigForm::accelerate) word = AccelerateRules::spell(path, member.key);
      const std::string full = joined_path(path, word);
      const std::string here = joined_path(shown, member.key);
      const ConfigKey* key = nullptr;
      for (const ConfigKey& row : keys_of(form_)) {
        if (row.path == full) key = &row;
      }
      REQUIRE(key != nullptr);
      add_typos(member, shown);
      add_duplicate(member, here);
      if (member.value.kind == ConfigNode::Kind::map && key->kind != ConfigKind::free_map) {
        add(here, member.value.offset, "kind", json_ ? "3" : "3\n", span_of(member.value),
            "expected a group");
        visit(member.value, full, here);
        continue;
      }
      add_values(*key, member, here);
      if (!json_) add_syntax_of_yaml(member, here);
    }
  }

  // Of each key: a letter too many, one too few, two swapped, another one.
  void add_typos(const ConfigMember& member, const std::string& shown) {
    const std::size_t quote = text_[member.offset] == '"' ? 1 : 0;
    const std::string& key = member.key;
    const std::size_t middle = key.size() / 2;
    std::vector<std::string> typos = {key, key, key, key};
    typos[0].insert(middle, "q");
    typos[1].erase(middle, 1);
    std::swap(typos[2][middle - 1], typos[2][middle]);
    typos[3][middle] = 'q';
    for (const std::string& typo : typos) {
      if (typo == key) continue;
      std::string text = text_;
      text.replace(member.offset + quote, key.size(), typo);
      faults_.push_back(
          {"typo", std::move(text), joined_path(shown, typo), member.offset, "unknown key"});
    }
  }

  void add_duplicate(const ConfigMember& member, const std::string& here) {
    const std::size_t end = member.value.offset + span_of(member.value);
    std::string copy = text_.substr(member.offset, end - member.offset);
    if (json_) {
      copy += ", ";
    } else {
      // A key of a block begins its line.
      const std::size_t line = text_.rfind('\n', member.offset);
      const std::size_t indent = member.offset - (line == std::string::npos ? 0 : line + 1);
      if (!copy.ends_with('\n')) copy += '\n';
      copy += std::string(indent, ' ');
    }
    std::string text = text_;
    text.insert(member.offset, copy);
    faults_.push_back(
        {"duplicate", std::move(text), here, member.offset + copy.size(), "given twice"});
  }

  void add_values(const ConfigKey& key, const ConfigMember& member, const std::string& here) {
    const std::size_t span = span_of(member.value);
    const auto put = [&](const char* kind, const std::string& value) {
      add(here, member.value.offset, kind, value, span, "expected ");
    };
    const bool number = key.kind == ConfigKind::integer || key.kind == ConfigKind::number ||
                        key.kind == ConfigKind::bytes;
    switch (key.kind) {
      case ConfigKind::value:
        return;
      case ConfigKind::list:
      case ConfigKind::free_map:
        put("kind", "3");
        return;
      case ConfigKind::text:
        put("kind", "[3]");
        return;
      default:
        put("kind", "[3]");
        put("kind", "{\"q\": 3}");
        put("word", "\"bogus\"");
    }
    if (!number) return;
    put("word", json_ ? "true" : "yes");
    put("word", "\"3\"");  // a text is no number
    const std::string_view domain = key.domain;
    const std::size_t dots = domain.find("..");
    REQUIRE(dots != std::string_view::npos);
    const std::string least(domain.substr(0, dots));
    put("range", least.ends_with('<') ? "0" : least == "0" ? "-1" : least == "-1" ? "-2" : "0");
    if (dots + 2 < domain.size()) put("range", std::string(domain.substr(dots + 2)) + "1");
    if (key.kind == ConfigKind::integer) {
      put("range", "1.5");
      put("range", "5e-8");
      put("range", "1e30");
    } else {
      put("range", "1e999");
    }
  }

  void add(const std::string& path, std::size_t offset, const char* kind, const std::string& value,
           std::size_t span, const char* message) {
    std::string text = text_;
    text.replace(offset, span, value);
    faults_.push_back({kind, std::move(text), path, offset, message});
  }

  // Bytes of a value in the text.
  [[nodiscard]] std::size_t span_of(const ConfigNode& node) const {
    const std::size_t begin = node.offset;
    if (node.kind == ConfigNode::Kind::null) return 0;
    if (text_[begin] == '"' || text_[begin] == '\'') {
      return text_.find(text_[begin], begin + 1) + 1 - begin;
    }
    if (text_[begin] == '{' || text_[begin] == '[') {
      int depth = 0;
      for (std::size_t i = begin;; ++i) {
        if (text_[i] == '{' || text_[i] == '[') ++depth;
        if ((text_[i] == '}' || text_[i] == ']') && --depth == 0) return i + 1 - begin;
      }
    }
    if (node.kind == ConfigNode::Kind::map) {  // a block: as long as lines are indented as it is
      const std::size_t indent = begin - (text_.rfind('\n', begin) + 1);
      std::size_t end = text_.find('\n', begin) + 1;
      while (end < text_.size() && text_.compare(end, indent, std::string(indent, ' ')) == 0) {
        end = text_.find('\n', end) + 1;
      }
      return end - begin;
    }
    return std::min(text_.find_first_of(json_ ? ",}] \n" : "\n#", begin), text_.size()) - begin;
  }

  // Without the colon, without the comma before it, with words without quotes.
  void add_syntax_of_json() {
    visit_syntax(parse_document(text_, "f"), {});
    std::string open = text_.substr(0, text_.rfind('}'));
    faults_.push_back({"syntax", open, "", open.size(), "the file ends within"});
    faults_.push_back({"syntax", text_ + "}", "", text_.size(), "expected nothing more"});
  }
  void visit_syntax(const ConfigNode& map, const std::string& path) {
    for (std::size_t i = 0; i < map.members.size(); ++i) {
      const ConfigMember& member = map.members[i];
      const std::string here = joined_path(path, member.key);
      std::string text = text_;
      text.erase(text.find(':', member.offset + member.key.size()), 1);
      faults_.push_back({"syntax", text, here, member.value.offset - 1, "expected a colon"});
      text = text_;
      text.erase(member.offset, 1);
      faults_.push_back({"syntax", text, path, member.offset, "expected a key in double quotes"});
      if (i > 0) {
        const ConfigNode& before = map.members[i - 1].value;
        text = text_;
        text.erase(text.find(',', before.offset + span_of(before)), 1);
        faults_.push_back({"syntax", text, path, member.offset - 1, "expected a comma"});
      }
      if (member.value.kind == ConfigNode::Kind::scalar) {
        add(here, member.value.offset, "syntax", "bogus", span_of(member.value),
            "bogus is no value of JSON");
      }
      visit_syntax(member.value, here);
    }
  }

  void add_syntax_of_yaml(const ConfigMember& member, const std::string& here) {
    const std::size_t span = span_of(member.value);
    add(here, member.value.offset, "syntax", "&a 1", span, "anchors are not read");
    add(here, member.value.offset, "syntax", "@x", span, "");
    add(here, member.value.offset, "syntax", "!!str 1", span, "the tag");
  }

  std::string text_;
  ConfigForm form_;
  bool json_;
  std::vector<Fault> faults_;
};

}  // namespace

TEST_CASE("a fault is refused by its path and place, wherever it is") {
  std::map<std::string, std::size_t> counts;
  std::size_t all = 0;
  std::vector<std::string> files;
  for (const std::string& name : fixtures_that_load()) files.push_back(fixture(name));
  for (const char* name : {"zero3.yaml", "ddp.yaml", "deepspeed_zero2.json"}) {
    files.push_back(project_file("examples/configs/" + std::string(name)));
  }
  for (const std::string& file : files) {
    INFO(file);
    const std::string text = read_text(file);
    const ConfigForm form = parse_config(text, "f", all_hints()).form();
    const Mutations mutations(text, form);
    std::size_t index = 0;
    for (const Fault& fault : mutations.faults()) {
      if (sanitized && ++index % 4 != 0) continue;
      INFO(fault.kind << " at " << fault.path << ":\n" << fault.text);
      const std::vector<ConfigProblem> problems = problems_of(fault.text);
      REQUIRE_FALSE(problems.empty());
      const TextPosition expected = position_of(fault.text, fault.offset);
      const auto found =
          std::find_if(problems.begin(), problems.end(), [&](const ConfigProblem& problem) {
            return problem.path == fault.path && problem.line == expected.line &&
                   problem.column == expected.column &&
                   problem.message.find(fault.message) != std::string::npos;
          });
      INFO("first problem: " << problems[0].text());
      INFO("expected at " << expected.line << ":" << expected.column);
      CHECK(found != problems.end());
      ++counts[fault.kind];
      ++all;
    }
  }
  std::printf("%zu faults are refused where they are:", all);
  for (const auto& [kind, count] : counts) std::printf(" %s %zu", kind.c_str(), count);
  std::printf("\n");
  CHECK(all >= 150);
  for (const char* kind : {"typo", "duplicate", "kind", "word", "range", "syntax"}) {
    INFO(kind);
    CHECK(counts[kind] >= 20);
  }
}
