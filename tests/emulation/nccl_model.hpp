#pragma once

#include "nccl_call.hpp"

namespace emulation {

/// Reads the options of the fake NCCL, for communicators made from now on; not with big_lock()
/// held.
///   link_gbps      10^9 bytes a second of each rank's link (50)
///   link_us        microseconds before the first byte (5)
///   nccl_symmetric 0: symmetric windows are not supported, as between devices without peer access
///   nccl_parallel  1: launches of one device may overtake each other
///   nccl_fault     "fail:RANK:NUMBER", "lose:..." or "die:...", optionally ":COMMUNICATOR": what
///                  happens to that rank's operation of that number
///   nccl_version   what ncclGetVersion says (the header's)
void read_nccl_options();

/// Modelled microseconds of an operation, from the last rank's arrival to its end.
double duration(const Call& call, int ranks);

bool symmetric_supported();
bool launches_serialised();

enum class Fault { none, fail, lose, die };
Fault fault_of(int rank, std::uint64_t number, const std::string& communicator);

}  // namespace emulation
