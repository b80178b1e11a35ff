#pragma once

#include <algorithm>
#include <cstddef>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "../core/format.hpp"
#include "document.hpp"
#include "number.hpp"

namespace shardwise::inline v0_1::detail {

/// Makes YAML of JSON as people write it, without moving a byte: comments (// and /* */, and #) and
/// commas before a closing bracket become blanks, and so do tabs. Everything else must be JSON; the
/// first thing that is not is the problem.
class JsonSyntax {
 public:
  /// `text` is a copy of `original`, which is UTF-8, and is edited in place.
  JsonSyntax(std::string_view original, std::string& text) : original_(original), text_(text) {}

  [[nodiscard]] std::optional<SyntaxProblem> check() {
    skip_blanks();
    if (at_ < text_.size() && text_[at_] != '{') {
      return SyntaxProblem{at_, {}, "expected { , a file of JSON is one object"};
    }
    if (!value()) return std::move(problem_);
    skip_blanks();
    if (!problem_ && at_ < text_.size()) fail(at_, "expected nothing more behind the last }");
    return std::move(problem_);
  }

 private:
  static constexpr int deepest = 64;
  static constexpr std::size_t longest_key = 1000;  // yaml-cpp takes 1024

  bool fail(std::size_t offset, std::string message) {
    if (!problem_) problem_ = SyntaxProblem{offset, path_, std::move(message)};
    return false;
  }
  [[nodiscard]] char peek() const noexcept { return at_ < text_.size() ? text_[at_] : '\0'; }
  [[nodiscard]] bool ended() const noexcept { return at_ >= text_.size(); }
  [[nodiscard]] std::string where(std::size_t offset) const {
    const TextPosition position = position_of(original_, offset);
    return format("{}:{}", position.line, position.column);
  }

  void blank(std::size_t begin, std::size_t end) {
    std::replace_if(
        text_.begin() + static_cast<std::ptrdiff_t>(begin),
        text_.begin() + static_cast<std::ptrdiff_t>(end), [](char c) { return c != '\n'; }, ' ');
  }

  void skip_blanks() {
    while (!ended()) {
      const char c = peek();
      if (c == ' ' || c == '\n') {
        ++at_;
      } else if (c == '\t' || c == '\r') {
        text_[at_++] = ' ';
      } else if (c == '#' || text_.compare(at_, 2, "//") == 0) {
        const std::size_t end = std::min(text_.find('\n', at_), text_.size());
        blank(at_, end);
        at_ = end;
      } else if (text_.compare(at_, 2, "/*") == 0) {
        const std::size_t end = text_.find("*/", at_ + 2);
        if (end == std::string::npos) {
          fail(at_, "the comment that begins here does not end");
          at_ = text_.size();
          return;
        }
        blank(at_, end + 2);
        at_ = end + 2;
      } else {
        return;
      }
    }
  }

  bool value() {
    if (problem_) return false;
    if (ended()) return fail(at_, "expected a value, found the end of the file");
    switch (peek()) {
      case '{':
        return container('{', '}');
      case '[':
        return container('[', ']');
      case '"':
        return string();
      case '\'':
        return fail(at_, "strings of JSON have double quotes");
      default:
        return number_or_word();
    }
  }

  bool container(char open, char close) {
    const std::size_t begin = at_++;
    if (++depth_ > deepest) return fail(begin, format("more than {} levels", deepest));
    const std::string parent = path_;
    constexpr auto none = std::string::npos;
    std::size_t comma = none;  // after the last element
    for (std::size_t index = 0;; ++index) {
      skip_blanks();
      if (problem_) return false;
      if (ended()) {
        return fail(at_, format("the file ends within the {} of {}", open, where(begin)));
      }
      if (peek() == close) {
        if (comma != none) text_[comma] = ' ';
        break;
      }
      if (index > 0 && comma == none) {
        return fail(at_, format("expected a comma or {}", close));
      }
      comma = none;
      if (open == '{') {
        if (!key(parent)) return false;
      } else {
        path_ = format("{}[{}]", parent, index);
      }
      if (!value()) return false;
      path_ = parent;
      skip_blanks();
      if (!problem_ && peek() == ',') comma = at_++;
    }
    ++at_;
    --depth_;
    return true;
  }

  bool key(const std::string& parent) {
    if (peek() != '"') {
      return fail(at_, peek() == ',' ? "one comma too many" : "expected a key in double quotes");
    }
    const std::size_t begin = at_;
    if (!string()) return false;
    const std::size_t end = at_;
    path_ = joined_path(parent, std::string_view(text_).substr(begin + 1, end - begin - 2));
    if (end - begin > longest_key) {
      return fail(begin, format("a key of more than {} bytes", longest_key));
    }
    skip_blanks();
    if (problem_) return false;
    if (peek() != ':') return fail(at_, "expected a colon behind the key");
    if (text_.find('\n', end) < at_) return fail(at_, "the colon belongs on the line of its key");
    ++at_;
    skip_blanks();
    return !problem_;
  }

  bool string() {
    const std::size_t begin = at_++;
    for (;; ++at_) {
      if (ended() || peek() == '\n') return fail(begin, "the string does not end on its line");
      if (peek() == '"') break;
      if (static_cast<unsigned char>(peek()) < ' ') {
        return fail(at_, "a control character within a string; write it as \\uXXXX");
      }
      if (peek() == '\\' && !escape()) return false;
    }
    ++at_;
    return true;
  }

  // Leaves at_ on the last character of the escape.
  bool escape() {
    constexpr std::string_view plain = "\"\\/bfnrt";
    const std::size_t begin = at_++;
    if (!ended() && plain.find(peek()) != std::string_view::npos) return true;
    const std::optional<unsigned> unit = hexadecimal();
    if (!unit)
      return fail(begin, "unknown escape; JSON has \\\" \\\\ \\/ \\b \\f \\n \\r \\t \\uXXXX");
    // yaml-cpp takes no surrogates. Nothing that configures has them: comments do.
    if (*unit >= 0xd800 && *unit < 0xe000) text_.replace(begin, 6, "\\uFFFD");
    at_ = begin + 5;
    return true;
  }

  // Of the uXXXX at at_.
  [[nodiscard]] std::optional<unsigned> hexadecimal() const {
    if (peek() != 'u' || at_ + 4 >= text_.size()) return std::nullopt;
    unsigned unit = 0;
    for (std::size_t i = at_ + 1; i < at_ + 5; ++i) {
      constexpr std::string_view digits = "0123456789abcdefABCDEF";
      const std::size_t digit = digits.find(text_[i]);
      if (digit == std::string_view::npos) return std::nullopt;
      unit = unit * 16 + static_cast<unsigned>(digit < 16 ? digit : digit - 6);
    }
    return unit;
  }

  bool number_or_word() {
    const std::size_t begin = at_;
    const auto belongs = [](char c) {
      return is_digit(c) || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '+' ||
             c == '-' || c == '.' || c == '_';
    };
    while (!ended() && belongs(peek())) ++at_;
    const std::string word = text_.substr(begin, at_ - begin);
    if (word.empty()) return fail(at_, "expected a value");
    if (word == "true" || word == "false" || word == "null") return true;
    if (word == "True" || word == "False" || word == "None") {
      return fail(begin, format("{} is Python; JSON has true, false and null", word));
    }
    if (is_number(word)) return true;
    return fail(begin, format("{} is no value of JSON; words have double quotes", word));
  }

  [[nodiscard]] static bool is_number(std::string_view word) noexcept {
    if (word.starts_with('-')) word.remove_prefix(1);
    const auto digits = [&] {
      std::size_t count = 0;
      while (count < word.size() && is_digit(word[count])) ++count;
      word.remove_prefix(count);
      return count;
    };
    const bool zero = word.starts_with('0');
    const std::size_t whole = digits();
    if (whole == 0 || (zero && whole > 1)) return false;
    if (word.starts_with('.')) {
      word.remove_prefix(1);
      if (digits() == 0) return false;
    }
    if (word.starts_with('e') || word.starts_with('E')) {
      word.remove_prefix(1);
      if (word.starts_with('+') || word.starts_with('-')) word.remove_prefix(1);
      if (digits() == 0) return false;
    }
    return word.empty();
  }

  std::string_view original_;
  std::string& text_;
  std::size_t at_ = 0;
  int depth_ = 0;
  std::string path_;
  std::optional<SyntaxProblem> problem_;
};

}  // namespace shardwise::inline v0_1::detail
