#pragma once

#include <cstddef>
#include <shardwise/core/dtype.hpp>
#include <stdexcept>

#include "collective.hpp"

/// In the place of raw_mpi.hpp where there is no MPI.
namespace raw_mpi {

inline void call(const benchmarks::Collective&, const benchmarks::Operands&) {}

template <class F>
void run(std::size_t, const F&) {
  throw std::runtime_error("--backend mpi: this program was built without MPI");
}

}  // namespace raw_mpi
