#pragma once

#include <nccl.h>

#include <chrono>
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

/// The loaded library may be of another patch than the header, and newer, but not of an earlier
/// release: what that lacks is found out in the middle of a run, or never.
inline void check_version() {
  int loaded = 0;
  static_cast<void>(ncclGetVersion(&loaded));
  if (loaded / 100 >= NCCL_VERSION_CODE / 100) return;
  raise<BackendError>(
      "this program was compiled with the header of NCCL {}.{}, but found the library of {}.{}: "
      "put "
      "the newer one first on the library's path, or compile with the older one's header",
      NCCL_MAJOR, NCCL_MINOR, loaded / 10000, loaded / 100 % 100);
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
  check_version();
  const int rank = rendezvous.rank();
  const int size = rendezvous.size();
  std::vector<std::unique_ptr<Channel>> channels;
  const auto add = [&](std::shared_ptr<Handle> handle) {
    channels.push_back(std::make_unique<Channel>(std::move(handle), device));
  };
  const Joining patience(rendezvous, options);
  // Who does not come is named here; inside NCCL it would be a time-out without names.
  ncclUniqueId id{};
  if (rank == 0 && adopted == nullptr) {
    if (const ncclResult_t result = ncclGetUniqueId(&id); result != ncclSuccess) {
      raise_result(result, "ncclGetUniqueId", 0);
    }
  }
  std::string own(sizeof id, '\0');
  std::memcpy(own.data(), &id, sizeof id);
  const auto all = rendezvous.exchange(communicator_id + ".here", own, options.startup_timeout);
  if (adopted != nullptr) {
    check_adopted(adopted, rank, size, device);
    add(Handle::adopt(adopted, rank));
  } else {
    std::memcpy(&id, all.front().data(), sizeof id);
    add(Handle::make(size, rank, id, options, patience));
  }
  add_reductions(channels, rank, options, device, patience);
  return channels;
}

}  // namespace shardwise::inline v0_1::detail::nccl
