#include <cstring>

#include "nccl_communicator.hpp"

using namespace emulation;

ncclResult_t ncclAllGather(const void* send, void* receive, std::size_t count, ncclDataType_t type,
                           ncclComm_t communicator, cudaStream_t stream) {
  return submit(communicator,
                {.operation = Operation::all_gather,
                 .type = type,
                 .send = send,
                 .receive = receive,
                 .count = count},
                stream);
}
SHARDWISE_NCCL_ALIAS(AllGather);

ncclResult_t ncclReduceScatter(const void* send, void* receive, std::size_t count,
                               ncclDataType_t type, ncclRedOp_t reduction, ncclComm_t communicator,
                               cudaStream_t stream) {
  return submit(communicator,
                {.operation = Operation::reduce_scatter,
                 .type = type,
                 .send = send,
                 .receive = receive,
                 .count = count,
                 .reduction = reduction},
                stream);
}
SHARDWISE_NCCL_ALIAS(ReduceScatter);

ncclResult_t ncclAllReduce(const void* send, void* receive, std::size_t count, ncclDataType_t type,
                           ncclRedOp_t reduction, ncclComm_t communicator, cudaStream_t stream) {
  return submit(communicator,
                {.operation = Operation::all_reduce,
                 .type = type,
                 .send = send,
                 .receive = receive,
                 .count = count,
                 .reduction = reduction},
                stream);
}
SHARDWISE_NCCL_ALIAS(AllReduce);

ncclResult_t ncclBroadcast(const void* send, void* receive, std::size_t count, ncclDataType_t type,
                           int root, ncclComm_t communicator, cudaStream_t stream) {
  return submit(communicator,
                {.operation = Operation::broadcast,
                 .type = type,
                 .send = send,
                 .receive = receive,
                 .count = count,
                 .root = root},
                stream);
}
SHARDWISE_NCCL_ALIAS(Broadcast);

ncclResult_t ncclBcast(void* buffer, std::size_t count, ncclDataType_t type, int root,
                       ncclComm_t communicator, cudaStream_t stream) {
  return ncclBroadcast(buffer, buffer, count, type, root, communicator, stream);
}
SHARDWISE_NCCL_ALIAS(Bcast);

ncclResult_t ncclReduce(const void* send, void* receive, std::size_t count, ncclDataType_t type,
                        ncclRedOp_t reduction, int root, ncclComm_t communicator,
                        cudaStream_t stream) {
  return submit(communicator,
                {.operation = Operation::reduce,
                 .type = type,
                 .send = send,
                 .receive = receive,
                 .count = count,
                 .reduction = reduction,
                 .root = root},
                stream);
}
SHARDWISE_NCCL_ALIAS(Reduce);

ncclResult_t ncclAlltoAll(const void* send, void* receive, std::size_t count, ncclDataType_t type,
                          ncclComm_t communicator, cudaStream_t stream) {
  return submit(communicator,
                {.operation = Operation::all_to_all,
                 .type = type,
                 .send = send,
                 .receive = receive,
                 .count = count},
                stream);
}
SHARDWISE_NCCL_ALIAS(AlltoAll);

ncclResult_t ncclGather(const void* send, void* receive, std::size_t count, ncclDataType_t type,
                        int root, ncclComm_t communicator, cudaStream_t stream) {
  return submit(communicator,
                {.operation = Operation::gather,
                 .type = type,
                 .send = send,
                 .receive = receive,
                 .count = count,
                 .root = root},
                stream);
}
SHARDWISE_NCCL_ALIAS(Gather);

ncclResult_t ncclScatter(const void* send, void* receive, std::size_t count, ncclDataType_t type,
                         int root, ncclComm_t communicator, cudaStream_t stream) {
  return submit(communicator,
                {.operation = Operation::scatter,
                 .type = type,
                 .send = send,
                 .receive = receive,
                 .count = count,
                 .root = root},
                stream);
}
SHARDWISE_NCCL_ALIAS(Scatter);

ncclResult_t ncclSend(const void* buffer, std::size_t count, ncclDataType_t type, int peer,
                      ncclComm_t communicator, cudaStream_t stream) {
  return submit(
      communicator,
      {.operation = Operation::send, .type = type, .send = buffer, .count = count, .root = peer},
      stream);
}
SHARDWISE_NCCL_ALIAS(Send);

ncclResult_t ncclRecv(void* buffer, std::size_t count, ncclDataType_t type, int peer,
                      ncclComm_t communicator, cudaStream_t stream) {
  return submit(communicator,
                {.operation = Operation::receive,
                 .type = type,
                 .receive = buffer,
                 .count = count,
                 .root = peer},
                stream);
}
SHARDWISE_NCCL_ALIAS(Recv);

ncclResult_t ncclRedOpCreatePreMulSum(ncclRedOp_t* reduction, void* scalar, ncclDataType_t type,
                                      ncclScalarResidence_t residence, ncclComm_t handle) {
  const auto communicator = find(handle, "ncclRedOpCreatePreMulSum", Use::issue);
  if (!communicator || reduction == nullptr || scalar == nullptr || type < 0 ||
      type >= ncclNumTypes) {
    return refuse(ncclInvalidArgument, "ncclRedOpCreatePreMulSum: an argument is missing");
  }
  if (const auto result = ensure_ready(*communicator, "ncclRedOpCreatePreMulSum");
      result != ncclSuccess) {
    return result;
  }
  UserReduction made{.type = type};
  if (residence == ncclScalarHostImmediate) {
    std::memcpy(&made.scalar, scalar, size_of(type));
  } else {
    check_range("ncclRedOpCreatePreMulSum", scalar, size_of(type), communicator->device, true);
    made.on_device = scalar;
  }
  const Guard guard(big_lock());
  *reduction = static_cast<ncclRedOp_t>(static_cast<int>(ncclNumOps) +
                                        static_cast<int>(communicator->reductions.size()));
  communicator->reductions.push_back(made);
  return ncclSuccess;
}
SHARDWISE_NCCL_ALIAS(RedOpCreatePreMulSum);

ncclResult_t ncclRedOpDestroy(ncclRedOp_t reduction, ncclComm_t handle) {
  const auto communicator = find(handle, "ncclRedOpDestroy", Use::issue);
  if (!communicator) {
    return ncclInvalidArgument;
  }
  const Guard guard(big_lock());
  const int index = static_cast<int>(reduction) - static_cast<int>(ncclNumOps);
  if (index < 0 || static_cast<std::size_t>(index) >= communicator->reductions.size() ||
      !communicator->reductions[static_cast<std::size_t>(index)].alive) {
    return refuse(ncclInvalidArgument,
                  "ncclRedOpDestroy: no user's reduction of this communicator");
  }
  communicator->reductions[static_cast<std::size_t>(index)].alive = false;
  return ncclSuccess;
}
SHARDWISE_NCCL_ALIAS(RedOpDestroy);
