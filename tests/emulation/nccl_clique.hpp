#pragma once

#include <deque>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "internal.hpp"
#include "nccl_link.hpp"

namespace emulation {

/// One collective while its ranks meet. The last to arrive reduces; then each takes its result.
struct Collective {
  explicit Collective(int ranks)
      : calls(static_cast<std::size_t>(ranks)),
        contributions(static_cast<std::size_t>(ranks)),
        arrived(static_cast<std::size_t>(ranks)),
        entered(static_cast<std::size_t>(ranks)) {}

  std::vector<Call> calls;
  std::vector<Staging> contributions;
  std::vector<char> arrived;
  std::vector<char> entered;  // an address for each rank's edge
  Staging result;
  int present = 0;
  int taken = 0;
  bool ready = false;
  double end = 0;  // first the latest rank's time, then that of the end
};

struct Message {
  Call call;
  Staging data;
  bool taken = false;
  double time = 0;
};

/// The meeting point of one communicator's ranks: signatures are compared and bytes change hands
/// here. Guarded by big_lock() but for the work of a collective's last rank.
class Clique {
 public:
  Clique(std::string name, int ranks);
  Clique(const Clique&) = delete;
  Clique& operator=(const Clique&) = delete;

  Outcome collective(int rank, const Call& call, std::uint64_t sequence, Staging contribution,
                     const Sink& sink, double& time);
  Outcome messages(int rank, std::span<const Call> calls, std::vector<Staging> contributions,
                   const Link::MessageSink& sink, double& time);
  Outcome register_window(int rank, const WindowRequest& request);
  std::pair<Outcome, std::shared_ptr<Clique>> split(int rank, std::uint64_t ordinal, int color,
                                                    int key, const std::string& child, int& place);
  std::pair<Outcome, std::shared_ptr<Clique>> shrink(int rank, const std::vector<int>& excluded,
                                                     const std::string& child, int& place);
  void stop(int rank, Stop why);
  ncclResult_t health();

  const std::string& name() const { return name_; }
  int ranks() const { return ranks_; }

 private:
  struct SplitRequest {
    int color = 0;
    int key = 0;
  };
  struct Partition {
    std::map<int, SplitRequest> requests;
    std::map<int, std::shared_ptr<Clique>> children;
    int taken = 0;
  };
  struct Shrinking {
    std::map<int, std::vector<int>> requests;
    std::shared_ptr<Clique> child;
    int taken = 0;
  };
  struct Registration {
    std::map<int, WindowRequest> requests;
    int taken = 0;
  };

  void compare(int rank, const Call& call, std::uint64_t sequence, const Collective& other) const;
  void compare_places(int rank, const Call& call, int peer, const Call& theirs,
                      std::uint64_t sequence) const;
  void compute(Collective& collective) const;
  void deliver(int rank, const Collective& collective, const Sink& sink) const;
  void acquire_edges(int rank, Collective& collective) const;
  bool stopped(int rank, bool by_revoke) const;
  bool wait(int rank, const std::string& what, bool revocable,
            const std::function<std::vector<int>()>& missing_ranks,
            const std::function<bool()>& done);

  std::string name_;
  int ranks_;
  std::map<std::uint64_t, std::shared_ptr<Collective>> collectives_;
  std::map<std::pair<int, int>, std::deque<std::shared_ptr<Message>>> messages_;
  std::map<std::uint64_t, Partition> partitions_;
  std::map<std::string, Shrinking> shrinkings_;
  std::map<std::uint64_t, Registration> registrations_;
  std::vector<Stop> stops_;
  double busy_until_ = 0;  // a communicator runs one collective at a time
};

/// Link of a rank that lives in this process, or is served by it.
class LocalLink final : public Link {
 public:
  LocalLink(std::shared_ptr<Clique> clique, int rank)
      : Link(clique->name(), rank, clique->ranks()), clique_(std::move(clique)) {}

  Outcome collective(const Call& call, std::uint64_t sequence, Staging contribution,
                     const Sink& sink, double& time) override {
    return clique_->collective(rank(), call, sequence, std::move(contribution), sink, time);
  }
  Outcome messages(std::span<const Call> calls, std::vector<Staging> contributions,
                   const MessageSink& sink, double& time) override {
    return clique_->messages(rank(), calls, std::move(contributions), sink, time);
  }
  Child split(std::uint64_t ordinal, int color, int key, const std::string& child) override {
    int place = -1;
    auto [outcome, clique] = clique_->split(rank(), ordinal, color, key, child, place);
    return made(outcome, std::move(clique), place);
  }
  Child shrink(const std::vector<int>& excluded, const std::string& child) override {
    int place = -1;
    auto [outcome, clique] = clique_->shrink(rank(), excluded, child, place);
    return made(outcome, std::move(clique), place);
  }
  Outcome register_window(const WindowRequest& request) override {
    return clique_->register_window(rank(), request);
  }
  void stop(Stop why) override { clique_->stop(rank(), why); }
  ncclResult_t health() override { return clique_->health(); }

 private:
  static Child made(Outcome outcome, std::shared_ptr<Clique> clique, int place) {
    const Quiet quiet;
    return {outcome, clique ? std::make_shared<LocalLink>(std::move(clique), place) : nullptr};
  }

  std::shared_ptr<Clique> clique_;
};

/// Waits for `done()`, with big_lock() held, until it holds or `given_up()` does (false). `what()`
/// says who waits for what and whom; a wait that makes no progress ends the process with it.
bool wait_for(const std::function<std::string()>& what, const std::function<bool()>& done,
              const std::function<bool()>& given_up);

/// "1, 3" or "none".
std::string list(const std::vector<int>& ranks);

/// Ends this process, and those whose ranks it serves, with the message: see fatal().
[[noreturn]] void fatal_for_all(const std::string& message);

}  // namespace emulation
