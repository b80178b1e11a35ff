#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <vector>

#include "internal.hpp"
#include "nccl_link.hpp"

namespace emulation {

enum class Kind : std::uint32_t {
  hello,
  join,
  collective,
  messages,
  split,
  shrink,
  window,
  stop,
  health
};

/// Operations of streams, calls of the host and the end of a rank do not wait for each other, so a
/// rank has three connections. The one for control tells the hub that the process has died.
enum class Channel : std::uint32_t { control, management, data };

struct Request {
  Kind kind = Kind::hello;
  Channel channel = Channel::control;
  std::uint64_t session = 0;  // of hello
  std::uint64_t number = 0;   // sequence, ordinal or count, by kind
  std::int32_t first = 0;     // rank, color, flags or reason, by kind
  std::int32_t second = 0;    // ranks or key, by kind
  double time = 0;
  std::uint64_t bytes = 0;  // that follow
  Call call = {};
};

struct Reply {
  Outcome outcome = Outcome::done;
  std::int32_t fatal = 0;  // the bytes that follow are the message with which the process ends
  std::int32_t rank = -1;
  std::int32_t ranks = 0;
  std::uint64_t session = 0;  // of a new communicator
  std::int32_t result = ncclSuccess;
  std::int32_t unused = 0;
  double time = 0;
  std::uint64_t bytes = 0;  // that follow
};

/// A part of a result: `bytes` for byte `offset` of a buffer, or for call number `offset` of a
/// group.
struct Piece {
  std::uint64_t offset = 0;
  std::uint64_t bytes = 0;
};

/// One socket. A request and its reply belong together: hold `lock` for both.
class Connection {
 public:
  explicit Connection(int descriptor) : descriptor_(descriptor) {}
  ~Connection();
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;

  /// False: the other side is gone.
  bool send(const void* data, std::size_t bytes) const;
  bool receive(void* data, std::size_t bytes) const;
  bool send(const Request& request, std::span<const std::byte> payload) const;
  bool send(const Reply& reply, std::span<const std::byte> payload) const;
  bool receive(Request& request, std::vector<std::byte>& payload) const;
  bool receive(Reply& reply, std::vector<std::byte>& payload) const;

  Lock lock;

 private:
  int descriptor_;
};

/// A socket that listens under the key, or one that is connected to it; -1: failed.
int listen_at(const std::string& key);
int connect_to(const std::string& key);

/// Puts bytes and strings one after the other.
class Packer {
 public:
  void put(const void* data, std::size_t bytes) {
    const auto* const begin = static_cast<const std::byte*>(data);
    bytes_.insert(bytes_.end(), begin, begin + bytes);
  }
  template <class Value>
  void put(const Value& value) {
    put(&value, sizeof value);
  }
  void put(const std::string& text) {
    put(static_cast<std::uint64_t>(text.size()));
    put(text.data(), text.size());
  }
  std::span<const std::byte> bytes() const { return bytes_; }

 private:
  std::vector<std::byte> bytes_;
};

class Unpacker {
 public:
  explicit Unpacker(std::span<const std::byte> bytes) : bytes_(bytes) {}

  bool empty() const { return bytes_.empty(); }
  const std::byte* get(std::size_t count) {
    if (count > bytes_.size()) {
      fatal("a message between processes of the emulated NCCL is too short");
    }
    const std::byte* const begin = bytes_.data();
    bytes_ = bytes_.subspan(count);
    return begin;
  }
  template <class Value>
  Value get() {
    Value value;
    std::memcpy(&value, get(sizeof value), sizeof value);
    return value;
  }
  std::string text() {
    const auto count = static_cast<std::size_t>(get<std::uint64_t>());
    return {reinterpret_cast<const char*>(get(count)), count};
  }

 private:
  std::span<const std::byte> bytes_;
};

/// Serves the connections of other processes under the key, until this process ends.
bool serve(const std::string& key);

/// Joins in the process that serves the key.
std::shared_ptr<Link> join_there(const std::string& hub, const std::string& meeting,
                                 const std::string& name, int rank, int ranks,
                                 const std::string& device, const std::function<bool()>& given_up);

/// Never the same twice on a machine.
std::uint64_t fresh_number();

}  // namespace emulation
