#pragma once

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "file_system.hpp"

namespace shardwise::inline v0_1 {

/// The machine's own files. Links are not followed at the end of a path, descriptors do not outlive
/// an exec, and what is opened to read is a regular file.
class PosixFileSystem final : public FileSystem {
 public:
  Status create(const std::string& path) override {
    return checked(
        ::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0666));
  }
  Status open(const std::string& path) override {
    // O_NONBLOCK: a pipe of this name must not make the rank wait for its writer.
    const int descriptor =
        ::open(path.c_str(), O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC | O_NOCTTY);
    if (descriptor < 0) return -errno;
    struct stat info {};
    Status status = ::fstat(descriptor, &info) == 0 ? 0 : -errno;
    if (status == 0 && !S_ISREG(info.st_mode)) status = -EINVAL;
    if (status == 0) return descriptor;
    ::close(descriptor);
    return status;
  }
  Status size(int descriptor) override {
    struct stat info {};
    return ::fstat(descriptor, &info) == 0 ? Status{info.st_size} : -errno;
  }
  Status read(int descriptor, std::span<std::byte> into, std::uint64_t offset) override {
    return checked(::pread(descriptor, into.data(), into.size(), static_cast<off_t>(offset)));
  }
  Status write(int descriptor, std::span<const std::byte> bytes) override {
    return checked(::write(descriptor, bytes.data(), bytes.size()));
  }
#ifdef SYNC_FILE_RANGE_WRITE  // Linux
  void begin_sync(int descriptor, std::uint64_t offset, std::uint64_t bytes) override {
    static_cast<void>(::sync_file_range(descriptor, static_cast<off_t>(offset),
                                        static_cast<off_t>(bytes), SYNC_FILE_RANGE_WRITE));
  }
#endif
  Status sync(int descriptor) override { return checked(::fsync(descriptor)); }
  Status close(int descriptor) override { return checked(::close(descriptor)); }

  Status rename(const std::string& from, const std::string& to) override {
    return checked(::rename(from.c_str(), to.c_str()));
  }
  Status make_directory(const std::string& path) override {
    return checked(::mkdir(path.c_str(), 0777));
  }
  Status sync_directory(const std::string& path) override {
    const int descriptor = ::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (descriptor < 0) return -errno;
    const Status status = checked(::fsync(descriptor));
    ::close(descriptor);
    return status;
  }
  Status remove(const std::string& path) override { return checked(::unlink(path.c_str())); }
  Status remove_directory(const std::string& path) override {
    return checked(::rmdir(path.c_str()));
  }
  Status list(const std::string& path, std::vector<std::string>& names) override {
    DIR* const directory = ::opendir(path.c_str());
    if (directory == nullptr) return -errno;
    errno = 0;
    while (const dirent* const entry = ::readdir(directory)) {
      const std::string_view name = entry->d_name;
      if (name != "." && name != "..") names.emplace_back(name);
      errno = 0;
    }
    const Status status = -errno;
    ::closedir(directory);
    return status;
  }

 private:
  template <class Result>
  [[nodiscard]] static Status checked(Result result) noexcept {
    return result >= 0 ? static_cast<Status>(result) : -errno;
  }
};

}  // namespace shardwise::inline v0_1
