#include <catch2/catch_test_macros.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "malformed.hpp"
#include "memory_source.hpp"
#include "shardwise/checkpoint/hugging_face_index.hpp"

namespace {

using namespace shardwise;

void read(const std::string& bytes) {
  test::MemorySource source(bytes);
  (void)read_hugging_face_index(source);
}

std::string mapped(std::string_view map) { return "{\"weight_map\": {" + std::string(map) + "}}"; }

TEST_CASE("an index as others write it is read, and read back as it is written") {
  test::MemorySource source(
      "\n{\n  \"metadata\": {\"total_size\": 12, \"total_parameters\": 3e9, \"by\": "
      "[null, true, false, -0.5e-3, {\"a\": \"\\u00e9\"}]},\n"
      "  \"weight_map\": {\"b\": \"two\", \"a\\nb\": \"one\", \"c\": \"two\"}, \"more\": {}}\n\n");
  const HuggingFaceIndex index = read_hugging_face_index(source);
  CHECK(index.total_size == 12);
  CHECK(index.files == std::vector<std::string>{"two", "one"});
  const std::vector<HuggingFaceIndex::Entry> entries{{"a\nb", 1}, {"b", 0}, {"c", 0}};
  CHECK(index.tensors == entries);
  REQUIRE(index.find("b") != nullptr);
  CHECK(*index.find("b") == entries[1]);
  CHECK(index.find("d") == nullptr);

  test::MemorySource written(format_hugging_face_index(index));
  const HuggingFaceIndex again = read_hugging_face_index(written);
  CHECK(again.tensors[0].tensor == "a\nb");
  CHECK(again.files == std::vector<std::string>{"one", "two"});
  CHECK(again.total_size == 12);

  test::MemorySource least(R"({"weight_map":{}})");
  const HuggingFaceIndex nothing = read_hugging_face_index(least);
  CHECK(nothing.files.empty());
  CHECK_FALSE(nothing.total_size);
}

TEST_CASE("malformed indices are refused with field and cause") {
  std::string files;
  for (int i = 0; i <= 100'000; ++i) {
    files += (i == 0 ? "\"" : ",\"") + std::to_string(i) + "\":\"" + std::to_string(i) + '"';
  }
  test::check_refusals(
      {
          {"an empty file", "", "index", "expected an object, found the end"},
          {"HTML instead", "<html>", "index", "expected an object, found no value of JSON"},
          {"an array", "[]", "index", "expected an object, found an array"},
          {"no end", "{\"weight_map\":{}", "index", "ends before the closing }"},
          {"text behind it", "{\"weight_map\":{}} x", "index", "nothing behind the last }"},
          {"no map", "{}", "index, weight_map", "missing"},
          {"metadata alone", R"({"metadata":{"total_size":1}})", "index, weight_map", "missing"},
          {"two maps", R"({"weight_map":{},"weight_map":{}})", "index, weight_map", "twice"},
          {"metadata twice", R"({"metadata":{},"metadata":{}})", "index, metadata", "twice"},
          {"a map that is a list", R"({"weight_map":[]})", "index, weight_map",
           "expected an object, found an array"},
          {"metadata that are a text", R"({"metadata":"x"})", "index, metadata",
           "expected an object, found a string"},
          {"a file that is a number", mapped(R"("w":1)"), "index, weight_map.w",
           "expected a string, found a number"},
          {"a file that is null", mapped(R"("w":null)"), "index, weight_map.w", "found null"},
          {"a file without a name", mapped(R"("w":"")"), "index, weight_map.w", "empty string"},
          {"a long name of a file", mapped("\"w\":\"" + std::string(4097, 'f') + '"'),
           "index, weight_map.w", "more than 4096 bytes"},
          {"a long name", mapped('"' + std::string(65537, 'w') + "\":\"f\""), "index, weight_map",
           "more than 65536 bytes"},
          {"a tensor twice", mapped(R"("w":"a","v":"a","w":"a")"), "index, weight_map.'w'",
           "twice"},
          {"a tensor in two files", mapped(R"("w":"a","w":"b")"), "index, weight_map.'w'", "twice"},
          {"many files", mapped(files), "index, weight_map.100000", "more than 100000 files"},
          {"a negative size", R"({"metadata":{"total_size":-1}})", "index, metadata.total_size",
           "not negative"},
          {"a size with a fraction", R"({"metadata":{"total_size":1.0}})",
           "index, metadata.total_size", "fraction"},
          {"a size that is a text", R"({"metadata":{"total_size":"1"}})",
           "index, metadata.total_size", "found a string"},
          {"a size of 65 bits", R"({"metadata":{"total_size":18446744073709551616}})",
           "index, metadata.total_size", "64 bits"},
          {"a size twice", R"({"metadata":{"total_size":1,"total_size":1}})",
           "index, metadata.total_size", "twice"},
          {"a comma too many", mapped(R"("w":"a",)"), "index, weight_map", "a comma before }"},
          {"no UTF-8", mapped("\"\xff\":\"a\""), "index, weight_map", "not UTF-8"},
          {"half a pair in a file", mapped(R"("w":"\udfff")"), "index, weight_map.w", "surrogates"},
          {"half a word", R"({"more":nul})", "index, more", "no value of JSON"},
          {"a word of Python", R"({"more":None})", "index, more", "no value of JSON"},
          {"a number of ours", R"({"more":.5})", "index, more", "no value of JSON"},
          {"half a number", R"({"more":1.})", "index, more", "no value of JSON"},
          {"half an exponent", R"({"more":1e})", "index, more", "no value of JSON"},
          {"a minus alone", R"({"more":-})", "index, more", "no value of JSON"},
          {"a leading zero", R"({"more":-01})", "index, more", "leading zero"},
          {"a control character in what is skipped", "{\"more\":\"\n\"}", "index, more",
           "control character"},
          {"a long text in what is skipped",
           "{\"more\":\"" + std::string((1u << 20) + 1, 'x') + "\"}", "index, more",
           "more than 1048576 bytes"},
          {"too deep", R"({"more":)" + std::string(64, '['), "index, more[0][0]",
           "more than 64 levels"},
          {"too deep, by objects",
           R"({"more":)" +
               [] {
                 std::string deep;
                 for (int i = 0; i < 100'000; ++i) deep += "{\"a\":";
                 return deep;
               }(),
           "index, more.a.a", "more than 64 levels"},
      },
      read);
}

TEST_CASE("an index of more bytes than are read is refused by its length") {
  class Large : public ByteSource {
   public:
    [[nodiscard]] std::uint64_t size() const override { return 100'000'001; }
    void read(std::uint64_t, std::span<std::byte>) override { FAIL("it was read"); }
    [[nodiscard]] std::string_view name() const override { return "file"; }
  };
  Large source;
  CHECK_THROWS_AS(read_hugging_face_index(source), FileError);
}

}  // namespace
