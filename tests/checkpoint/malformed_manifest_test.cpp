#include <catch2/catch_test_macros.hpp>
#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

#include "malformed.hpp"
#include "shardwise/checkpoint/manifest_json.hpp"
#include "shardwise/checkpoint/manifest_reader.hpp"

namespace {

using namespace shardwise;
using test::with;

void read(const std::string& text) { (void)parse_manifest(text, "file"); }

// With the checksum that it should have.
std::string sealed(const std::string& body) {
  return body + std::string(detail::manifest_seal) + detail::hex(detail::checksum(body)) +
         std::string(detail::manifest_end);
}
std::string body_of(const std::string& manifest) {
  return manifest.substr(0, manifest.rfind(detail::manifest_seal));
}

std::string good() {
  Manifest manifest;
  manifest.save = std::string(32, 'a');
  manifest.step = 120;
  manifest.world = 2;
  manifest.chunk_bytes = std::uint64_t{4} << 20;
  manifest.files = {{"rank-0.safetensors", 128, {1}}, {"rank-1.safetensors", 4194305, {2, 3}}};
  Manifest::Tensor bias{"bias", DType::f32, {6}, 6, {{0, 4, 0, 64}, {4, 2, 1, 64}}, 0};
  Manifest::Tensor none{"none", DType::f32, {3, 0}, 0, {}, {}};
  manifest.tensors = {bias, none};
  manifest.optimizers.emplace_back();
  manifest.optimizers[0].kind = "adamw";
  manifest.optimizers[0].hyperparameters.emplace("learning_rate", 0.25);
  manifest.values.emplace("text", "value");
  manifest.values.emplace("raw", CheckpointValue::Bytes{std::byte{1}});
  manifest.loss_scaler = {1024.0, 7, 9};
  return format_manifest(manifest);
}

// The good one with one place changed.
std::string changed(std::string_view from, std::string_view to) {
  return sealed(with(body_of(good()), from, to));
}

TEST_CASE("what the malformed manifests are made of is read") {
  CHECK(test::refusal_of(read, good()).empty());
  CHECK(test::refusal_of(read, sealed(body_of(good()))).empty());
  CHECK(test::refusal_of(read, changed("\"step\":120", "\"step\":121")).empty());
}

TEST_CASE("manifests that are cut off or damaged") {
  const std::string text = good();
  test::check_refusals(
      {
          {"an empty file", "", "", "no checksum at its end (0 bytes)"},
          {"half of it", text.substr(0, text.size() / 2), "", "no checksum at its end"},
          {"all but a byte", text.substr(0, text.size() - 1), "", "no checksum at its end"},
          {"a byte too many", text + "\n", "", "no checksum at its end"},
          {"zeros", std::string(text.size(), '\0'), "", "no checksum at its end"},
          {"another step", with(text, "\"step\":120", "\"step\":121"), "", "it is damaged"},
          {"another checksum", text.substr(0, text.size() - 4) + "x\"}\n", "", "it is damaged"},
          {"the seal alone", sealed(""), "", "no checksum at its end"},
          {"no JSON", sealed("x"), "", "no JSON"},
          {"not UTF-8", changed("\"value\"", "\"\xff\""), "", "no JSON"},
          {"an open bracket", changed("\"step\":120", "\"step\":[120"), "", "no JSON"},
          {"a number that is none", changed("\"step\":120", "\"step\":0120"), "", "no JSON"},
      },
      read);
}

TEST_CASE("manifests that say what cannot be") {
  const std::string file0 = "\"rank-0.safetensors\"";
  test::check_refusals(
      {
          {"another format", changed("\"shardwise checkpoint\"", "\"other\""), "format",
           "found 'other'"},
          {"no format", changed("\"format\"", "\"x\""), "format", "missing"},
          {"a format that is a number", changed("\"shardwise checkpoint\"", "1"), "format",
           "expected string, found number"},
          {"a later version", changed("\"version\":1", "\"version\":2"), "version",
           "another release"},
          {"a negative version", changed("\"version\":1", "\"version\":-1"), "version",
           "not negative"},
          {"a short id", changed(std::string(32, 'a'), std::string(31, 'a')), "save",
           "32 hexadecimal digits"},
          {"an id that is no number", changed(std::string(32, 'a'), std::string(32, 'g')), "save",
           "32 hexadecimal digits"},
          {"no step", changed("\"step\":120", "\"x\":120"), "step", "missing"},
          {"a step with a fraction", changed("\"step\":120", "\"step\":1.5"), "step",
           "whole number"},
          {"a step that is a text", changed("\"step\":120", "\"step\":\"1\""), "step",
           "whole number"},
          {"a step of more than 64 bits", changed("\"step\":120", "\"step\":18446744073709551616"),
           "step", "whole number"},
          {"no rank", changed("\"world\":2", "\"world\":0"), "world", "at least 1 rank"},
          {"tiny chunks", changed("\"chunk_bytes\":4194304", "\"chunk_bytes\":1"), "chunk_bytes",
           "found 1"},
          {"chunks of nothing", changed("\"chunk_bytes\":4194304", "\"chunk_bytes\":0"),
           "chunk_bytes", "found 0"},
          {"huge chunks", changed("\"chunk_bytes\":4194304", "\"chunk_bytes\":16777217"),
           "chunk_bytes", "found 16777217"},
          {"values that are a list", changed("\"values\":{", "\"values\":[],\"x\":{"), "values",
           "expected object, found array"},
          {"a value that is null", changed("\"value\"", "null"), "values.text", "found null"},
          {"a value that is a list", changed("\"value\"", "[1]"), "values.text", "found array"},
          {"bytes of half a digit", changed("{\"bytes\":\"01\"}", "{\"bytes\":\"0\"}"),
           "values.raw", "hexadecimal digits"},
          {"bytes that are a number", changed("{\"bytes\":\"01\"}", "{\"bytes\":1}"), "values.raw",
           "hexadecimal digits"},
          {"bytes and more", changed("{\"bytes\":\"01\"}", "{\"bytes\":\"01\",\"x\":1}"),
           "values.raw", "found object"},
          {"a scaler without a scale", changed("\"scale\"", "\"x\""), "loss_scaler.scale",
           "missing"},
          {"a scale of 0", changed("1024.0", "0.0"), "loss_scaler.scale", "above 0"},
          {"a negative scale", changed("1024.0", "-1.0"), "loss_scaler.scale", "above 0"},
          {"a scale that is NaN", changed("1024.0", "{\"bits\":\"7ff8000000000000\"}"),
           "loss_scaler.scale", "above 0"},
          {"a negative count", changed("\"good\":7", "\"good\":-7"), "loss_scaler.good",
           "not negative"},
          {"an optimizer without a kind", changed("\"kind\"", "\"x\""), "optimizers[0].kind",
           "missing"},
          {"a setting that is a list", changed("0.25", "[0.25]"),
           "optimizers[0].hyperparameters.learning_rate", "found array"},
          {"a file above", changed(file0, "\"../0.safetensors\""), "files[0].name",
           "not the name of a file in this directory"},
          {"a file of another place", changed(file0, "\"/etc/passwd\""), "files[0].name",
           "not the name of a file"},
          {"a file in a directory", changed(file0, "\"a/b\""), "files[0].name",
           "not the name of a file"},
          {"a hidden file", changed(file0, "\".x\""), "files[0].name", "not the name of a file"},
          {"no name of a file", changed(file0, "\"\""), "files[0].name", "not the name of a file"},
          {"a long name", changed(file0, '"' + std::string(256, 'x') + '"'), "files[0].name",
           "not the name of a file"},
          {"more bytes than chunks", changed("4194305", "8388609"), "files[1].chunks",
           "expected 3 of them for 8388609 bytes, found 2"},
          {"so many bytes that chunks are not counted", changed("4194305", "18446744073709551615"),
           "files[1].chunks", "found 2"},
          {"a short checksum", changed("0000000000000002", "2"), "files[1].chunks[0]",
           "16 hexadecimal digits"},
          {"a tensor without a name", changed("\"name\":\"bias\"", "\"x\":\"bias\""),
           "tensors[0].name", "missing"},
          {"tensors out of order", changed("\"none\"", "\"a\""), "tensors[1].name",
           "'a' comes after 'bias'"},
          {"a tensor twice", changed("\"none\"", "\"bias\""), "tensors[1].name",
           "'bias' comes after 'bias'"},
          {"an unknown type", changed("\"bias\",\"dtype\":\"f32\"", "\"bias\",\"dtype\":\"f33\""),
           "tensors[0].dtype", "no element type 'f33'"},
          {"a negative extent", changed("\"shape\":[6]", "\"shape\":[-6]"), "tensors[0].shape[0]",
           "not negative"},
          {"elements beyond all memory",
           changed("\"shape\":[6]", "\"shape\":[4294967296,4294967296]"), "tensors[0].shape",
           "2^60"},
          {"an optimizer that is not there", changed("\"optimizer\":0", "\"optimizer\":1"),
           "tensors[0].optimizer", "no optimizer 1"},
          {"a part of three", changed("[0,4,0,64]", "[0,4,0]"), "tensors[0].parts[0]",
           "expected [first element, elements, file, position]"},
          {"a part of a file that is not there", changed("[4,2,1,64]", "[4,2,2,64]"),
           "tensors[0].parts[1]", "no file 2"},
          {"a file beyond 32 bits", changed("[4,2,1,64]", "[4,2,4294967297,64]"),
           "tensors[0].parts[1]", "no file 4294967297"},
          {"a part without elements", changed("[4,2,1,64]", "[4,0,1,64]"), "tensors[0].parts[1]",
           "0 elements from 4 on"},
          {"a part beyond the tensor", changed("[4,2,1,64]", "[4,3,1,64]"), "tensors[0].parts[1]",
           "not a part of tensor 'bias'"},
          {"a part beyond 64 bits", changed("[4,2,1,64]", "[18446744073709551615,2,1,64]"),
           "tensors[0].parts[1]", "not a part of tensor 'bias'"},
          {"a part beyond the file", changed("[0,4,0,64]", "[0,4,0,113]"), "tensors[0].parts[0]",
           "16 bytes from 113 on are not in rank-0.safetensors with 128"},
          {"elements twice", changed("[4,2,1,64]", "[3,2,1,64]"), "tensors[0].parts[1]",
           "begins at element 3, expected 4"},
          {"elements left out", changed("[4,2,1,64]", "[5,1,1,64]"), "tensors[0].parts[1]",
           "begins at element 5, expected 4"},
          {"elements at the end left out", changed(",[4,2,1,64]", ""), "tensors[0].parts",
           "hold 4 elements of tensor 'bias', expected its 6"},
      },
      read);
}

TEST_CASE("manifests that no writer makes") {
  const std::string deep = std::string(200'000, '[') + std::string(200'000, ']');
  test::check_refusals(
      {
          {"deep", changed("\"step\":120", "\"step\":" + deep), "", "more than 16 levels"},
          {"deep, and ignored", changed("\"step\":120", "\"step\":120,\"x\":" + deep), "",
           "more than 16 levels"},
          {"a step twice", changed("\"step\":120", "\"step\":120,\"step\":121"), "step",
           "the key is there twice"},
          {"a part's key twice",
           changed("\"dtype\":\"f32\",\"shape\":[6]",
                   "\"dtype\":\"f32\",\"dtype\":\"f64\",\"shape\":[6]"),
           "dtype", "the key is there twice"},
      },
      read);
}

}  // namespace
