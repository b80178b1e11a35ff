#pragma once

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <mutex>
#include <shardwise/checkpoint/file_system.hpp>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace shardwise::test {

/// A call to a file system, before it is made.
struct FileCall {
  std::size_t index;  ///< of all calls so far, over all ranks
  std::string name;   ///< "write", "sync", ...
  std::string path;
};

/// What happens instead of a call.
struct Instead {
  int error = 0;         ///< it fails with this errno
  bool partly = false;   ///< reads and writes: half of the bytes, and at least one
  bool nothing = false;  ///< it succeeds and does nothing
  bool kills = false;    ///< the process is killed right after it
};

/// Another file system behind a hook.
class HookedFiles final : public FileSystem {
 public:
  using Hook = std::function<Instead(const FileCall&)>;

  HookedFiles(FileSystem& files, Hook hook) : files_(files), hook_(std::move(hook)) {}

  [[nodiscard]] std::size_t calls() const noexcept { return calls_; }

  Status create(const std::string& path) override {
    return opened(path, call("create", path, [&] { return files_.create(path); }));
  }
  Status open(const std::string& path) override {
    return opened(path, call("open", path, [&] { return files_.open(path); }));
  }
  Status size(int file) override {
    return call("size", path_of(file), [&] { return files_.size(file); });
  }
  Status read(int file, std::span<std::byte> into, std::uint64_t offset) override {
    bool partly = false;
    return call(
        "read", path_of(file), [&] { return files_.read(file, part(into, partly), offset); },
        &partly);
  }
  Status write(int file, std::span<const std::byte> bytes) override {
    bool partly = false;
    return call(
        "write", path_of(file), [&] { return files_.write(file, part(bytes, partly)); }, &partly);
  }
  Status sync(int file) override {
    return call("sync", path_of(file), [&] { return files_.sync(file); });
  }
  Status close(int file) override {
    // A close that fails has closed.
    const std::string path = path_of(file);
    const Status status = files_.close(file);
    return call("close", path, [&] { return status; });
  }
  Status rename(const std::string& from, const std::string& to) override {
    return call("rename", to, [&] { return files_.rename(from, to); });
  }
  Status make_directory(const std::string& path) override {
    return call("make_directory", path, [&] { return files_.make_directory(path); });
  }
  Status sync_directory(const std::string& path) override {
    return call("sync_directory", path, [&] { return files_.sync_directory(path); });
  }
  Status remove(const std::string& path) override {
    return call("remove", path, [&] { return files_.remove(path); });
  }
  Status remove_directory(const std::string& path) override {
    return call("remove_directory", path, [&] { return files_.remove_directory(path); });
  }
  Status list(const std::string& path, std::vector<std::string>& names) override {
    return call("list", path, [&] { return files_.list(path, names); });
  }

 private:
  template <class Byte>
  static std::span<Byte> part(std::span<Byte> bytes, bool partly) {
    return partly ? bytes.first(std::max<std::size_t>(bytes.size() / 2, 1)) : bytes;
  }

  template <class Call>
  Status call(const char* name, const std::string& path, const Call& run, bool* partly = nullptr) {
    const Instead instead = hook_({calls_++, name, path});
    if (instead.error != 0) return -instead.error;
    if (instead.nothing) return 0;
    if (partly != nullptr) *partly = instead.partly;
    const Status status = run();
    if (instead.kills) std::raise(SIGKILL);
    return status;
  }

  Status opened(const std::string& path, Status status) {
    if (status >= 0) {
      const std::lock_guard lock(mutex_);
      paths_[static_cast<int>(status)] = path;
    }
    return status;
  }
  std::string path_of(int file) {
    const std::lock_guard lock(mutex_);
    return paths_[file];
  }

  FileSystem& files_;
  Hook hook_;
  std::atomic<std::size_t> calls_{0};
  std::mutex mutex_;
  std::map<int, std::string> paths_;
};

}  // namespace shardwise::test
