#pragma once

#include <yaml-cpp/emitterstyle.h>
#include <yaml-cpp/eventhandler.h>
#include <yaml-cpp/exceptions.h>
#include <yaml-cpp/mark.h>
#include <yaml-cpp/parser.h>

#include <algorithm>
#include <cstddef>
#include <istream>
#include <optional>
#include <streambuf>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "../core/format.hpp"
#include "document.hpp"

namespace shardwise::inline v0_1::detail {

/// A file of YAML as a tree. Anchors, aliases and tags are refused: a configuration is what it
/// looks like, and no few lines of it are gigabytes.
class YamlReader final : public YAML::EventHandler {
 public:
  /// The tree of `text`, which is UTF-8; without one there is a problem.
  [[nodiscard]] static std::optional<ConfigNode> read(std::string_view text,
                                                      std::optional<SyntaxProblem>& problem) {
    YamlReader reader(text);
    try {
      View view(text);
      std::istream stream(&view);
      YAML::Parser parser(stream);
      if (parser.HandleNextDocument(reader)) {
        reader.more_ = true;
        if (!reader.problem_) parser.HandleNextDocument(reader);
      }
    } catch (const YAML::Exception& error) {
      reader.fail(error.mark, error.msg);
    }
    problem = std::move(reader.problem_);
    if (problem) return std::nullopt;
    return std::move(reader.root_);
  }

  void OnDocumentStart(const YAML::Mark& mark) override {
    if (more_) fail(mark, "a second document begins here; a configuration is one");
  }
  void OnDocumentEnd() override {}

  void OnNull(const YAML::Mark& mark, YAML::anchor_t anchor) override {
    if (!plain(mark, "?", anchor)) return;
    ConfigNode node;
    node.offset = offset_of(mark);
    add(std::move(node), mark);
  }
  void OnAlias(const YAML::Mark& mark, YAML::anchor_t) override {
    fail(mark, "aliases are not read here; write the value out");
  }
  void OnScalar(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                const std::string& value) override {
    if (!plain(mark, tag, anchor)) return;
    if (tag == "!" && !ends_its_quotes(offset_of(mark))) {
      return fail(mark, "the quotes that begin here do not end");
    }
    ConfigNode node;
    node.kind = ConfigNode::Kind::scalar;
    node.quoted = tag == "!";
    node.offset = offset_of(mark);
    node.text = value;
    add(std::move(node), mark);
  }
  void OnSequenceStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                       YAML::EmitterStyle::value) override {
    open(mark, tag, anchor, ConfigNode::Kind::list);
  }
  void OnSequenceEnd() override { close(); }
  void OnMapStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                  YAML::EmitterStyle::value) override {
    open(mark, tag, anchor, ConfigNode::Kind::map);
  }
  void OnMapEnd() override { close(); }

 private:
  explicit YamlReader(std::string_view text) : text_(text) {}

  struct View : std::streambuf {
    explicit View(std::string_view text) {
      // Never written to: there is no way to put back another character.
      char* begin = const_cast<char*>(text.data());
      setg(begin, begin, begin + text.size());
    }
  };
  struct Open {
    ConfigNode* node;
    std::optional<ConfigMember> key;  // waits for its value
    std::string path;
  };

  [[nodiscard]] static std::size_t offset_of(const YAML::Mark& mark) noexcept {
    return static_cast<std::size_t>(std::max(mark.pos, 0));
  }

  // yaml-cpp takes the end of the file behind an end of line for the end of quotes.
  [[nodiscard]] bool ends_its_quotes(std::size_t offset) const noexcept {
    if (offset >= text_.size()) return false;
    const char quote = text_[offset];
    if (quote != '"' && quote != '\'') return true;  // a block
    for (std::size_t i = offset + 1; i < text_.size(); ++i) {
      if (quote == '"' && text_[i] == '\\') {
        ++i;
      } else if (text_[i] == quote) {
        if (quote == '"' || i + 1 == text_.size() || text_[i + 1] != quote) return true;
        ++i;
      }
    }
    return false;
  }

  void fail(const YAML::Mark& mark, std::string message) {
    if (problem_) return;
    std::string path;
    if (!open_.empty()) {
      const Open& last = open_.back();
      path = last.key ? joined_path(last.path, last.key->key) : last.path;
    }
    problem_ = SyntaxProblem{offset_of(mark), std::move(path), std::move(message)};
  }

  [[nodiscard]] bool plain(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor) {
    if (anchor != 0) fail(mark, "anchors are not read here; write values out where they are used");
    if (!tag.empty() && tag != "?" && tag != "!") {
      fail(mark, format("the tag {} is not read here", tag));
    }
    return !problem_;
  }

  void open(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
            ConfigNode::Kind kind) {
    if (!plain(mark, tag, anchor)) return;
    ConfigNode node;
    node.kind = kind;
    node.offset = offset_of(mark);
    std::string path;
    if (!open_.empty()) {
      const Open& last = open_.back();
      path = last.node->kind == ConfigNode::Kind::list
                 ? format("{}[{}]", last.path, last.node->items.size())
                 : joined_path(last.path, last.key ? last.key->key : "");
    }
    ConfigNode* stored = add(std::move(node), mark);
    if (stored != nullptr) open_.push_back({stored, std::nullopt, std::move(path)});
  }

  void close() {
    if (!problem_) open_.pop_back();
  }

  // Where it is kept; null for a key. A node grows only while it is the last of open_, so that
  // those above it stay where they are.
  ConfigNode* add(ConfigNode node, const YAML::Mark& mark) {
    if (open_.empty()) {
      root_ = std::move(node);
      return &*root_;
    }
    Open& last = open_.back();
    if (last.node->kind == ConfigNode::Kind::list) {
      return &last.node->items.emplace_back(std::move(node));
    }
    if (!last.key) {
      if (node.kind != ConfigNode::Kind::scalar) {
        fail(mark, "a key is one word");
        return nullptr;
      }
      last.key.emplace(ConfigMember{std::move(node.text), node.offset, {}});
      return nullptr;
    }
    ConfigMember& member = last.node->members.emplace_back(std::move(*last.key));
    last.key.reset();
    member.value = std::move(node);
    return &member.value;
  }

  std::string_view text_;
  std::optional<ConfigNode> root_;
  std::vector<Open> open_;
  std::optional<SyntaxProblem> problem_;
  bool more_ = false;
};

}  // namespace shardwise::inline v0_1::detail
