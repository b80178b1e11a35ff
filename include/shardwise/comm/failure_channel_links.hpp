#pragma once

#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "../core/error.hpp"
#include "failure_channel_frame.hpp"
#include "failure_channel_meeting.hpp"

namespace shardwise::inline v0_1::detail::failures {

/// The connections of a rank. Nothing here waits.
class Links {
 public:
  explicit Links(std::vector<Link> links) : links_(std::move(links)) {}

  /// To all neighbours but two.
  void send(const std::string& frame, int but = -1, int nor = -1) {
    for (Link& link : links_) {
      if (!link.socket || link.peer == but || link.peer == nor) continue;
      if (link.out.size() > most_unsent) continue;  // a rank that is stopped reads nothing
      link.out += frame;
      flush(link);
    }
  }

  /// Whether there is a connection still.
  [[nodiscard]] bool any() const {
    return std::any_of(links_.begin(), links_.end(),
                       [](const Link& link) { return static_cast<bool>(link.socket); });
  }

  /// Nothing more will be sent. Not closed: what the peers have sent and this rank has not read
  /// would make the kernel take back what is under way to them.
  void shut() {
    shut_ = true;
    for (const Link& link : links_) shut(link);
  }

  void clear() noexcept { links_.clear(); }

  /// What to wait for, two for each connection.
  void append_to(std::vector<pollfd>& polled) const {
    for (const Link& link : links_) {
      const auto wanted = static_cast<short>(POLLIN | (link.out.empty() ? 0 : POLLOUT));
      polled.push_back({link.socket.get(), wanted, 0});
      polled.push_back({link.socket ? link.process.get() : -1, POLLIN, 0});
    }
  }

  /// After poll: calls take(frame, peer) for each frame that came, and lost(peer, error) where a
  /// connection has ended (0) or is broken. take throws BackendError where a frame makes no sense.
  template <class Take, class Lost>
  void look(std::span<const pollfd> polled, const Take& take, const Lost& lost) {
    for (std::size_t i = 0; i < links_.size(); ++i) {
      Link& link = links_[i];
      const short socket = polled[2 * i].revents;
      const bool process_ended = polled[2 * i + 1].revents != 0;
      if (!link.socket || (socket == 0 && !process_ended)) continue;
      if ((socket & POLLOUT) != 0) {
        flush(link);
        if (shut_) shut(link);
      }
      const int end = receive(link, process_ended, take);
      if (end < 0) continue;
      link.socket = FileHandle();
      link.process = FileHandle();
      lost(link.peer, end);
    }
  }

 private:
  static constexpr std::size_t most_unsent = std::size_t{1} << 20;

  // A broken connection is seen by who reads from it.
  static void flush(Link& link) {
    while (!link.out.empty()) {
      const ssize_t put =
          ::send(link.socket.get(), link.out.data(), link.out.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
      if (put < 0 && errno == EINTR) continue;
      if (put < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) return;
      if (put < 0) return link.out.clear();
      link.out.erase(0, static_cast<std::size_t>(put));
    }
  }

  static void shut(const Link& link) noexcept {
    if (link.socket && link.out.empty()) ::shutdown(link.socket.get(), SHUT_WR);
  }

  // -1: the connection goes on; else its error, or 0 where the peer has ended it.
  template <class Take>
  static int receive(Link& link, bool process_ended, const Take& take) {
    std::array<char, 4096> block;
    for (;;) {
      const ssize_t got = ::recv(link.socket.get(), block.data(), block.size(), MSG_DONTWAIT);
      const int error = got < 0 ? errno : 0;
      if (error == EINTR) continue;
      if (got > 0) {
        link.in.append(block.data(), static_cast<std::size_t>(got));
        continue;
      }
      if (!take_frames(link, take)) return EPROTO;
      const bool nothing = error == EAGAIN || error == EWOULDBLOCK;
      if (nothing && !process_ended) return -1;
      return nothing ? 0 : error;
    }
  }

  template <class Take>
  static bool take_frames(Link& link, const Take& take) {
    std::size_t taken = 0;
    try {
      for (;;) {
        const std::string_view frame = Reader::frame_of(std::string_view(link.in).substr(taken));
        if (frame.empty()) break;
        taken += frame.size() + sizeof(std::uint32_t);
        take(frame, link.peer);
      }
    } catch (const BackendError&) {
      return false;
    }
    link.in.erase(0, taken);
    return true;
  }

  std::vector<Link> links_;
  bool shut_ = false;
};

}  // namespace shardwise::inline v0_1::detail::failures
