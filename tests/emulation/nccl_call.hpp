#pragma once

#include <nccl.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string>

namespace emulation {

enum class Operation : std::int32_t {
  all_gather,
  reduce_scatter,
  all_reduce,
  broadcast,
  reduce,
  all_to_all,
  gather,
  scatter,
  send,
  receive
};

/// Where a buffer lies in a symmetric window: the window by order of registration (-1: in none),
/// and the byte offset in it.
struct WindowPlace {
  std::int64_t window = -1;
  std::uint64_t offset = 0;

  bool registered() const { return window >= 0; }
};

/// What one rank asks for. Trivially copyable: it travels between processes as it is.
struct Call {
  Operation operation = Operation::all_gather;
  ncclDataType_t type = ncclFloat32;
  const void* send = nullptr;
  void* receive = nullptr;
  std::size_t count = 0;
  ncclRedOp_t reduction = ncclSum;  // ncclNumOps stands for every pre-multiplied sum
  std::int32_t root = 0;            // the peer of a send or receive
  std::uint64_t scalar = 0;         // a pre-multiplied sum's factor, in the bits of `type`
  const void* scalar_on_device = nullptr;
  WindowPlace send_place = {};
  WindowPlace receive_place = {};
};

const char* name_of(Operation operation);
const char* name_of(ncclDataType_t type);
std::size_t size_of(ncclDataType_t type);

/// The call as messages show it: "AllReduce count 16 type float32 operation sum".
std::string describe(const Call& call);

/// Bytes that `rank` of `ranks` hands in, and bytes of its result; 0 where the buffer is not looked
/// at.
std::size_t send_bytes(const Call& call, int ranks, int rank);
std::size_t receive_bytes(const Call& call, int ranks, int rank);

/// Bytes over a rank's link, by the formulas of a ring or a direct exchange: what the cost is made
/// of.
std::size_t bytes_on_link(const Call& call, int ranks);

/// True where sender and receiver share memory in the one layout that the operation documents.
bool in_place(const Call& call, int ranks, int rank);

/// Bytes between the device and the ranks' meeting point: memory that no sanitizer knows.
class Staging {
 public:
  Staging() = default;
  explicit Staging(std::size_t bytes)
      : data_(bytes == 0 ? nullptr : std::make_unique_for_overwrite<std::byte[]>(bytes)),
        bytes_(bytes) {}

  std::byte* data() { return data_.get(); }
  const std::byte* data() const { return data_.get(); }
  std::size_t bytes() const { return bytes_; }

 private:
  std::unique_ptr<std::byte[]> data_;
  std::size_t bytes_ = 0;
};

}  // namespace emulation
