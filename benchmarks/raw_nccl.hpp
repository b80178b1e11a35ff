#pragma once

#include <nccl.h>

#include <cstddef>
#include <shardwise/comm/nccl_api.hpp>

#include "collective.hpp"

namespace benchmarks {

/// NCCL's own calls, as a program makes them without shardwise.
class RawNccl {
 public:
  [[nodiscard]] static ncclUniqueId new_id() {
    ncclUniqueId id;
    check(ncclGetUniqueId(&id), "ncclGetUniqueId", 0);
    return id;
  }

  /// All ranks make it, each on its device.
  RawNccl(const ncclUniqueId& id, int ranks, int rank) : rank_(rank) {
    check(ncclCommInitRank(&comm_, ranks, id, rank), "ncclCommInitRank", rank);
  }
  RawNccl(const RawNccl&) = delete;
  RawNccl& operator=(const RawNccl&) = delete;
  ~RawNccl() { static_cast<void>(ncclCommDestroy(comm_)); }

  void operator()(const Collective& call, const Operands& b, cudaStream_t stream) const {
    const ncclDataType_t type = shardwise::detail::nccl::type_of(call.dtype);
    const std::size_t whole = call.part * call.ranks;
    switch (call.op) {
      case Op::all_gather:
        return check(ncclAllGather(b.send, b.recv, call.part, type, comm_, stream), "ncclAllGather",
                     rank_);
      case Op::reduce_scatter:
        return check(ncclReduceScatter(b.send, b.recv, call.part, type, ncclSum, comm_, stream),
                     "ncclReduceScatter", rank_);
      case Op::all_reduce:
        return check(ncclAllReduce(b.send, b.recv, whole, type, ncclSum, comm_, stream),
                     "ncclAllReduce", rank_);
      case Op::broadcast:
        return check(
            ncclBroadcast(rank_ == 0 ? b.send : b.recv, b.recv, whole, type, 0, comm_, stream),
            "ncclBroadcast", rank_);
      case Op::all_to_all:
        return exchange(call, b, type, stream);
    }
  }

 private:
  static void check(ncclResult_t result, const char* name, int rank) {
    if (result != ncclSuccess) shardwise::detail::nccl::raise_result(result, name, rank);
  }

  // In the form that every version has.
  void exchange(const Collective& call, const Operands& b, ncclDataType_t type,
                cudaStream_t stream) const {
    check(ncclGroupStart(), "ncclGroupStart", rank_);
    for (std::size_t r = 0; r < call.ranks; ++r) {
      const int peer = static_cast<int>(r);
      const std::size_t at = r * call.part_bytes();
      check(ncclSend(b.send + at, call.part, type, peer, comm_, stream), "ncclSend", rank_);
      check(ncclRecv(b.recv + at, call.part, type, peer, comm_, stream), "ncclRecv", rank_);
    }
    check(ncclGroupEnd(), "ncclGroupEnd", rank_);
  }

  int rank_;
  ncclComm_t comm_ = nullptr;
};

}  // namespace benchmarks
