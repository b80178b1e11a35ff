#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <shardwise/checkpoint/byte_source.hpp>
#include <shardwise/core/error.hpp>
#include <span>
#include <string>
#include <string_view>
#include <utility>

namespace shardwise::test {

/// A file that is a string, called "file".
class MemorySource : public ByteSource {
 public:
  explicit MemorySource(std::string bytes) : bytes_(std::move(bytes)) {}

  [[nodiscard]] std::uint64_t size() const override { return bytes_.size(); }
  void read(std::uint64_t offset, std::span<std::byte> into) override {
    if (offset > bytes_.size() || into.size() > bytes_.size() - offset) {
      raise<FileError>("file: read past its end");
    }
    if (!into.empty()) std::memcpy(into.data(), bytes_.data() + offset, into.size());
  }
  [[nodiscard]] std::string_view name() const override { return "file"; }

 private:
  std::string bytes_;
};

}  // namespace shardwise::test
