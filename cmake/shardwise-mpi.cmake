# shardwise::mpi: shardwise::shardwise and an MPI of version 3 or later, for shardwise/comm/mpi.hpp; not made
# where find_package finds none (MPI_CXX_COMPILER chooses among several). The installed package includes this
# for its component `mpi`; our own build does, too, and so may who adds shardwise as a subdirectory, after that.
if(NOT TARGET shardwise::mpi)
  if(NOT TARGET MPI::MPI_CXX)
    set(MPI_CXX_SKIP_MPICXX TRUE) # the bindings for C++ that MPI-3 took away
    find_package(MPI 3.0 QUIET COMPONENTS CXX)
  endif()
  if(TARGET MPI::MPI_CXX)
    add_library(shardwise::mpi INTERFACE IMPORTED)
    target_link_libraries(shardwise::mpi INTERFACE shardwise::shardwise MPI::MPI_CXX)
  endif()
endif()
