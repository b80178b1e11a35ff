#pragma once

#include <mpi.h>

#include <cstddef>
#include <shardwise/comm/mpi.hpp>

#include "collective.hpp"

/// The MPI calls that a program makes without shardwise.
namespace raw_mpi {

inline MPI_Datatype type_of(shardwise::DType dtype) {
  switch (dtype) {
    case shardwise::DType::f64:
      return MPI_DOUBLE;
    case shardwise::DType::f32:
      return MPI_FLOAT;
    case shardwise::DType::i64:
      return MPI_INT64_T;
    case shardwise::DType::i32:
      return MPI_INT32_T;
    case shardwise::DType::i8:
      return MPI_INT8_T;
    case shardwise::DType::u8:
      return MPI_UINT8_T;
    default:
      return MPI_UINT16_T;  // moves the bytes, and takes sums that mean nothing
  }
}

inline void call(const benchmarks::Collective& call, const benchmarks::Operands& b) {
  const MPI_Datatype type = type_of(call.dtype);
  const auto part = static_cast<int>(call.part);
  const auto whole = static_cast<int>(call.part * call.ranks);
  if (call.op == benchmarks::Op::all_gather) {
    MPI_Allgather(b.send, part, type, b.recv, part, type, MPI_COMM_WORLD);
  } else if (call.op == benchmarks::Op::reduce_scatter) {
    MPI_Reduce_scatter_block(b.send, b.recv, part, type, MPI_SUM, MPI_COMM_WORLD);
  } else if (call.op == benchmarks::Op::all_reduce) {
    MPI_Allreduce(b.send, b.recv, whole, type, MPI_SUM, MPI_COMM_WORLD);
  } else if (call.op == benchmarks::Op::broadcast) {
    int rank = 0;
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Bcast(rank == 0 ? b.send : b.recv, whole, type, 0, MPI_COMM_WORLD);
  } else {
    MPI_Alltoall(b.send, part, type, b.recv, part, type, MPI_COMM_WORLD);
  }
}

/// f(communicator, memory), with `bytes` bytes of memory that ranks share, or null for 0.
template <class F>
void run(std::size_t bytes, const F& f) {
  shardwise::run_mpi([&](shardwise::MpiCommunicator& comm) {
    if (bytes == 0) return f(comm, nullptr);
    shardwise::MpiArena arena(comm, bytes);
    f(comm, arena.data());
  });
}

}  // namespace raw_mpi
