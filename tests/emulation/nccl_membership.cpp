#include <algorithm>

#include "nccl_clique.hpp"

// How communicators come to be, from nothing or from another, and what all ranks register together.
namespace emulation {

namespace {

template <class Requests>
std::vector<int> absent(const Requests& requests, int ranks,
                        const std::vector<int>& excluded = {}) {
  std::vector<int> result;
  for (int rank = 0; rank < ranks; ++rank) {
    if (!requests.contains(rank) && !std::ranges::binary_search(excluded, rank)) {
      result.push_back(rank);
    }
  }
  return result;
}

}  // namespace

Outcome Clique::register_window(int rank, const WindowRequest& request) {
  const Guard guard(big_lock());
  Registration& registration = registrations_[request.ordinal];
  for (const auto& [peer, theirs] : registration.requests) {
    if (theirs.bytes != request.bytes || theirs.flags != request.flags) {
      fatal_for_all("window registrations differ in communicator '" + name_ + "', window " +
                    std::to_string(request.ordinal) + ": rank " + std::to_string(peer) + " has " +
                    std::to_string(theirs.bytes) + " bytes with flags " +
                    std::to_string(theirs.flags) + ", rank " + std::to_string(rank) + " has " +
                    std::to_string(request.bytes) + " bytes with flags " +
                    std::to_string(request.flags));
    }
  }
  registration.requests[rank] = request;
  changed().notify();
  const bool came = wait(
      rank, "ncclCommWindowRegister of window " + std::to_string(request.ordinal), true,
      [&] { return absent(registration.requests, ranks_); },
      [&] { return static_cast<int>(registration.requests.size()) == ranks_; });
  if (!came) {
    registration.requests.erase(rank);
    return Outcome::stopped;
  }
  if (++registration.taken == ranks_) {
    registrations_.erase(request.ordinal);
  }
  return Outcome::done;
}

std::pair<Outcome, std::shared_ptr<Clique>> Clique::split(int rank, std::uint64_t ordinal,
                                                          int color, int key,
                                                          const std::string& child, int& place) {
  const Guard guard(big_lock());
  Partition& partition = partitions_[ordinal];
  partition.requests[rank] = {color, key};
  changed().notify();
  const bool came = wait(
      rank, "ncclCommSplit", false, [&] { return absent(partition.requests, ranks_); },
      [&] { return static_cast<int>(partition.requests.size()) == ranks_; });
  if (!came) {
    partition.requests.erase(rank);
    return {Outcome::stopped, nullptr};
  }
  std::shared_ptr<Clique> result;
  if (color != NCCL_SPLIT_NOCOLOR) {
    std::vector<std::pair<int, int>> members;  // by key, then by rank
    for (const auto& [peer, request] : partition.requests) {
      if (request.color == color) {
        members.emplace_back(request.key, peer);
      }
    }
    std::ranges::sort(members);
    place = static_cast<int>(std::ranges::find(members, std::pair(key, rank)) - members.begin());
    std::shared_ptr<Clique>& made = partition.children[color];
    if (!made) {
      made = std::make_shared<Clique>(
          child.empty() ? name_ + "/" + std::to_string(ordinal) + "." + std::to_string(color)
                        : child,
          static_cast<int>(members.size()));
    }
    result = made;
  }
  if (++partition.taken == ranks_) {
    partitions_.erase(ordinal);
  }
  return {Outcome::done, std::move(result)};
}

std::pair<Outcome, std::shared_ptr<Clique>> Clique::shrink(int rank,
                                                           const std::vector<int>& excluded,
                                                           const std::string& child, int& place) {
  const Guard guard(big_lock());
  for (const auto& [others, shrinking] : shrinkings_) {
    if (!shrinking.requests.empty() && others != list(excluded)) {
      fatal_for_all("ranks exclude different ranks in ncclCommShrink of communicator '" + name_ +
                    "': rank " + std::to_string(shrinking.requests.begin()->first) + " excludes " +
                    others + ", rank " + std::to_string(rank) + " excludes " + list(excluded));
    }
  }
  Shrinking& shrinking = shrinkings_[list(excluded)];
  shrinking.requests[rank] = excluded;
  changed().notify();
  const int survivors = ranks_ - static_cast<int>(excluded.size());
  const bool came = wait(
      rank, "ncclCommShrink", false, [&] { return absent(shrinking.requests, ranks_, excluded); },
      [&] { return static_cast<int>(shrinking.requests.size()) == survivors; });
  if (!came) {
    shrinking.requests.erase(rank);
    return {Outcome::stopped, nullptr};
  }
  if (!shrinking.child) {
    shrinking.child = std::make_shared<Clique>(
        child.empty() ? name_ + "/without " + list(excluded) : child, survivors);
  }
  place = static_cast<int>(std::ranges::count_if(
      shrinking.requests, [rank](const auto& request) { return request.first < rank; }));
  std::shared_ptr<Clique> result = shrinking.child;
  if (++shrinking.taken == survivors) {
    shrinkings_.erase(list(excluded));
  }
  return {Outcome::done, std::move(result)};
}

namespace {

struct Joining {
  std::shared_ptr<Clique> clique;
  std::map<int, std::string> devices;
};

std::map<std::string, std::shared_ptr<Joining>>& joinings() {
  static auto* const all = new std::map<std::string, std::shared_ptr<Joining>>;
  return *all;
}

}  // namespace

std::shared_ptr<Link> join_here(const std::string& key, const std::string& name, int rank,
                                int ranks, const std::string& device,
                                const std::function<bool()>& given_up) {
  const Guard guard(big_lock());
  std::shared_ptr<Joining>& slot = joinings()[key];
  if (!slot) {
    slot = std::make_shared<Joining>();
    slot->clique = std::make_shared<Clique>(name, ranks);
  }
  const std::shared_ptr<Joining> meeting = slot;
  Joining& joining = *meeting;
  const std::shared_ptr<Clique> clique = joining.clique;
  if (clique->ranks() != ranks) {
    fatal_for_all("ncclCommInitRank: rank " + std::to_string(rank) + " expects " +
                  std::to_string(ranks) + " ranks, others with the same id " +
                  std::to_string(clique->ranks()));
  }
  for (const auto& [peer, other] : joining.devices) {
    if (peer == rank) {
      fatal_for_all("ncclCommInitRank: rank " + std::to_string(rank) +
                    " has joined already: each rank joins once with an id");
    }
    if (other == device) {
      fatal_for_all("ncclCommInitRank: rank " + std::to_string(peer) + " and rank " +
                    std::to_string(rank) + " use the same device " + device +
                    ": each rank needs a device of its own (cudaSetDevice before)");
    }
  }
  joining.devices[rank] = device;
  changed().notify();
  const bool came = wait_for(
      [&] {
        return "rank " + std::to_string(rank) + " waits in ncclCommInitRank: missing ranks " +
               list(absent(joining.devices, ranks));
      },
      [&] { return static_cast<int>(joining.devices.size()) == ranks; }, given_up);
  if (!came) {
    joining.devices.erase(rank);
    return nullptr;
  }
  // Known complete to everyone by the count alone: the first to see it drops the key.
  joinings().erase(key);
  return std::make_shared<LocalLink>(clique, rank);
}

}  // namespace emulation
