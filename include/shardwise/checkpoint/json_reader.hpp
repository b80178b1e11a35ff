#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "../core/error.hpp"
#include "../core/utf8.hpp"
#include "byte_source.hpp"
#include "shown.hpp"

namespace shardwise::inline v0_1::detail {

/// Reads JSON (RFC 8259) from a part of a file as it goes, value by value, through a buffer of 64
/// KiB: the caller says what it expects next, and everything else is a FileError with the file, the
/// field and the byte. It never holds more than the string that it is asked for, and no string
/// longer than the caller allows.
class JsonReader {
 public:
  static constexpr std::size_t longest_key = std::size_t{1} << 16;
  static constexpr std::size_t deepest = 64;

  /// Reads [begin, end) of `source`, which must outlive it; `what` names that part ("header").
  JsonReader(ByteSource& source, std::uint64_t begin, std::uint64_t end, std::string what)
      : source_(source), what_(std::move(what)), next_(begin), end_(end) {}

  /// The value is an object; next_member() goes through it.
  void open_object() { open('{', "an object"); }
  /// Reads the next key, and stands before its value; false at the end of the object.
  bool next_member(std::string& key) {
    if (!next_element('}')) return false;
    if (peek() != '"') fail("expected a key in double quotes");
    read_string(key, longest_key, "a key");
    levels_.back().member = shown(key, 100);
    skip_blanks();
    if (peek() != ':') fail("expected a colon behind the key");
    take();
    return true;
  }
  /// The value is an array; next_item() goes through it.
  void open_array() { open('[', "an array"); }
  /// Stands before the next item; false at the end of the array.
  bool next_item() { return next_element(']'); }

  /// The value is a string of at most `longest` bytes, in UTF-8.
  void string(std::string& into, std::size_t longest) {
    skip_blanks();
    if (peek() != '"') fail_kind("a string");
    read_string(into, longest, "a string");
  }
  /// The value is an integer of 64 bits, not negative, without fraction or exponent.
  [[nodiscard]] std::uint64_t unsigned_integer() {
    skip_blanks();
    if (!is_digit(peek())) fail_kind("an integer that is not negative");
    std::uint64_t value = 0;
    const bool zero = peek() == '0';
    for (std::size_t digits = 0; is_digit(peek()); ++digits) {
      if (zero && digits > 0) fail("a number with a leading zero");
      const auto digit = static_cast<std::uint64_t>(take() - '0');
      if (__builtin_mul_overflow(value, std::uint64_t{10}, &value) ||
          __builtin_add_overflow(value, digit, &value)) {
        fail("the number does not fit in 64 bits");
      }
    }
    if (peek() == '.' || peek() == 'e' || peek() == 'E') {
      fail("expected an integer, found a number with a fraction or an exponent");
    }
    return value;
  }
  /// Any value; only its syntax is looked at.
  void skip_value() {
    skip_blanks();
    std::string ignored;
    switch (peek()) {
      case '{':
        open_object();
        while (next_member(ignored)) skip_value();
        return;
      case '[':
        open_array();
        while (next_item()) skip_value();
        return;
      case '"':
        read_string(ignored, std::size_t{1} << 20, "a string");
        return;
      case 't':
        return word("true");
      case 'f':
        return word("false");
      case 'n':
        return word("null");
      default:
        return skip_number();
    }
  }

  /// Nothing follows but blanks: any of JSON's, or spaces alone.
  void finish(bool spaces_alone) {
    if (spaces_alone) {
      while (peek() == ' ') take();
    } else {
      skip_blanks();
    }
    if (!ended()) {
      fail(spaces_alone ? "expected nothing but spaces behind the last }"
                        : "expected nothing behind the last }");
    }
  }

  /// FileError about the value, or the key, that was read last.
  [[noreturn]] void fail(std::string_view cause) {
    raise<FileError>("{}: {}: {} (byte {} of the file)", source_.name(), field(), cause, offset());
  }
  /// "header, wte.shape[1]".
  [[nodiscard]] std::string field() const {
    std::string path;
    for (const Level& level : levels_) {
      if (level.close == ']') {
        if (level.count > 0) path += detail::format("[{}]", level.count - 1);
      } else if (!level.member.empty()) {
        if (!path.empty()) path += '.';
        path += is_word(level.member) ? level.member : "'" + level.member + "'";
      }
    }
    return path.empty() ? what_ : what_ + ", " + path;
  }
  /// Of the next byte, in the file.
  [[nodiscard]] std::uint64_t offset() const noexcept { return next_ - (filled_ - at_); }

 private:
  struct Level {
    char close;
    std::size_t count = 0;    // of elements begun
    std::string member = {};  // the last key, as shown
  };

  [[nodiscard]] static bool is_digit(char c) noexcept { return c >= '0' && c <= '9'; }
  [[nodiscard]] static bool is_word(std::string_view text) noexcept {
    return std::all_of(text.begin(), text.end(), [](char c) {
      return is_digit(c) || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_';
    });
  }

  [[nodiscard]] bool ended() {
    if (at_ < filled_) return false;
    if (next_ == end_) return true;
    buffer_.resize(std::size_t{1} << 16);
    filled_ = static_cast<std::size_t>(std::min<std::uint64_t>(buffer_.size(), end_ - next_));
    source_.read(next_, std::as_writable_bytes(std::span(buffer_).first(filled_)));
    next_ += filled_;
    at_ = 0;
    return false;
  }
  /// NUL at the end: no value of JSON has one outside of a string.
  [[nodiscard]] char peek() { return ended() ? '\0' : buffer_[at_]; }
  char take() {
    if (ended()) fail("the text ends within a value");
    return buffer_[at_++];
  }
  void skip_blanks() {
    while (peek() == ' ' || peek() == '\n' || peek() == '\t' || peek() == '\r') take();
  }

  [[noreturn]] void fail_kind(std::string_view expected) {
    const char c = peek();
    const std::string_view found = ended()                   ? "the end of the text"
                                   : c == '"'                ? "a string"
                                   : c == '{'                ? "an object"
                                   : c == '['                ? "an array"
                                   : c == '-' || is_digit(c) ? "a number"
                                   : c == 't' || c == 'f'    ? "a truth value"
                                   : c == 'n'                ? "null"
                                                             : "no value of JSON";
    fail(detail::format("expected {}, found {}", expected, found));
  }

  void open(char bracket, std::string_view what) {
    skip_blanks();
    if (peek() != bracket) fail_kind(what);
    if (levels_.size() == deepest) fail(detail::format("more than {} levels", deepest));
    take();
    levels_.push_back({bracket == '{' ? '}' : ']'});
  }
  [[nodiscard]] bool next_element(char close) {
    skip_blanks();
    Level& level = levels_.back();
    if (peek() == close) {
      take();
      levels_.pop_back();
      return false;
    }
    if (ended()) fail(detail::format("the text ends before the closing {}", close));
    if (level.count > 0) {
      if (peek() != ',') fail(detail::format("expected a comma or {}", close));
      take();
      skip_blanks();
      if (peek() == close) fail(detail::format("a comma before {}", close));
    }
    ++level.count;
    return true;
  }

  void read_string(std::string& into, std::size_t longest, std::string_view what) {
    into.clear();
    take();
    while (true) {
      const char c = take();
      if (c == '"') break;
      if (static_cast<unsigned char>(c) < ' ') {
        fail("a control character within a string; JSON writes it as \\uXXXX");
      }
      if (c == '\\') {
        escape(into);
      } else {
        into += c;
      }
      if (into.size() > longest) fail(detail::format("{} of more than {} bytes", what, longest));
    }
    if (find_non_utf8(into)) fail(detail::format("{} that is not UTF-8, or has a NUL", what));
  }
  void escape(std::string& into) {
    const char c = take();
    constexpr std::string_view names = "\"\\/bfnrt";
    constexpr std::string_view meanings = "\"\\/\b\f\n\r\t";
    if (const std::size_t found = names.find(c); found != std::string_view::npos) {
      into += meanings[found];
      return;
    }
    if (c != 'u') fail("an unknown escape within a string");
    std::uint32_t code = hexadecimal();
    if (code >= 0xdc00 && code < 0xe000) fail("half a pair of surrogates within a string");
    if (code >= 0xd800 && code < 0xdc00) {
      if (take() != '\\' || take() != 'u') fail("half a pair of surrogates within a string");
      const std::uint32_t low = hexadecimal();
      if (low < 0xdc00 || low >= 0xe000) fail("half a pair of surrogates within a string");
      code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
    }
    append_utf8(into, code);
  }
  [[nodiscard]] std::uint32_t hexadecimal() {
    std::uint32_t code = 0;
    for (int i = 0; i < 4; ++i) {
      constexpr std::string_view digits = "0123456789abcdefABCDEF";
      const std::size_t digit = digits.find(take());
      if (digit == std::string_view::npos) fail("expected four hexadecimal digits behind \\u");
      code = code * 16 + static_cast<std::uint32_t>(digit < 16 ? digit : digit - 6);
    }
    return code;
  }
  static void append_utf8(std::string& into, std::uint32_t code) {
    const auto put = [&](std::uint32_t byte) { into += static_cast<char>(byte); };
    if (code < 0x80) {
      put(code);
    } else if (code < 0x800) {
      put(0xc0u | (code >> 6));
      put(0x80u | (code & 0x3fu));
    } else if (code < 0x10000) {
      put(0xe0u | (code >> 12));
      put(0x80u | ((code >> 6) & 0x3fu));
      put(0x80u | (code & 0x3fu));
    } else {
      put(0xf0u | (code >> 18));
      put(0x80u | ((code >> 12) & 0x3fu));
      put(0x80u | ((code >> 6) & 0x3fu));
      put(0x80u | (code & 0x3fu));
    }
  }

  void word(std::string_view text) {
    for (const char c : text) {
      if (peek() != c) fail("no value of JSON");
      take();
    }
  }
  void skip_number() {
    const auto digits = [&] {
      if (!is_digit(peek())) fail("no value of JSON");
      while (is_digit(peek())) take();
    };
    if (peek() == '-') take();
    if (peek() == '0') {
      take();
      if (is_digit(peek())) fail("a number with a leading zero");
    } else {
      digits();
    }
    if (peek() == '.') {
      take();
      digits();
    }
    if (peek() != 'e' && peek() != 'E') return;
    take();
    if (peek() == '+' || peek() == '-') take();
    digits();
  }

  ByteSource& source_;
  std::string what_;
  std::uint64_t next_;  // what is not in the buffer yet begins there
  std::uint64_t end_;
  std::vector<char> buffer_;
  std::size_t at_ = 0;
  std::size_t filled_ = 0;
  std::vector<Level> levels_;
};

}  // namespace shardwise::inline v0_1::detail
