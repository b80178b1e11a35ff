#pragma once

#include <cuda_runtime_api.h>

#include <algorithm>
#include <catch2/catch_test_macros.hpp>
#include <concepts>
#include <cstddef>
#include <memory>
#include <shardwise/comm/nccl.hpp>
#include <shardwise/device/cuda.hpp>
#include <string>
#include <utility>
#include <vector>

#include "../comm/cases.hpp"

namespace shardwise::test {

/// As many as an emulated machine has devices.
inline constexpr int cuda_worlds[] = {1, 2, 3, 4, 7, 8};

/// Communicators of tests compare their calls, so that a mistake is a message and not a hang.
inline NcclOptions checked_options() { return {.checked = true}; }

/// Skips the test where the machine has less than `least` devices; how many it has.
inline int require_devices(int least) {
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess) devices = 0;
  if (devices < least) SKIP("needs " << least << " devices, there are " << devices);
  return devices;
}

/// The worlds for which this machine has devices; skips the test where it has none.
inline std::vector<int> present_worlds() {
  const int devices = require_devices(1);
  std::vector<int> result;
  for (const int world : cuda_worlds) {
    if (world <= devices) result.push_back(world);
  }
  return result;
}

/// What a rank that found NCCL of another version, by so much, tells the others when they meet.
inline std::string text_of_card(int newer = 0) {
  detail::nccl::Card card{};
  static_cast<void>(ncclGetVersion(&card.version));
  card.version += newer;
  return {reinterpret_cast<const char*>(&card), sizeof card};
}

/// Runs f(communicator) on `world` threads with a device each and returns what each gave, by rank.
template <class F>
auto on_cuda_ranks(int world, F&& f, const NcclOptions& options = checked_options()) {
  using Result = decltype(f(std::declval<Communicator&>()));
  static_assert(!std::same_as<Result, bool>, "ranks would write into one word");
  std::vector<Result> results(static_cast<std::size_t>(world));
  run_cuda_ranks(
      world,
      [&](Communicator& communicator) {
        results[static_cast<std::size_t>(communicator.rank())] = f(communicator);
      },
      options);
  return results;
}

/// Bytes of the current device, filled from and read back to the host; freed when it goes, which
/// must be after its last use.
class DeviceBytes {
 public:
  DeviceBytes() = default;
  DeviceBytes(const Bytes& content, CudaStream& stream) : size_(content.size()) {
    if (size_ == 0) return;
    data_ = CudaMemory::allocate(size_);
    Bytes copy = content;
    cuda_check(cudaMemcpyAsync(data_, copy.data(), size_, cudaMemcpyHostToDevice, stream.native()),
               "cudaMemcpyAsync");
    stream.synchronize();
  }
  DeviceBytes(DeviceBytes&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
  DeviceBytes& operator=(DeviceBytes&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }
  ~DeviceBytes() {
    if (data_ != nullptr) CudaMemory::deallocate(data_, size_);
  }

  [[nodiscard]] std::byte* data() const noexcept { return static_cast<std::byte*>(data_); }
  [[nodiscard]] std::size_t size() const noexcept { return size_; }
  [[nodiscard]] Bytes read(CudaStream& stream, std::size_t offset, std::size_t bytes) const {
    Bytes result(bytes);
    if (bytes == 0) return result;
    cuda_check(cudaMemcpyAsync(result.data(), data() + offset, bytes, cudaMemcpyDeviceToHost,
                               stream.native()),
               "cudaMemcpyAsync");
    stream.synchronize();
    return result;
  }
  [[nodiscard]] Bytes read(CudaStream& stream) const { return read(stream, 0, size_); }

 private:
  void* data_ = nullptr;
  std::size_t size_ = 0;
};

/// RankCall with its buffers on the device; the stream must have run before it goes.
class CudaCall {
 public:
  CudaCall(const CollectiveCase& collective, Communicator& comm, CudaStream& stream)
      : collective_(collective), comm_(comm), stream_(stream) {
    const auto rank = static_cast<std::size_t>(comm.rank());
    const auto size = static_cast<std::size_t>(comm.size());
    for (std::size_t i = 0; i < collective.items.size(); ++i) {
      const ItemCase& item = collective.items[i];
      const Bytes mine = RankCall::sent(collective, i, rank, size);
      Bytes target = RankCall::before(collective, i, rank, size);
      const std::size_t part = item.count * size_of(item.dtype);
      std::size_t send_at = 0;
      std::size_t recv_at = 0;
      bool same = item.in_place;
      if (collective.operation == Operation::all_gather && item.in_place) {
        send_at = rank * part;
        std::copy(mine.begin(), mine.end(), target.begin() + static_cast<std::ptrdiff_t>(send_at));
      } else if (collective.operation == Operation::reduce_scatter && item.in_place) {
        recv_at = rank * part;
        target = mine;
      } else if (item.in_place || collective.operation == Operation::broadcast) {
        target = mine;
        same = true;
      }
      recv_.emplace_back(target, stream);
      send_.emplace_back(same ? DeviceBytes() : DeviceBytes(mine, stream));
      send_at_.push_back((same ? recv_[i] : send_[i]).data() + send_at);
      recv_at_.push_back(recv_at);
    }
  }

  void issue(const CallInfo& info = {"case"}) {
    const StreamRef stream = stream_.ref();
    std::vector<GatherItem> gather;
    std::vector<ReduceItem> reduce;
    std::vector<BroadcastItem> broadcast;
    std::vector<ExchangeItem> exchange;
    const bool scatter = collective_.operation == Operation::reduce_scatter;
    const bool reduces = scatter || collective_.operation == Operation::all_reduce;
    for (std::size_t i = 0; i < collective_.items.size(); ++i) {
      const ItemCase& item = collective_.items[i];
      void* const recv = recv_[i].data() == nullptr ? nullptr : recv_[i].data() + recv_at_[i];
      gather.push_back({send_at_[i], recv, item.count, item.dtype});
      exchange.push_back({send_at_[i], recv, item.count, item.dtype});
      broadcast.push_back({recv, item.count, item.dtype});
      ReduceItem sum{
          send_at_[i],
          recv,
          item.count,
          item.dtype,
          {item.output, item.scale, item.weight(comm_.rank()), item.accumulate, item.weighted}};
      const std::size_t landing = reduces ? comm_.landing_bytes(sum, scatter) : 0;
      landing_.emplace_back(Bytes(landing, std::byte{0xff}), stream_);
      sum.landing = landing_.back().data();
      reduce.push_back(sum);
    }
    switch (collective_.operation) {
      case Operation::all_gather:
        return comm_.all_gather(gather, info, stream);
      case Operation::reduce_scatter:
        return comm_.reduce_scatter(reduce, info, stream);
      case Operation::all_reduce:
        return comm_.all_reduce(reduce, info, stream);
      case Operation::broadcast:
        return comm_.broadcast(broadcast, collective_.root, info, stream);
      case Operation::all_to_all:
        return comm_.all_to_all(exchange, info, stream);
      default:
        return comm_.barrier(info, stream);
    }
  }

  [[nodiscard]] std::vector<Bytes> results() {
    std::vector<Bytes> all;
    for (std::size_t i = 0; i < collective_.items.size(); ++i) {
      const ItemCase& item = collective_.items[i];
      const bool part = collective_.operation == Operation::reduce_scatter;
      const std::size_t bytes = part ? item.count * size_of(item.output) : recv_[i].size();
      all.push_back(recv_[i].read(stream_, recv_at_[i], bytes));
    }
    return all;
  }

 private:
  CollectiveCase collective_;
  Communicator& comm_;
  CudaStream& stream_;
  std::vector<DeviceBytes> send_;
  std::vector<DeviceBytes> recv_;
  std::vector<DeviceBytes> landing_;
  std::vector<const std::byte*> send_at_;
  std::vector<std::size_t> recv_at_;
};

}  // namespace shardwise::test
