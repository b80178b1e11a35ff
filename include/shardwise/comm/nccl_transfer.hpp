#pragma once

#include <cuda_runtime_api.h>
#include <nccl.h>

#include <cstddef>
#include <span>
#include <string_view>

#include "../core/dtype.hpp"
#include "../core/piece.hpp"
#include "../device/cuda_error.hpp"
#include "../device/cuda_seam.hpp"
#include "communicator.hpp"
#include "nccl_landing.hpp"
#include "nccl_movement.hpp"
#include "nccl_options.hpp"

namespace shardwise::inline v0_1::detail::nccl {

/// What calls do on a CUDA stream: those that move bytes, and reductions, with kernels after NCCL's
/// calls.
template <class Patience>
class Transfer : public Movement<Patience> {
 public:
  Transfer(Handle& handle, int size, NcclOrder order, cudaStream_t stream, CallMemory& memory,
           const Patience& patience) noexcept
      : Base(handle, size, stream, memory, patience), order_(order) {}

  void reduce_scatter(std::span<const ReduceItem> items) {
    double* const weights = put_weights(items);
    group([&](ncclComm_t comm) {
      gather_weights(comm, items, weights);
      for (const ReduceItem& item : items) {
        if (item.count == 0) continue;
        if (by_nccl(item, order_)) {
          reduce_scatter_by_nccl(comm, item);
        } else {
          exchange(comm, item, item.count, item.landing);
        }
      }
    });
    std::size_t index = 0;
    for (const ReduceItem& item : items) {
      const double* const own_weights = weights_of(weights, index++, item);
      if (by_nccl(item, order_)) {
        finish(item, rank_ * item.count);
      } else {
        sum_part(item, rank_ * item.count, item.count, item.landing, item.recv, own_weights);
      }
    }
  }

  void all_reduce(std::span<const ReduceItem> items) {
    double* const weights = put_weights(items);
    group([&](ncclComm_t comm) {
      gather_weights(comm, items, weights);
      for (const ReduceItem& item : items) {
        if (item.count == 0) continue;
        if (by_nccl(item, order_)) {
          all_reduce_by_nccl(comm, item);
          continue;
        }
        const Shares shares(item.count, size_);
        exchange(comm, item, shares.part, item.landing);
        collect_rest(comm, item, shares);
      }
    });
    std::size_t index = 0;
    for (const ReduceItem& item : items) {
      const double* const own_weights = weights_of(weights, index++, item);
      if (by_nccl(item, order_)) {
        finish(item, 0);
        continue;
      }
      const Shares shares(item.count, size_);
      const std::size_t rest = shares.part * size_;
      sum_part(item, rank_ * shares.part, shares.part, item.landing,
               result_at(item, rank_ * shares.part), own_weights);
      sum_part(item, rest, shares.rest, rest_landing(item, shares), result_at(item, rest),
               own_weights);
    }
    group([&](ncclComm_t comm) {
      for (const ReduceItem& item : items) {
        const Shares shares(item.count, size_);
        if (by_nccl(item, order_) || shares.part == 0) continue;
        take(ncclAllGather(result_at(item, rank_ * shares.part), item.recv, shares.part,
                           type_of(item.spec.output), comm, stream_),
             "ncclAllGather");
      }
    });
  }

 private:
  using Base = Movement<Patience>;
  using Base::at;
  using Base::group;
  using Base::memory_;
  using Base::rank_;
  using Base::receive;
  using Base::send;
  using Base::size_;
  using Base::stream_;
  using Base::take;

  // Calls f(address, first, count) for the stretches of the send buffer's elements [begin, end).
  template <class F>
  void for_each_sent(const ReduceItem& item, std::size_t begin, std::size_t end, const F& f) const {
    for_each_place(static_cast<const std::byte*>(item.send), item.pieces, size_of(item.dtype),
                   begin, end, f);
  }

  // Part q of this rank's contribution goes to rank q, which keeps rank r's at landing[r * part];
  // its own part stays where it is.
  void exchange(ncclComm_t comm, const ReduceItem& item, std::size_t part, void* landing) {
    for (std::size_t r = 0; r < size_; ++r) {
      if (r == rank_) continue;
      for_each_sent(item, r * part, (r + 1) * part,
                    [&](const void* from, std::size_t, std::size_t count) {
                      send(comm, from, count, item.dtype, r);
                    });
      receive_stretches(comm, item, rank_ * part, part, at(landing, r * part, item.dtype), r);
    }
  }

  void collect_rest(ncclComm_t comm, const ReduceItem& item, const Shares& shares) {
    const std::size_t begin = shares.part * size_;
    for (std::size_t r = 0; r < size_; ++r) {
      if (r == rank_) continue;
      for_each_sent(item, begin, begin + shares.rest,
                    [&](const void* from, std::size_t, std::size_t count) {
                      send(comm, from, count, item.dtype, r);
                    });
      receive_stretches(comm, item, begin, shares.rest,
                        at(rest_landing(item, shares), r * shares.rest, item.dtype), r);
    }
  }

  void receive_stretches(ncclComm_t comm, const ReduceItem& item, std::size_t begin,
                         std::size_t part, void* landing, std::size_t peer) {
    for_each_sent(item, begin, begin + part,
                  [&](const void*, std::size_t first, std::size_t count) {
                    receive(comm, at(landing, first - begin, item.dtype), count, item.dtype, peer);
                  });
  }

  // out = round(old + scale * sum) of elements [begin, begin + part), whose contributions lie
  // `part` elements apart in `landing`.
  void sum_part(const ReduceItem& item, std::size_t begin, std::size_t part, void* landing,
                void* out, const double* weights) {
    cuda::Reduction reduction;
    reduction.stride = part;
    reduction.own_rank = static_cast<int>(rank_);
    reduction.ranks = static_cast<int>(size_);
    reduction.weights = weights;
    reduction.dtype = item.dtype;
    reduction.output = item.spec.output;
    reduction.scale = item.spec.scale;
    reduction.accumulate = item.spec.accumulate;
    std::size_t done = begin;
    const auto clear_to = [&](std::size_t end) { clear(item, out, done - begin, end - done); };
    for_each_sent(item, begin, begin + part,
                  [&](const void* own, std::size_t first, std::size_t count) {
                    clear_to(first);
                    reduction.inputs = at(landing, first - begin, item.dtype);
                    reduction.own = own;
                    reduction.count = count;
                    reduction.out = at(out, first - begin, item.spec.output);
                    cuda::canonical_reduce(stream_, reduction);
                    done = first + count;
                  });
    clear_to(begin + part);
  }

  // Results that no rank contributes to.
  void clear(const ReduceItem& item, void* out, std::size_t first, std::size_t count) {
    if (count == 0 || item.spec.accumulate) return;
    cuda_check(cudaMemsetAsync(at(out, first, item.spec.output), 0,
                               count * size_of(item.spec.output), stream_),
               "cudaMemsetAsync");
  }

  void reduce_scatter_by_nccl(ncclComm_t comm, const ReduceItem& item) {
    void* const to = lands(item) ? item.landing : item.recv;
    if (item.pieces.empty()) {
      take(
          ncclReduceScatter(item.send, to, item.count, type_of(item.dtype), ncclSum, comm, stream_),
          "ncclReduceScatter");
      return;
    }
    for (std::size_t r = 0; r < size_; ++r) {
      const std::size_t begin = r * item.count;
      for_each_sent(
          item, begin, begin + item.count,
          [&](const void* from, std::size_t first, std::size_t count) {
            take(ncclReduce(from, at(to, first - begin, item.dtype), count, type_of(item.dtype),
                            ncclSum, static_cast<int>(r), comm, stream_),
                 "ncclReduce");
          });
    }
  }

  void all_reduce_by_nccl(ncclComm_t comm, const ReduceItem& item) {
    void* const to = lands(item) ? item.landing : item.recv;
    for_each_sent(item, 0, item.count, [&](const void* from, std::size_t first, std::size_t count) {
      take(ncclAllReduce(from, at(to, first, item.dtype), count, type_of(item.dtype), ncclSum, comm,
                         stream_),
           "ncclAllReduce");
    });
  }

  // NCCL's sum of elements from `begin` on becomes the result: scaled, added, converted.
  void finish(const ReduceItem& item, std::size_t begin) {
    const void* const sums = lands(item) ? item.landing : item.recv;
    std::size_t done = begin;
    const auto clear_to = [&](std::size_t end) {
      clear(item, item.recv, done - begin, end - done);
    };
    for_each_sent(item, begin, begin + item.count,
                  [&](const void*, std::size_t first, std::size_t count) {
                    clear_to(first);
                    done = first + count;
                    if (!lands(item) && item.spec.scale == 1) return;
                    cuda::scale_add(stream_, at(item.recv, first - begin, item.spec.output),
                                    item.spec.output, at(sums, first - begin, item.dtype),
                                    item.dtype, count, item.spec.scale, item.spec.accumulate);
                  });
    clear_to(begin + item.count);
  }

  // Weights: for each item that is weighted one number per rank, gathered beside the items.
  [[nodiscard]] double* put_weights(std::span<const ReduceItem> items) {
    std::size_t weighted = 0;
    for (const ReduceItem& item : items) weighted += item.spec.weighted ? 1 : 0;
    if (weighted == 0) return nullptr;
    auto* const device =
        static_cast<double*>(memory_.device(items.size() * (size_ + 1) * sizeof(double)));
    auto* const pinned = static_cast<double*>(memory_.pinned(items.size() * sizeof(double)));
    for (std::size_t i = 0; i < items.size(); ++i) pinned[i] = items[i].spec.weight;
    cuda_check(cudaMemcpyAsync(device + items.size() * size_, pinned, items.size() * sizeof(double),
                               cudaMemcpyHostToDevice, stream_),
               "cudaMemcpyAsync");
    return device;
  }

  void gather_weights(ncclComm_t comm, std::span<const ReduceItem> items, double* device) {
    for (std::size_t i = 0; i < items.size(); ++i) {
      if (!items[i].spec.weighted) continue;
      take(ncclAllGather(device + items.size() * size_ + i, device + i * size_, 1, ncclFloat64,
                         comm, stream_),
           "ncclAllGather");
    }
  }

  [[nodiscard]] const double* weights_of(const double* weights, std::size_t index,
                                         const ReduceItem& item) const noexcept {
    return item.spec.weighted ? weights + index * size_ : nullptr;
  }

  [[nodiscard]] static void* result_at(const ReduceItem& item, std::size_t element) noexcept {
    return at(item.recv, element, item.spec.output);
  }
  [[nodiscard]] void* rest_landing(const ReduceItem& item, const Shares& shares) const noexcept {
    return at(item.landing, size_ * shares.part, item.dtype);
  }

  NcclOrder order_;
};

}  // namespace shardwise::inline v0_1::detail::nccl
