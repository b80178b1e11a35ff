#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

namespace shardwise::inline v0_1 {

/// Bytes at known offsets: a file, or a buffer that stands for one. Every error is a FileError that
/// names the source.
class ByteSource {
 public:
  virtual ~ByteSource() = default;

  /// Bytes in all; does not change.
  [[nodiscard]] virtual std::uint64_t size() const = 0;
  /// Fills `into` with the bytes from `offset` on. FileError where they are not all there, or where
  /// the system refuses: with the offset and the system's reason.
  virtual void read(std::uint64_t offset, std::span<std::byte> into) = 0;
  /// For messages: the path.
  [[nodiscard]] virtual std::string_view name() const = 0;
};

}  // namespace shardwise::inline v0_1
