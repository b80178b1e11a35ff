#include <algorithm>
#include <catch2/catch_test_macros.hpp>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "malformed.hpp"
#include "memory_source.hpp"
#include "shardwise/checkpoint/safetensors_reader.hpp"
#include "support/heap.hpp"
#include "support/sanitized.hpp"

namespace {

using namespace shardwise;
using test::Malformed;

std::string length_of(std::uint64_t length) {
  std::string bytes(8, '\0');
  for (std::size_t i = 0; i < 8; ++i) bytes[i] = static_cast<char>((length >> (8 * i)) & 0xffu);
  return bytes;
}
// A file with this header and so many bytes of data.
std::string file(std::string_view header, std::size_t data = 0) {
  return length_of(header.size()) + std::string(header) + std::string(data, 'x');
}
// One tensor "w", F32 [2], with a member replaced or added.
std::string tensor(std::string_view dtype, std::string_view shape, std::string_view offsets,
                   std::size_t data = 8) {
  return file("{\"w\":{\"dtype\":" + std::string(dtype) + ",\"shape\":" + std::string(shape) +
                  ",\"data_offsets\":" + std::string(offsets) + "}}",
              data);
}
std::string tensors(std::string_view a, std::string_view b, std::size_t data) {
  const auto one = [](std::string_view name, std::string_view offsets) {
    return "\"" + std::string(name) +
           "\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":" + std::string(offsets) + "}";
  };
  return file("{" + one("a", a) + "," + one("b", b) + "}", data);
}

void read(const std::string& bytes) {
  test::MemorySource source(bytes);
  (void)read_safetensors_header(source);
}

TEST_CASE("what the malformed files are made of is read") {
  CHECK(test::refusal_of(read, tensor("\"F32\"", "[2]", "[0,8]")).empty());
  CHECK(test::refusal_of(read, tensors("[0,4]", "[4,8]", 8)).empty());
  CHECK(test::refusal_of(read, tensors("[4,8]", "[0,4]", 8)).empty());
  CHECK(test::refusal_of(read, file("{}")).empty());
  CHECK(test::refusal_of(read, file("{}   ")).empty());
  CHECK(test::refusal_of(read, file(R"({"__metadata__":{"a":"b"}})")).empty());
}

TEST_CASE("a length that is not the header's") {
  test::check_refusals(
      {
          {"an empty file", "", "header length", "the file has 0 bytes"},
          {"seven bytes", std::string(7, '\2'), "header length", "the file has 7 bytes"},
          {"no header", length_of(0), "header", "empty"},
          {"no header, but data", length_of(0) + "xxxx", "header", "empty"},
          {"cut short", length_of(3) + "{}", "header length", "only 2 follow"},
          {"all ones", std::string(16, '\xff'), "header length", "the format allows 100000000"},
          {"more than allowed", length_of(100'000'001) + "{}", "header length", "100000001 bytes"},
          {"as much as allowed, cut short", length_of(100'000'000) + "{}", "header length",
           "only 2 follow"},
          {"big-endian", std::string("\0\0\0\0\0\0\0\2{}", 10), "header length", "format allows"},
          {"HTML instead", "<!DOCTYPE html><html>Not found</html>", "header length",
           "Is it a safetensors file?"},
          {"a pickle instead", std::string("PK\3\4\0\0\10\10\0\0\0\0\0\0\0\0", 16), "header length",
           "Is it a safetensors file?"},
          {"a pointer of Git LFS", "version https://git-lfs.github.com/spec/v1\n", "header length",
           "Is it a safetensors file?"},
      },
      read);
}

TEST_CASE("a header that is no JSON") {
  test::check_refusals(
      {
          {"a blank first", file(" {}"), "header", "expected { as its first byte"},
          {"an array", file("[]"), "header", "expected { as its first byte"},
          {"a byte order mark", file("\xef\xbb\xbf{}"), "header", "expected { as its first byte"},
          {"spaces alone", file("    "), "header", "expected { as its first byte"},
          {"no end", file("{"), "header", "the text ends before the closing }"},
          {"no end after blanks", file("{   "), "header", "the text ends before the closing }"},
          {"no end of a key", file("{\"w"), "header", "the text ends within a value"},
          {"no value", file("{\"w\":"), "header, w", "expected an object, found the end"},
          {"no end of an object", file("{\"w\":{"), "header, w", "ends before the closing }"},
          {"no end of an array", file("{\"w\":{\"shape\":["), "header, w.shape",
           "ends before the closing ]"},
          {"no end of a number", file("{\"w\":{\"shape\":[1"), "header, w.shape[0]",
           "ends before the closing ]"},
          {"a comma too many", file("{\"__metadata__\":{},}"), "header", "a comma before }"},
          {"a comma first", file("{,}"), "header", "expected a key"},
          {"no comma", file("{\"__metadata__\":{} \"w\":{}}"), "header, __metadata__",
           "expected a comma"},
          {"no colon", file("{\"w\" {}}"), "header, w", "expected a colon"},
          {"a key without quotes", file("{w:{}}"), "header", "expected a key in double quotes"},
          {"a key with single quotes", file("{'w':{}}"), "header",
           "expected a key in double quotes"},
          {"a number as key", file("{1:{}}"), "header", "expected a key in double quotes"},
          {"a comment", file("{/**/}"), "header", "expected a key"},
          {"two objects", file("{}{}"), "header", "nothing but spaces"},
          {"text behind it", file("{}x"), "header", "nothing but spaces"},
          {"zeros behind it", file(std::string("{}\0\0", 4)), "header", "nothing but spaces"},
          {"a line feed behind it", file("{}\n"), "header", "nothing but spaces"},
          {"a NUL within it", file(std::string("{\0}", 3)), "header", "expected a key"},
          {"the wrong bracket", file("{\"w\":{]}"), "header, w", "expected a key"},
      },
      read);
}

TEST_CASE("names that are no text") {
  const auto named = [](std::string_view name) {
    return file("{\"" + std::string(name) + "\":{}}");
  };
  test::check_refusals(
      {
          {"not UTF-8", named("\xff"), "header", "not UTF-8"},
          {"Latin-1", named("caf\xe9"), "header", "not UTF-8"},
          {"an overlong form", named("\xc0\xaf"), "header", "not UTF-8"},
          {"an overlong form of three", named("\xe0\x80\xaf"), "header", "not UTF-8"},
          {"a surrogate", named("\xed\xa0\x80"), "header", "not UTF-8"},
          {"beyond Unicode", named("\xf4\x90\x80\x80"), "header", "not UTF-8"},
          {"cut within a character", named("\xe2\x82"), "header", "not UTF-8"},
          {"half a pair", named("\\ud800"), "header", "surrogates"},
          {"half a pair and a letter", named("\\ud800x"), "header", "surrogates"},
          {"the second half alone", named("\\udc00"), "header", "surrogates"},
          {"two first halves", named("\\ud800\\ud800"), "header", "surrogates"},
          {"a NUL", named("a\\u0000b"), "header", "NUL"},
          {"an unknown escape", named("\\x41"), "header", "unknown escape"},
          {"three digits", named("\\u004"), "header", "four hexadecimal digits"},
          {"a tabulator", named("a\tb"), "header", "control character"},
          {"a line feed", named("a\nb"), "header", "control character"},
          {"too long", named(std::string(65537, 'a')), "header", "a key of more than 65536 bytes"},
      },
      read);
}

TEST_CASE("members of a tensor that are not as the format has them") {
  const std::string f32 = "\"F32\"";
  test::check_refusals(
      {
          {"no object", file("{\"w\":[]}"), "header, w", "expected an object, found an array"},
          {"a text", file("{\"w\":\"F32\"}"), "header, w", "expected an object, found a string"},
          {"null", file("{\"w\":null}"), "header, w", "expected an object, found null"},
          {"a number", file("{\"w\":1}"), "header, w", "expected an object, found a number"},
          {"no word of JSON", file("{\"w\":nan}"), "header, w", "expected an object"},
          {"no members", file("{\"w\":{}}"), "tensor 'w', dtype", "missing"},
          {"no dtype", file(R"({"w":{"shape":[2],"data_offsets":[0,8]}})", 8), "tensor 'w', dtype",
           "missing"},
          {"no shape", file(R"({"w":{"dtype":"F32","data_offsets":[0,8]}})", 8),
           "tensor 'w', shape", "missing"},
          {"no offsets", file(R"({"w":{"dtype":"F32","shape":[2]}})", 8),
           "tensor 'w', data_offsets", "missing"},
          {"another member", tensor(f32 + ",\"stride\":[1]", "[2]", "[0,8]"), "header, w.stride",
           "no such key"},
          {"dtype twice", tensor(f32 + ",\"dtype\":\"F32\"", "[2]", "[0,8]"), "header, w.dtype",
           "twice"},
          {"shape twice", tensor(f32 + ",\"shape\":[2]", "[2]", "[0,8]"), "header, w.shape",
           "twice"},
          {"offsets twice", tensor(f32, "[2]", "[0,8],\"data_offsets\":[0,8]"),
           "header, w.data_offsets", "twice"},
          {"an unknown type", tensor("\"F33\"", "[2]", "[0,8]"), "header, w.dtype",
           "no type 'F33'"},
          {"a type of ours", tensor("\"f32\"", "[2]", "[0,8]"), "header, w.dtype", "no type 'f32'"},
          {"an empty type", tensor("\"\"", "[2]", "[0,8]"), "header, w.dtype", "no type ''"},
          {"a long type", tensor('"' + std::string(65, 'F') + '"', "[2]", "[0,8]"),
           "header, w.dtype", "more than 64 bytes"},
          {"a number as type", tensor("32", "[2]", "[0,8]"), "header, w.dtype",
           "expected a string, found a number"},
          {"a shape that is a number", tensor(f32, "2", "[0,8]"), "header, w.shape",
           "expected an array, found a number"},
          {"a negative extent", tensor(f32, "[-2]", "[0,8]"), "header, w.shape[0]",
           "not negative, found a number"},
          {"a fraction", tensor(f32, "[2.0]", "[0,8]"), "header, w.shape[0]", "fraction"},
          {"an exponent", tensor(f32, "[2e0]", "[0,8]"), "header, w.shape[0]", "exponent"},
          {"a leading zero", tensor(f32, "[02]", "[0,8]"), "header, w.shape[0]", "leading zero"},
          {"a plus", tensor(f32, "[+2]", "[0,8]"), "header, w.shape[0]", "expected an integer"},
          {"a text as extent", tensor(f32, "[1,\"2\"]", "[0,8]"), "header, w.shape[1]",
           "found a string"},
          {"a nested shape", tensor(f32, "[[2]]", "[0,8]"), "header, w.shape[0]", "found an array"},
          {"65 bits", tensor(f32, "[18446744073709551616]", "[0,8]"), "header, w.shape[0]",
           "does not fit in 64 bits"},
          {"many digits", tensor(f32, '[' + std::string(100, '9') + ']', "[0,8]"),
           "header, w.shape[0]", "does not fit in 64 bits"},
          {"65 extents",
           tensor(
               f32,
               '[' +
                   [] {
                     std::string ones = "2";
                     for (int i = 1; i < 65; ++i) ones += ",1";
                     return ones;
                   }() +
                   ']',
               "[0,8]"),
           "header, w.shape[64]", "more than 64 numbers"},
          {"elements that 64 bits do not count", tensor(f32, "[4294967296,4294967296]", "[0,8]"),
           "tensor 'w', shape", "64 bits can count"},
          {"bytes that 64 bits do not count", tensor(f32, "[4611686018427387904]", "[0,8]"),
           "tensor 'w', shape", "64 bits can count"},
          {"a product that wraps around to 2", tensor(f32, "[9223372036854775809,2]", "[0,8]"),
           "tensor 'w', shape", "64 bits"},
          {"half a byte", tensor("\"F4\"", "[3]", "[0,1]", 1), "tensor 'w', shape", "whole bytes"},
          {"three quarters", tensor("\"F6_E2M3\"", "[1]", "[0,1]", 1), "tensor 'w', shape",
           "whole bytes"},
          {"one offset", tensor(f32, "[2]", "[0]"), "header, w.data_offsets",
           "expected two offsets, found 1"},
          {"no offset", tensor(f32, "[2]", "[]"), "header, w.data_offsets", "found 0"},
          {"three offsets", tensor(f32, "[2]", "[0,8,8]"), "header, w.data_offsets[2]",
           "more than 2 numbers"},
          {"a negative offset", tensor(f32, "[2]", "[-8,0]"), "header, w.data_offsets[0]",
           "not negative"},
          {"too deep", file("{\"w\":{\"shape\":" + std::string(70, '[')), "header, w.shape[0]",
           "found an array"},
      },
      read);
}

TEST_CASE("offsets that are not those of the data") {
  const std::string f32 = "\"F32\"";
  test::check_refusals(
      {
          {"backwards", tensor(f32, "[2]", "[8,0]"), "tensor 'w', data_offsets",
           "ends at 0, before its beginning 8"},
          {"too few bytes", tensor(f32, "[2]", "[0,7]", 7), "tensor 'w', data_offsets",
           "7 bytes, but its shape of type F32 takes 8"},
          {"too many bytes", tensor(f32, "[2]", "[0,9]", 9), "tensor 'w', data_offsets",
           "9 bytes, but"},
          {"bytes of a tensor without elements", tensor(f32, "[2,0]", "[0,8]"),
           "tensor 'w', data_offsets", "takes 0"},
          {"a scalar of two", tensor(f32, "[]", "[0,8]"), "tensor 'w', data_offsets", "takes 4"},
          {"a hole at the beginning", tensor(f32, "[2]", "[4,12]", 12), "tensor 'w', data_offsets",
           "bytes 0 to 4 of the data belong to no tensor"},
          {"a hole", tensors("[0,4]", "[8,12]", 12), "tensor 'b', data_offsets",
           "bytes 4 to 8 of the data"},
          {"a hole, in another order", tensors("[8,12]", "[0,4]", 12), "tensor 'a', data_offsets",
           "bytes 4 to 8 of the data"},
          {"an overlap", tensors("[0,4]", "[2,6]", 6), "tensor 'b', data_offsets",
           "begins at 2, within tensor 'a', which ends at 4"},
          {"the same bytes", tensors("[0,4]", "[0,4]", 4), "tensor 'b', data_offsets",
           "within tensor 'a'"},
          {"data cut short", tensor(f32, "[2]", "[0,8]", 7), "tensor 'w', data_offsets",
           "the file has 7; it is cut short"},
          {"no data", tensor(f32, "[2]", "[0,8]", 0), "tensor 'w', data_offsets", "has 0"},
          {"trailing bytes", tensor(f32, "[2]", "[0,8]", 9), "data",
           "9 bytes, but the tensors end at 8: 1 bytes"},
          {"bytes without a tensor", file("{}", 3), "data", "3 bytes, but the tensors end at 0"},
          {"a tensor without elements beyond the data",
           file(R"({"w":{"dtype":"F32","shape":[0],"data_offsets":[4,4]}})"),
           "tensor 'w', data_offsets", "bytes 0 to 4"},
          {"offsets at the end of 64 bits",
           tensor(f32, "[2]", "[18446744073709551607,18446744073709551615]"),
           "tensor 'w', data_offsets", "belong to no tensor"},
          {"a tensor of 2^60 bytes", tensor(f32, "[288230376151711744]", "[0,1152921504606846976]"),
           "tensor 'w', data_offsets", "it ends at byte 1152921504606846976 of the data"},
      },
      read);
}

TEST_CASE("keys that are there twice, and metadata that are no texts") {
  const std::string w = R"("w":{"dtype":"F32","shape":[0],"data_offsets":[0,0]})";
  std::string many = "{\"__metadata__\":{\"0\":\"\"";
  for (int i = 1; i <= 65536; ++i) many += ",\"" + std::to_string(i) + "\":\"\"";
  test::check_refusals(
      {
          {"a tensor", file('{' + w + ',' + w + '}'), "header, 'w'", "twice"},
          {"a tensor, escaped", file('{' + w + ',' + test::with(w, "\"w\"", "\"\\u0077\"") + '}'),
           "header, 'w'", "twice"},
          {"the metadata", file(R"({"__metadata__":{},"__metadata__":{}})"), "header, __metadata__",
           "twice"},
          {"a key of the metadata", file(R"({"__metadata__":{"a":"b","c":"d","a":"b"}})"),
           "header, __metadata__.a", "twice"},
          {"a number", file(R"({"__metadata__":{"a":1}})"), "header, __metadata__.a",
           "expected a string, found a number"},
          {"an object", file(R"({"__metadata__":{"a":{}}})"), "header, __metadata__.a",
           "found an object"},
          {"null", file(R"({"__metadata__":{"a":null}})"), "header, __metadata__.a", "found null"},
          {"a truth", file(R"({"__metadata__":{"a":true}})"), "header, __metadata__.a",
           "found a truth value"},
          {"no object", file(R"({"__metadata__":"pt"})"), "header, __metadata__",
           "expected an object, found a string"},
          {"not UTF-8", file("{\"__metadata__\":{\"a\":\"\xff\"}}"), "header, __metadata__.a",
           "not UTF-8"},
          {"a long value",
           file("{\"__metadata__\":{\"a\":\"" + std::string((1u << 23) + 1, 'x') + "\"}}"),
           "header, __metadata__.a", "a string of more than 8388608 bytes"},
          {"many entries", file(many + "}}"), "header, __metadata__", "more than 65536 entries"},
      },
      read);
}

TEST_CASE("control characters of names do not reach messages") {
  const std::string message = test::refusal_of(read, file("{\"a\\nforged: line\":{}}"));
  CHECK(message.find('\n') == std::string::npos);
  CHECK(message.find("a?forged") != std::string::npos);
  CHECK(test::refusal_of(read, file("{\"" + std::string(5000, 'n') + "\":{}}")).size() < 500);
}

// A file that is never in memory: `begin`, then `unit` again and again, with digits of its octal
// number in place of each '#', then `end`.
class Repeating : public ByteSource {
 public:
  Repeating(std::string begin, std::string unit, std::uint64_t units, std::string end)
      : begin_(std::move(begin)), unit_(std::move(unit)), units_(units), end_(std::move(end)) {
    begin_ = length_of(begin_.size() + unit_.size() * units_ + end_.size()) + begin_;
    int place = 0;
    for (const char letter : unit_) places_.push_back(letter == '#' ? place++ : 0);
  }

  [[nodiscard]] std::uint64_t size() const override {
    return begin_.size() + unit_.size() * units_ + end_.size();
  }
  void read(std::uint64_t offset, std::span<std::byte> into) override {
    for (std::byte& byte : into) byte = static_cast<std::byte>(at(offset++));
  }
  [[nodiscard]] std::string_view name() const override { return "file"; }

 private:
  [[nodiscard]] char at(std::uint64_t offset) const {
    if (offset < begin_.size()) return begin_[static_cast<std::size_t>(offset)];
    offset -= begin_.size();
    const std::uint64_t number = offset / unit_.size();
    if (number >= units_) return end_[static_cast<std::size_t>(offset - units_ * unit_.size())];
    const char letter = unit_[static_cast<std::size_t>(offset % unit_.size())];
    if (letter != '#') return letter;
    const int place = places_[static_cast<std::size_t>(offset % unit_.size())];
    return static_cast<char>('0' + ((number >> (3 * place)) & 7u));
  }

  std::string begin_;
  std::string unit_;
  std::vector<int> places_;  // of each '#' in the number
  std::uint64_t units_;
  std::string end_;
};

TEST_CASE("no hostile header makes the reader allocate much at once") {
  constexpr std::size_t limit = std::size_t{1} << 24;
  struct Hostile {
    std::string name;
    std::string begin;
    std::string unit;
    std::string end;
    std::string cause;
  };
  for (const Hostile& hostile : {
           Hostile{"a long name", "{\"", "aaaa", "\":{}}", "more than 65536 bytes"},
           Hostile{"a long value", R"({"__metadata__":{"a":")", "bbbb", "\"}}", "8388608 bytes"},
           Hostile{"a long type", R"({"w":{"dtype":")", "cccc", "\"}}", "more than 64 bytes"},
           Hostile{"many extents", R"({"w":{"shape":[)", "9,", "9]}}", "more than 64 numbers"},
           Hostile{"many blanks", "{", "    ", "x", "expected a key"},
           Hostile{"much padding", "{}", "    ", "x", "nothing but spaces"},
           Hostile{"many entries of metadata", R"({"__metadata__":{)", R"("#######":"",)", "}}",
                   "more than 65536 entries"},
           Hostile{"many tensors and one that is wrong", "{",
                   R"("#######":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},)", "\"w\":{}}",
                   "tensor 'w', dtype: it is missing"},
           Hostile{"many tensors twice", "{",
                   R"("#####":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},)",
                   R"("w":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}})",
                   "the key is there twice"},
           Hostile{"many tensors and an offset that is wrong", "{",
                   R"("#######":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},)",
                   R"("w":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}})",
                   "tensor 'w', data_offsets: it begins at 1"},
       }) {
    INFO(hostile.name);
    // One as long as the format allows; under a sanitizer fewer bytes say the same.
    const bool longest = hostile.cause.ends_with("missing") && !test::sanitized;
    const std::uint64_t bytes = longest ? 99'900'000 : 18'000'000;
    Repeating source(hostile.begin, hostile.unit, bytes / hostile.unit.size(), hostile.end);
    test::heap.largest = 0;
    std::string message;
    try {
      (void)read_safetensors_header(source);
    } catch (const FileError& error) {
      message = error.what();
    }
    INFO(message);
    CHECK(message.starts_with("file: "));
    CHECK(message.find(hostile.cause) != std::string::npos);
    CHECK(test::heap.largest <= limit);
  }
}

TEST_CASE("a reader that keeps to the limit can be seen to break it") {
  test::heap.largest = 0;
  const std::vector<char> large((std::size_t{1} << 24) + 1);
  CHECK(test::heap.largest > (std::size_t{1} << 24));
}

}  // namespace
