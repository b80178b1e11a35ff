// libFuzzer: any bytes as the beginning of a safetensors file; the first two say how many bytes of
// data follow. What is read is written and read back as the same; everything else is a FileError.
#include <cstddef>
#include <cstdint>
#include <shardwise/checkpoint/safetensors_reader.hpp>
#include <shardwise/checkpoint/safetensors_writer.hpp>
#include <string>

#include "fuzzing.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace shardwise;
  if (size < 2) return 0;
  const std::size_t more = data[0] + 256u * data[1];
  test::FuzzedSource source(data + 2, size - 2, more);
  SafetensorsHeader header;
  try {
    header = read_safetensors_header(source);
  } catch (const FileError& error) {
    test::expect_refusal(error);
    return 0;
  }
  std::uint64_t end = 0;
  for (const SafetensorsTensor& tensor : header.tensors) {
    test::expect(tensor.begin == end, "tensors follow each other");
    end = tensor.end;
    test::expect(header.find(tensor.name) == &tensor, "a tensor is found by its name");
  }
  test::expect(header.data_begin + end == source.size(), "every byte belongs to a tensor");
  const std::string begin = format_safetensors_header(header.tensors, header.metadata);
  test::FuzzedSource again(reinterpret_cast<const std::uint8_t*>(begin.data()), begin.size(),
                           static_cast<std::size_t>(end));
  const SafetensorsHeader same = read_safetensors_header(again);
  test::expect(same.tensors == header.tensors && same.metadata == header.metadata,
               "what is written is read back");
  return 0;
}
