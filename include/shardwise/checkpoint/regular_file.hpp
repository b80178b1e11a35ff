#pragma once

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>

#include "../comm/private_directory.hpp"
#include "../core/error.hpp"
#include "byte_source.hpp"
#include "shown.hpp"

namespace shardwise::inline v0_1 {

/// A regular file somewhere below a directory, open for reading. Which file it is may come from a
/// stranger's manifest, so the path is walked one component at a time and nothing leads out of the
/// directory: no absolute path, no "..", no symbolic link at any place below it. Nor is anything
/// opened that is not a regular file: opening a FIFO or a device can wait, or do something.
class RegularFile : public ByteSource {
 public:
  /// `directory` is the caller's own word and may be anything that names a directory; `path` is
  /// relative to it. FileError that names the component and what is wrong with it.
  RegularFile(std::string_view directory, std::string_view path)
      : name_(joined(directory, path)), file_(open_below(std::string(directory), path)) {}

  [[nodiscard]] std::uint64_t size() const override { return size_; }
  [[nodiscard]] std::string_view name() const override { return name_; }

  void read(std::uint64_t offset, std::span<std::byte> into) override {
    if (offset > size_ || into.size() > size_ - offset) {
      raise<FileError>("{}: cannot read {} bytes at offset {}: the file has {} bytes", name_,
                       into.size(), offset, size_);
    }
    while (!into.empty()) {
      const ssize_t got = read_some(offset, into);
      if (got < 0) {
        if (errno == EINTR) continue;
        const int reason = errno;
        raise<FileError>("{}: reading {} bytes at offset {} failed: {}", name_, into.size(), offset,
                         text_of(reason));
      }
      if (got == 0) {
        raise<FileError>(
            "{}: the file ends at byte {}, and had {} bytes when it was opened; somebody made it "
            "shorter meanwhile",
            name_, offset, size_);
      }
      offset += static_cast<std::uint64_t>(got);
      into = into.subspan(static_cast<std::size_t>(got));
    }
  }

 protected:
  /// As pread(2) of this file: it may return less than asked for, or -1 with errno.
  virtual ssize_t read_some(std::uint64_t offset, std::span<std::byte> into) {
    // Linux moves at most 0x7ffff000 bytes a call.
    const std::size_t count = std::min(into.size(), std::size_t{1} << 30);
    return ::pread(file_.get(), into.data(), count, static_cast<off_t>(offset));
  }

 private:
  [[nodiscard]] static std::string joined(std::string_view directory, std::string_view path) {
    std::string name = detail::shown(directory);
    if (!name.ends_with('/')) name += '/';
    return name + detail::shown(path);
  }
  [[nodiscard]] static std::string text_of(int reason) {
    return std::system_category().message(reason);
  }

  [[noreturn]] void refuse(std::string_view component, std::string_view cause) const {
    raise<FileError>("{}: {} {}", name_, component, cause);
  }

  [[nodiscard]] detail::FileHandle open_below(const std::string& directory, std::string_view path) {
    if (path.empty()) refuse("the path", "is empty; expected the name of a file");
    if (path.front() == '/') {
      refuse("the path", "is absolute; expected one below the directory");
    }
    if (path.find('\0') != std::string_view::npos) refuse("the path", "contains a NUL character");
    detail::FileHandle folder(
        retried([&] { return ::open(directory.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC); }));
    if (!folder) refuse("cannot open the directory:", text_of(errno));
    while (true) {
      const std::size_t slash = path.find('/');
      const std::string component(path.substr(0, slash));
      const std::string shown = "'" + detail::shown(component) + "'";
      if (component.empty() || component == ".") {
        refuse("the path", "has an empty component or '.'; write it without");
      }
      if (component == "..") refuse("'..'", "leads out of the directory");
      if (slash == std::string_view::npos) return open_file(folder, component, shown);
      detail::FileHandle next(retried([&] {
        return ::openat(folder.get(), component.c_str(),
                        O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
      }));
      if (!next) {
        const int reason = errno;
        refuse_kind(folder, component, shown, true);
        refuse(shown, text_of(reason));
      }
      folder = std::move(next);
      path.remove_prefix(slash + 1);
    }
  }

  [[nodiscard]] detail::FileHandle open_file(const detail::FileHandle& folder,
                                             const std::string& component,
                                             const std::string& shown) {
    refuse_kind(folder, component, shown, false);
    // What it is may change before it is opened: O_NONBLOCK then opens a FIFO without waiting.
    detail::FileHandle file(retried([&] {
      return ::openat(folder.get(), component.c_str(),
                      O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
    }));
    if (!file)
      refuse(shown, errno == ELOOP ? symbolic_link : "cannot be opened: " + text_of(errno));
    struct stat status {};
    if (::fstat(file.get(), &status) != 0) refuse(shown, text_of(errno));
    refuse_mode(status, shown, false);
    size_ = static_cast<std::uint64_t>(status.st_size);
    return file;
  }

  void refuse_kind(const detail::FileHandle& folder, const std::string& component,
                   const std::string& shown, bool want_directory) const {
    struct stat status {};
    if (::fstatat(folder.get(), component.c_str(), &status, AT_SYMLINK_NOFOLLOW) != 0) {
      refuse(shown, errno == ENOENT ? "does not exist" : text_of(errno));
    }
    refuse_mode(status, shown, want_directory);
  }
  void refuse_mode(const struct stat& status, const std::string& shown, bool want_directory) const {
    if (S_ISLNK(status.st_mode)) refuse(shown, symbolic_link);
    if (want_directory) {
      if (!S_ISDIR(status.st_mode)) refuse(shown, "is not a directory");
      return;
    }
    if (S_ISREG(status.st_mode)) return;
    refuse(shown, S_ISDIR(status.st_mode)    ? "is a directory; expected a regular file"
                  : S_ISFIFO(status.st_mode) ? "is a FIFO; expected a regular file"
                                             : "is a device or a socket; expected a regular file");
  }

  template <class Open>
  [[nodiscard]] static int retried(Open&& open) {
    int descriptor = -1;
    do {
      descriptor = open();
    } while (descriptor < 0 && errno == EINTR);
    return descriptor;
  }

  static constexpr const char* symbolic_link =
      "is a symbolic link; expected the file itself (of a cache of links, name the directory that "
      "they point into, or make a copy that follows them)";

  std::string name_;
  std::uint64_t size_ = 0;
  detail::FileHandle file_;
};

}  // namespace shardwise::inline v0_1
