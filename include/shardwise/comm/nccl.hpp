#pragma once

/// @file
/// The backend of CUDA devices: ranks are threads or processes with one device each, connected by
/// NCCL. Plain C++; needs the headers of the CUDA runtime and of NCCL 2.22 or later.
///
/// Threads: run_cuda_ranks. Processes, started by torchrun, mpirun or srun (with
/// comm/file_rendezvous.hpp and comm/launch.hpp):
///
///     Launch launch = detect_launch();
///     const std::shared_ptr<Rendezvous> rendezvous = make_rendezvous(launch);
///     find_local_place(launch, *rendezvous);
///     cuda_check(cudaSetDevice(launch.local_rank), "cudaSetDevice");
///     NcclCommunicator world(rendezvous);
///
/// Where MPI connects them, MpiRendezvous (comm/mpi.hpp) does without a directory. NCCL's own
/// NCCL_COMM_ID=host:port, for rank 0's identifier, goes with either.
///
/// Not supported: calls that are captured into a CUDA graph.
#include "nccl_arena.hpp"
#include "nccl_communicator.hpp"
#include "remaining_rendezvous.hpp"
#include "run_cuda_ranks.hpp"
