#pragma once

#include <mpi.h>

#include <cstddef>
#include <shardwise/comm/mpi.hpp>

#include "collective.hpp"
#include "mpi_call.hpp"

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
  raw_mpi::call(call.op, type_of(call.dtype), b.send, b.recv, static_cast<int>(call.part),
                static_cast<int>(call.ranks));
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
