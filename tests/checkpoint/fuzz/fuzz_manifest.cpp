// libFuzzer: any bytes as a manifest. If the first is odd they get the checksum that they should
// have, so that what stands behind it is reached. What is read is written and read back as the
// same; everything else is a FileError.
#include <cstddef>
#include <cstdint>
#include <shardwise/checkpoint/manifest_reader.hpp>
#include <string>

#include "fuzzing.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace shardwise;
  if (size == 0) return 0;
  std::string text(reinterpret_cast<const char*>(data + 1), size - 1);
  if (data[0] & 1u) {
    const std::string sum = detail::hex(detail::checksum(text));
    text.append(detail::manifest_seal).append(sum).append(detail::manifest_end);
  }
  Manifest manifest;
  try {
    manifest = parse_manifest(text, "fuzzed");
  } catch (const FileError& error) {
    test::expect_refusal(error);
    return 0;
  }
  const std::string written = format_manifest(manifest);
  test::expect(format_manifest(parse_manifest(written, "written")) == written,
               "what is written is read back");
  return 0;
}
