#include "nccl_wire.hpp"

#include <sys/random.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

namespace emulation {

Connection::~Connection() { close(descriptor_); }

bool Connection::send(const void* data, std::size_t bytes) const {
  const auto* next = static_cast<const std::byte*>(data);
  while (bytes > 0) {
    const ssize_t done = ::send(descriptor_, next, bytes, MSG_NOSIGNAL);
    if (done < 0 && errno == EINTR) {
      continue;
    }
    if (done <= 0) {
      return false;
    }
    next += done;
    bytes -= static_cast<std::size_t>(done);
  }
  return true;
}

bool Connection::receive(void* data, std::size_t bytes) const {
  auto* next = static_cast<std::byte*>(data);
  while (bytes > 0) {
    const ssize_t done = ::recv(descriptor_, next, bytes, 0);
    if (done < 0 && errno == EINTR) {
      continue;
    }
    if (done <= 0) {
      return false;
    }
    next += done;
    bytes -= static_cast<std::size_t>(done);
  }
  return true;
}

bool Connection::send(const Request& request, std::span<const std::byte> payload) const {
  Request sized = request;
  sized.bytes = payload.size();
  return send(&sized, sizeof sized) && send(payload.data(), payload.size());
}

bool Connection::send(const Reply& reply, std::span<const std::byte> payload) const {
  Reply sized = reply;
  sized.bytes = payload.size();
  return send(&sized, sizeof sized) && send(payload.data(), payload.size());
}

bool Connection::receive(Request& request, std::vector<std::byte>& payload) const {
  if (!receive(&request, sizeof request)) {
    return false;
  }
  payload.resize(request.bytes);
  return receive(payload.data(), payload.size());
}

bool Connection::receive(Reply& reply, std::vector<std::byte>& payload) const {
  if (!receive(&reply, sizeof reply)) {
    return false;
  }
  payload.resize(reply.bytes);
  return receive(payload.data(), payload.size());
}

namespace {

struct Address {
  sockaddr_un name{};
  socklen_t bytes = 0;
};

// A leading zero: the abstract namespace, where nothing is left behind.
Address address_of(const std::string& key) {
  Address address;
  address.name.sun_family = AF_UNIX;
  const std::size_t length = std::min(key.size(), sizeof address.name.sun_path - 1);
  std::memcpy(address.name.sun_path + 1, key.data(), length);
  address.bytes = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + length);
  return address;
}

}  // namespace

int listen_at(const std::string& key) {
  const int descriptor = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  const Address address = address_of(key);
  if (descriptor < 0 ||
      bind(descriptor, reinterpret_cast<const sockaddr*>(&address.name), address.bytes) != 0 ||
      listen(descriptor, SOMAXCONN) != 0) {
    if (descriptor >= 0) {
      close(descriptor);
    }
    return -1;
  }
  return descriptor;
}

int connect_to(const std::string& key) {
  const int descriptor = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  const Address address = address_of(key);
  if (descriptor < 0 ||
      connect(descriptor, reinterpret_cast<const sockaddr*>(&address.name), address.bytes) != 0) {
    if (descriptor >= 0) {
      close(descriptor);
    }
    return -1;
  }
  return descriptor;
}

std::uint64_t fresh_number() {
  std::uint64_t number = 0;
  if (getrandom(&number, sizeof number, 0) != sizeof number) {
    fatal("getrandom: %s", std::strerror(errno));
  }
  return number;
}

}  // namespace emulation
