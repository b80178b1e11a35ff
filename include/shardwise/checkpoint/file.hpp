#pragma once

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include "../core/error.hpp"
#include "file_system.hpp"

namespace shardwise::inline v0_1::detail {

/// FileError with path, call and errno, where `status` is one.
inline FileSystem::Status expect_file(FileSystem::Status status, std::string_view call,
                                      std::string_view path) {
  if (status >= 0) return status;
  const int number = static_cast<int>(-status);
  raise<FileError>("{}: {}: {} (errno {})", path, call, std::generic_category().message(number),
                   number);
}

/// `call` again for as long as a signal interrupts it.
template <class Call>
FileSystem::Status uninterrupted(const Call& call) {
  FileSystem::Status status = call();
  while (status == -EINTR) status = call();
  return status;
}

/// A file that is being written or read. Every error is a FileError that names it.
class File {
 public:
  /// A new file to write.
  [[nodiscard]] static File create(FileSystem& files, std::string path) {
    const auto status = uninterrupted([&] { return files.create(path); });
    expect_file(status, "cannot create it", path);
    return {files, std::move(path), static_cast<int>(status)};
  }
  [[nodiscard]] static File open(FileSystem& files, std::string path) {
    const auto status = uninterrupted([&] { return files.open(path); });
    expect_file(status, "cannot open it", path);
    return {files, std::move(path), static_cast<int>(status)};
  }

  File(File&& other) noexcept
      : files_(other.files_),
        path_(std::move(other.path_)),
        descriptor_(std::exchange(other.descriptor_, -1)),
        written_(other.written_) {}
  File& operator=(File&&) = delete;
  ~File() {
    if (descriptor_ >= 0) static_cast<void>(files_->close(descriptor_));
  }

  [[nodiscard]] const std::string& path() const noexcept { return path_; }

  [[nodiscard]] std::uint64_t size() const {
    return static_cast<std::uint64_t>(
        expect_file(files_->size(descriptor_), "cannot tell its size", path_));
  }

  /// Writes all of them; they may be on their way to the disk when it returns.
  void write(std::span<const std::byte> bytes) {
    const std::uint64_t begin = written_;
    written_ += bytes.size();
    while (!bytes.empty()) {
      const auto status = uninterrupted([&] { return files_->write(descriptor_, bytes); });
      expect_file(status, "cannot write", path_);
      // A system that takes nothing and says nothing would be asked for ever.
      if (status == 0) expect_file(-EIO, "a write took no byte", path_);
      bytes = bytes.subspan(static_cast<std::size_t>(status));
    }
    files_->begin_sync(descriptor_, begin, written_ - begin);
  }

  /// Fills `into`; FileError where the file ends before.
  void read(std::uint64_t offset, std::span<std::byte> into) {
    while (!into.empty()) {
      const auto status = uninterrupted([&] { return files_->read(descriptor_, into, offset); });
      expect_file(status, "cannot read", path_);
      if (status == 0) {
        raise<FileError>("{}: it ends at byte {}, where {} more were expected", path_, offset,
                         into.size());
      }
      into = into.subspan(static_cast<std::size_t>(status));
      offset += static_cast<std::uint64_t>(status);
    }
  }

  /// The bytes are on the disk when it returns. An fsync that failed is never tried again: the
  /// system may have dropped the pages and would report success.
  void sync() { expect_file(files_->sync(descriptor_), "fsync failed", path_); }

  /// Ends the writing. An interrupted close has closed.
  void close() {
    const auto status = files_->close(std::exchange(descriptor_, -1));
    if (status != -EINTR) expect_file(status, "cannot close it", path_);
  }

 private:
  File(FileSystem& files, std::string path, int descriptor) noexcept
      : files_(&files), path_(std::move(path)), descriptor_(descriptor) {}

  FileSystem* files_;
  std::string path_;
  int descriptor_;
  std::uint64_t written_ = 0;
};

/// What a file is called until it is whole.
[[nodiscard]] inline std::string partial_name(const std::string& path) { return path + ".partial"; }

/// Writes a small file whole: it appears, or replaces the old one, when all its bytes are on the
/// disk. Its name is there for good after sync_directory.
inline void write_whole(FileSystem& files, const std::string& path, std::string_view text) {
  const std::string partial = partial_name(path);
  File file = File::create(files, partial);
  file.write(std::as_bytes(std::span(text)));
  file.sync();
  file.close();
  expect_file(files.rename(partial, path), "cannot rename it", partial);
}

inline void sync_directory(FileSystem& files, const std::string& path) {
  expect_file(files.sync_directory(path), "fsync of the directory failed", path);
}

/// The directory that holds `path`.
[[nodiscard]] inline std::string parent_of(std::string path) {
  while (path.size() > 1 && path.back() == '/') path.pop_back();
  const std::size_t slash = path.rfind('/');
  if (slash == std::string::npos) return ".";
  return slash == 0 ? "/" : path.substr(0, slash);
}

/// Makes `path` and what is missing above it, for good.
inline void make_directories(FileSystem& files, const std::string& path) {
  auto status = files.make_directory(path);
  const std::string parent = parent_of(path);
  if (status == -ENOENT && parent != path && parent != ".") {
    make_directories(files, parent);
    status = files.make_directory(path);
  }
  const bool was_there = status == -EEXIST;
  if (!was_there) expect_file(status, "cannot make the directory", path);
  // Also where it was there: who made it may not have come to that.
  const auto synced = files.sync_directory(parent);
  if (was_there && synced == -EACCES) return;  // not ours to read, so it was not a run's to make
  expect_file(synced, "fsync of the directory failed", parent);
}

/// All of a file; FileError where it has more than `most` bytes.
[[nodiscard]] inline std::string read_whole(FileSystem& files, const std::string& path,
                                            std::uint64_t most) {
  File file = File::open(files, path);
  const std::uint64_t size = file.size();
  if (size > most) {
    raise<FileError>("{}: it has {} bytes, expected at most {}", path, size, most);
  }
  std::string text(static_cast<std::size_t>(size), '\0');
  file.read(0, std::as_writable_bytes(std::span(text)));
  return text;
}

}  // namespace shardwise::inline v0_1::detail
