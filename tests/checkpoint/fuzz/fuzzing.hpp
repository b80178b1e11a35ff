#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <shardwise/checkpoint/byte_source.hpp>
#include <shardwise/core/error.hpp>
#include <span>
#include <string_view>

namespace shardwise::test {

inline void expect(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "not so: %s\n", what);
  std::abort();
}

/// What a reader may say of bytes that it refuses; nothing, where they are known to be good.
inline void expect_refusal(const Error& error) {
  expect(std::strncmp(error.what(), "fuzzed: ", 8) == 0, "an error names the file");
  if (std::getenv("SHARDWISE_FUZZ_GOOD") != nullptr) expect(false, error.what());
}

/// A file of these bytes and `more` behind them, called "fuzzed".
class FuzzedSource : public ByteSource {
 public:
  FuzzedSource(const std::uint8_t* bytes, std::size_t size, std::size_t more = 0)
      : bytes_(bytes), size_(size), more_(more) {}

  [[nodiscard]] std::uint64_t size() const override { return size_ + more_; }
  void read(std::uint64_t offset, std::span<std::byte> into) override {
    expect(offset <= size() && into.size() <= size() - offset, "a read is within the file");
    for (std::byte& byte : into) {
      byte = offset < size_ ? static_cast<std::byte>(bytes_[offset]) : std::byte{0};
      ++offset;
    }
  }
  [[nodiscard]] std::string_view name() const override { return "fuzzed"; }

 private:
  const std::uint8_t* bytes_;
  std::size_t size_;
  std::size_t more_;
};

}  // namespace shardwise::test
