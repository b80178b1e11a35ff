#pragma once

#include <catch2/catch_test_macros.hpp>
#include <cstdint>
#include <functional>
#include <shardwise/core/error.hpp>
#include <string>
#include <string_view>
#include <vector>

namespace shardwise::test {

/// Bytes that are not what they should be, and what the refusal must say of them.
struct Malformed {
  std::string name;
  std::string bytes;
  std::string field;  ///< stands right after the file's name
  std::string cause;  ///< somewhere behind
};

/// The message with which `read(bytes)` refuses; "" where it reads.
inline std::string refusal_of(const std::function<void(const std::string&)>& read,
                              const std::string& bytes) {
  try {
    read(bytes);
  } catch (const FileError& error) {
    return error.what();
  }
  return {};
}

/// Each is a FileError "file: field: ...cause...".
inline void check_refusals(const std::vector<Malformed>& cases,
                           const std::function<void(const std::string&)>& read) {
  for (const Malformed& one : cases) {
    INFO(one.name);
    const std::string message = refusal_of(read, one.bytes);
    INFO(message);
    CHECK(message.starts_with("file: " + one.field));
    CHECK(message.find(one.cause, 5 + one.field.size()) != std::string::npos);
  }
}

/// `text` with its only `from` as `to`.
inline std::string with(std::string text, std::string_view from, std::string_view to) {
  const std::size_t at = text.find(from);
  REQUIRE(at != std::string::npos);
  REQUIRE(text.find(from, at + 1) == std::string::npos);
  return text.replace(at, from.size(), to);
}

}  // namespace shardwise::test
