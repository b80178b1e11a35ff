#pragma once

#include <cuda_runtime_api.h>

#include <algorithm>
#include <atomic>
#include <charconv>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "../core/error.hpp"
#include "../core/format.hpp"
#include "fingerprint.hpp"
#include "nccl_handle.hpp"
#include "nccl_tracker.hpp"
#include "peer_failure.hpp"
#include "rendezvous.hpp"

namespace shardwise::inline v0_1::detail::nccl {

/// One ncclComm_t and its calls.
struct Channel {
  explicit Channel(std::shared_ptr<Handle> made, int device)
      : handle(std::move(made)), tracker(device) {}

  std::shared_ptr<Handle> handle;
  Tracker tracker;
};

/// What the watchdog knows of a communicator, and the communicator of its failure.
struct Member {
  std::string id;                // equal on its ranks, different from others' of the rendezvous
  std::vector<int> world_ranks;  // of its members
  int rank = 0;                  // this one's
  bool abort_adopted = false;
  bool shrinkable = false;
  std::vector<std::unique_ptr<Channel>> channels;

  /// Peaceful, or how it failed; what follows does not change once it is `settled`.
  enum class State : std::uint8_t { peaceful, failing, settled };
  std::atomic<State> state{State::peaceful};
  std::atomic<bool> wants_time_out{false};  // the host thread's time was up inside NCCL
  RankFailure failure;
  bool left = false;       // the rank destroyed its communicator
  bool timed_out = false;  // this rank gave up
  std::string call;        // what this rank was in, and its sequence number
  std::uint64_t sequence = 0;

  struct Peer {
    std::string left_key;       // where it says that it has left
    std::uint64_t left_at = 0;  // its last call, + 1
  };
  std::vector<Peer> peers;  // the watchdog's, which looks at them often: made once

  [[nodiscard]] int world_rank() const { return world_ranks[static_cast<std::size_t>(rank)]; }
  [[nodiscard]] std::string left_key(std::size_t r) const { return format("{}.left.{}", id, r); }
  [[nodiscard]] std::string state_key(std::size_t r) const { return format("{}.state.{}", id, r); }
};

/// The thread of one rank that looks after its communicators: ends their calls where the run has
/// failed, a peer has left, or the time is up.
class Watchdog {
 public:
  Watchdog(std::shared_ptr<Rendezvous> rendezvous, int device)
      : shared_(std::make_shared<Shared>(std::move(rendezvous), device)),
        thread_([shared = shared_] { shared->run(); }) {}
  Watchdog(const Watchdog&) = delete;
  Watchdog& operator=(const Watchdog&) = delete;
  /// Bounded: a thread that hangs in NCCL is left behind, with what it uses.
  ~Watchdog() {
    shared_->stop.store(true);
    shared_->changed.notify_all();
    bool ended = false;
    if (auto lock = lock_unless_it_hangs()) {
      ended = shared_->changed.wait_for(lock, patience, [&] { return shared_->ended; });
    }
    if (ended) {
      thread_.join();
    } else {
      thread_.detach();
    }
  }

  [[nodiscard]] Rendezvous& rendezvous() const noexcept { return *shared_->rendezvous; }

  void add(std::shared_ptr<Member> member) {
    for (std::size_t r = 0; r < member->world_ranks.size(); ++r) {
      member->peers.push_back({member->left_key(r)});
    }
    const std::lock_guard lock(shared_->mutex);
    shared_->members.push_back(std::move(member));
  }
  /// Bounded, too: a thread that hangs keeps the member.
  void remove(const std::shared_ptr<Member>& member) noexcept {
    if (const auto lock = lock_unless_it_hangs()) std::erase(shared_->members, member);
  }

  /// The watchdog has something to look at now.
  void wake() noexcept {
    shared_->woken.store(true);
    shared_->changed.notify_all();
  }

 private:
  using Clock = std::chrono::steady_clock;
  static constexpr auto patience = std::chrono::seconds(5);
  static constexpr auto period = std::chrono::milliseconds(4);
  // Calls that wait longer are looked at more closely.
  static constexpr auto short_wait = std::chrono::milliseconds(20);
  static constexpr auto for_message = std::chrono::milliseconds(50);
  // A rank that unwinds its stack ends its communicators before it can say why.
  static constexpr auto for_reason = std::chrono::milliseconds(250);
  // Who waits in vain asks all peers for their last calls first; they answer at once, as a rule.
  static constexpr auto for_answers = std::chrono::milliseconds(300);
  static constexpr const char* time_is_up = "its time is up";

  struct Shared {
    Shared(std::shared_ptr<Rendezvous> meeting, int its_device)
        : rendezvous(std::move(meeting)), device(its_device) {}

    std::shared_ptr<Rendezvous> rendezvous;
    int device;
    std::mutex mutex;
    std::condition_variable changed;
    std::atomic<bool> woken{false};
    std::atomic<bool> stop{false};
    bool ended = false;
    std::vector<std::shared_ptr<Member>> members;

    void run() noexcept {
      cuda::forget(cudaSetDevice(device));
      // Queries of events would break a graph that another thread is capturing; not those of a
      // thread in this mode.
      auto mode = cudaStreamCaptureModeThreadLocal;
      cuda::forget(cudaThreadExchangeStreamCaptureMode(&mode));
      std::unique_lock lock(mutex);
      while (!stop.load()) {
        changed.wait_for(lock, period, [&] { return stop.load() || woken.load(); });
        woken.store(false);
        try {
          look();
        } catch (const std::exception& error) {
          rendezvous->fail({rendezvous->rank(), error.what()});
        }
      }
      ended = true;
      changed.notify_all();
    }

    void look() {
      if (rendezvous->failure()) return run_failed(nullptr);
      const auto now = Clock::now();
      for (const auto& each : members) {
        Member& member = *each;
        if (member.state.load() != Member::State::peaceful) continue;
        if (member.wants_time_out.load()) return time_out(member);
        for (const auto& channel : member.channels) {
          const auto oldest = channel->tracker.oldest(now);
          if (!oldest || oldest->waiting == Clock::duration{}) continue;
          if (oldest->waiting >= oldest->timeout) return time_out(member);
          if (const int r = who_left(member, oldest->sequence); r >= 0) {
            peer_left(member, r);
            break;
          }
          if (oldest->waiting >= short_wait) look_for_error(member, *channel);
        }
      }
    }

    void look_for_error(const Member& member, Channel& channel) {
      const ncclResult_t result = channel.handle->poll();
      if (result == ncclSuccess || result == ncclInProgress) return;
      // A peer that died or aborted is seen here first, and says why a moment later.
      if (rendezvous->settled_failure(for_message).rank >= 0) return run_failed(nullptr);
      try {
        raise_result(result, "a collective", member.rank);
      } catch (const BackendError& error) {
        rendezvous->fail({member.world_rank(), error.what()});
      }
      run_failed(nullptr);
    }

    // A rank of `member` that left before call `sequence`; -1: none.
    [[nodiscard]] int who_left(Member& member, std::uint64_t sequence) {
      for (std::size_t r = 0; r < member.peers.size(); ++r) {
        std::uint64_t& last = member.peers[r].left_at;
        if (last == 0) {
          const auto text = rendezvous->try_get(member.peers[r].left_key);
          if (!text) continue;
          std::from_chars(text->data(), text->data() + text->size(), last);
          ++last;
        }
        if (last <= sequence) return static_cast<int>(r);
      }
      return -1;
    }

    void peer_left(Member& member, int r) {
      begin_failing(member);
      end_calls({&member});
      member.failure.rank = member.world_ranks[static_cast<std::size_t>(r)];
      member.failure.message = left_the_group;
      member.left = true;
      member.state.store(Member::State::settled);
    }

    // The run has failed: for the reason of the rendezvous, or because `late` waited in vain.
    void run_failed(Member* late) {
      std::vector<Member*> failing;
      for (const auto& member : members) {
        if (member->state.load() == Member::State::peaceful) failing.push_back(member.get());
      }
      for (Member* const member : failing) begin_failing(*member);
      for (Member* const member : failing) publish(*member);
      end_calls(failing);
      if (late != nullptr) {
        rendezvous->fail({late->world_rank(), describe_wait(*late)});
      }
      RankFailure failure = rendezvous->settled_failure(for_reason);
      if (failure.provisional && failure.message == time_is_up) {
        failure = rendezvous->settled_failure(for_answers);
      }
      for (Member* const member : failing) {
        member->failure = failure;
        member->timed_out = member == late;
        member->state.store(Member::State::settled);
      }
    }

    void time_out(Member& member) {
      const int own = member.world_rank();
      rendezvous->fail({own, time_is_up, true});
      const auto first = rendezvous->failure();
      run_failed(first && first->rank == own && first->provisional ? &member : nullptr);
    }

    static void begin_failing(Member& member) {
      for (const auto& channel : member.channels) {
        const auto current = channel->tracker.current();
        if (!current || (member.sequence != 0 && member.sequence < current->sequence)) continue;
        member.call = describe(*current);
        member.sequence = current->sequence;
      }
      member.state.store(Member::State::failing);
    }

    // All at once: NCCL's abort waits until the communicator's work has left the streams, where it
    // may lie behind another one's that is to be aborted, too.
    void end_calls(const std::vector<Member*>& ending) const {
      std::vector<std::thread> threads;
      for (const Member* const member : ending) {
        for (const auto& channel : member->channels) {
          const auto end = [this, member, handle = channel->handle] {
            cuda::forget(cudaSetDevice(device));
            handle->abort(member->abort_adopted, member->shrinkable);
          };
          try {
            threads.emplace_back(end);
          } catch (const std::exception&) {  // no thread: one after the other, then
            end();
          }
        }
      }
      for (std::thread& thread : threads) thread.join();
    }

    // For whoever says which ranks are missing: the last call that this rank made.
    void publish(const Member& member) noexcept {
      try {
        std::optional<Fingerprint> last;
        for (const auto& channel : member.channels) {
          const auto call = channel->tracker.last();
          if (call && (!last || call->sequence > last->sequence)) last = call;
        }
        rendezvous->put(
            member.state_key(static_cast<std::size_t>(member.rank)),
            format("{} {}", last ? last->sequence : 0, last ? describe(*last) : "no call so far"));
      } catch (...) {
        return;  // the message is poorer
      }
    }

    // Which ranks made the call in which `member` waits and which are missing, each with its last
    // call.
    [[nodiscard]] std::string describe_wait(const Member& member) {
      std::string missing;
      std::string silent;
      std::string calls;
      const auto deadline = Clock::now() + for_answers * 3 / 4;
      for (std::size_t r = 0; r < member.world_ranks.size(); ++r) {
        std::optional<std::string> state;
        while (!(state = rendezvous->try_get(member.state_key(r))) && Clock::now() < deadline) {
          std::this_thread::sleep_for(std::chrono::milliseconds(1));
        }
        std::uint64_t last = 0;
        if (state) std::from_chars(state->data(), state->data() + state->size(), last);
        const int name = member.world_ranks[r];
        const char* what = "called";
        if (!state) {
          silent += format("{}{}", silent.empty() ? "" : ", ", name);
          what = "silent";
        } else if (last < member.sequence) {
          missing += format("{}{}", missing.empty() ? "" : ", ", name);
          what = "missing";
        }
        calls += format("\n  rank {} ({}): {}", name, what,
                        state ? state->substr(state->find(' ') + 1) : "does not answer");
      }
      if (missing.empty()) {
        missing = silent.empty() ? "none (all made the call: a stream or a link is stuck?)"
                                 : format("of those that do not answer ({})", silent);
      }
      return format("rank {} waited in vain in {}; missing ranks: {}; last calls:{}",
                    member.world_rank(), member.call.empty() ? "nothing" : member.call, missing,
                    calls);
    }
  };

  // The thread looks with the mutex held. Not timed_mutex, which race detectors do not know.
  [[nodiscard]] std::unique_lock<std::mutex> lock_unless_it_hangs() noexcept {
    std::unique_lock lock(shared_->mutex, std::try_to_lock);
    const auto begin = Clock::now();
    for (Backoff pause; !lock && !hangs_ && Clock::now() - begin < patience;) {
      pause();
      static_cast<void>(lock.try_lock());
    }
    hangs_ = !lock;
    return lock;
  }

  std::shared_ptr<Shared> shared_;
  std::atomic<bool> hangs_{false};
  std::thread thread_;
};

}  // namespace shardwise::inline v0_1::detail::nccl
