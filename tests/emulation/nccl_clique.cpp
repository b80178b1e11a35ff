#include "nccl_clique.hpp"

#include <algorithm>

#include "nccl_arithmetic.hpp"
#include "nccl_model.hpp"

namespace emulation {

namespace {

const char* name_of(Stop stop) {
  switch (stop) {
    case Stop::revoked:
      return "revoked it";
    case Stop::closed:
      return "destroyed it";
    case Stop::aborted:
      return "aborted it";
    case Stop::died:
      return "died";
    default:
      return "takes part";
  }
}

}  // namespace

std::string list(const std::vector<int>& ranks) {
  std::string text;
  for (const int rank : ranks) {
    text += (text.empty() ? "" : ", ") + std::to_string(rank);
  }
  return text.empty() ? "none" : text;
}

bool wait_for(const std::function<std::string()>& what, const std::function<bool()>& done,
              const std::function<bool()>& given_up) {
  if (done()) {
    return true;
  }
  Patience patience(what());
  bool result = false;
  set_blocked(what());
  while (!(result = done()) && !given_up()) {
    if (!changed().wait(big_lock(), Patience::slice())) {
      const std::string now = what();
      set_blocked(now);
      patience.describe(now);
      patience.check();
    } else {
      set_blocked(what());
    }
  }
  set_blocked("");
  return result;
}

Clique::Clique(std::string name, int ranks)
    : name_(std::move(name)), ranks_(ranks), stops_(static_cast<std::size_t>(ranks), Stop::none) {}

bool Clique::stopped(int rank, bool by_revoke) const {
  const Stop stop = stops_[static_cast<std::size_t>(rank)];
  return stop == Stop::aborted || stop == Stop::died || stop == Stop::closed ||
         (by_revoke && stop == Stop::revoked);
}

void Clique::stop(int rank, Stop why) {
  const Guard guard(big_lock());
  Stop& stop = stops_[static_cast<std::size_t>(rank)];
  if (stop == Stop::none || stop == Stop::revoked) {
    stop = why;
  }
  changed().notify();
}

ncclResult_t Clique::health() {
  const Guard guard(big_lock());
  return std::ranges::find(stops_, Stop::died) == stops_.end() ? ncclSuccess : ncclRemoteError;
}

bool Clique::wait(int rank, const std::string& what, bool revocable,
                  const std::function<std::vector<int>()>& missing_ranks,
                  const std::function<bool()>& done) {
  return wait_for(
      [&] {
        std::string text = "rank " + std::to_string(rank) + " of communicator '" + name_ +
                           "' waits in " + what + ": missing ranks ";
        const std::vector<int> ranks = missing_ranks();
        text += list(ranks);
        for (const int absent_rank : ranks) {
          if (stops_[static_cast<std::size_t>(absent_rank)] != Stop::none) {
            text += " (rank " + std::to_string(absent_rank) + " " +
                    name_of(stops_[static_cast<std::size_t>(absent_rank)]) + ")";
          }
        }
        return text;
      },
      done, [&] { return stopped(rank, revocable); });
}

void Clique::compare(int rank, const Call& call, std::uint64_t sequence,
                     const Collective& other) const {
  for (int peer = 0; peer < ranks_; ++peer) {
    if (other.arrived[static_cast<std::size_t>(peer)] == 0) {
      continue;
    }
    const Call& theirs = other.calls[static_cast<std::size_t>(peer)];
    if (theirs.operation != call.operation || theirs.count != call.count ||
        theirs.type != call.type || theirs.reduction != call.reduction ||
        theirs.root != call.root) {
      fatal_for_all("collective mismatch in communicator '" + name_ + "', number " +
                    std::to_string(sequence) + ": rank " + std::to_string(peer) + " calls [" +
                    describe(theirs) + "], rank " + std::to_string(rank) + " calls [" +
                    describe(call) + "]; all ranks must make the same calls in the same order");
    }
    compare_places(rank, call, peer, theirs, sequence);
  }
}

// Symmetric windows need the same offset on all ranks; where the operation is in place the rank's
// own part lies at its own offset. Operations that have no symmetric kernel do not look.
void Clique::compare_places(int rank, const Call& call, int peer, const Call& theirs,
                            std::uint64_t sequence) const {
  if (call.operation == Operation::broadcast || call.operation == Operation::reduce) {
    return;
  }
  const auto where = [](const WindowPlace& place) {
    return place.registered() ? "window " + std::to_string(place.window) + " offset " +
                                    std::to_string(place.offset)
                              : std::string("no window");
  };
  const auto fail = [&](const char* what, const char* buffer, const WindowPlace& mine,
                        const WindowPlace& other) {
    fatal_for_all(std::string(what) + " in communicator '" + name_ + "', number " +
                  std::to_string(sequence) + " [" + describe(call) + "]: the " + buffer +
                  " buffer of rank " + std::to_string(peer) + " is in " + where(other) +
                  ", that of rank " + std::to_string(rank) + " in " + where(mine));
  };
  const bool both_in_place = in_place(call, ranks_, rank) && in_place(theirs, ranks_, peer);
  const auto check = [&](const char* buffer, const WindowPlace& mine, const WindowPlace& other,
                         bool own_offset) {
    if (mine.registered() != other.registered()) {
      fail("ranks disagree on window registration", buffer, mine, other);
    }
    if (mine.window != other.window || (!own_offset && mine.offset != other.offset)) {
      fail("offsets in the symmetric window differ", buffer, mine, other);
    }
  };
  const bool send_matters = call.operation != Operation::scatter;
  const bool receive_matters = call.operation != Operation::gather;
  if (send_matters) {
    check("send", call.send_place, theirs.send_place,
          both_in_place && call.operation == Operation::all_gather);
  }
  if (receive_matters) {
    check("receive", call.receive_place, theirs.receive_place,
          both_in_place && call.operation == Operation::reduce_scatter);
  }
}

// Only the edges that the data gives: who receives from a rank is after its entry.
void Clique::acquire_edges(int rank, Collective& collective) const {
  const Call& call = collective.calls[static_cast<std::size_t>(rank)];
  const bool from_root =
      call.operation == Operation::broadcast || call.operation == Operation::scatter;
  const bool to_root = call.operation == Operation::reduce || call.operation == Operation::gather;
  for (int peer = 0; peer < ranks_; ++peer) {
    if ((from_root && peer != call.root) || (to_root && rank != call.root)) {
      continue;
    }
    hb_acquire(&collective.entered[static_cast<std::size_t>(peer)]);
  }
}

Outcome Clique::collective(int rank, const Call& call, std::uint64_t sequence, Staging contribution,
                           const Sink& sink, double& time) {
  const auto index = static_cast<std::size_t>(rank);
  std::shared_ptr<Collective> meeting;
  bool last = false;
  {
    const Guard guard(big_lock());
    if (stopped(rank, true)) {
      return Outcome::stopped;
    }
    std::shared_ptr<Collective>& slot = collectives_[sequence];
    if (!slot) {
      slot = std::make_shared<Collective>(ranks_);
    }
    meeting = slot;
    compare(rank, call, sequence, *meeting);
    meeting->calls[index] = call;
    meeting->contributions[index] = std::move(contribution);
    meeting->arrived[index] = 1;
    meeting->end = std::max(meeting->end, time);
    hb_release(&meeting->entered[index]);
    last = ++meeting->present == ranks_;
    changed().notify();
  }
  if (last) {
    const Quiet quiet;
    compute(*meeting);
  }
  {
    const Guard guard(big_lock());
    if (last) {
      meeting->end = std::max(meeting->end, busy_until_) + duration(call, ranks_);
      busy_until_ = meeting->end;
      meeting->ready = true;
      changed().notify();
    }
    const auto absent_ranks = [&] {
      std::vector<int> result;
      for (int peer = 0; peer < ranks_; ++peer) {
        if (meeting->arrived[static_cast<std::size_t>(peer)] == 0) {
          result.push_back(peer);
        }
      }
      return result;
    };
    const bool came = wait(rank, "number " + std::to_string(sequence) + " [" + describe(call) + "]",
                           true, absent_ranks, [&] { return meeting->ready; });
    if (!came && meeting->present < ranks_) {
      meeting->arrived[index] = 0;
      meeting->contributions[index] = Staging();
      if (--meeting->present == 0) {
        collectives_.erase(sequence);
      }
      meeting.reset();
      return Outcome::stopped;
    }
    // All have come: it happens on every rank, whoever stops now.
    while (!meeting->ready) {
      changed().wait(big_lock(), Patience::slice());
    }
  }
  acquire_edges(rank, *meeting);
  deliver(rank, *meeting, sink);
  const Guard guard(big_lock());
  time = meeting->end;
  if (++meeting->taken == ranks_) {
    collectives_.erase(sequence);
  }
  meeting.reset();
  return Outcome::done;
}

void Clique::compute(Collective& collective) const {
  const Call& call = collective.calls.front();
  std::vector<Contribution> parts(static_cast<std::size_t>(ranks_));
  for (std::size_t rank = 0; rank < parts.size(); ++rank) {
    parts[rank] = {collective.contributions[rank].data(), collective.calls[rank].scalar};
  }
  const std::size_t width = size_of(call.type);
  const auto reduce_part = [&](std::size_t first, std::size_t begin, std::size_t count) {
    std::vector<Contribution> moved = parts;
    for (Contribution& part : moved) {
      part.values += begin * width;
    }
    reduce(call.type, call.reduction, moved, first, count,
           collective.result.data() + begin * width);
  };
  const std::size_t ranks = parts.size();
  switch (call.operation) {
    case Operation::reduce_scatter:
      collective.result = Staging(call.count * width * ranks);
      for (std::size_t rank = 0; rank < ranks; ++rank) {
        reduce_part(rank + 1, rank * call.count, call.count);
      }
      break;
    case Operation::all_reduce: {
      // A ring reduces slice r beginning after rank r, then gathers the slices.
      collective.result = Staging(call.count * width);
      const std::size_t slice = (call.count + ranks - 1) / ranks;
      for (std::size_t rank = 0; rank < ranks; ++rank) {
        const std::size_t begin = std::min(rank * slice, call.count);
        reduce_part(rank + 1, begin, std::min(slice, call.count - begin));
      }
      break;
    }
    case Operation::reduce:
      collective.result = Staging(call.count * width);
      reduce_part(static_cast<std::size_t>(call.root) + 1, 0, call.count);
      break;
    default:
      break;
  }
}

void Clique::deliver(int rank, const Collective& collective, const Sink& sink) const {
  const auto index = static_cast<std::size_t>(rank);
  const Call& call = collective.calls[index];
  const std::size_t bytes = call.count * size_of(call.type);
  const bool keeps_own = in_place(call, ranks_, rank);
  switch (call.operation) {
    case Operation::all_gather:
    case Operation::gather:
    case Operation::all_to_all:
      if (call.operation == Operation::gather && rank != call.root) {
        break;
      }
      for (std::size_t peer = 0; peer < static_cast<std::size_t>(ranks_); ++peer) {
        if (peer == index && keeps_own) {
          continue;
        }
        const std::size_t from = call.operation == Operation::all_to_all ? index * bytes : 0;
        sink(peer * bytes, collective.contributions[peer].data() + from, bytes);
      }
      break;
    case Operation::reduce_scatter:
      sink(0, collective.result.data() + index * bytes, bytes);
      break;
    case Operation::all_reduce:
      sink(0, collective.result.data(), bytes);
      break;
    case Operation::reduce:
      if (rank == call.root) {
        sink(0, collective.result.data(), bytes);
      }
      break;
    case Operation::broadcast:
    case Operation::scatter:
      if (rank != call.root || !keeps_own) {
        const auto root = static_cast<std::size_t>(call.root);
        const std::size_t from = call.operation == Operation::scatter ? index * bytes : 0;
        sink(0, collective.contributions[root].data() + from, bytes);
      }
      break;
    default:
      break;
  }
}

Outcome Clique::messages(int rank, std::span<const Call> calls, std::vector<Staging> contributions,
                         const Link::MessageSink& sink, double& time) {
  std::vector<std::shared_ptr<Message>> sent;
  {
    const Guard guard(big_lock());
    std::size_t next = 0;
    for (const Call& call : calls) {
      if (call.operation != Operation::send) {
        continue;
      }
      auto message = std::make_shared<Message>();
      message->call = call;
      message->data = std::move(contributions[next++]);
      message->time = time;
      hb_release(message.get());
      messages_[{rank, call.root}].push_back(message);
      sent.push_back(std::move(message));
    }
    changed().notify();
  }
  double end = time;
  const auto receive = [&](std::size_t index, const Call& call) {
    std::shared_ptr<Message> message;
    {
      const Guard guard(big_lock());
      auto& queue = messages_[{call.root, rank}];
      if (!wait(
              rank, describe(call), true, [&] { return std::vector{call.root}; },
              [&] { return !queue.empty(); })) {
        return false;
      }
      message = queue.front();
      queue.pop_front();
      if (message->call.count != call.count || message->call.type != call.type) {
        fatal_for_all("send and receive differ in communicator '" + name_ + "': rank " +
                      std::to_string(call.root) + " calls [" + describe(message->call) +
                      "], rank " + std::to_string(rank) + " calls [" + describe(call) + "]");
      }
    }
    hb_acquire(message.get());
    sink(index, message->data.data(), message->data.bytes());
    const Guard guard(big_lock());
    message->time = std::max(time, message->time) + duration(call, ranks_);
    end = std::max(end, message->time);
    message->taken = true;
    changed().notify();
    message.reset();
    return true;
  };
  bool complete = true;
  for (std::size_t index = 0; index < calls.size() && complete; ++index) {
    complete = calls[index].operation != Operation::receive || receive(index, calls[index]);
  }
  const Guard guard(big_lock());
  for (const auto& message : sent) {
    // A send ends with its receive: a buffer that hides a missing one is a matter of luck.
    complete = complete &&
               wait(
                   rank, describe(message->call), true,
                   [&] { return std::vector{message->call.root}; }, [&] { return message->taken; });
    end = std::max(end, message->time);
    if (!message->taken) {
      std::erase(messages_[{rank, message->call.root}], message);
    }
  }
  sent.clear();
  time = end;
  return complete ? Outcome::done : Outcome::stopped;
}

}  // namespace emulation
