#pragma once

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <map>
#include <mutex>
#include <random>
#include <shardwise/checkpoint/file_system.hpp>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace shardwise::test {

/// A file system in memory that knows what of it is on its disk. A crash leaves what was synced,
/// and of the rest whatever the disk has got to: any sectors of a file, any length up to the
/// written one, any of the changes to a directory, in any order. A change to a directory is whole
/// or not there. Syncing a file says nothing of its name.
class SimulatedDisk final : public FileSystem {
 public:
  SimulatedDisk() { nodes_[0].directory = true; }
  SimulatedDisk(const SimulatedDisk& other) : SimulatedDisk(other, std::lock_guard(other.mutex_)) {}
  SimulatedDisk& operator=(const SimulatedDisk&) = delete;

  /// The disk after a crash now.
  [[nodiscard]] SimulatedDisk crashed(std::mt19937_64& random) const {
    SimulatedDisk after(*this);
    // How much of what was not synced is there: nothing, everything, or this share.
    const std::uint64_t share = std::uint64_t{25} * (random() % 5);
    const auto keeps = [&] { return random() % 100 < share; };
    for (auto& [index, node] : after.nodes_) {
      if (node.directory) {
        node.names = node.durable_names;
        for (const Change& change : node.changes) {
          if (keeps()) change.apply(node.names);
        }
        node.changes.clear();
        node.durable_names = node.names;
        continue;
      }
      if (node.bytes.size() > node.synced) {
        const std::size_t length =
            keeps() ? node.bytes.size()
                    : node.synced + random() % (node.bytes.size() - node.synced + 1);
        node.bytes.resize(length);
        bool torn = false;
        for (std::size_t at = node.synced; at < length; ++at) {
          // By sectors; the others read as zeros.
          if (at == node.synced || at % sector == 0) torn = !keeps();
          if (torn) node.bytes[at] = std::byte{0};
        }
        node.synced = length;
      }
    }
    after.open_.clear();
    return after;
  }

  /// All files, by path.
  [[nodiscard]] std::map<std::string, std::vector<std::byte>> files() const {
    const std::lock_guard lock(mutex_);
    std::map<std::string, std::vector<std::byte>> result;
    walk(0, "", [&](const std::string& path, const Node& node) {
      if (!node.directory) result[path] = node.bytes;
    });
    return result;
  }

  Status create(const std::string& path) override {
    const std::lock_guard lock(mutex_);
    const Status node = add(path, false);
    return node < 0 ? node : open_node(static_cast<int>(node));
  }
  Status open(const std::string& path) override {
    const std::lock_guard lock(mutex_);
    const Place place = find(path);
    if (place.node < 0) return -ENOENT;
    return nodes_[place.node].directory ? -EINVAL : open_node(place.node);
  }
  Status size(int file) override {
    const std::lock_guard lock(mutex_);
    return static_cast<Status>(nodes_[open_.at(file)].bytes.size());
  }
  Status read(int file, std::span<std::byte> into, std::uint64_t offset) override {
    const std::lock_guard lock(mutex_);
    const auto& bytes = nodes_[open_.at(file)].bytes;
    if (offset >= bytes.size()) return 0;
    const std::size_t part = std::min(into.size(), bytes.size() - static_cast<std::size_t>(offset));
    std::copy_n(bytes.begin() + static_cast<std::ptrdiff_t>(offset), part, into.begin());
    return static_cast<Status>(part);
  }
  Status write(int file, std::span<const std::byte> bytes) override {
    const std::lock_guard lock(mutex_);
    auto& node = nodes_[open_.at(file)];
    node.bytes.insert(node.bytes.end(), bytes.begin(), bytes.end());
    return static_cast<Status>(bytes.size());
  }
  Status sync(int file) override {
    const std::lock_guard lock(mutex_);
    auto& node = nodes_[open_.at(file)];
    node.synced = node.bytes.size();
    return 0;
  }
  Status close(int file) override {
    const std::lock_guard lock(mutex_);
    open_.erase(file);
    return 0;
  }
  Status rename(const std::string& from, const std::string& to) override {
    const std::lock_guard lock(mutex_);
    const Place source = find(from);
    const Place target = find(to);
    if (source.node < 0 || target.parent < 0) return -ENOENT;
    if (source.parent != target.parent) return -EXDEV;
    change(source.parent, {source.name, target.name, source.node});
    return 0;
  }
  Status make_directory(const std::string& path) override {
    const std::lock_guard lock(mutex_);
    return std::min<Status>(0, add(path, true));
  }
  Status sync_directory(const std::string& path) override {
    const std::lock_guard lock(mutex_);
    const Place place = find(path);
    if (place.node < 0) return -ENOENT;
    auto& node = nodes_[place.node];
    node.durable_names = node.names;
    node.changes.clear();
    return 0;
  }
  Status remove(const std::string& path) override {
    const std::lock_guard lock(mutex_);
    const Place place = find(path);
    if (place.node < 0) return -ENOENT;
    if (nodes_[place.node].directory) return -EISDIR;
    change(place.parent, {place.name, "", place.node});
    return 0;
  }
  Status remove_directory(const std::string& path) override {
    const std::lock_guard lock(mutex_);
    const Place place = find(path);
    if (place.node < 0) return -ENOENT;
    if (!nodes_[place.node].names.empty()) return -ENOTEMPTY;
    change(place.parent, {place.name, "", place.node});
    return 0;
  }
  Status list(const std::string& path, std::vector<std::string>& names) override {
    const std::lock_guard lock(mutex_);
    const Place place = find(path);
    if (place.node < 0) return -ENOENT;
    if (!nodes_[place.node].directory) return -ENOTDIR;
    for (const auto& [name, node] : nodes_[place.node].names) names.push_back(name);
    return 0;
  }

 private:
  static constexpr std::size_t sector = 512;
  using Names = std::map<std::string, int>;

  /// `node` loses the name `from` and gets the name `to`; empty: none.
  struct Change {
    std::string from;
    std::string to;
    int node;

    void apply(Names& names) const {
      const auto found = names.find(from);
      if (found != names.end() && found->second == node) names.erase(found);
      if (!to.empty()) names[to] = node;
    }
  };
  struct Node {
    bool directory = false;
    std::vector<std::byte> bytes = {};
    std::size_t synced = 0;  // so many of them are on the disk
    Names names = {};
    Names durable_names = {};
    std::vector<Change> changes = {};  // not synced
  };
  struct Place {
    int parent = -1;
    int node = -1;
    std::string name = {};
  };

  SimulatedDisk(const SimulatedDisk& other, const std::lock_guard<std::mutex>&)
      : nodes_(other.nodes_), open_(other.open_), next_(other.next_) {}

  void change(int directory, Change change) {
    auto& node = nodes_[directory];
    change.apply(node.names);
    node.changes.push_back(std::move(change));
  }
  // The new node.
  Status add(const std::string& path, bool directory) {
    const Place place = find(path);
    if (place.parent < 0) return -ENOENT;
    if (place.node >= 0) return -EEXIST;
    const int node = next_++;
    nodes_[node] = {};
    nodes_[node].directory = directory;
    change(place.parent, {"", place.name, node});
    return node;
  }
  Status open_node(int node) {
    const int file = next_++;
    open_[file] = node;
    return file;
  }

  [[nodiscard]] Place find(const std::string& path) {
    Place place{-1, 0, ""};
    for (std::size_t begin = 0; begin < path.size();) {
      const std::size_t end = std::min(path.find('/', begin), path.size());
      const std::string name = path.substr(begin, end - begin);
      begin = end + 1;
      if (name.empty() || name == ".") continue;
      if (place.node < 0 || !nodes_[place.node].directory) return {};
      const auto& names = nodes_[place.node].names;
      const auto found = names.find(name);
      place = {place.node, found == names.end() ? -1 : found->second, name};
    }
    return place;
  }
  template <class F>
  void walk(int directory, const std::string& path, const F& f) const {
    for (const auto& [name, index] : nodes_.at(directory).names) {
      const std::string below = path.empty() ? name : path + '/' + name;
      f(below, nodes_.at(index));
      if (nodes_.at(index).directory) walk(index, below, f);
    }
  }

  mutable std::mutex mutex_;
  std::map<int, Node> nodes_;
  std::map<int, int> open_;
  int next_ = 1;
};

}  // namespace shardwise::test
