#pragma once

#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "../core/error.hpp"
#include "failure_channel_frame.hpp"
#include "failure_channel_meeting.hpp"
#include "failure_channel_options.hpp"
#include "fingerprint.hpp"
#include "process_failure.hpp"

namespace shardwise::inline v0_1::detail::failures {

/// What a rank says of its calls of one communicator.
struct LastCall {
  std::uint64_t sequence = 0;  // of the last one that it made; 0: none so far
  bool inside = false;         // it is still in it
  std::string text;
};

/// What a channel and its thread share.
///
/// Every message goes to all neighbours, and each rank passes on what it has not seen before, so it
/// reaches all ranks that are connected in any way. A rank's messages arrive in their order. What a
/// rank learns it passes on before its own code can see it: so the first failure is known before
/// what follows from it.
class State {
 public:
  using Clock = std::chrono::steady_clock;
  /// What a rank says that asks all others, before it says why.
  static constexpr std::string_view time_is_up = "its time is up";

  State(int rank, int size, std::vector<Link> links, FailureChannelOptions options)
      : rank_(rank),
        options_(std::move(options)),
        links_(std::move(links)),
        wake_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)),
        seen_(static_cast<std::size_t>(size)),
        gone_(static_cast<std::size_t>(size)) {
    if (!wake_) {
      raise<BackendError>("cannot make an event for watching failures: {}", error_text(errno));
    }
    gone_[static_cast<std::size_t>(rank)] = true;
  }

  [[nodiscard]] bool has_failed() const noexcept { return failed_.load(); }

  [[nodiscard]] ProcessFailure failure() {
    const std::lock_guard lock(mutex_);
    return failure_;
  }

  /// Gives a message that is on its way a moment.
  [[nodiscard]] ProcessFailure settled_failure() {
    std::unique_lock lock(mutex_);
    changed_.wait_for(lock, patience_for(failure_),
                      [&] { return !failure_.provisional || failure_.rank == rank_; });
    return failure_;
  }

  void fail(std::string_view message, bool provisional) noexcept {
    try {
      ProcessFailure failure;
      failure.rank = rank_;
      failure.message = message.substr(0, Writer::longest_text);
      failure.provisional = provisional;
      const std::lock_guard lock(mutex_);
      adopt(failure, true);
    } catch (...) {  // no memory: the peers will see that the process has ended
      failed_.store(true);
    }
    wake();
  }

  void enter(const Fingerprint& print, std::uint64_t group) {
    {
      const std::lock_guard lock(mutex_);
      Call& call = call_of(group);
      call.print = print;
      call.inside = true;
      call.order = ++order_;
      if (!leavers_.empty()) look_for_leavers(call);
    }
  }

  void leave_call(std::uint64_t group) {
    const std::lock_guard lock(mutex_);
    Call& call = call_of(group);
    call.inside = false;
    call.completed = call.print.sequence;
  }

  void leave_group(std::uint64_t group) noexcept {
    try {
      const std::lock_guard lock(mutex_);
      const std::uint64_t last = call_of(group).completed;
      std::erase_if(calls_, [&](const Call& call) { return call.group == group; });
      std::erase_if(leavers_, [&](const Leaver& each) { return each.group == group; });
      if (!failure_) broadcast(Kind::left, Writer().put(group).put(last));
    } catch (...) {
      fail("there was no memory to say that it left the group", false);
    }
    wake();
  }

  /// What every rank says of its calls of `group`; nothing where one does not answer within
  /// `patience`, or has closed its channel.
  [[nodiscard]] std::vector<std::optional<LastCall>> ask(std::uint64_t group,
                                                         std::chrono::milliseconds patience) {
    std::unique_lock lock(mutex_);
    Question question{++last_question_, std::vector<std::optional<LastCall>>(gone_.size())};
    question.answers[static_cast<std::size_t>(rank_)] = last_call(group);
    questions_.push_back(&question);
    try {
      broadcast(Kind::ask, Writer().put(question.number).put(group));
      wake();
      changed_.wait_for(lock, patience, [&] {
        for (std::size_t r = 0; r < gone_.size(); ++r) {
          if (!gone_[r] && !question.answers[r]) return false;
        }
        return true;
      });
    } catch (...) {
      std::erase(questions_, &question);
      throw;
    }
    std::erase(questions_, &question);
    return std::move(question.answers);
  }

  /// Whether `rank` has closed its channel.
  [[nodiscard]] bool gone(int rank) {
    const std::lock_guard lock(mutex_);
    return rank != rank_ && gone_[static_cast<std::size_t>(rank)];
  }

  /// Where this rank is: `all_gather #12 "block.3" (f32 x 1024)`, or `no collective`.
  [[nodiscard]] std::string current_call() {
    const std::lock_guard lock(mutex_);
    return describe_current();
  }

  /// Tells the thread to say goodbye and to end.
  void close() noexcept {
    try {
      const std::lock_guard lock(mutex_);
      closing_ = true;
      if (!failure_) broadcast(Kind::goodbye, Writer());
    } catch (...) {
      closing_ = true;
    }
    wake();
  }

  /// Waits for the thread; false where it has not ended in time (a callback that blocks).
  [[nodiscard]] bool wait_for_end(std::chrono::milliseconds patience) noexcept {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, patience, [&] { return ended_; });
  }

  /// The thread.
  void run() noexcept {
    try {
      loop();
    } catch (const std::exception& error) {
      fail(error.what(), false);
    }
    const std::lock_guard lock(mutex_);
    links_.clear();
    ended_ = true;
    changed_.notify_all();
  }

  /// In a forked child: the sockets are the parent's.
  void forget() noexcept {
    links_.clear();
    wake_ = FileHandle();
  }

 private:
  static constexpr auto for_message = std::chrono::milliseconds(50);
  static constexpr auto for_questions = std::chrono::milliseconds(800);
  static constexpr auto for_farewell = std::chrono::milliseconds(200);
  static constexpr std::size_t most_unsent = std::size_t{1} << 20;

  struct Call {
    std::uint64_t group = 0;
    Fingerprint print;
    std::uint64_t completed = 0;
    std::uint64_t order = 0;
    bool inside = false;
  };
  struct Leaver {
    int rank;
    std::uint64_t group;
    std::uint64_t last;
  };
  struct Question {
    std::uint64_t number;
    std::vector<std::optional<LastCall>> answers;
  };

  [[nodiscard]] static std::chrono::milliseconds patience_for(const ProcessFailure& failure) {
    return failure.message == time_is_up ? for_questions : for_message;
  }

  void wake() noexcept {
    const std::uint64_t one = 1;
    static_cast<void>(::write(wake_.get(), &one, sizeof one) < 0);
  }

  // What follows needs the mutex, but for loop, look and report.

  Call& call_of(std::uint64_t group) {
    for (Call& call : calls_) {
      if (call.group == group) return call;
    }
    calls_.push_back({group, {}, 0, 0, false});
    return calls_.back();
  }

  [[nodiscard]] LastCall last_call(std::uint64_t group) const {
    for (const Call& call : calls_) {
      if (call.group == group && call.print.sequence > 0) {
        return {call.print.sequence, call.inside, describe(call.print)};
      }
    }
    return {};
  }

  [[nodiscard]] std::string describe_current() const {
    const Call* current = nullptr;
    for (const Call& call : calls_) {
      if (call.inside && (current == nullptr || call.order > current->order)) current = &call;
    }
    return current == nullptr ? "no collective" : describe(current->print);
  }

  void look_for_leavers(const Call& call) {
    for (const Leaver& leaver : leavers_) {
      if (leaver.group != call.group || leaver.last >= call.print.sequence) continue;
      ProcessFailure failure;
      failure.rank = leaver.rank;
      failure.left = true;
      failure.message = what_happened(failure);
      return adopt(failure, true);
    }
  }

  /// The first failure stays, but a provisional one gives way to the same rank's final one. `tell`:
  /// this rank is the first to know.
  void adopt(const ProcessFailure& failure, bool tell) {
    const bool better =
        failure_.rank == failure.rank && failure_.provisional && !failure.provisional;
    if (failure_ && !better) return;
    failure_ = failure;
    if (tell) {
      Writer writer;
      writer.put(static_cast<std::int32_t>(failure.rank))
          .put(static_cast<std::uint8_t>(failure.provisional))
          .put(static_cast<std::uint8_t>(failure.left))
          .put(static_cast<std::uint8_t>(failure.died))
          .put_text(failure.message);
      broadcast(Kind::failed, writer);
    }
    if (!better) report_at_ = Clock::now() + patience_for(failure);
    failed_.store(true);
    changed_.notify_all();
  }

  void broadcast(Kind kind, const Writer& body) {
    Writer writer;
    writer.put(static_cast<std::int32_t>(rank_)).put(++last_message_).put(kind);
    send_all(writer.append(body).frame());
  }

  void send_all(const std::string& frame) {
    for (Link& link : links_) {
      if (!link.socket || link.out.size() > most_unsent) continue;  // a rank that reads nothing
      link.out += frame;
      send(link);
    }
  }

  // A broken connection is seen by who reads from it.
  static void send(Link& link) {
    while (!link.out.empty()) {
      const ssize_t put =
          ::send(link.socket.get(), link.out.data(), link.out.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
      if (put < 0 && errno == EINTR) continue;
      if (put < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) return;
      if (put < 0) return link.out.clear();
      link.out.erase(0, static_cast<std::size_t>(put));
    }
  }

  void loop() {
    std::vector<pollfd> polled;
    std::optional<Clock::time_point> farewell;
    for (;;) {
      polled.clear();
      auto until = Clock::time_point::max();
      {
        const std::lock_guard lock(mutex_);
        if (closing_ && !farewell) {
          farewell = Clock::now() + for_farewell;
          for (const Link& link : links_) shut(link);
        }
        const bool linked = std::any_of(links_.begin(), links_.end(),
                                        [](const Link& link) { return bool(link.socket); });
        if (farewell && !report_at_ && (!linked || Clock::now() >= *farewell)) return;
        if (farewell) until = *farewell;
        if (report_at_) until = failure_.provisional ? *report_at_ : Clock::now();
        polled.push_back({wake_.get(), POLLIN, 0});
        for (const Link& link : links_) {
          const auto wanted = static_cast<short>(POLLIN | (link.out.empty() ? 0 : POLLOUT));
          polled.push_back({link.socket.get(), wanted, 0});
          polled.push_back({link.socket ? link.process.get() : -1, POLLIN, 0});
        }
      }
      if (::poll(polled.data(), polled.size(), milliseconds_until(until)) < 0) {
        if (errno == EINTR) continue;
        raise<BackendError>("waiting for the other ranks' failures: {}", error_text(errno));
      }
      look(polled);
      report();
    }
  }

  [[nodiscard]] static int milliseconds_until(Clock::time_point time) {
    if (time == Clock::time_point::max()) return -1;
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(time - Clock::now());
    return static_cast<int>(std::max<std::chrono::milliseconds::rep>(left.count(), 0));
  }

  static void shut(const Link& link) noexcept {
    if (link.socket && link.out.empty()) ::shutdown(link.socket.get(), SHUT_WR);
  }

  void look(const std::vector<pollfd>& polled) {
    const std::lock_guard lock(mutex_);
    if (polled[0].revents != 0) {
      std::uint64_t count = 0;
      static_cast<void>(::read(wake_.get(), &count, sizeof count) < 0);
    }
    for (std::size_t i = 0; i < links_.size(); ++i) {
      Link& link = links_[i];
      const short socket = polled[1 + 2 * i].revents;
      const bool process_ended = polled[2 + 2 * i].revents != 0;
      if (!link.socket || (socket == 0 && !process_ended)) continue;
      if ((socket & POLLOUT) != 0) {
        send(link);
        if (closing_) shut(link);
      }
      receive(link, process_ended);
    }
  }

  void receive(Link& link, bool process_ended) {
    std::array<char, 4096> block;
    for (;;) {
      const ssize_t got = ::recv(link.socket.get(), block.data(), block.size(), MSG_DONTWAIT);
      if (got > 0) {
        link.in.append(block.data(), static_cast<std::size_t>(got));
        continue;
      }
      if (got < 0 && errno == EINTR) continue;
      const bool nothing = got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK);
      const int error = got < 0 && !nothing ? errno : 0;
      const bool whole = take_frames(link);
      if (nothing && !process_ended && whole) return;
      const int peer = link.peer;
      link.socket = FileHandle();
      link.process = FileHandle();
      if (!gone_[static_cast<std::size_t>(peer)]) died(peer, error);
      return;
    }
  }

  void died(int peer, int error) {
    gone_[static_cast<std::size_t>(peer)] = true;
    if (closing_) return;  // it closes its end because this rank has said goodbye
    ProcessFailure failure;
    failure.rank = peer;
    failure.died = true;
    failure.message =
        error == 0 || error == ECONNRESET
            ? "its process ended without leaving the group (killed by a signal, crashed, or it "
              "called exit?)"
            : detail::format("its connection broke: {} (is its machine or the network gone?)",
                             error_text(error));
    adopt(failure, true);
    changed_.notify_all();
  }

  /// False where the peer sent nonsense.
  bool take_frames(Link& link) {
    std::size_t taken = 0;
    try {
      for (;;) {
        const std::string_view frame = Reader::frame_of(std::string_view(link.in).substr(taken));
        if (frame.empty()) break;
        taken += frame.size() + sizeof(std::uint32_t);
        take(frame, link);
      }
    } catch (const BackendError&) {
      return false;
    }
    link.in.erase(0, taken);
    return true;
  }

  void take(std::string_view frame, const Link& from) {
    Reader reader(frame);
    const auto origin = reader.get<std::int32_t>();
    const auto number = reader.get<std::uint64_t>();
    const auto kind = reader.get<Kind>();
    if (origin < 0 || static_cast<std::size_t>(origin) >= seen_.size()) Reader::refuse();
    std::uint64_t& seen = seen_[static_cast<std::size_t>(origin)];
    if (origin == rank_ || number <= seen) return;
    seen = number;
    if (kind > Kind::answer) Reader::refuse();
    Writer size;
    const std::string whole =
        size.put(static_cast<std::uint32_t>(frame.size())).bytes() + std::string(frame);
    for (Link& link : links_) {
      if (!link.socket || link.peer == from.peer || link.peer == origin) continue;
      if (link.out.size() > most_unsent) continue;
      link.out += whole;
      send(link);
    }
    act(kind, origin, reader);
  }

  void act(Kind kind, int origin, Reader& reader) {
    switch (kind) {
      case Kind::failed: {
        ProcessFailure failure;
        failure.rank = reader.get<std::int32_t>();
        failure.provisional = reader.get_flag();
        failure.left = reader.get_flag();
        failure.died = reader.get_flag();
        failure.message = reader.get_text();
        if (failure.rank < 0) Reader::refuse();
        return adopt(failure, false);
      }
      case Kind::left: {
        const auto group = reader.get<std::uint64_t>();
        const auto last = reader.get<std::uint64_t>();
        leavers_.push_back({origin, group, last});
        for (const Call& call : calls_) {
          if (call.inside) look_for_leavers(call);
        }
        return;
      }
      case Kind::goodbye:
        gone_[static_cast<std::size_t>(origin)] = true;
        changed_.notify_all();
        return;
      case Kind::ask: {
        const auto number = reader.get<std::uint64_t>();
        const LastCall last = last_call(reader.get<std::uint64_t>());
        Writer writer;
        writer.put(static_cast<std::int32_t>(origin)).put(number).put(last.sequence);
        writer.put(static_cast<std::uint8_t>(last.inside)).put_text(last.text);
        return broadcast(Kind::answer, writer);
      }
      case Kind::answer: {
        if (reader.get<std::int32_t>() != rank_) return;
        const auto number = reader.get<std::uint64_t>();
        LastCall last;
        last.sequence = reader.get<std::uint64_t>();
        last.inside = reader.get_flag();
        last.text = reader.get_text();
        for (Question* const question : questions_) {
          if (question->number == number) {
            question->answers[static_cast<std::size_t>(origin)] = std::move(last);
            changed_.notify_all();
            return;
          }
        }
        return;
      }
    }
  }

  void report() noexcept {
    try {
      std::unique_lock lock(mutex_);
      if (!report_at_ || (failure_.provisional && Clock::now() < *report_at_)) return;
      report_at_.reset();
      if (!options_.on_failure) return;
      const ProcessFailure failure = failure_;
      const std::string text = detail::format("rank {} {}; rank {} was in {}", failure.rank,
                                              what_happened(failure), rank_, describe_current());
      lock.unlock();
      options_.on_failure(rank_, failure, text);
    } catch (...) {
      return;  // the failure itself is known
    }
  }

  const int rank_;
  const FailureChannelOptions options_;
  std::atomic<bool> failed_{false};

  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<Link> links_;
  FileHandle wake_;
  ProcessFailure failure_;
  std::optional<Clock::time_point> report_at_;
  std::vector<std::uint64_t> seen_;  // of each rank: the last of its messages
  std::vector<bool> gone_;           // that closed their channel or died; this one
  std::vector<Call> calls_;          // the last one of each communicator
  std::vector<Leaver> leavers_;
  std::vector<Question*> questions_;
  std::uint64_t last_message_ = 0;
  std::uint64_t last_question_ = 0;
  std::uint64_t order_ = 0;
  bool closing_ = false;
  bool ended_ = false;
};

}  // namespace shardwise::inline v0_1::detail::failures
