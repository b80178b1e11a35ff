#pragma once

#include <mpi.h>

#include "op.hpp"

namespace raw_mpi {

/// The call that a program makes without shardwise, over `ranks` parts of `part` elements, out of
/// place. Plain C++17, as op.hpp.
inline void call(benchmarks::Op op, MPI_Datatype type, void* send, void* recv, int part,
                 int ranks) {
  using benchmarks::Op;
  if (op == Op::all_gather) {
    MPI_Allgather(send, part, type, recv, part, type, MPI_COMM_WORLD);
  } else if (op == Op::reduce_scatter) {
    MPI_Reduce_scatter_block(send, recv, part, type, MPI_SUM, MPI_COMM_WORLD);
  } else if (op == Op::all_reduce) {
    MPI_Allreduce(send, recv, part * ranks, type, MPI_SUM, MPI_COMM_WORLD);
  } else if (op == Op::broadcast) {
    int rank = 0;
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Bcast(rank == 0 ? send : recv, part * ranks, type, 0, MPI_COMM_WORLD);
  } else {
    MPI_Alltoall(send, part, type, recv, part, type, MPI_COMM_WORLD);
  }
}

}  // namespace raw_mpi
