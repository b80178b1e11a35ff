#pragma once

#include <cuda_runtime_api.h>
#include <nccl.h>

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <span>
#include <vector>

#include "../device/cuda_error.hpp"
#include "../device/cuda_guard.hpp"
#include "../device/cuda_memory.hpp"
#include "../device/cuda_stream.hpp"
#include "../kernels/reduce.hpp"
#include "communicator.hpp"
#include "nccl_watchdog.hpp"

namespace shardwise::inline v0_1::detail::nccl {

/// Collectives over a few numbers in host memory: they travel through page-locked and device memory
/// that grows on demand and is kept, and the host waits. Sums are taken by the host, in the
/// canonical order, from all ranks' contributions.
class Staging {
 public:
  Staging(Channel& channel, int size)
      : channel_(channel), size_(static_cast<std::size_t>(size)), inputs_(size_), weights_(size_) {}

  [[nodiscard]] cudaStream_t stream() const noexcept { return stream_.native(); }

  /// Runs f(), which enqueues on stream(), as the call `print`, and waits for it.
  template <class Patience, class F>
  void run(const Fingerprint& print, std::chrono::nanoseconds timeout, const Patience& patience,
           const F& f) {
    static_cast<void>(channel_.tracker.open(print, timeout, stream(), patience));
    try {
      f();
    } catch (...) {
      channel_.tracker.close(stream());
      throw;
    }
    channel_.tracker.close(stream());
    channel_.tracker.wait_for_last(patience);
    patience();  // a call that was aborted ends, too
  }

  /// What every rank gives, `bytes` each, by rank; valid until the next call.
  template <class Patience>
  [[nodiscard]] const std::byte* gather(const Fingerprint& print, std::chrono::nanoseconds timeout,
                                        const void* mine, std::size_t bytes,
                                        const Patience& patience) {
    auto* const device = reserve(bytes * (size_ + 1));
    std::memcpy(pinned_.data(), mine, bytes);
    auto* const all = static_cast<std::byte*>(pinned_.data()) + bytes;
    run(print, timeout, patience, [&] {
      copy(device, pinned_.data(), bytes, cudaMemcpyHostToDevice);
      channel_.handle->call("ncclAllGather", patience, [&](ncclComm_t comm) {
        return ncclAllGather(device, device + bytes, bytes, ncclInt8, comm, stream());
      });
      copy(all, device + bytes, bytes * size_, cudaMemcpyDeviceToHost);
    });
    return all;
  }

  template <class Patience>
  void all_gather(std::span<const GatherItem> items, const Fingerprint& print,
                  std::chrono::nanoseconds timeout, const Patience& patience) {
    begin();
    for (const GatherItem& item : items) pack(item.send, item.count * size_of(item.dtype));
    if (packed_.empty()) return;
    const std::byte* const all = gather(print, timeout, packed_.data(), packed_.size(), patience);
    std::size_t at = 0;
    for (const GatherItem& item : items) {
      const std::size_t bytes = item.count * size_of(item.dtype);
      for (std::size_t r = 0; r < size_ && bytes > 0; ++r) {
        std::memcpy(static_cast<std::byte*>(item.recv) + r * bytes, all + r * packed_.size() + at,
                    bytes);
      }
      at += padded(bytes);
    }
  }

  template <class Patience>
  void reduce(std::span<const ReduceItem> items, bool scatter, const Fingerprint& print,
              std::chrono::nanoseconds timeout, const Patience& patience) {
    begin();
    const std::size_t parts = scatter ? size_ : 1;
    for (const ReduceItem& item : items) {
      pack(&item.spec.weight, sizeof(double));
      pack(item.send, parts * item.count * size_of(item.dtype));
    }
    if (packed_.empty()) return;
    const std::byte* const all = gather(print, timeout, packed_.data(), packed_.size(), patience);
    const auto own = static_cast<std::size_t>(channel_.handle->rank());
    std::size_t at = 0;
    for (const ReduceItem& item : items) {
      const std::size_t bytes = item.count * size_of(item.dtype);
      for (std::size_t r = 0; r < size_; ++r) {
        const std::byte* const from = all + r * packed_.size() + at;
        std::memcpy(&weights_[r], from, sizeof(double));
        inputs_[r] = from + padded(sizeof(double)) + (scatter ? own * bytes : 0);
      }
      if (!item.spec.weighted) std::fill(weights_.begin(), weights_.end(), 1.0);
      if (item.count > 0) {
        canonical_reduce(inputs_, weights_, item.dtype, item.count, item.recv, item.spec);
      }
      at += padded(sizeof(double)) + padded(parts * bytes);
    }
  }

  template <class Patience>
  void broadcast(std::span<const BroadcastItem> items, int root, const Fingerprint& print,
                 std::chrono::nanoseconds timeout, const Patience& patience) {
    begin();
    for (const BroadcastItem& item : items) pack(item.buffer, item.count * size_of(item.dtype));
    if (packed_.empty()) return;
    const std::size_t bytes = packed_.size();
    auto* const device = reserve(bytes);
    std::memcpy(pinned_.data(), packed_.data(), bytes);
    run(print, timeout, patience, [&] {
      copy(device, pinned_.data(), bytes, cudaMemcpyHostToDevice);
      channel_.handle->call("ncclBroadcast", patience, [&](ncclComm_t comm) {
        return ncclBroadcast(device, device, bytes, ncclInt8, root, comm, stream());
      });
      copy(pinned_.data(), device, bytes, cudaMemcpyDeviceToHost);
    });
    const auto* from = static_cast<const std::byte*>(pinned_.data());
    for (const BroadcastItem& item : items) {
      const std::size_t size = item.count * size_of(item.dtype);
      if (size > 0) std::memcpy(item.buffer, from, size);
      from += padded(size);
    }
  }

  template <class Patience>
  void all_to_all(std::span<const ExchangeItem> items, const Fingerprint& print,
                  std::chrono::nanoseconds timeout, const Patience& patience) {
    begin();
    for (std::size_t r = 0; r < size_; ++r) {
      for (const ExchangeItem& item : items) {
        const std::size_t bytes = item.count * size_of(item.dtype);
        pack(item.send == nullptr ? nullptr : static_cast<const std::byte*>(item.send) + r * bytes,
             bytes);
      }
    }
    if (packed_.empty()) return;
    const std::size_t part = packed_.size() / size_;
    // A few numbers: everybody gets everything and keeps its own.
    const std::byte* const all = gather(print, timeout, packed_.data(), packed_.size(), patience);
    const auto own = static_cast<std::size_t>(channel_.handle->rank());
    std::size_t at = 0;
    for (const ExchangeItem& item : items) {
      const std::size_t bytes = item.count * size_of(item.dtype);
      for (std::size_t r = 0; r < size_ && bytes > 0; ++r) {
        std::memcpy(static_cast<std::byte*>(item.recv) + r * bytes,
                    all + r * packed_.size() + own * part + at, bytes);
      }
      at += padded(bytes);
    }
  }

 private:
  static constexpr std::size_t alignment = 16;

  [[nodiscard]] static std::size_t padded(std::size_t bytes) noexcept {
    return (bytes + alignment - 1) / alignment * alignment;
  }

  void begin() noexcept { packed_.clear(); }

  void pack(const void* data, std::size_t bytes) {
    if (bytes == 0) return;
    const std::size_t at = packed_.size();
    packed_.resize(at + padded(bytes));
    std::memcpy(packed_.data() + at, data, bytes);
  }

  std::byte* reserve(std::size_t bytes) {
    const CudaDeviceGuard guard(stream_.device());
    pinned_.reserve(bytes);
    return static_cast<std::byte*>(device_.reserve(bytes));
  }

  void copy(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind) {
    cuda_check(cudaMemcpyAsync(to, from, bytes, kind, stream()), "cudaMemcpyAsync");
  }

  Channel& channel_;
  std::size_t size_;
  std::vector<std::byte> packed_;
  std::vector<const void*> inputs_;  // of a sum, by rank
  std::vector<double> weights_;
  CudaScratch<CudaPinnedMemory> pinned_;
  CudaScratch<CudaMemory> device_;
  CudaStream stream_{CudaStream::Priority::high};  // ends before the memory
};

}  // namespace shardwise::inline v0_1::detail::nccl
