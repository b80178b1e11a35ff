#pragma once

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <new>
#include <random>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include "../comm/private_directory.hpp"
#include "../core/error.hpp"
#include "../core/format.hpp"
#include "file.hpp"
#include "posix_file_system.hpp"
#include "shown.hpp"

namespace shardwise::inline v0_1::detail {

/// A file that several ranks write, each a part of its own, under a name that nobody else uses
/// until it is whole. Errors are FileErrors that name it.
class OutputFile {
 public:
  /// Rank 0: makes it, `size` bytes long, all of them 0.
  [[nodiscard]] static OutputFile create(const std::string& path, std::uint64_t size) {
    OutputFile file(path, O_CREAT | O_EXCL);
    int status = 0;
    do {
      status = ::ftruncate(file.file_.get(), static_cast<off_t>(size));
    } while (status != 0 && errno == EINTR);
    if (status != 0) file.fail(format("cannot give it {} bytes", size));
    return file;
  }
  /// The others, when it is there.
  [[nodiscard]] static OutputFile open(const std::string& path) { return OutputFile(path, 0); }

  void write(std::uint64_t offset, std::span<const std::byte> bytes) {
    while (!bytes.empty()) {
      const std::size_t count = std::min(bytes.size(), std::size_t{1} << 30);
      const ssize_t put = ::pwrite(file_.get(), bytes.data(), count, static_cast<off_t>(offset));
      if (put < 0 && errno == EINTR) continue;
      if (put <= 0) {
        if (put == 0) errno = EIO;  // a system that takes nothing would be asked for ever
        fail(format("cannot write {} bytes at offset {}", bytes.size(), offset));
      }
      offset += static_cast<std::uint64_t>(put);
      bytes = bytes.subspan(static_cast<std::size_t>(put));
    }
  }
  /// The bytes are on the disk when it returns. Never tried again: after a failure the system may
  /// have dropped them, and would report success.
  void sync() {
    if (::fsync(file_.get()) != 0) fail("fsync failed");
  }

 private:
  OutputFile(const std::string& path, int flags)
      : path_(path), file_(::open(path.c_str(), O_WRONLY | O_NOFOLLOW | O_CLOEXEC | flags, 0666)) {
    if (!file_) {
      fail(flags == 0 ? "rank 0 has made it, but it cannot be opened here; do all ranks see one "
                        "directory? If not, export with Writers::one_rank"
                      : "cannot make it");
    }
  }

  [[noreturn]] void fail(std::string_view what) const {
    const int reason = errno;
    raise<FileError>("{}: {}: {} (errno {})", shown(path_, 4096), what,
                     std::system_category().message(reason), reason);
  }

  std::string path_;
  FileHandle file_;
};

/// The directory that an export goes to. All files get their names at the end, one after the other,
/// the last one last: who finds that one finds all of them.
class OutputFolder {
 public:
  /// `key` is part of the names that files have until the end, and nobody else's.
  OutputFolder(std::string path, std::string key) : path_(std::move(path)), key_(std::move(key)) {}

  /// One that no other export has.
  [[nodiscard]] static std::string make_key() {
    std::random_device random;
    return format("{:08x}{:08x}", random(), random());
  }

  [[nodiscard]] std::string partial(const std::string& name) const {
    return path_ + "/." + name + '.' + key_ + ".partial";
  }

  /// Rank 0: makes the directory if there is none, and refuses it where one of `names` is there.
  template <class IsTaken>
  void prepare(const IsTaken& is_taken) const {
    PosixFileSystem files;
    make_directories(files, path_);
    std::vector<std::string> there;
    const FileSystem::Status status = files.list(path_, there);
    if (status < 0) fail(path_, "cannot list the directory", -status);
    for (const std::string& name : there) {
      if (is_taken(name)) {
        raise<FileError>(
            "{}: there is {} already; nothing is overwritten. Export to another directory, or "
            "remove what is there",
            path_, shown(name));
      }
    }
  }

  /// Rank 0: a small file, whole.
  void write(const std::string& name, std::string_view text) const {
    OutputFile file = OutputFile::create(partial(name), text.size());
    file.write(0, std::as_bytes(std::span(text)));
    file.sync();
  }

  /// Rank 0: gives the files their names, in order; they stay after a loss of power. All or none
  /// have them.
  void publish(std::span<const std::string> names) const {
    std::size_t done = 0;
    try {
      for (; done < names.size(); ++done) {
        // The last one is the sign that all others are there.
        if (done + 1 == names.size()) sync();
        const std::string from = partial(names[done]);
        if (::rename(from.c_str(), final_path(names[done]).c_str()) != 0) {
          fail(from, "cannot rename it");
        }
      }
      sync();
    } catch (const FileError&) {
      while (done > 0) static_cast<void>(::unlink(final_path(names[--done]).c_str()));
      throw;
    }
  }
  /// Rank 0: what is left of an export that failed goes.
  void remove_partial(std::span<const std::string> names) const noexcept {
    for (const std::string& name : names) {
      try {
        static_cast<void>(::unlink(partial(name).c_str()));
      } catch (const std::bad_alloc&) {
        return;
      }
    }
  }

 private:
  [[nodiscard]] std::string final_path(const std::string& name) const { return path_ + '/' + name; }

  void sync() const {
    const FileHandle folder(::open(path_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    if (!folder) fail(path_, "cannot open the directory");
    if (::fsync(folder.get()) != 0) fail(path_, "fsync of the directory failed");
  }
  [[noreturn]] static void fail(const std::string& path, std::string_view what,
                                FileSystem::Status status = errno) {
    const auto reason = static_cast<int>(status);
    raise<FileError>("{}: {}: {} (errno {})", shown(path, 4096), what,
                     std::system_category().message(reason), reason);
  }

  std::string path_;
  std::string key_;
};

}  // namespace shardwise::inline v0_1::detail
