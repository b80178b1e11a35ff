#pragma once

#include <nccl.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstring>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "../core/error.hpp"
#include "../core/format.hpp"
#include "nccl_api.hpp"
#include "nccl_handle.hpp"
#include "nccl_options.hpp"
#include "nccl_watchdog.hpp"
#include "rendezvous.hpp"

namespace shardwise::inline v0_1::detail::nccl {

/// The version of the loaded library. It may be of another patch than the header, and newer, but
/// not of an earlier release: what that lacks is found out in the middle of a run, or never.
[[nodiscard]] inline int check_version() {
  int loaded = 0;
  static_cast<void>(ncclGetVersion(&loaded));
  if (loaded / 100 >= NCCL_VERSION_CODE / 100) return loaded;
  raise<BackendError>(
      "this program was compiled with the header of NCCL {}.{}, but found the library of {}.{}: "
      "put the newer one first on the library's path, or compile with the older one's header",
      NCCL_MAJOR, NCCL_MINOR, loaded / 10000, loaded / 100 % 100);
}

/// What a rank tells the others when they meet.
struct Card {
  ncclUniqueId id;  // rank 0's counts
  int version;      // of the library that it found
};

/// NCCL connects ranks of one version alone; it would say so on some of them, and others would
/// wait.
inline void check_equal_versions(const std::vector<Card>& cards) {
  const auto other = std::find_if(cards.begin(), cards.end(), [&](const Card& card) {
    return card.version != cards.front().version;
  });
  if (other == cards.end()) return;
  const auto text = [](int version) {
    return format("{}.{}.{}", version / 10000, version / 100 % 100, version % 100);
  };
  raise<BackendError>(
      "rank 0 found the library of NCCL {}, rank {} that of {}, expected the same one on all "
      "ranks: look at LD_LIBRARY_PATH on their machines",
      text(cards.front().version), other - cards.begin(), text(other->version));
}

inline void check_adopted(ncclComm_t adopted, int own_rank, int size, int own_device) {
  int count = 0;
  int rank = 0;
  int device = 0;
  for (const ncclResult_t result :
       {ncclCommCount(adopted, &count), ncclCommUserRank(adopted, &rank),
        ncclCommCuDevice(adopted, &device)}) {
    if (result != ncclSuccess) {
      raise_result(result, "ncclCommCount", own_rank);
    }
  }
  if (count == size && rank == own_rank && device == own_device) return;
  raise(
      "the adopted NCCL communicator is rank {} of {} on device {}, but the rendezvous says rank "
      "{} of {} and the current device is {}",
      rank, count, device, own_rank, size, own_device);
}

/// Where waiting for NCCL to connect ends: throws where a rank failed meanwhile, or the time is up.
class Joining {
 public:
  Joining(Rendezvous& rendezvous, const NcclOptions& options) noexcept
      : rendezvous_(rendezvous), options_(options) {}

  void operator()() const {
    if (rendezvous_.failure()) {
      const RankFailure why = rendezvous_.settled_failure(std::chrono::milliseconds(50));
      throw PeerFailed(format("rank {} failed: {}\nwhile rank {} joined \"{}\"", why.rank,
                              why.message, rendezvous_.rank(), options_.name),
                       why.rank, why.message);
    }
    if (std::chrono::steady_clock::now() - begin_ < options_.startup_timeout) return;
    raise<TimedOut>(
        "rank {} of {} waited in vain for NCCL to connect \"{}\": all ranks came, but "
        "one or its network does not answer; NCCL_DEBUG=INFO says more",
        rendezvous_.rank(), rendezvous_.size(), options_.name);
  }

 private:
  Rendezvous& rendezvous_;
  const NcclOptions& options_;
  std::chrono::steady_clock::time_point begin_ = std::chrono::steady_clock::now();
};

/// Reductions have a channel of their own where the options say so.
inline void add_reductions(std::vector<std::unique_ptr<Channel>>& channels, int rank,
                           const NcclOptions& options, int device, const Joining& patience) {
  if (!options.separate_reductions) return;
  channels.push_back(std::make_unique<Channel>(
      channels.front()->handle->split(0, rank, options, options.name + ".reductions", patience),
      device));
}

/// This rank's ncclComm_t, or two where reductions have one of their own: made with all ranks of
/// the rendezvous, or the host's `adopted` where that is not null.
[[nodiscard]] inline std::vector<std::unique_ptr<Channel>> connect(
    Rendezvous& rendezvous, const std::string& communicator_id, const NcclOptions& options,
    int device, ncclComm_t adopted) {
  Card own{{}, check_version()};
  const int rank = rendezvous.rank();
  const int size = rendezvous.size();
  std::vector<std::unique_ptr<Channel>> channels;
  const auto add = [&](std::shared_ptr<Handle> handle) {
    channels.push_back(std::make_unique<Channel>(std::move(handle), device));
  };
  const Joining patience(rendezvous, options);
  // Who does not come is named here; inside NCCL it would be a time-out without names.
  if (rank == 0 && adopted == nullptr) {
    if (const ncclResult_t result = ncclGetUniqueId(&own.id); result != ncclSuccess) {
      raise_result(result, "ncclGetUniqueId", 0);
    }
  }
  std::string text(sizeof own, '\0');
  std::memcpy(text.data(), &own, sizeof own);
  std::vector<Card> cards(static_cast<std::size_t>(size));
  auto card = cards.begin();
  for (const std::string& theirs :
       rendezvous.exchange(communicator_id + ".here", text, options.startup_timeout)) {
    if (theirs.size() != sizeof own) {
      raise<BackendError>(
          "rank {} gave {} bytes where ranks meet, expected {}: was its program "
          "compiled with another version of the library?",
          card - cards.begin(), theirs.size(), sizeof own);
    }
    std::memcpy(&*card++, theirs.data(), sizeof own);
  }
  check_equal_versions(cards);
  if (adopted != nullptr) {
    check_adopted(adopted, rank, size, device);
    add(Handle::adopt(adopted, rank));
  } else {
    add(Handle::make(size, rank, cards.front().id, options, patience));
  }
  add_reductions(channels, rank, options, device, patience);
  return channels;
}

}  // namespace shardwise::inline v0_1::detail::nccl
