// libFuzzer: any bytes as an index of a model in several files. What is read is written and read
// back as the same; everything else is a FileError.
#include <cstddef>
#include <cstdint>
#include <shardwise/checkpoint/hugging_face_index.hpp>
#include <string>

#include "fuzzing.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace shardwise;
  test::FuzzedSource source(data, size);
  HuggingFaceIndex index;
  try {
    index = read_hugging_face_index(source);
  } catch (const FileError& error) {
    test::expect_refusal(error);
    return 0;
  }
  const std::string text = format_hugging_face_index(index);
  test::FuzzedSource again(reinterpret_cast<const std::uint8_t*>(text.data()), text.size());
  const HuggingFaceIndex same = read_hugging_face_index(again);
  test::expect(same.total_size == index.total_size, "the size is read back");
  test::expect(same.tensors.size() == index.tensors.size(), "all tensors are read back");
  for (const HuggingFaceIndex::Entry& entry : index.tensors) {
    const HuggingFaceIndex::Entry* const found = same.find(entry.tensor);
    test::expect(found != nullptr, "a tensor is found by its name");
    test::expect(same.files[found->file] == index.files[entry.file], "it is in the same file");
  }
  return 0;
}
