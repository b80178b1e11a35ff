#pragma once

#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "../core/error.hpp"
#include "failure_channel_options.hpp"
#include "failure_channel_socket.hpp"
#include "launch.hpp"

namespace shardwise::inline v0_1::detail::failures {

/// A connection with another rank.
struct Link {
  int peer = -1;
  FileHandle socket;
  FileHandle process;  // see watch_process; may be empty
  std::string in;      // received, not yet taken apart
  std::string out;     // not yet taken by the kernel
};

/// All other ranks of a small run. Of a large one those at the distances 1, 2, 4, ... to both
/// sides, in order: few links, and many may leave before the rest falls apart.
[[nodiscard]] inline std::vector<int> neighbours_of(int rank, int size) {
  constexpr int small = 16;
  std::vector<int> found;
  for (int distance = 1; distance <= size / 2;) {
    found.push_back((rank + distance) % size);
    found.push_back((rank - distance + size) % size);
    distance = size <= small ? distance + 1 : distance * 2;
  }
  std::sort(found.begin(), found.end());
  found.erase(std::unique(found.begin(), found.end()), found.end());
  return found;
}

/// Connects a rank with its neighbours: the higher one dials the lower one, at all its addresses at
/// once, and keeps the connection that answers first. Both sides show the random text that the
/// other has given out in the exchange, so no stranger gets in and none is taken for a peer.
class Meeting {
 public:
  using Exchange = std::function<std::vector<std::string>(const std::string& mine)>;

  Meeting(int rank, int size, const Exchange& exchange, const FailureChannelOptions& options)
      : rank_(rank), size_(size), timeout_(options.connect_timeout) {
    const std::string name = "shardwise-" + random_text();
    listeners_.push_back(listen_at(Address::local(name)));
    const std::string machine = this_machine();
    const std::vector<std::string> cards =
        ask_all(exchange, detail::format("{} {} {}", random_text(), name, machine));
    std::vector<std::string> names;
    std::vector<std::string> machines;
    for (const std::string& card : cards) {
      const std::size_t first = card.find(' ');
      const std::size_t second = card.find(' ', first + 1);
      if (first != token_size || second == std::string::npos) refuse_exchange(card);
      tokens_.push_back(card.substr(0, first));
      names.push_back(card.substr(first + 1, second - first - 1));
      machines.push_back(card.substr(second + 1));
    }
    // Every rank comes to the same answer, so all or none exchange a second time.
    const bool several_machines = std::any_of(
        machines.begin(), machines.end(), [&](const auto& each) { return each != machines[0]; });
    std::vector<std::string> places(cards.size());
    if (several_machines) {
      listeners_.push_back(listen_everywhere());
      std::string mine = detail::format("{}", port_of(listeners_.back()));
      for (const std::string& address : addresses_of(options.interfaces)) mine += " " + address;
      places = ask_all(exchange, mine);
    }
    for (const int peer : neighbours_of(rank, size)) {
      Neighbour neighbour;
      neighbour.rank = peer;
      const auto p = static_cast<std::size_t>(peer);
      if (machines[p] == machine) {
        neighbour.addresses = {{Address::local(names[p]), "a local socket"}};
      } else {
        neighbour.addresses = parse_places(places[p]);
      }
      neighbours_.push_back(std::move(neighbour));
    }
  }

  /// BackendError, naming ranks and addresses, where the time is up.
  [[nodiscard]] std::vector<Link> connect() {
    const auto deadline = Clock::now() + timeout_;
    while (links_.size() < neighbours_.size()) {
      if (Clock::now() >= deadline) refuse_silence();
      dial();
      wait();
    }
    return std::move(links_);
  }

 private:
  using Clock = std::chrono::steady_clock;
  static constexpr std::size_t token_size = 32;
  static constexpr std::string_view magic = "swfail1 ";
  static constexpr std::size_t greeting_size = magic.size() + token_size + 8;
  static constexpr std::string_view chosen = "!";
  static constexpr std::size_t most_guests = 4096;
  static constexpr auto pause = std::chrono::milliseconds(50);

  struct Place {
    Address address;
    std::string text;
  };
  struct Neighbour {
    int rank = -1;
    bool connected = false;
    std::vector<Place> addresses;
    Clock::time_point redial{};  // not before
    std::string trouble;
  };
  /// A connection that this rank has begun, or accepted.
  struct Attempt {
    FileHandle socket;
    std::size_t neighbour = 0;
    std::string place;
    bool dialled = false;
    bool greeted = false;  // this side has shown who it is
    std::string in;
    bool over = false;
  };

  /// What shares local sockets.
  [[nodiscard]] static std::string this_machine() {
    std::array<char, 128> network{};
    if (::readlink("/proc/self/ns/net", network.data(), network.size() - 1) < 0) network[0] = '\0';
    return machine_name() + " " + network.data();
  }

  [[nodiscard]] std::vector<std::string> ask_all(const Exchange& exchange,
                                                 const std::string& mine) const {
    std::vector<std::string> all = exchange(mine);
    if (all.size() != static_cast<std::size_t>(size_)) {
      raise<BackendError>(
          "the exchange between {} ranks for watching failures gave {} texts: it must give one per "
          "rank, in order",
          size_, all.size());
    }
    return all;
  }

  [[noreturn]] static void refuse_exchange(const std::string& text) {
    raise<BackendError>(
        "the exchange between the ranks for watching failures gave \"{}\", which no rank said: it "
        "must hand all texts through as they are",
        text);
  }

  [[nodiscard]] static std::vector<Place> parse_places(const std::string& text) {
    std::vector<Place> result;
    std::size_t at = text.find(' ');
    std::uint16_t port = 0;
    std::from_chars(text.data(), text.data() + std::min(at, text.size()), port);
    while (at < text.size()) {
      const std::size_t end = std::min(text.find(' ', at + 1), text.size());
      const std::string address = text.substr(at + 1, end - at - 1);
      const Address place = Address::internet(address, port);
      if (place.family() == 0) refuse_exchange(text);
      result.push_back({place, detail::format("{} port {}", address, port)});
      at = end;
    }
    return result;
  }

  [[nodiscard]] std::string greeting(int to) const {
    return detail::format("{}{}{:08x}", magic, tokens_[static_cast<std::size_t>(to)], rank_);
  }

  void dial() {
    const auto now = Clock::now();
    for (std::size_t n = 0; n < neighbours_.size(); ++n) {
      Neighbour& neighbour = neighbours_[n];
      if (neighbour.connected || neighbour.rank > rank_ || now < neighbour.redial) continue;
      const auto busy = [&](const Attempt& each) { return each.dialled && each.neighbour == n; };
      if (std::any_of(attempts_.begin(), attempts_.end(), busy)) continue;
      neighbour.redial = now + pause;
      neighbour.trouble.clear();
      for (const Place& place : neighbour.addresses) {
        Attempt attempt;
        attempt.socket = open_socket(place.address.family());
        attempt.neighbour = n;
        attempt.place = place.text;
        attempt.dialled = true;
        if (::connect(attempt.socket.get(), place.address.get(), place.address.size) != 0 &&
            errno != EINPROGRESS) {
          note(attempt, errno);
          continue;
        }
        attempts_.push_back(std::move(attempt));
      }
    }
  }

  void wait() {
    std::vector<pollfd> polled;
    for (const FileHandle& listener : listeners_) polled.push_back({listener.get(), POLLIN, 0});
    for (const Attempt& attempt : attempts_) {
      const bool connecting = attempt.dialled && !attempt.greeted;
      polled.push_back(
          {attempt.socket.get(), static_cast<short>(connecting ? POLLOUT : POLLIN), 0});
    }
    ::poll(polled.data(), polled.size(), static_cast<int>(pause.count()));
    const std::size_t known = attempts_.size();
    for (std::size_t i = 0; i < known; ++i) {
      if (polled[listeners_.size() + i].revents != 0) go_on(attempts_[i]);
    }
    for (std::size_t i = 0; i < listeners_.size(); ++i) {
      if (polled[i].revents != 0) accept(listeners_[i]);
    }
    std::erase_if(attempts_, [&](const Attempt& each) {
      return each.over || (each.dialled && neighbours_[each.neighbour].connected);
    });
  }

  void accept(const FileHandle& listener) {
    while (attempts_.size() < most_guests) {
      Attempt guest;
      guest.socket =
          FileHandle(::accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
      if (!guest.socket) return;
      attempts_.push_back(std::move(guest));
    }
  }

  void go_on(Attempt& attempt) {
    if (attempt.dialled && !attempt.greeted) {
      int error = 0;
      socklen_t size = sizeof error;
      ::getsockopt(attempt.socket.get(), SOL_SOCKET, SO_ERROR, &error, &size);
      if (error != 0) return note(attempt, error);
      attempt.greeted = true;
      if (!say(attempt, greeting(neighbours_[attempt.neighbour].rank))) note(attempt, errno);
      return;
    }
    std::array<char, 4096> block;
    const ssize_t got = ::recv(attempt.socket.get(), block.data(), block.size(), 0);
    if (got < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (got <= 0) return note(attempt, got < 0 ? errno : ECONNRESET);
    attempt.in.append(block.data(), static_cast<std::size_t>(got));
    if (attempt.dialled) {
      if (attempt.in.size() < greeting_size) return;
      if (!take_greeting(attempt) || !say(attempt, chosen)) return note(attempt, EPROTO);
      keep(attempt);
    } else if (!attempt.greeted) {
      if (attempt.in.size() < greeting_size) return;
      if (!take_greeting(attempt) || !say(attempt, greeting(neighbours_[attempt.neighbour].rank))) {
        attempt.over = true;
        return;
      }
      attempt.greeted = true;
    }
    if (!attempt.dialled && attempt.greeted && !attempt.in.empty()) {
      if (attempt.in.front() != chosen.front()) return note(attempt, EPROTO);
      attempt.in.erase(0, 1);
      keep(attempt);
    }
  }

  /// Whether a neighbour says it, that may and that knows this rank's text.
  [[nodiscard]] bool take_greeting(Attempt& attempt) {
    const std::string_view said(attempt.in.data(), greeting_size);
    int from = -1;
    const std::string_view number = said.substr(greeting_size - 8);
    std::from_chars(number.data(), number.data() + number.size(), from, 16);
    const auto is_it = [&](const Neighbour& each) { return each.rank == from; };
    const auto found = std::find_if(neighbours_.begin(), neighbours_.end(), is_it);
    if (!said.starts_with(magic) ||
        said.substr(magic.size(), token_size) != tokens_[static_cast<std::size_t>(rank_)] ||
        found == neighbours_.end() || found->connected || (from < rank_) != attempt.dialled) {
      return false;
    }
    const auto index = static_cast<std::size_t>(found - neighbours_.begin());
    if (attempt.dialled && index != attempt.neighbour) return false;
    attempt.neighbour = index;
    attempt.in.erase(0, greeting_size);
    return true;
  }

  /// A few bytes on an empty connection go at once or not at all.
  [[nodiscard]] static bool say(const Attempt& attempt, std::string_view text) noexcept {
    return ::send(attempt.socket.get(), text.data(), text.size(), MSG_NOSIGNAL) ==
           static_cast<ssize_t>(text.size());
  }

  void keep(Attempt& attempt) {
    Neighbour& neighbour = neighbours_[attempt.neighbour];
    attempt.over = true;
    if (neighbour.connected) return;
    neighbour.connected = true;
    Link link;
    link.peer = neighbour.rank;
    link.process = watch_process(peer_of(attempt.socket).pid);
    link.in = std::move(attempt.in);
    keep_alive(attempt.socket);
    link.socket = std::move(attempt.socket);
    links_.push_back(std::move(link));
  }

  void note(Attempt& attempt, int error) {
    attempt.over = true;
    if (!attempt.dialled) return;
    std::string& trouble = neighbours_[attempt.neighbour].trouble;
    trouble +=
        detail::format("{}{}: {}", trouble.empty() ? "" : ", ", attempt.place, error_text(error));
  }

  [[noreturn]] void refuse_silence() const {
    std::string missing;
    for (const Neighbour& each : neighbours_) {
      if (each.connected) continue;
      missing += detail::format("\n  rank {}", each.rank);
      if (each.rank > rank_) {
        missing += ": it did not connect";
        continue;
      }
      missing += each.addresses.empty() ? ": it gave no address" : "";
      for (const Place& place : each.addresses) missing += detail::format(", {}", place.text);
      if (!each.trouble.empty()) missing += detail::format(" ({})", each.trouble);
    }
    raise<BackendError>(
        "rank {} could not connect with all other ranks within {} ms, to watch for their "
        "failures:{}\nDo these processes run, and does the network between the machines let new "
        "connections through? FailureChannelOptions::interfaces names the interfaces to use.",
        rank_, timeout_.count(), missing);
  }

  int rank_;
  int size_;
  std::chrono::milliseconds timeout_;
  std::vector<FileHandle> listeners_;
  std::vector<std::string> tokens_;
  std::vector<Neighbour> neighbours_;
  std::vector<Attempt> attempts_;
  std::vector<Link> links_;
};

}  // namespace shardwise::inline v0_1::detail::failures
