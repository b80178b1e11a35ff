#pragma once

#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "../core/error.hpp"
#include "failure_channel_calls.hpp"
#include "failure_channel_frame.hpp"
#include "failure_channel_links.hpp"
#include "failure_channel_options.hpp"
#include "fingerprint.hpp"
#include "process_failure.hpp"

namespace shardwise::inline v0_1::detail::failures {

/// What a channel and its thread share.
///
/// Every message goes to all neighbours, and each rank passes on what it has not seen before, so it
/// reaches all ranks that are connected in any way, and a rank's messages arrive in their order.
/// What a rank learns it passes on before its own code can see it: so the first failure is known
/// before what follows from it.
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
    const std::lock_guard lock(mutex_);
    look_at(calls_.enter(print, group));
  }

  void join(std::uint64_t group, const Birth& birth) {
    const std::lock_guard lock(mutex_);
    calls_.join(group, birth);
  }

  void complete(std::uint64_t group) {
    const std::lock_guard lock(mutex_);
    calls_.complete(group);
  }

  void leave(std::uint64_t group) noexcept {
    try {
      const std::lock_guard lock(mutex_);
      const Leaver me = calls_.leave(group);
      Writer writer;
      writer.put(group).put(me.last).put(me.birth.parent).put(me.birth.call);
      if (!failure_) broadcast(Kind::left, writer);
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
    question.answers[static_cast<std::size_t>(rank_)] = calls_.last(group);
    questions_.push_back(&question);
    const auto answered = [&] {
      for (std::size_t r = 0; r < gone_.size(); ++r) {
        if (!gone_[r] && !question.answers[r]) return false;
      }
      return true;
    };
    try {
      broadcast(Kind::ask, Writer().put(question.number).put(group));
      wake();
      changed_.wait_for(lock, patience, answered);
    } catch (...) {
      std::erase(questions_, &question);
      throw;
    }
    std::erase(questions_, &question);
    return std::move(question.answers);
  }

  /// Whether another rank has closed its channel, or died.
  [[nodiscard]] bool gone(int rank) {
    const std::lock_guard lock(mutex_);
    return rank != rank_ && gone_[static_cast<std::size_t>(rank)];
  }

  /// Tells the thread to say goodbye and to end.
  void close() noexcept {
    const std::lock_guard lock(mutex_);
    try {
      if (!failure_) broadcast(Kind::goodbye, Writer());
    } catch (...) {  // no memory: the peers take this rank for dead
      links_.clear();
    }
    closing_ = true;
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

  void loop() {
    std::vector<pollfd> polled;
    std::optional<Clock::time_point> farewell;
    for (;;) {
      auto until = Clock::time_point::max();
      {
        const std::lock_guard lock(mutex_);
        if (closing_ && !farewell) {
          farewell = Clock::now() + for_farewell;
          links_.shut();
        }
        if (farewell && !report_at_ && (!links_.any() || Clock::now() >= *farewell)) return;
        if (farewell) until = *farewell;
        if (report_at_) until = failure_.provisional ? *report_at_ : Clock::now();
        polled.clear();
        polled.push_back({wake_.get(), POLLIN, 0});
        links_.append_to(polled);
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

  void look(std::span<const pollfd> polled) {
    const std::lock_guard lock(mutex_);
    if (polled[0].revents != 0) {
      std::uint64_t count = 0;
      static_cast<void>(::read(wake_.get(), &count, sizeof count) < 0);
    }
    links_.look(
        polled.subspan(1), [&](std::string_view frame, int peer) { take(frame, peer); },
        [&](int peer, int error) { lost(peer, error); });
  }

  // What follows needs the mutex.

  void look_at(const Leaver& leaver) {
    if (leaver.rank < 0) return;
    ProcessFailure failure;
    failure.rank = leaver.rank;
    failure.left = true;
    failure.message = what_happened(failure);
    adopt(failure, true);
    wake();
  }

  [[nodiscard]] static std::string why_lost(int error) {
    if (error == 0 || error == ECONNRESET) {
      return "its process ended without leaving the group (killed by a signal, crashed, or it "
             "called exit?)";
    }
    if (error == EPROTO) {
      return "it sent what no failure channel sends (do all processes run the same program?)";
    }
    return detail::format("its connection broke: {} (is its machine gone, or the network?)",
                          error_text(error));
  }

  void lost(int peer, int error) {
    if (gone_[static_cast<std::size_t>(peer)]) return;
    gone_[static_cast<std::size_t>(peer)] = true;
    if (closing_) return changed_.notify_all();  // it has heard this rank's goodbye
    ProcessFailure failure;
    failure.rank = peer;
    failure.died = true;
    failure.message = why_lost(error);
    if (failure_.rank == peer && failure_.provisional) {  // no other message will come
      failure = failure_;
      failure.provisional = false;
    }
    adopt(failure, true);
    changed_.notify_all();
  }

  /// The first failure stays, but a provisional one gives way to the same rank's final one. Of
  /// several ranks whose time is up at once the lowest says why. `tell`: this rank is the first to
  /// know.
  void adopt(const ProcessFailure& failure, bool tell) {
    const bool final = failure_.rank == failure.rank && !failure.provisional;
    const bool lower = failure.rank < failure_.rank && failure.provisional &&
                       failure.message == time_is_up && failure_.message == time_is_up;
    const bool better = failure_.provisional && (final || lower);
    if (failure_ && !better) return;
    failure_ = failure;
    if (tell) {
      Writer writer;
      writer.put(static_cast<std::int32_t>(failure.rank)).put_flag(failure.provisional);
      writer.put_flag(failure.left).put_flag(failure.died).put_text(failure.message);
      broadcast(Kind::failed, writer);
    }
    if (!better) report_at_ = Clock::now() + patience_for(failure);
    failed_.store(true);
    changed_.notify_all();
  }

  void broadcast(Kind kind, const Writer& body) {
    Writer writer;
    writer.put(static_cast<std::int32_t>(rank_)).put(++last_message_).put(kind);
    links_.send(writer.append(body).frame());
  }

  void take(std::string_view frame, int from) {
    Reader reader(frame);
    const auto origin = reader.get<std::int32_t>();
    const auto number = reader.get<std::uint64_t>();
    const auto kind = reader.get<Kind>();
    if (origin < 0 || static_cast<std::size_t>(origin) >= seen_.size()) Reader::refuse();
    std::uint64_t& seen = seen_[static_cast<std::size_t>(origin)];
    if (origin == rank_ || number <= seen) return;
    seen = number;
    links_.send(Writer().append(frame).frame(), from, origin);
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
        Leaver leaver;
        leaver.rank = origin;
        leaver.group = reader.get<std::uint64_t>();
        leaver.last = reader.get<std::uint64_t>();
        leaver.birth.parent = reader.get<std::uint64_t>();
        leaver.birth.call = reader.get<std::uint64_t>();
        return look_at(calls_.add(leaver));
      }
      case Kind::goodbye:
        gone_[static_cast<std::size_t>(origin)] = true;
        return changed_.notify_all();
      case Kind::ask: {
        const auto number = reader.get<std::uint64_t>();
        const LastCall last = calls_.last(reader.get<std::uint64_t>());
        Writer writer;
        writer.put(static_cast<std::int32_t>(origin)).put(number).put(last.sequence);
        return broadcast(Kind::answer, writer.put_flag(last.inside).put_text(last.text));
      }
      case Kind::answer:
        if (reader.get<std::int32_t>() == rank_) take_answer(origin, reader);
        return;
    }
    Reader::refuse();
  }

  void take_answer(int from, Reader& reader) {
    const auto number = reader.get<std::uint64_t>();
    LastCall last;
    last.sequence = reader.get<std::uint64_t>();
    last.inside = reader.get_flag();
    last.text = reader.get_text();
    for (Question* const question : questions_) {
      if (question->number != number) continue;
      question->answers[static_cast<std::size_t>(from)] = std::move(last);
      return changed_.notify_all();
    }
  }

  // But for this one.
  void report() noexcept {
    try {
      std::unique_lock lock(mutex_);
      if (!report_at_ || (failure_.provisional && Clock::now() < *report_at_)) return;
      report_at_.reset();
      if (!options_.on_failure) return;
      const ProcessFailure failure = failure_;
      const std::string text =
          detail::format("rank {} {}; rank {} was {}", failure.rank, what_happened(failure), rank_,
                         calls_.describe_current());
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
  Links links_;
  FileHandle wake_;
  ProcessFailure failure_;
  std::optional<Clock::time_point> report_at_;
  std::vector<std::uint64_t> seen_;  // of each rank: the last of its messages
  std::vector<bool> gone_;           // who closed their channel or died; this rank
  Calls calls_;
  std::vector<Question*> questions_;
  std::uint64_t last_message_ = 0;
  std::uint64_t last_question_ = 0;
  bool closing_ = false;
  bool ended_ = false;
};

}  // namespace shardwise::inline v0_1::detail::failures
