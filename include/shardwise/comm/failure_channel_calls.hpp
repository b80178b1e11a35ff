#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "fingerprint.hpp"

namespace shardwise::inline v0_1::detail::failures {

/// What a rank says of its calls of one communicator.
struct LastCall {
  std::uint64_t sequence = 0;  // of the last one that it made; 0: none so far
  bool inside = false;         // it is still in it
  std::string text;
};

/// The call of `parent` that made a communicator; call 0: none is known.
struct Birth {
  std::uint64_t parent = 0;
  std::uint64_t call = 0;

  bool operator==(const Birth&) const = default;
};

/// A rank that has destroyed a communicator after its call `last`.
struct Leaver {
  int rank = -1;
  std::uint64_t group = 0;
  std::uint64_t last = 0;
  Birth birth = {};
};

/// Where this rank is: its last call of each communicator; and who has left them.
class Calls {
 public:
  /// The leaver that this call is in vain for; rank -1: none.
  [[nodiscard]] Leaver enter(const Fingerprint& print, std::uint64_t group) {
    Call& call = of(group);
    call.print = print;
    call.inside = true;
    call.order = ++order_;
    return leaver_of(call);
  }

  /// This rank is in `birth`, which makes `group`. Who has left others that it made is of no
  /// interest: programs that split again and again would keep them all.
  void join(std::uint64_t group, const Birth& birth) {
    of(group).birth = birth;
    std::erase_if(leavers_,
                  [&](const Leaver& each) { return each.group != group && each.birth == birth; });
  }

  void complete(std::uint64_t group) {
    Call& call = of(group);
    call.inside = false;
    call.completed = call.print.sequence;
  }

  /// Forgets the group; what the others are to know.
  [[nodiscard]] Leaver leave(std::uint64_t group) {
    const Call& left = of(group);
    const Leaver result{-1, group, left.completed, left.birth};
    std::erase_if(calls_, [&](const Call& call) { return call.group == group; });
    std::erase_if(leavers_, [&](const Leaver& each) { return each.group == group; });
    return result;
  }

  /// Another rank has left; itself where a call that this rank is in is in vain, else rank -1.
  [[nodiscard]] Leaver add(const Leaver& leaver) {
    if (!may_call(leaver)) return {};
    leavers_.push_back(leaver);
    for (const Call& call : calls_) {
      if (!call.inside) continue;
      if (const Leaver found = leaver_of(call); found.rank >= 0) return found;
    }
    return {};
  }

  [[nodiscard]] LastCall last(std::uint64_t group) const {
    for (const Call& call : calls_) {
      if (call.group == group && call.print.sequence > 0) {
        return {call.print.sequence, call.inside, describe(call.print)};
      }
    }
    return {};
  }

  /// `in all_gather #12 "block.3" (f32 x 1024)`, or `after` the last one.
  [[nodiscard]] std::string describe_current() const {
    const Call* current = nullptr;
    for (const Call& call : calls_) {
      if (call.print.sequence == 0) continue;
      if (current == nullptr || (call.inside && !current->inside) ||
          (call.inside == current->inside && call.order > current->order)) {
        current = &call;
      }
    }
    if (current == nullptr) return "before its first collective";
    return detail::format("{} {}", current->inside ? "in" : "after", describe(current->print));
  }

 private:
  struct Call {
    std::uint64_t group = 0;
    Fingerprint print;
    std::uint64_t completed = 0;
    std::uint64_t order = 0;
    bool inside = false;
    Birth birth = {};
  };

  // Whether this rank has such a communicator, or may come to have it: all ranks are in the call
  // that makes it before one can leave.
  [[nodiscard]] bool may_call(const Leaver& leaver) const {
    if (leaver.birth.call == 0) return true;
    return std::any_of(calls_.begin(), calls_.end(), [&](const Call& call) {
      return call.group == leaver.group || (call.group == leaver.birth.parent && call.inside &&
                                            call.print.sequence == leaver.birth.call);
    });
  }

  Call& of(std::uint64_t group) {
    for (Call& call : calls_) {
      if (call.group == group) return call;
    }
    calls_.push_back({group, {}, 0, 0, false, {}});
    return calls_.back();
  }

  [[nodiscard]] Leaver leaver_of(const Call& call) const {
    for (const Leaver& leaver : leavers_) {
      if (leaver.group == call.group && leaver.last < call.print.sequence) return leaver;
    }
    return {};
  }

  std::vector<Call> calls_;
  std::vector<Leaver> leavers_;
  std::uint64_t order_ = 0;
};

}  // namespace shardwise::inline v0_1::detail::failures
