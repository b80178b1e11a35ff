#pragma once

#include <mpi.h>

#include <cstddef>
#include <shardwise/comm/mpi.hpp>
#include <string>

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

/// Each rank's part has `part` elements.
inline void call(const std::string& operation, void* send, void* recv, std::size_t part,
                 shardwise::DType dtype) {
  const MPI_Datatype type = type_of(dtype);
  const auto count = static_cast<int>(part);
  int ranks = 1;
  MPI_Comm_size(MPI_COMM_WORLD, &ranks);
  if (operation == "all_gather") {
    MPI_Allgather(send, count, type, recv, count, type, MPI_COMM_WORLD);
  } else if (operation == "reduce_scatter") {
    MPI_Reduce_scatter_block(send, recv, count, type, MPI_SUM, MPI_COMM_WORLD);
  } else if (operation == "all_reduce") {
    MPI_Allreduce(send, recv, count * ranks, type, MPI_SUM, MPI_COMM_WORLD);
  } else if (operation == "broadcast") {
    MPI_Bcast(send, count * ranks, type, 0, MPI_COMM_WORLD);
  } else {
    MPI_Alltoall(send, count, type, recv, count, type, MPI_COMM_WORLD);
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
