#include <pthread.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <map>
#include <memory>
#include <utility>

#include "nccl_clique.hpp"
#include "nccl_communicator.hpp"
#include "nccl_wire.hpp"

// The side of the process where the ranks meet: a thread for each connection of another process
// runs the same code as a rank that lives here.
namespace emulation {

namespace {

struct Session {
  std::shared_ptr<Link> link;
  std::uint64_t owner = 0;  // the first session of the same rank's process
  bool left = false;        // it said that it ends
  bool died = false;
};

// Both guarded by big_lock().
std::map<std::uint64_t, std::shared_ptr<Session>>& sessions() {
  static auto* const all = new std::map<std::uint64_t, std::shared_ptr<Session>>;
  return *all;
}

std::vector<std::shared_ptr<Connection>>& connections() {
  static auto* const all = new std::vector<std::shared_ptr<Connection>>;
  return *all;
}

std::shared_ptr<Session> session_of(std::uint64_t number) {
  const Guard guard(big_lock());
  std::shared_ptr<Session>& session = sessions()[number];
  if (!session) {
    session = std::make_shared<Session>();
    session->owner = number;
  }
  return session;
}

/// The end of a session's control connection. One that did not say that it ends has lost its
/// process, and that has lost its other sessions, those it has not connected yet included.
void close_session(std::uint64_t number) {
  std::vector<std::shared_ptr<Link>> links;
  {
    const Guard guard(big_lock());
    const std::shared_ptr<Session> closed = sessions()[number];
    sessions().erase(number);
    if (closed->left) {
      return;
    }
    closed->died = true;
    if (closed->link) {
      links.push_back(closed->link);
    }
    for (const auto& [other, session] : sessions()) {
      if (session->owner == closed->owner && !session->left) {
        session->died = true;
        if (session->link) {
          links.push_back(session->link);
        }
      }
    }
    changed().notify();
  }
  for (const auto& link : links) {
    link->stop(Stop::died);
  }
}

/// The ranks of this process are through; those of others may not be, and meet here.
__attribute__((destructor)) void wait_for_sessions() {
  if (living_handles() > 0) {
    return;  // it ends in the middle: that is a death to the others
  }
  const Guard guard(big_lock());
  const auto open = [] {
    return std::ranges::any_of(
        sessions(), [](const auto& entry) { return !entry.second->left && !entry.second->died; });
  };
  while (open()) {
    changed().wait(big_lock(), 200);
  }
}

struct Answer {
  Reply reply;
  Packer payload;
};

void add_child(const Session& parent, Child child, Answer& answer) {
  answer.reply.outcome = child.outcome;
  if (!child.link) {
    return;
  }
  auto session = std::make_shared<Session>();
  session->owner = parent.owner;
  answer.reply.rank = child.link->rank();
  answer.reply.ranks = child.link->ranks();
  answer.reply.session = fresh_number();
  answer.payload.put(child.link->name());
  session->link = std::move(child.link);
  const Guard guard(big_lock());
  session->died = parent.died;
  sessions()[answer.reply.session] = std::move(session);
}

void answer_collective(Session& session, const Request& request, Unpacker& payload,
                       Answer& answer) {
  Link& link = *session.link;
  Staging contribution(send_bytes(request.call, link.ranks(), link.rank()));
  if (contribution.bytes() > 0) {
    std::memcpy(contribution.data(), payload.get(contribution.bytes()), contribution.bytes());
  }
  answer.reply.outcome = link.collective(
      request.call, request.number, std::move(contribution),
      [&](std::size_t offset, const std::byte* data, std::size_t bytes) {
        answer.payload.put(Piece{offset, bytes});
        answer.payload.put(data, bytes);
      },
      answer.reply.time);
}

void answer_messages(Session& session, const Request& request, Unpacker& payload, Answer& answer) {
  std::vector<Call> calls;
  for (std::uint64_t i = 0; i < request.number; ++i) {
    calls.push_back(payload.get<Call>());
  }
  std::vector<Staging> contributions;
  for (const Call& call : calls) {
    if (call.operation == Operation::send) {
      Staging& data = contributions.emplace_back(call.count * size_of(call.type));
      if (data.bytes() > 0) {
        std::memcpy(data.data(), payload.get(data.bytes()), data.bytes());
      }
    }
  }
  answer.reply.outcome = session.link->messages(
      calls, std::move(contributions),
      [&](std::size_t index, const std::byte* data, std::size_t bytes) {
        answer.payload.put(Piece{index, bytes});
        answer.payload.put(data, bytes);
      },
      answer.reply.time);
}

void answer_join(Session& session, const Request& request, Unpacker& payload, Answer& answer) {
  const std::string meeting = payload.text();
  const std::string name = payload.text();
  const std::string device = payload.text();
  auto link =
      join_here(meeting, name, request.first, request.second, device, [&] { return session.died; });
  const Guard guard(big_lock());
  if (!link) {
    answer.reply.outcome = Outcome::stopped;
    return;
  }
  answer.payload.put(link->name());
  session.link = std::move(link);
}

Answer answer_to(Session& session, const Request& request, std::span<const std::byte> bytes) {
  Unpacker payload(bytes);
  Answer answer;
  answer.reply.time = request.time;
  switch (request.kind) {
    case Kind::join:
      answer_join(session, request, payload, answer);
      break;
    case Kind::collective:
      answer_collective(session, request, payload, answer);
      break;
    case Kind::messages:
      answer_messages(session, request, payload, answer);
      break;
    case Kind::split:
      add_child(session,
                session.link->split(request.number, request.first, request.second, payload.text()),
                answer);
      break;
    case Kind::shrink: {
      std::vector<int> excluded;
      for (std::uint64_t i = 0; i < request.number; ++i) {
        excluded.push_back(payload.get<std::int32_t>());
      }
      add_child(session, session.link->shrink(excluded, payload.text()), answer);
      break;
    }
    case Kind::window:
      answer.reply.outcome = session.link->register_window(payload.get<WindowRequest>());
      break;
    case Kind::stop: {
      const auto why = static_cast<Stop>(request.first);
      {
        const Guard guard(big_lock());
        session.left = session.left || why != Stop::revoked;
        session.died = session.died || why != Stop::revoked;
        changed().notify();
      }
      if (session.link) {
        session.link->stop(why);
      }
      break;
    }
    case Kind::health:
      answer.reply.result = session.link ? session.link->health() : ncclSuccess;
      break;
    case Kind::hello:
      break;
  }
  return answer;
}

void serve_connection(int descriptor) {
  const Quiet quiet;
  auto connection = std::make_shared<Connection>(descriptor);
  {
    const Guard guard(big_lock());
    connections().push_back(connection);
  }
  Request request;
  std::vector<std::byte> payload;
  std::shared_ptr<Session> session;
  std::uint64_t number = 0;
  Channel channel = Channel::management;
  while (connection->receive(request, payload)) {
    if (request.kind == Kind::hello) {
      number = request.session;
      session = session_of(number);
      channel = request.channel;
    }
    if (!session) {
      break;
    }
    const Answer answer = answer_to(*session, request, payload);
    const Guard guard(connection->lock);
    if (!connection->send(answer.reply, answer.payload.bytes())) {
      break;
    }
  }
  if (session && channel == Channel::control) {
    close_session(number);
  }
  const Guard guard(big_lock());
  std::erase(connections(), connection);
}

// Detached from its first moment: the process may end before a listener has come to detach().
template <class Body>
void start_detached(Body body) {
  auto own = std::make_unique<Body>(std::move(body));
  pthread_attr_t attributes;
  pthread_attr_init(&attributes);
  pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
  pthread_t thread{};
  const auto run = +[](void* given) -> void* {
    const std::unique_ptr<Body> mine(static_cast<Body*>(given));
    (*mine)();
    return nullptr;
  };
  const int status = pthread_create(&thread, &attributes, run, own.get());
  pthread_attr_destroy(&attributes);
  if (status != 0) {
    fatal("no thread for a connection between processes: error %d", status);
  }
  static_cast<void>(own.release());
}

}  // namespace

bool serve(const std::string& key) {
  const int listener = listen_at(key);
  if (listener < 0) {
    return false;
  }
  start_detached([listener] {
    for (;;) {
      const int descriptor = accept4(listener, nullptr, nullptr, SOCK_CLOEXEC);
      if (descriptor < 0) {
        return;
      }
      start_detached([descriptor] { serve_connection(descriptor); });
    }
  });
  return true;
}

void fatal_for_all(const std::string& message) {
  Packer text;
  text.put(message);
  Reply reply;
  reply.fatal = 1;
  for (const auto& connection : connections()) {
    connection->send(reply, text.bytes());
  }
  fatal("%s", message.c_str());
}

}  // namespace emulation
