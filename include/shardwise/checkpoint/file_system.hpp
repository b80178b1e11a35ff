#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace shardwise::inline v0_1 {

/// The calls to the operating system that checkpoints are made of: a seam for tests and for hosts
/// with a file system of their own. Each is one call and retries nothing; it returns what the
/// system does, or minus an errno. Several threads may call it at once.
class FileSystem {
 public:
  /// At least 0: success. Below: minus an errno.
  using Status = std::int64_t;

  virtual ~FileSystem() = default;

  /// A new file to write: its descriptor; -EEXIST where there is something of this name.
  [[nodiscard]] virtual Status create(const std::string& path) = 0;
  /// A file to read: its descriptor; -EINVAL where it is no regular file, -ELOOP where it is a
  /// link.
  [[nodiscard]] virtual Status open(const std::string& path) = 0;
  /// Bytes of an open file.
  [[nodiscard]] virtual Status size(int descriptor) = 0;
  /// Bytes read from `offset` on, which may be fewer than asked for; 0 at the end.
  [[nodiscard]] virtual Status read(int descriptor, std::span<std::byte> into,
                                    std::uint64_t offset) = 0;
  /// Bytes written after the last ones, which may be fewer than given.
  [[nodiscard]] virtual Status write(int descriptor, std::span<const std::byte> bytes) = 0;
  /// A hint: these bytes, which are written, may go to the disk now, so that sync() has less to
  /// wait for. Promises nothing; what fails comes out of sync().
  virtual void begin_sync(int /*descriptor*/, std::uint64_t /*offset*/, std::uint64_t /*bytes*/) {}
  /// The file's bytes are on the disk when it returns.
  [[nodiscard]] virtual Status sync(int descriptor) = 0;
  [[nodiscard]] virtual Status close(int descriptor) = 0;

  /// Replaces what `to` names.
  [[nodiscard]] virtual Status rename(const std::string& from, const std::string& to) = 0;
  [[nodiscard]] virtual Status make_directory(const std::string& path) = 0;
  /// The directory's list of names is on the disk when it returns.
  [[nodiscard]] virtual Status sync_directory(const std::string& path) = 0;
  [[nodiscard]] virtual Status remove(const std::string& path) = 0;
  [[nodiscard]] virtual Status remove_directory(const std::string& path) = 0;
  /// Appends the names in a directory, in no order, without . and ..
  [[nodiscard]] virtual Status list(const std::string& path, std::vector<std::string>& names) = 0;

 protected:
  FileSystem() = default;
  FileSystem(const FileSystem&) = default;
  FileSystem& operator=(const FileSystem&) = default;
};

}  // namespace shardwise::inline v0_1
