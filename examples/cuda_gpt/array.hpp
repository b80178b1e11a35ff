#pragma once

#include <cstddef>
#include <memory>
#include <shardwise/device/cuda.hpp>

namespace cuda_gpt {

/// Memory for `size()` elements, uninitialised, that nothing uses any more when it goes.
template <class T, class Memory>
class Array {
 public:
  explicit Array(std::size_t size)
      : data_(static_cast<T*>(Memory::allocate(size * sizeof(T))), {size}), size_(size) {}

  [[nodiscard]] T* data() const noexcept { return data_.get(); }
  [[nodiscard]] std::size_t size() const noexcept { return size_; }

 private:
  struct Deallocate {
    std::size_t size;
    void operator()(T* data) const noexcept { Memory::deallocate(data, size * sizeof(T)); }
  };

  std::unique_ptr<T, Deallocate> data_;
  std::size_t size_;
};

/// On the current device.
template <class T>
using DeviceArray = Array<T, shardwise::CudaMemory>;
/// On the host, page-locked: copies to and from the device run in stream order beside the host.
template <class T>
using PinnedArray = Array<T, shardwise::CudaPinnedMemory>;

}  // namespace cuda_gpt
