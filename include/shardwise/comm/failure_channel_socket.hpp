#pragma once

#include <arpa/inet.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <string_view>
#include <system_error>
#include <vector>

#include "../core/error.hpp"
#include "private_directory.hpp"

namespace shardwise::inline v0_1::detail::failures {

/// 128 random bits as text.
[[nodiscard]] inline std::string random_text() {
  std::random_device random;
  std::string text;
  for (int i = 0; i < 4; ++i) text += detail::format("{:08x}", random());
  return text;
}

[[nodiscard]] inline std::string error_text(int error) {
  return std::generic_category().message(error);
}

/// An address of a socket, of any family.
struct Address {
  sockaddr_storage bytes{};
  socklen_t size = 0;

  [[nodiscard]] int family() const noexcept { return bytes.ss_family; }
  [[nodiscard]] const sockaddr* get() const noexcept {
    return reinterpret_cast<const sockaddr*>(&bytes);
  }

  template <class T>
  [[nodiscard]] static Address of(const T& address, std::size_t size = sizeof(T)) noexcept {
    Address result;
    std::memcpy(&result.bytes, &address, sizeof address);
    result.size = static_cast<socklen_t>(size);
    return result;
  }

  /// A name of this machine alone that is no file (Linux's abstract names): nothing stays behind.
  [[nodiscard]] static Address local(std::string_view name) noexcept {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    const std::size_t length = std::min(name.size(), sizeof address.sun_path - 1);
    std::memcpy(address.sun_path + 1, name.data(), length);
    return of(address, offsetof(sockaddr_un, sun_path) + 1 + length);
  }

  /// "10.0.0.1" or "fd00::1"; family() is 0 where it is neither.
  [[nodiscard]] static Address internet(const std::string& text, std::uint16_t port) noexcept {
    sockaddr_in four{};
    if (inet_pton(AF_INET, text.c_str(), &four.sin_addr) == 1) {
      four.sin_family = AF_INET;
      four.sin_port = htons(port);
      return of(four);
    }
    sockaddr_in6 six{};
    if (inet_pton(AF_INET6, text.c_str(), &six.sin6_addr) == 1) {
      six.sin6_family = AF_INET6;
      six.sin6_port = htons(port);
      return of(six);
    }
    return {};
  }
};

/// Does not block, and is closed in programs that this one starts.
[[nodiscard]] inline FileHandle open_socket(int family) {
  FileHandle result(::socket(family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!result) {
    raise<BackendError>("cannot open a socket for watching failures: {}", error_text(errno));
  }
  return result;
}

[[nodiscard]] inline FileHandle listen_at(const Address& address) {
  FileHandle socket = open_socket(address.family());
  if (address.family() == AF_INET6) {
    const int off = 0;  // IPv4, too
    ::setsockopt(socket.get(), IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof off);
  }
  if (::bind(socket.get(), address.get(), address.size) != 0 ||
      ::listen(socket.get(), SOMAXCONN) != 0) {
    raise<BackendError>("cannot listen for the other ranks' failures: {}", error_text(errno));
  }
  return socket;
}

/// At a free port of all addresses of this machine.
[[nodiscard]] inline FileHandle listen_everywhere() {
  try {
    return listen_at(Address::internet("::", 0));
  } catch (const BackendError&) {  // a machine without IPv6
    return listen_at(Address::internet("0.0.0.0", 0));
  }
}

[[nodiscard]] inline std::uint16_t port_of(const FileHandle& socket) {
  sockaddr_storage bytes{};
  socklen_t size = sizeof bytes;
  if (::getsockname(socket.get(), reinterpret_cast<sockaddr*>(&bytes), &size) != 0) {
    raise<BackendError>("a socket for watching failures has no name: {}", error_text(errno));
  }
  // The port is at the same place in both families.
  sockaddr_in address{};
  std::memcpy(&address, &bytes, sizeof address);
  return ntohs(address.sin_port);
}

/// This machine's addresses that others may reach, as text.
[[nodiscard]] inline std::vector<std::string> addresses_of(
    const std::vector<std::string>& interfaces) {
  ifaddrs* list = nullptr;
  if (::getifaddrs(&list) != 0) {
    raise<BackendError>("cannot list this machine's network addresses: {}", error_text(errno));
  }
  const std::unique_ptr<ifaddrs, void (*)(ifaddrs*)> owner(list, ::freeifaddrs);
  constexpr std::size_t most = 16;
  std::vector<std::string> found;
  for (const ifaddrs* each = list; each != nullptr && found.size() < most; each = each->ifa_next) {
    if (each->ifa_addr == nullptr || (each->ifa_flags & IFF_UP) == 0) continue;
    if (interfaces.empty()
            ? (each->ifa_flags & IFF_LOOPBACK) != 0
            : std::find(interfaces.begin(), interfaces.end(), each->ifa_name) == interfaces.end()) {
      continue;
    }
    std::array<char, INET6_ADDRSTRLEN> text{};
    const int family = each->ifa_addr->sa_family;
    if (family == AF_INET) {
      sockaddr_in address{};
      std::memcpy(&address, each->ifa_addr, sizeof address);
      ::inet_ntop(AF_INET, &address.sin_addr, text.data(), text.size());
    } else if (family == AF_INET6) {
      sockaddr_in6 address{};
      std::memcpy(&address, each->ifa_addr, sizeof address);
      if (IN6_IS_ADDR_LINKLOCAL(&address.sin6_addr)) continue;
      ::inet_ntop(AF_INET6, &address.sin6_addr, text.data(), text.size());
    }
    if (text[0] != '\0') found.emplace_back(text.data());
  }
  return found;
}

/// A lost machine sends nothing; the kernel asks it, and gives the connection up in about 15 s.
inline void keep_alive(const FileHandle& socket) noexcept {
  const auto set = [&](int level, int name, int value) {
    ::setsockopt(socket.get(), level, name, &value, sizeof value);
  };
  set(SOL_SOCKET, SO_KEEPALIVE, 1);
  set(IPPROTO_TCP, TCP_KEEPIDLE, 5);
  set(IPPROTO_TCP, TCP_KEEPINTVL, 5);
  set(IPPROTO_TCP, TCP_KEEPCNT, 2);
  set(IPPROTO_TCP, TCP_USER_TIMEOUT, 15000);
  set(IPPROTO_TCP, TCP_NODELAY, 1);
}

/// The process at the other end of a local socket; pid 0 where the kernel does not say.
[[nodiscard]] inline ucred peer_of(const FileHandle& socket) noexcept {
  ucred peer{};
  socklen_t size = sizeof peer;
  if (::getsockopt(socket.get(), SOL_SOCKET, SO_PEERCRED, &peer, &size) != 0) return {};
  return peer;
}

/// Readable when the process has ended, even where its children keep its sockets open. Empty where
/// the kernel (before 5.3) has no such thing: the socket alone must do.
[[nodiscard]] inline FileHandle watch_process([[maybe_unused]] pid_t process) noexcept {
#if defined(SYS_pidfd_open)
  if (process > 0) return FileHandle(static_cast<int>(::syscall(SYS_pidfd_open, process, 0)));
#endif
  return {};
}

}  // namespace shardwise::inline v0_1::detail::failures
