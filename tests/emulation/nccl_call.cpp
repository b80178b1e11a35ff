#include "nccl_call.hpp"

#include <array>

namespace emulation {

const char* name_of(Operation operation) {
  static constexpr std::array names{"AllGather", "ReduceScatter", "AllReduce", "Broadcast",
                                    "Reduce",    "AlltoAll",      "Gather",    "Scatter",
                                    "Send",      "Recv"};
  return names.at(static_cast<std::size_t>(operation));
}

const char* name_of(ncclDataType_t type) {
  static constexpr std::array names{"int8",    "uint8",    "int32",      "uint32",
                                    "int64",   "uint64",   "float16",    "float32",
                                    "float64", "bfloat16", "float8e4m3", "float8e5m2"};
  return type < ncclNumTypes ? names.at(static_cast<std::size_t>(type)) : "unknown";
}

std::size_t size_of(ncclDataType_t type) {
  static constexpr std::array<std::size_t, ncclNumTypes> sizes{1, 1, 4, 4, 8, 8, 2, 4, 8, 2, 1, 1};
  return sizes.at(static_cast<std::size_t>(type));
}

static bool reduces(Operation operation) {
  return operation == Operation::reduce_scatter || operation == Operation::all_reduce ||
         operation == Operation::reduce;
}

static bool rooted(Operation operation) {
  return operation == Operation::broadcast || operation == Operation::reduce ||
         operation == Operation::gather || operation == Operation::scatter;
}

std::string describe(const Call& call) {
  static constexpr std::array reductions{"sum", "prod", "max", "min", "avg", "premulsum"};
  std::string text = std::string(name_of(call.operation)) + " count " + std::to_string(call.count) +
                     " type " + name_of(call.type);
  if (reduces(call.operation)) {
    text += std::string(" operation ") + reductions.at(static_cast<std::size_t>(call.reduction));
  }
  if (rooted(call.operation)) {
    text += " root " + std::to_string(call.root);
  }
  if (call.operation == Operation::send || call.operation == Operation::receive) {
    text += " peer " + std::to_string(call.root);
  }
  return text;
}

std::size_t send_bytes(const Call& call, int ranks, int rank) {
  const std::size_t bytes = call.count * size_of(call.type);
  const auto all = bytes * static_cast<std::size_t>(ranks);
  switch (call.operation) {
    case Operation::reduce_scatter:
    case Operation::all_to_all:
      return all;
    case Operation::scatter:
      return rank == call.root ? all : 0;
    case Operation::broadcast:
      return rank == call.root ? bytes : 0;
    case Operation::receive:
      return 0;
    default:
      return bytes;
  }
}

std::size_t receive_bytes(const Call& call, int ranks, int rank) {
  const std::size_t bytes = call.count * size_of(call.type);
  const auto all = bytes * static_cast<std::size_t>(ranks);
  switch (call.operation) {
    case Operation::all_gather:
    case Operation::all_to_all:
      return all;
    case Operation::gather:
      return rank == call.root ? all : 0;
    case Operation::reduce:
      return rank == call.root ? bytes : 0;
    case Operation::send:
      return 0;
    default:
      return bytes;
  }
}

std::size_t bytes_on_link(const Call& call, int ranks) {
  const std::size_t bytes = call.count * size_of(call.type);
  const auto others = static_cast<std::size_t>(ranks - 1);
  switch (call.operation) {
    case Operation::all_reduce:
      return 2 * bytes * others / static_cast<std::size_t>(ranks);
    case Operation::broadcast:
    case Operation::reduce:
      return others == 0 ? 0 : bytes;
    case Operation::send:
    case Operation::receive:
      return bytes;
    default:
      return bytes * others;
  }
}

bool in_place(const Call& call, int ranks, int rank) {
  const auto* send = static_cast<const std::byte*>(call.send);
  const auto* receive = static_cast<const std::byte*>(call.receive);
  const std::size_t own = call.count * size_of(call.type) * static_cast<std::size_t>(rank);
  switch (call.operation) {
    case Operation::all_gather:
      return send == receive + own;
    case Operation::reduce_scatter:
      return receive == send + own;
    case Operation::gather:
      return rank == call.root && send == receive + own;
    case Operation::scatter:
      return rank == call.root && receive == send + own;
    case Operation::all_to_all:
      return ranks == 1 && send == receive;
    default:
      return send == receive;
  }
}

}  // namespace emulation
