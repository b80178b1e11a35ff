#pragma once

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstring>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>

#include "../core/error.hpp"

namespace shardwise::inline v0_1::detail {

/// Owns a file descriptor.
class FileHandle {
 public:
  FileHandle() = default;
  explicit FileHandle(int descriptor) noexcept : descriptor_(descriptor) {}
  FileHandle(FileHandle&& other) noexcept : descriptor_(std::exchange(other.descriptor_, -1)) {}
  FileHandle& operator=(FileHandle&& other) noexcept {
    std::swap(descriptor_, other.descriptor_);
    return *this;
  }
  ~FileHandle() {
    if (descriptor_ >= 0) ::close(descriptor_);
  }

  [[nodiscard]] int get() const noexcept { return descriptor_; }
  [[nodiscard]] explicit operator bool() const noexcept { return descriptor_ >= 0; }

  /// Takes the file's write lock, which ends with this handle or its process; false where another
  /// handle, of whatever process, has it.
  [[nodiscard]] bool try_lock() const noexcept {
    struct flock lock = whole_file();
    return fcntl(descriptor_, F_OFD_SETLK, &lock) == 0;
  }
  /// Whether another handle has the lock.
  [[nodiscard]] bool locked() const noexcept {
    struct flock lock = whole_file();
    return fcntl(descriptor_, F_OFD_GETLK, &lock) == 0 && lock.l_type != F_UNLCK;
  }

 private:
  static struct flock whole_file() noexcept {
    struct flock lock {};
    lock.l_type = F_WRLCK;
    lock.l_whence = SEEK_SET;
    return lock;
  }

  int descriptor_ = -1;
};

/// A directory that belongs to this user and is closed to all others. Files in it come whole or not
/// at all.
class PrivateDirectory {
 public:
  PrivateDirectory() = default;

  /// Makes it where it is missing. ConfigError where somebody else owns it or may enter it.
  [[nodiscard]] static PrivateDirectory open(const std::string& path) {
    // Another process may remove it in between, a few times.
    for (int attempt = 0; attempt < 100; ++attempt) {
      if (::mkdir(path.c_str(), 0700) != 0 && errno != EEXIST) refuse("cannot make", path);
      if (std::optional<PrivateDirectory> result = open_existing(path)) return std::move(*result);
    }
    refuse("cannot open", path);
  }

  /// Nothing where it does not exist.
  [[nodiscard]] static std::optional<PrivateDirectory> open_existing(const std::string& path) {
    PrivateDirectory result;
    result.path_ = path;
    result.handle_ =
        FileHandle(::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
    if (!result.handle_) {
      if (errno == ENOENT) return std::nullopt;
      refuse("cannot open", path);
    }
    struct stat status {};
    if (fstat(result.handle_.get(), &status) != 0) refuse("cannot look at", path);
    if (status.st_uid != geteuid() || (status.st_mode & 077) != 0) {
      raise<ConfigError>(
          "the directory {} belongs to user {} with permissions {:o}; processes meet only in one "
          "that belongs to their user ({}) and is closed to others: choose another, or chmod 700",
          path, status.st_uid, status.st_mode & 07777u, geteuid());
    }
    return result;
  }

  [[nodiscard]] const std::string& path() const noexcept { return path_; }

  /// A directory in this one.
  [[nodiscard]] PrivateDirectory make_child(const std::string& name) const {
    if (mkdirat(handle_.get(), name.c_str(), 0700) != 0) refuse("cannot make", in(name));
    return open(in(name));
  }

  /// An existing file to look at its lock.
  [[nodiscard]] FileHandle open_file(const std::string& name) const noexcept {
    return FileHandle(openat(handle_.get(), name.c_str(), O_RDWR | O_NOFOLLOW | O_CLOEXEC));
  }
  /// Makes the file where it is missing.
  [[nodiscard]] FileHandle make_file(const std::string& name) const noexcept {
    return FileHandle(
        openat(handle_.get(), name.c_str(), O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0600));
  }

  [[nodiscard]] bool has(const std::string& name) const noexcept {
    return faccessat(handle_.get(), name.c_str(), F_OK, 0) == 0;
  }

  [[nodiscard]] std::optional<std::string> read(const std::string& name) const {
    const FileHandle file(openat(handle_.get(), name.c_str(), O_RDONLY | O_NOFOLLOW | O_CLOEXEC));
    if (!file) {
      if (errno == ENOENT) return std::nullopt;
      refuse("cannot read", in(name));
    }
    std::string text;
    char block[1024];
    for (;;) {
      const ssize_t got = ::read(file.get(), block, sizeof block);
      if (got < 0 && errno == EINTR) continue;
      if (got < 0) refuse("cannot read", in(name));
      if (got == 0) return text;
      text.append(block, static_cast<std::size_t>(got));
    }
  }

  enum class Existing : std::uint8_t { keep, replace };

  /// Writes the whole file under `scratch` first, which this process uses alone. False where it
  /// exists and is to be kept.
  [[nodiscard]] bool write(const std::string& name, std::string_view text,
                           const std::string& scratch, Existing existing) const {
    {
      const FileHandle file(openat(handle_.get(), scratch.c_str(),
                                   O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0600));
      if (!file) refuse("cannot write", in(scratch));
      while (!text.empty()) {
        const ssize_t put = ::write(file.get(), text.data(), text.size());
        if (put < 0 && errno == EINTR) continue;
        if (put < 0) refuse("cannot write", in(scratch));
        text.remove_prefix(static_cast<std::size_t>(put));
      }
    }
    return show(name, scratch, existing);
  }

  /// Gives the file `scratch` its real name.
  [[nodiscard]] bool show(const std::string& name, const std::string& scratch,
                          Existing existing) const {
    const int at = handle_.get();
    if (existing == Existing::replace) {
      if (renameat(at, scratch.c_str(), at, name.c_str()) != 0) refuse("cannot write", in(name));
      return true;
    }
    const bool made = linkat(at, scratch.c_str(), at, name.c_str(), 0) == 0;
    const int error = errno;
    unlinkat(at, scratch.c_str(), 0);
    if (!made && error != EEXIST) {
      errno = error;
      refuse("cannot write", in(name));
    }
    return made;
  }

  /// Whether `handle` is what the directory has under `name`, and the directory still what is at
  /// its path: another process may have removed either.
  [[nodiscard]] bool holds(const std::string& name, const FileHandle& handle) const noexcept {
    struct stat here {};
    struct stat there {};
    return fstat(handle_.get(), &here) == 0 && ::stat(path_.c_str(), &there) == 0 &&
           same(here, there) && fstat(handle.get(), &here) == 0 &&
           fstatat(handle_.get(), name.c_str(), &there, AT_SYMLINK_NOFOLLOW) == 0 &&
           same(here, there);
  }

  void remove_file(const std::string& name) const noexcept {
    unlinkat(handle_.get(), name.c_str(), 0);
  }

  /// Removes all that is in it but `keep`, one level of directories deep.
  void clear(std::string_view keep) const noexcept {
    for_each_in(handle_.get(), [&](const char* name) {
      if (name == keep || unlinkat(handle_.get(), name, 0) == 0) return;
      const FileHandle child(
          openat(handle_.get(), name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
      if (!child) return;
      for_each_in(child.get(), [&](const char* file) { unlinkat(child.get(), file, 0); });
      unlinkat(handle_.get(), name, AT_REMOVEDIR);
    });
  }

  /// Calls f(name) for each entry.
  template <class F>
  void for_each(const F& f) const {
    for_each_in(handle_.get(), f);
  }

  /// Removes it where it is empty.
  void remove() const noexcept { ::rmdir(path_.c_str()); }

  [[noreturn]] static void refuse(const char* what, const std::string& path) {
    const int error = errno;
    raise<FileError>("{} {}: {}", what, path, std::generic_category().message(error));
  }

 private:
  [[nodiscard]] static bool same(const struct stat& a, const struct stat& b) noexcept {
    return a.st_dev == b.st_dev && a.st_ino == b.st_ino;
  }

  template <class F>
  static void for_each_in(int directory, const F& f) {
    // A descriptor of its own: reading moves its position.
    const int copy = openat(directory, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR* const entries = copy < 0 ? nullptr : fdopendir(copy);
    if (entries == nullptr) {
      if (copy >= 0) ::close(copy);
      return;
    }
    const std::unique_ptr<DIR, int (*)(DIR*)> owner(entries, closedir);
    while (const dirent* const entry = readdir(entries)) {
      if (std::strcmp(entry->d_name, ".") != 0 && std::strcmp(entry->d_name, "..") != 0) {
        f(entry->d_name);
      }
    }
  }

  [[nodiscard]] std::string in(const std::string& name) const { return path_ + "/" + name; }

  std::string path_;
  FileHandle handle_;
};

}  // namespace shardwise::inline v0_1::detail
