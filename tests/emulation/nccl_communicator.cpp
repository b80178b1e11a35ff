#include "nccl_communicator.hpp"

#include <cstring>
#include <set>

#include "nccl_model.hpp"
#include "nccl_processes.hpp"

namespace emulation {

namespace {

ncclResult_t check_config(const ncclConfig_t* config) {
  if (config == nullptr) {
    return ncclSuccess;
  }
  const ncclConfig_t defaults = NCCL_CONFIG_INITIALIZER;
  if (config->magic != defaults.magic || config->size != defaults.size) {
    return refuse(ncclInvalidArgument,
                  "ncclConfig_t: not made by NCCL_CONFIG_INITIALIZER of this version");
  }
  const auto flag = [](int value) {
    return value == NCCL_CONFIG_UNDEF_INT || value == 0 || value == 1;
  };
  const auto positive = [](int value) { return value == NCCL_CONFIG_UNDEF_INT || value > 0; };
  const bool policy_known =
      config->CTAPolicy == NCCL_CONFIG_UNDEF_INT ||
      (config->CTAPolicy >= NCCL_CTA_POLICY_DEFAULT && config->CTAPolicy <= NCCL_CTA_POLICY_ZERO);
  if (!flag(config->blocking) || !flag(config->splitShare) || !flag(config->shrinkShare) ||
      !positive(config->minCTAs) || !positive(config->maxCTAs) || !policy_known) {
    return refuse(ncclInvalidArgument, "ncclConfig_t: an attribute is out of its range");
  }
  return ncclSuccess;
}

void apply(const ncclConfig_t* config, Communicator& communicator) {
  if (config == nullptr) {
    return;
  }
  communicator.blocking = config->blocking != 0;
  if (config->CTAPolicy != NCCL_CONFIG_UNDEF_INT) {
    communicator.cta_policy = config->CTAPolicy;
  }
  if (config->commName != nullptr) {
    communicator.name = config->commName;
  }
}

ncclResult_t init(ncclComm_t* out, int ranks, std::vector<ncclUniqueId> ids, int rank,
                  const ncclConfig_t* config, const char* api) {
  if (out == nullptr || ids.empty()) {
    return refuse(ncclInvalidArgument, std::string(api) + ": an argument is null");
  }
  if (const ncclResult_t result = check_config(config); result != ncclSuccess) {
    return result;
  }
  if (ranks < 1 || rank < 0 || rank >= ranks) {
    return refuse(ncclInvalidArgument, std::string(api) + ": rank " + std::to_string(rank) +
                                           " is not in 0.." + std::to_string(ranks - 1));
  }
  read_nccl_options();
  auto communicator = std::make_shared<Communicator>();
  if (cudaGetDevice(&communicator->device) != cudaSuccess) {
    return refuse(ncclUnhandledCudaError, std::string(api) + ": no device");
  }
  apply(config, *communicator);
  communicator->state = ncclInProgress;
  ncclComm_t const handle = make_handle(communicator);
  *out = handle;
  return schedule({communicator, [communicator, out, handle, ranks, rank, ids = std::move(ids)] {
                     auto link = join(ids, communicator->name, rank, ranks, communicator->device,
                                      [&] { return communicator->stopped; });
                     {
                       const Guard guard(big_lock());
                       communicator->link = std::move(link);
                       if (communicator->link) {
                         if (communicator->name.empty()) {
                           communicator->name = communicator->link->name();
                         }
                         return ncclSuccess;
                       }
                     }
                     if (communicator->blocking) {
                       *out = nullptr;
                       end(handle);
                     }
                     return refuse(ncclSystemError,
                                   "no communicator: the process that made the id is gone");
                   }});
}

/// A communicator made from another; `*out` is set when it is complete. Where the other does not
/// block, that is some time after the call has said ncclSuccess, and the other says nothing of it.
ncclResult_t make_child(const std::shared_ptr<Communicator>& parent, ncclComm_t* out,
                        const ncclConfig_t* config, std::function<Child(Link&)> make) {
  if (const ncclResult_t result = check_config(config); result != ncclSuccess) {
    return result;
  }
  auto child = std::make_shared<Communicator>();
  child->device = parent->device;
  child->blocking = parent->blocking;
  child->cta_policy = parent->cta_policy;
  apply(config, *child);
  *out = nullptr;
  const auto finish = [parent, child, out, make = std::move(make)] {
    const Child made = make(*parent->link);
    ncclResult_t result = ncclSuccess;
    if (made.outcome != Outcome::done) {
      result = made.outcome == Outcome::lost ? ncclRemoteError : ncclInternalError;
      if (parent->blocking) {
        return result;
      }
    } else if (!made.link) {
      return ncclSuccess;
    }
    {
      const Guard guard(big_lock());
      child->link = made.link;
      child->name = made.link ? made.link->name() : "a child that failed";
      child->state = result;
      child->polls = parent->blocking ? 0 : 2;
    }
    ncclComm_t const handle = make_handle(child);
    hb_release(out);  // for race detectors, which do not see this library's own store
    std::atomic_ref<ncclComm_t>(*out).store(handle, std::memory_order_release);
    return result;
  };
  const ncclResult_t result = schedule({parent, finish, !parent->blocking});
  return result == ncclInProgress ? ncclSuccess : result;
}

}  // namespace

}  // namespace emulation

using namespace emulation;

ncclResult_t ncclGetVersion(int* version) {
  if (version == nullptr) {
    return refuse(ncclInvalidArgument, "ncclGetVersion: the argument is null");
  }
  *version = static_cast<int>(option("nccl_version", static_cast<long>(NCCL_VERSION_CODE)));
  return ncclSuccess;
}
SHARDWISE_NCCL_ALIAS(GetVersion);

ncclResult_t ncclGetUniqueId(ncclUniqueId* id) {
  if (id == nullptr) {
    return refuse(ncclInvalidArgument, "ncclGetUniqueId: the argument is null");
  }
  return make_unique_id(*id);
}
SHARDWISE_NCCL_ALIAS(GetUniqueId);

ncclResult_t ncclCommInitRankConfig(ncclComm_t* out, int ranks, ncclUniqueId id, int rank,
                                    ncclConfig_t* config) {
  return init(out, ranks, {id}, rank, config, "ncclCommInitRankConfig");
}
SHARDWISE_NCCL_ALIAS(CommInitRankConfig);

ncclResult_t ncclCommInitRank(ncclComm_t* out, int ranks, ncclUniqueId id, int rank) {
  return init(out, ranks, {id}, rank, nullptr, "ncclCommInitRank");
}
SHARDWISE_NCCL_ALIAS(CommInitRank);

ncclResult_t ncclCommInitRankScalable(ncclComm_t* out, int ranks, int rank, int count,
                                      ncclUniqueId* ids, ncclConfig_t* config) {
  if (ids == nullptr || count < 1) {
    return refuse(ncclInvalidArgument, "ncclCommInitRankScalable: no id");
  }
  return init(out, ranks, std::vector<ncclUniqueId>(ids, ids + count), rank, config,
              "ncclCommInitRankScalable");
}
SHARDWISE_NCCL_ALIAS(CommInitRankScalable);

ncclResult_t ncclCommInitAll(ncclComm_t* out, int count, const int* devices) {
  int available = 0;
  if (cudaGetDeviceCount(&available) != cudaSuccess) {
    return refuse(ncclUnhandledCudaError, "ncclCommInitAll: no device");
  }
  if (out == nullptr || count < 1 || (devices == nullptr && count > available)) {
    return refuse(ncclInvalidArgument, "ncclCommInitAll: " + std::to_string(count) +
                                           " devices of " + std::to_string(available));
  }
  ncclUniqueId id;
  if (const ncclResult_t result = make_unique_id(id); result != ncclSuccess) {
    return result;
  }
  ncclGroupStart();
  for (int rank = 0; rank < count; ++rank) {
    const DeviceScope scope(devices != nullptr ? devices[rank] : rank);
    if (ncclCommInitRank(&out[rank], count, id, rank) != ncclSuccess) {
      break;  // the group remembers
    }
  }
  return ncclGroupEnd();
}
SHARDWISE_NCCL_ALIAS(CommInitAll);

ncclResult_t ncclCommSplit(ncclComm_t handle, int color, int key, ncclComm_t* out,
                           ncclConfig_t* config) {
  const auto communicator = find(handle, "ncclCommSplit", Use::issue);
  if (!communicator || out == nullptr) {
    return ncclInvalidArgument;
  }
  if (const auto result = ensure_ready(*communicator, "ncclCommSplit"); result != ncclSuccess) {
    return result;
  }
  if (color < 0 && color != NCCL_SPLIT_NOCOLOR) {
    return refuse(ncclInvalidArgument, "ncclCommSplit: color " + std::to_string(color));
  }
  const std::uint64_t ordinal = communicator->splits++;
  const std::string name = config != nullptr && config->commName != nullptr ? config->commName : "";
  return make_child(communicator, out, config,
                    [=](Link& link) { return link.split(ordinal, color, key, name); });
}
SHARDWISE_NCCL_ALIAS(CommSplit);

ncclResult_t ncclCommShrink(ncclComm_t handle, int* excluded, int count, ncclComm_t* out,
                            ncclConfig_t* config, int flags) {
  const auto communicator = find(handle, "ncclCommShrink", Use::issue);
  if (!communicator || out == nullptr || excluded == nullptr) {
    return ncclInvalidArgument;
  }
  std::set<int> set;
  for (int i = 0; i < count; ++i) {
    set.insert(excluded[i]);
  }
  const int ranks = communicator->link ? communicator->link->ranks() : 0;
  if (set.empty() || set.size() != static_cast<std::size_t>(count) || *set.begin() < 0 ||
      *set.rbegin() >= ranks || set.contains(communicator->link->rank()) ||
      (flags != NCCL_SHRINK_DEFAULT && flags != NCCL_SHRINK_ABORT)) {
    return refuse(
        ncclInvalidArgument,
        "ncclCommShrink: the excluded ranks must be distinct, in the communicator and not "
        "the caller's own");
  }
  if (flags == NCCL_SHRINK_ABORT) {
    stop(*communicator, Stop::revoked);
    const Guard guard(big_lock());
    communicator->revoked = true;
  } else if (const auto result = ensure_ready(*communicator, "ncclCommShrink");
             result != ncclSuccess) {
    return result;
  }
  wait_until_quiet(*communicator, "ncclCommShrink");
  const std::string name = config != nullptr && config->commName != nullptr ? config->commName : "";
  const std::vector<int> sorted(set.begin(), set.end());
  return make_child(communicator, out, config,
                    [=](Link& link) { return link.shrink(sorted, name); });
}
SHARDWISE_NCCL_ALIAS(CommShrink);

ncclResult_t ncclCommFinalize(ncclComm_t handle) {
  if (handle == nullptr) {
    return ncclSuccess;
  }
  const auto communicator = find(handle, "ncclCommFinalize", Use::issue);
  if (!communicator) {
    return ncclInvalidArgument;
  }
  if (const auto result = ensure_ready(*communicator, "ncclCommFinalize"); result != ncclSuccess) {
    return result;
  }
  {
    const Guard guard(big_lock());
    if (communicator->finalized || communicator->revoked) {
      return refuse(ncclInvalidArgument, "ncclCommFinalize: finalized or revoked before");
    }
    communicator->finalized = true;
  }
  return schedule({communicator, [communicator] {
                     wait_until_quiet(*communicator, "ncclCommFinalize");
                     return ncclSuccess;
                   }});
}
SHARDWISE_NCCL_ALIAS(CommFinalize);

ncclResult_t ncclCommDestroy(ncclComm_t handle) {
  if (handle == nullptr) {
    return ncclSuccess;
  }
  const auto communicator = find(handle, "ncclCommDestroy", Use::end);
  if (!communicator) {
    return ncclInvalidArgument;
  }
  if (const auto result = ensure_ready(*communicator, "ncclCommDestroy"); result != ncclSuccess) {
    return result;  // a broken communicator can only be aborted
  }
  wait_until_quiet(*communicator, "ncclCommDestroy");
  if (!communicator->registrations.empty() || !communicator->windows.empty()) {
    report(
        "ncclCommDestroy: %s still has %zu registered buffers and %zu windows: deregister them "
        "before",
        label(*communicator).c_str(), communicator->registrations.size(),
        communicator->windows.size());
  }
  stop(*communicator, Stop::closed);
  end(handle);
  return ncclSuccess;
}
SHARDWISE_NCCL_ALIAS(CommDestroy);

ncclResult_t ncclCommAbort(ncclComm_t handle) {
  if (handle == nullptr) {
    return ncclSuccess;
  }
  const auto communicator = find(handle, "ncclCommAbort", Use::end);
  if (!communicator) {
    return ncclInvalidArgument;
  }
  stop(*communicator, Stop::aborted);
  wait_until_idle(*communicator, "ncclCommAbort");
  wait_until_quiet(*communicator, "ncclCommAbort");
  forget_registrations(*communicator);
  end(handle);
  return ncclSuccess;
}
SHARDWISE_NCCL_ALIAS(CommAbort);

ncclResult_t ncclCommRevoke(ncclComm_t handle, int flags) {
  if (handle == nullptr) {
    return ncclSuccess;
  }
  const auto communicator = find(handle, "ncclCommRevoke", Use::issue);
  if (!communicator) {
    return ncclInvalidArgument;
  }
  {
    const Guard guard(big_lock());
    if (flags != NCCL_REVOKE_DEFAULT || communicator->finalized || communicator->revoked) {
      return refuse(ncclInvalidArgument,
                    "ncclCommRevoke: flags must be 0, the communicator neither finalized nor "
                    "revoked before");
    }
    communicator->revoked = true;
    communicator->state = ncclSuccess;
    communicator->polls = 0;
  }
  stop(*communicator, Stop::revoked);
  wait_until_quiet(*communicator, "ncclCommRevoke");
  return in_progress(*communicator);
}
SHARDWISE_NCCL_ALIAS(CommRevoke);
