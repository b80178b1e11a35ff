#include <array>
#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "memory_source.hpp"
#include "shardwise/checkpoint/safetensors_reader.hpp"
#include "shardwise/checkpoint/safetensors_writer.hpp"

namespace {

using namespace shardwise;
using Catch::Matchers::ContainsSubstring;

std::uint64_t header_bytes(const std::string& file) {
  std::uint64_t length = 0;
  for (std::size_t i = 8; i-- > 0;) length = length << 8 | static_cast<unsigned char>(file[i]);
  return length;
}

SafetensorsHeader read(std::string file) {
  test::MemorySource source(std::move(file));
  return read_safetensors_header(source);
}

TEST_CASE("what is written is read back, of every type") {
  std::vector<SafetensorsTensor> tensors;
  std::uint64_t end = 0;
  for (std::size_t i = 0; i < detail::safetensors_types.size(); ++i) {
    const auto type = static_cast<SafetensorsDType>(i);
    const std::uint64_t bytes = std::uint64_t{24} * bits_of(type) / 8;
    tensors.push_back({"t" + std::to_string(i), type, {2, 3, 4}, end, end + bytes});
    end += bytes;
  }
  const std::vector<std::pair<std::string, std::string>> metadata{{"format", "pt"}, {"", "empty"}};
  const std::string begin = format_safetensors_header(tensors, metadata);
  CHECK(begin.size() % 64 == 0);
  CHECK(header_bytes(begin) == begin.size() - 8);
  const SafetensorsHeader header = read(begin + std::string(end, 'x'));
  CHECK(header.data_begin == begin.size());
  CHECK(header.tensors == tensors);
  CHECK(header.metadata == metadata);
  REQUIRE(header.find_metadata("format") != nullptr);
  CHECK(*header.find_metadata("format") == "pt");
  CHECK(header.find_metadata("other") == nullptr);
  for (const SafetensorsTensor& tensor : tensors) {
    REQUIRE(header.find(tensor.name) != nullptr);
    CHECK(*header.find(tensor.name) == tensor);
  }
  CHECK(header.find("t") == nullptr);
}

TEST_CASE("scalars, tensors without elements, files without tensors") {
  const std::vector<SafetensorsTensor> tensors{
      {"scalar", SafetensorsDType::f32, {}, 0, 4},
      {"empty", SafetensorsDType::f64, {3, 0, 5}, 4, 4},
      {"huge and empty", SafetensorsDType::f64, {~std::uint64_t{0}, 9, 0}, 4, 4},
      {"last", SafetensorsDType::bf16, {1}, 4, 6},
  };
  CHECK(read(format_safetensors_header(tensors) + std::string(6, 'x')).tensors == tensors);
  const SafetensorsHeader none = read(format_safetensors_header({}));
  CHECK(none.tensors.empty());
  CHECK(none.metadata.empty());
}

TEST_CASE("names of any characters survive") {
  const std::string name =
      "quote\" back\\slash / tab\t newline\n \x01 \x7f \xc3\xa9 \xf0\x9f\x98\x80";
  const std::vector<SafetensorsTensor> tensors{{name, SafetensorsDType::u8, {1}, 0, 1}};
  const std::vector<std::pair<std::string, std::string>> metadata{{name, name}};
  const SafetensorsHeader header = read(format_safetensors_header(tensors, metadata) + "x");
  CHECK(header.tensors == tensors);
  CHECK(header.metadata == metadata);
}

TEST_CASE("JSON as others write it") {
  const std::string json =
      R"({ "b\u0041\u00e9\ud83d\ude00\/\b\f\n\r\t\"\\" : {"data_offsets":[0,2], "shape" : [ 1 , 1 ],)"
      "\t\r\n"
      R"("dtype":"F16"}, "__metadata__":{} }    )";
  std::string file(8, '\0');
  file[0] = static_cast<char>(json.size());
  const SafetensorsHeader header = read(file + json + "xx");
  REQUIRE(header.tensors.size() == 1);
  CHECK(header.tensors[0].name == "bA\xc3\xa9\xf0\x9f\x98\x80/\b\f\n\r\t\"\\");
  CHECK(header.tensors[0].shape == std::vector<std::uint64_t>{1, 1});
}

TEST_CASE("a long header is read piece by piece") {
  std::vector<SafetensorsTensor> tensors;
  for (std::uint64_t i = 0; i < 20000; ++i) {
    tensors.push_back({"model.layers." + std::to_string(i * 7919 % 20000) + ".weight",
                       SafetensorsDType::f32,
                       {1},
                       4 * i,
                       4 * i + 4});
  }
  const std::string begin = format_safetensors_header(tensors);
  REQUIRE(begin.size() > (std::size_t{1} << 20));
  const SafetensorsHeader header = read(begin + std::string(80000, 'x'));
  CHECK(header.tensors == tensors);
  for (const SafetensorsTensor& tensor : tensors) {
    REQUIRE(header.find(tensor.name) == &header.tensors[tensor.begin / 4]);
  }
}

TEST_CASE("a header that would not be read back is not written") {
  using Tensors = std::vector<SafetensorsTensor>;
  const auto refused = [](const Tensors& tensors) {
    try {
      (void)format_safetensors_header(tensors);
    } catch (const UsageError& error) {
      return std::string(error.what());
    }
    return std::string("it was written");
  };
  const auto type = SafetensorsDType::f32;
  CHECK_THAT(refused({{"a", type, {1}, 4, 8}}), ContainsSubstring("must begin at 0"));
  CHECK_THAT(refused({{"a", type, {1}, 0, 4}, {"b", type, {1}, 8, 12}}),
             ContainsSubstring("'b'") && ContainsSubstring("must begin at 4"));
  CHECK_THAT(refused({{"a", type, {2}, 0, 4}}), ContainsSubstring("bytes as its shape"));
  CHECK_THAT(refused({{"a", SafetensorsDType::f4, {3}, 0, 1}}), ContainsSubstring("'a'"));
  CHECK_THAT(refused({{"__metadata__", type, {}, 0, 4}}), ContainsSubstring("__metadata__"));
  CHECK_THAT(refused({{"\xff", type, {}, 0, 4}}), ContainsSubstring("UTF-8"));
}

TEST_CASE("types of files and of the library") {
  for (const DType type : {DType::f64, DType::f32, DType::bf16, DType::f16, DType::i64, DType::i32,
                           DType::i8, DType::u8}) {
    const SafetensorsDType written = safetensors_dtype(type);
    CHECK(dtype_in(written) == type);
    CHECK(bits_of(written) == 8 * size_of(type));
    CHECK(parse_safetensors_dtype(name_of(written)) == written);
  }
  CHECK(name_of(safetensors_dtype(DType::bf16)) == "BF16");
  CHECK_FALSE(dtype_in(SafetensorsDType::boolean));
  CHECK_FALSE(dtype_in(SafetensorsDType::f8_e4m3));
  CHECK_FALSE(parse_safetensors_dtype("f32"));
}

}  // namespace
