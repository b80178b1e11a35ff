#include "nccl_communicator.hpp"
#include "nccl_model.hpp"

namespace emulation {

namespace {

std::string quote(const char* api, const Communicator& communicator) {
  return std::string(api) + " on " + label(communicator) + ": ";
}

/// An argument that the real library refuses.
std::string argument_error(const Communicator& communicator, const Call& call) {
  if (call.type < 0 || call.type >= ncclNumTypes) {
    return "data type " + std::to_string(call.type) + " is unknown";
  }
  if (call.root < 0 || call.root >= communicator.link->ranks()) {
    return "root or peer " + std::to_string(call.root) + " is not in 0.." +
           std::to_string(communicator.link->ranks() - 1);
  }
  return "";
}

/// Puts a user's reduction into the call by value: it may be destroyed before the operation runs.
std::string resolve_reduction(const Communicator& communicator, Call& call) {
  const int index = static_cast<int>(call.reduction) - static_cast<int>(ncclNumOps);
  if (index < 0) {
    return "";
  }
  if (static_cast<std::size_t>(index) >= communicator.reductions.size() ||
      !communicator.reductions[static_cast<std::size_t>(index)].alive) {
    return "the reduction is unknown to this communicator, or destroyed";
  }
  const UserReduction& reduction = communicator.reductions[static_cast<std::size_t>(index)];
  if (reduction.type != call.type) {
    return std::string("the reduction was made for type ") + name_of(reduction.type) + ", not " +
           name_of(call.type);
  }
  call.reduction = static_cast<ncclRedOp_t>(ncclNumOps);
  call.scalar = reduction.scalar;
  call.scalar_on_device = reduction.on_device;
  return "";
}

bool overlap(const void* first, std::size_t first_bytes, const void* second,
             std::size_t second_bytes) {
  const auto a = reinterpret_cast<std::uintptr_t>(first);
  const auto b = reinterpret_cast<std::uintptr_t>(second);
  return a < b + second_bytes && b < a + first_bytes;
}

void check_buffer(const char* api, const Communicator& communicator, const char* which,
                  const void* buffer, std::size_t bytes, ncclDataType_t type) {
  if (bytes == 0) {
    return;
  }
  check_range(api, buffer, bytes, communicator.device, true);
  if (reinterpret_cast<std::uintptr_t>(buffer) % size_of(type) != 0) {
    fatal("%s%s buffer %p is not aligned to its type %s", quote(api, communicator).c_str(), which,
          buffer, name_of(type));
  }
}

/// Where the buffer lies in a symmetric window of the communicator. With big_lock() held.
WindowPlace place_of(const char* api, const Communicator& communicator, const void* buffer,
                     std::size_t bytes) {
  const auto address = reinterpret_cast<std::uintptr_t>(buffer);
  auto found = communicator.windows.upper_bound(address);
  if (bytes == 0 || found == communicator.windows.begin()) {
    return {};
  }
  --found;
  const auto& [base, window] = *found;
  if (address >= base + window.bytes || (window.flags & NCCL_WIN_COLL_SYMMETRIC) == 0) {
    return {};
  }
  if (address + bytes > base + window.bytes) {
    fatal("%sthe buffer begins in window %lld and leaves it: %zu bytes from offset %zu of %zu",
          quote(api, communicator).c_str(), static_cast<long long>(window.ordinal), bytes,
          address - base, window.bytes);
  }
  return {window.ordinal, address - base};
}

// As NCCL 2.28.9 decides inside one node: the copy engine for gathers and exchanges on a
// communicator of policy zero, symmetric kernels for gathers and plain sums of short floating-point
// types; both only where sender and receiver are in symmetric windows.
std::size_t path_of(const Communicator& communicator, const Call& call) {
  const bool symmetric = call.send_place.registered() && call.receive_place.registered() &&
                         communicator.link->ranks() > 1;
  if (!symmetric) {
    return 0;
  }
  const bool moves = call.operation == Operation::all_gather ||
                     call.operation == Operation::all_to_all ||
                     call.operation == Operation::gather || call.operation == Operation::scatter;
  if (communicator.cta_policy == NCCL_CTA_POLICY_ZERO && moves) {
    return 2;
  }
  const bool short_float = call.type == ncclFloat32 || call.type == ncclFloat16 ||
                           call.type == ncclBfloat16 || call.type == ncclFloat8e4m3 ||
                           call.type == ncclFloat8e5m2;
  const bool sums =
      (call.operation == Operation::all_reduce || call.operation == Operation::reduce_scatter) &&
      call.reduction == ncclSum && short_float;
  return call.operation == Operation::all_gather || sums ? 1 : 0;
}

}  // namespace

ncclResult_t check_call(Communicator& communicator, const char* api, Call& call,
                        cudaStream_t stream) {
  const auto usage = [&](const std::string& message) {
    const std::string text = quote(api, communicator) + message;
    report("%s", text.c_str());
    return refuse(ncclInvalidUsage, text);
  };
  {
    const Guard guard(big_lock());
    std::string wrong = argument_error(communicator, call);
    if (wrong.empty()) {
      wrong = resolve_reduction(communicator, call);
    }
    if (!wrong.empty()) {
      return refuse(ncclInvalidArgument, quote(api, communicator) + wrong);
    }
  }
  if (communicator.finalized || communicator.revoked) {
    return refuse(ncclInvalidUsage,
                  quote(api, communicator) + "the communicator was finalized or revoked");
  }
  if (!stream_exists(stream)) {
    return usage("the stream does not exist (any more)");
  }
  if (stream != nullptr && stream_device(stream) != communicator.device) {
    return usage("the stream is of device " + std::to_string(stream_device(stream)) +
                 ", the communicator of device " + std::to_string(communicator.device));
  }
  const int ranks = communicator.link->ranks();
  const int rank = communicator.link->rank();
  const std::size_t sent = send_bytes(call, ranks, rank);
  const std::size_t received = receive_bytes(call, ranks, rank);
  check_buffer(api, communicator, "send", call.send, sent, call.type);
  check_buffer(api, communicator, "receive", call.receive, received, call.type);
  if (overlap(call.send, sent, call.receive, received) && !in_place(call, ranks, rank)) {
    return usage("send and receive buffer overlap, but not as " +
                 std::string(name_of(call.operation)) + " in place needs them");
  }
  const Guard guard(big_lock());
  call.send_place = place_of(api, communicator, call.send, sent);
  call.receive_place = place_of(api, communicator, call.receive, received);
  if (call.operation != Operation::send && call.operation != Operation::receive && call.count > 0) {
    ++communicator.paths.at(path_of(communicator, call));
  }
  return ncclSuccess;
}

void use_windows(Communicator& communicator, const Call& call, int change) {
  for (auto& [base, window] : communicator.windows) {
    if (window.ordinal == call.send_place.window || window.ordinal == call.receive_place.window) {
      window.in_flight += change;
    }
  }
}

}  // namespace emulation
