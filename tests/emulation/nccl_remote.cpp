#include <unistd.h>

#include <array>
#include <chrono>
#include <cstdlib>
#include <map>
#include <sstream>
#include <thread>

#include "nccl_clique.hpp"
#include "nccl_processes.hpp"
#include "nccl_wire.hpp"

// The side of a process whose ranks meet in another one.
namespace emulation {

namespace {

class RemoteLink final : public Link {
 public:
  using Connections = std::array<std::unique_ptr<Connection>, 3>;

  RemoteLink(std::string hub, std::string name, int rank, int ranks, Connections connections)
      : Link(std::move(name), rank, ranks),
        hub_(std::move(hub)),
        connections_(std::move(connections)) {}

  /// Opens the three connections of a session; false: the hub is not there.
  static bool open(const std::string& hub, std::uint64_t session, Connections& connections);
  static bool ask(Connection& connection, const Request& request,
                  std::span<const std::byte> payload, Reply& reply, std::vector<std::byte>& answer);

  Outcome collective(const Call& call, std::uint64_t sequence, Staging contribution,
                     const Sink& sink, double& time) override;
  Outcome messages(std::span<const Call> calls, std::vector<Staging> contributions,
                   const MessageSink& sink, double& time) override;
  Child split(std::uint64_t ordinal, int color, int key, const std::string& child) override;
  Child shrink(const std::vector<int>& excluded, const std::string& child) override;
  Outcome register_window(const WindowRequest& request) override;
  void stop(Stop why) override;
  ncclResult_t health() override;

 private:
  Connection& channel(Channel which) { return *connections_[static_cast<std::size_t>(which)]; }
  Child child_of(const Request& request, const Packer& payload);
  Outcome operate(const Request& request, std::span<const std::byte> payload, const Sink& sink,
                  double& time);

  std::string hub_;
  Connections connections_;
};

void say_blocked(const std::string& what) {
  const Guard guard(big_lock());
  set_blocked(what);
}

bool RemoteLink::ask(Connection& connection, const Request& request,
                     std::span<const std::byte> payload, Reply& reply,
                     std::vector<std::byte>& answer) {
  const Guard guard(connection.lock);
  // A hub that has ended may have left its reason, which can still be read.
  const bool sent = connection.send(request, payload);
  if (!connection.receive(reply, answer)) {
    return false;
  }
  if (reply.fatal != 0) {
    fatal("%s", Unpacker(answer).text().c_str());
  }
  if (!sent) {
    return false;
  }
  return true;
}

bool RemoteLink::open(const std::string& hub, std::uint64_t session, Connections& connections) {
  for (std::uint32_t which = 0; which < connections.size(); ++which) {
    const int descriptor = connect_to(hub);
    if (descriptor < 0) {
      return false;
    }
    connections[which] = std::make_unique<Connection>(descriptor);
    Request request{
        .kind = Kind::hello, .channel = static_cast<Channel>(which), .session = session};
    Reply reply;
    std::vector<std::byte> answer;
    if (!ask(*connections[which], request, {}, reply, answer)) {
      return false;
    }
  }
  return true;
}

Outcome RemoteLink::operate(const Request& request, std::span<const std::byte> payload,
                            const Sink& sink, double& time) {
  Reply reply;
  std::vector<std::byte> answer;
  say_blocked("rank " + std::to_string(rank()) + " of communicator '" + name() + "' in number " +
              std::to_string(request.number) + " [" + describe(request.call) +
              "]: see the process that made the unique id");
  const bool answered = ask(channel(Channel::data), request, payload, reply, answer);
  say_blocked("");
  if (!answered) {
    return Outcome::lost;
  }
  time = reply.time;
  Unpacker pieces(answer);
  while (!pieces.empty()) {
    const auto piece = pieces.get<Piece>();
    sink(piece.offset, pieces.get(piece.bytes), piece.bytes);
  }
  return reply.outcome;
}

Outcome RemoteLink::collective(const Call& call, std::uint64_t sequence, Staging contribution,
                               const Sink& sink, double& time) {
  const Request request{.kind = Kind::collective, .number = sequence, .time = time, .call = call};
  return operate(request, {contribution.data(), contribution.bytes()}, sink, time);
}

Outcome RemoteLink::messages(std::span<const Call> calls, std::vector<Staging> contributions,
                             const MessageSink& sink, double& time) {
  Packer payload;
  for (const Call& call : calls) {
    payload.put(call);
  }
  for (const Staging& data : contributions) {
    payload.put(data.data(), data.bytes());
  }
  const Request request{.kind = Kind::messages,
                        .number = calls.size(),
                        .time = time,
                        .call = calls.empty() ? Call{} : calls.front()};
  return operate(request, payload.bytes(), sink, time);
}

Child RemoteLink::child_of(const Request& request, const Packer& payload) {
  Reply reply;
  std::vector<std::byte> answer;
  if (!ask(channel(Channel::management), request, payload.bytes(), reply, answer)) {
    return {Outcome::lost, nullptr};
  }
  if (reply.outcome != Outcome::done || reply.rank < 0) {
    return {reply.outcome, nullptr};
  }
  Connections connections;
  if (!open(hub_, reply.session, connections)) {
    return {Outcome::lost, nullptr};
  }
  return {Outcome::done, std::make_shared<RemoteLink>(hub_, Unpacker(answer).text(), reply.rank,
                                                      reply.ranks, std::move(connections))};
}

Child RemoteLink::split(std::uint64_t ordinal, int color, int key, const std::string& child) {
  Packer payload;
  payload.put(child);
  return child_of({.kind = Kind::split, .number = ordinal, .first = color, .second = key}, payload);
}

Child RemoteLink::shrink(const std::vector<int>& excluded, const std::string& child) {
  Packer payload;
  for (const int rank : excluded) {
    payload.put(static_cast<std::int32_t>(rank));
  }
  payload.put(child);
  return child_of({.kind = Kind::shrink, .number = excluded.size()}, payload);
}

Outcome RemoteLink::register_window(const WindowRequest& request) {
  Packer payload;
  payload.put(request);
  Reply reply;
  std::vector<std::byte> answer;
  return ask(channel(Channel::management), {.kind = Kind::window}, payload.bytes(), reply, answer)
             ? reply.outcome
             : Outcome::lost;
}

void RemoteLink::stop(Stop why) {
  Reply reply;
  std::vector<std::byte> answer;
  const Request request{.kind = Kind::stop, .first = static_cast<std::int32_t>(why)};
  ask(channel(Channel::control), request, {}, reply, answer);
}

ncclResult_t RemoteLink::health() {
  Reply reply;
  std::vector<std::byte> answer;
  return ask(channel(Channel::control), {.kind = Kind::health}, {}, reply, answer)
             ? static_cast<ncclResult_t>(reply.result)
             : ncclRemoteError;
}

constexpr const char* by_environment = "shardwise-emulation-nccl-at-";

// The keys that this process serves. A forked child has the entries and no thread that serves them,
// hence the process ids.
std::map<std::string, pid_t>& served() {
  static auto* const all = new std::map<std::string, pid_t>;
  return *all;
}

bool is_served(const std::string& key) {
  const Guard guard(big_lock());
  const auto found = served().find(key);
  return found != served().end() && found->second == getpid();
}

bool serve_once(const std::string& key) {
  if (is_served(key)) {
    return true;
  }
  if (!serve(key)) {
    return false;
  }
  const Guard guard(big_lock());
  served()[key] = getpid();
  return true;
}

std::string text_of(const ncclUniqueId& id) {
  return {id.internal, strnlen(id.internal, sizeof id.internal)};
}

/// Where the ranks of an id meet: one place for all ids that a process has made.
std::string hub_of(const ncclUniqueId& id) {
  const std::string text = text_of(id);
  return text.starts_with(by_environment) ? text : text.substr(0, text.rfind('-'));
}

/// The device as all processes of the machine name it: the visible ones may be renumbered.
std::string device_name(int device) {
  const char* const visible = std::getenv("CUDA_VISIBLE_DEVICES");
  std::istringstream names(visible == nullptr ? "" : visible);
  std::string name;
  for (int number = 0; std::getline(names, name, ','); ++number) {
    if (number == device) {
      return name;
    }
  }
  return std::to_string(device);
}

}  // namespace

std::shared_ptr<Link> join_there(const std::string& hub, const std::string& meeting,
                                 const std::string& name, int rank, int ranks,
                                 const std::string& device, const std::function<bool()>& given_up) {
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::milliseconds(watchdog());
  RemoteLink::Connections connections;
  while (!RemoteLink::open(hub, fresh_number(), connections)) {
    if (given_up() || std::chrono::steady_clock::now() > deadline) {
      return nullptr;
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  Packer payload;
  payload.put(meeting);
  payload.put(name);
  payload.put(device);
  Reply reply;
  std::vector<std::byte> answer;
  const Request request{.kind = Kind::join, .first = rank, .second = ranks};
  if (!RemoteLink::ask(*connections[static_cast<std::size_t>(Channel::management)], request,
                       payload.bytes(), reply, answer) ||
      reply.outcome != Outcome::done) {
    return nullptr;
  }
  return std::make_shared<RemoteLink>(hub, Unpacker(answer).text(), rank, ranks,
                                      std::move(connections));
}

ncclResult_t make_unique_id(ncclUniqueId& id) {
  const char* const address = std::getenv("NCCL_COMM_ID");
  std::string key;
  if (address != nullptr && *address != '\0') {
    key = std::string(by_environment) + std::to_string(getuid()) + "-" + address;
  } else {
    const std::string hub = "shardwise-emulation-nccl-" + std::to_string(getpid());
    if (!serve_once(hub)) {
      return ncclSystemError;
    }
    key = hub + "-" + std::to_string(fresh_number());
  }
  id = {};
  key.copy(id.internal, sizeof id.internal - 1);
  return ncclSuccess;
}

std::shared_ptr<Link> join(const std::vector<ncclUniqueId>& ids, const std::string& name, int rank,
                           int ranks, int device, const std::function<bool()>& given_up) {
  const Quiet quiet;
  const std::string hub = hub_of(ids.front());
  std::string meeting;
  for (const ncclUniqueId& id : ids) {
    meeting += text_of(id) + ";";
  }
  if (rank == 0 && hub.starts_with(by_environment) && !serve_once(hub)) {
    return nullptr;
  }
  const std::string shown = name.empty() ? "world" : name;
  return is_served(hub)
             ? join_here(meeting, shown, rank, ranks, device_name(device), given_up)
             : join_there(hub, meeting, shown, rank, ranks, device_name(device), given_up);
}

}  // namespace emulation
