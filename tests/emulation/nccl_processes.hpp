#pragma once

#include <nccl.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "nccl_link.hpp"

namespace emulation {

/// The calling process becomes the place where the ranks of the id meet; others reach it over a
/// socket in the abstract namespace. Where NCCL_COMM_ID is set the id is made of it, and the
/// process of rank 0 becomes that place when it joins.
ncclResult_t make_unique_id(ncclUniqueId& id);

/// Joins under the ids, here or in the process that made the first. Null: it gave up, or that
/// process is not there.
std::shared_ptr<Link> join(const std::vector<ncclUniqueId>& ids, const std::string& name, int rank,
                           int ranks, int device, const std::function<bool()>& given_up);

}  // namespace emulation
