#pragma once

/// @file
/// The backend of processes that MPI connects: ranks on one machine or on many, on host memory.
/// Needs the headers of an MPI of version 3 or later (component `mpi`).
///
///     shardwise::MpiSession mpi;                // initialises MPI where the host has not
///     shardwise::MpiCommunicator world(mpi);    // or (mpi, comm): the host's MPI_Comm
///     shardwise::Context context(world, shardwise::Strategy::zero3());
///
/// run_mpi does the same and ends the job in good order where a rank throws.
#include "mpi_arena.hpp"
#include "mpi_communicator.hpp"
#include "mpi_rendezvous.hpp"
#include "mpi_run.hpp"
#include "mpi_session.hpp"
