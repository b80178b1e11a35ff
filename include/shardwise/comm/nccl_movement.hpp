#pragma once

#include <cuda_runtime_api.h>
#include <nccl.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include "../core/dtype.hpp"
#include "../core/piece.hpp"
#include "communicator.hpp"
#include "nccl_handle.hpp"
#include "nccl_tracker.hpp"

namespace shardwise::inline v0_1::detail::nccl {

/// What calls that move bytes do on a CUDA stream: NCCL's calls, in one group each.
template <class Patience>
class Movement {
 public:
  Movement(Handle& handle, int size, cudaStream_t stream, CallMemory& memory,
           const Patience& patience) noexcept
      : handle_(handle),
        size_(static_cast<std::size_t>(size)),
        rank_(static_cast<std::size_t>(handle.rank())),
        stream_(stream),
        memory_(memory),
        patience_(patience) {}

  void all_gather(std::span<const GatherItem> items) {
    group([&](ncclComm_t comm) {
      for (const GatherItem& item : items) {
        if (item.count == 0) continue;
        if (!item.pieces.empty()) {
          gather_pieces(comm, item);
        } else {
          take(ncclAllGather(item.send, item.recv, item.count, type_of(item.dtype), comm, stream_),
               "ncclAllGather");
        }
      }
    });
  }

  void broadcast(std::span<const BroadcastItem> items, int root) {
    group([&](ncclComm_t comm) {
      for (const BroadcastItem& item : items) {
        if (item.count == 0) continue;
        take(ncclBroadcast(item.buffer, item.buffer, item.count, type_of(item.dtype), root, comm,
                           stream_),
             "ncclBroadcast");
      }
    });
  }

  void all_to_all(std::span<const ExchangeItem> items) {
    group([&](ncclComm_t comm) {
      for (const ExchangeItem& item : items) {
        const std::size_t part = item.count * size_of(item.dtype);
        for (std::size_t r = 0; r < size_; ++r) {
          send(comm, static_cast<const std::byte*>(item.send) + r * part, item.count, item.dtype,
               r);
          receive(comm, static_cast<std::byte*>(item.recv) + r * part, item.count, item.dtype, r);
        }
      }
    });
  }

  /// Comes to its end on no rank before all ranks' streams have come so far.
  void barrier() {
    void* const word = memory_.device(sizeof(std::int32_t));
    group([&](ncclComm_t comm) {
      take(ncclAllReduce(word, word, 1, ncclInt32, ncclSum, comm, stream_), "ncclAllReduce");
    });
  }

  /// Runs f(comm) as one group.
  template <class F>
  void group(const F& f) {
    handle_.call("ncclGroupEnd", patience_, [&](ncclComm_t comm) {
      take(ncclGroupStart(), "ncclGroupStart");
      try {
        f(comm);
      } catch (...) {
        static_cast<void>(ncclGroupEnd());
        throw;
      }
      return ncclGroupEnd();
    });
  }

  void take(ncclResult_t result, std::string_view call) const {
    if (result != ncclSuccess && result != ncclInProgress) {
      raise_result(result, call, handle_.rank());
    }
  }

 protected:
  void send(ncclComm_t comm, const void* from, std::size_t count, DType dtype, std::size_t peer) {
    if (count == 0) return;
    take(ncclSend(from, count, type_of(dtype), static_cast<int>(peer), comm, stream_), "ncclSend");
  }
  void receive(ncclComm_t comm, void* to, std::size_t count, DType dtype, std::size_t peer) {
    if (count == 0) return;
    take(ncclRecv(to, count, type_of(dtype), static_cast<int>(peer), comm, stream_), "ncclRecv");
  }

  [[nodiscard]] static void* at(void* base, std::size_t element, DType dtype) noexcept {
    return base == nullptr ? nullptr : static_cast<std::byte*>(base) + element * size_of(dtype);
  }
  [[nodiscard]] static const void* at(const void* base, std::size_t element, DType dtype) noexcept {
    return static_cast<const std::byte*>(base) + element * size_of(dtype);
  }
  Handle& handle_;
  std::size_t size_;
  std::size_t rank_;
  cudaStream_t stream_;
  CallMemory& memory_;
  const Patience& patience_;

 private:
  // Every stretch of every rank's part is broadcast by that rank, from and to where it lies.
  void gather_pieces(ncclComm_t comm, const GatherItem& item) {
    const std::size_t size = size_of(item.dtype);
    for (std::size_t r = 0; r < size_; ++r) {
      const std::size_t begin = r * item.count;
      for_each_place(static_cast<std::byte*>(item.recv), item.pieces, size, begin,
                     begin + item.count,
                     [&](std::byte* here, std::size_t first, std::size_t count) {
                       const void* from = here;
                       if (item.send != nullptr && r == rank_) {
                         from = static_cast<const std::byte*>(item.send) + (first - begin) * size;
                       }
                       take(ncclBroadcast(from, here, count, type_of(item.dtype),
                                          static_cast<int>(r), comm, stream_),
                            "ncclBroadcast");
                     });
    }
  }
};

}  // namespace shardwise::inline v0_1::detail::nccl
