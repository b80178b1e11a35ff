#pragma once

#include <cstddef>
#include <cstring>
#include <shardwise/device/cuda.hpp>
#include <vector>

#include "../support/contributions.hpp"

namespace shardwise::test {

/// Bytes in a device's memory that begin `offset` bytes after an aligned address.
class DeviceBytes {
 public:
  DeviceBytes(CudaStream& stream, const Bytes& content, std::size_t offset = 0)
      : stream_(stream), size_(content.size()), offset_(offset) {
    base_ = static_cast<std::byte*>(CudaDevice::allocate(offset + size_ + 1));
    CudaDevice::upload(stream_, data(), content.data(), size_);
  }
  DeviceBytes(CudaStream& stream, std::size_t bytes) : DeviceBytes(stream, Bytes(bytes)) {}
  DeviceBytes(const DeviceBytes&) = delete;
  DeviceBytes& operator=(const DeviceBytes&) = delete;
  ~DeviceBytes() {
    stream_.drain();
    CudaDevice::deallocate(base_, offset_ + size_ + 1);
  }

  [[nodiscard]] std::byte* data() const { return base_ + offset_; }
  template <class T>
  [[nodiscard]] T* as() const {
    return reinterpret_cast<T*>(data());
  }
  [[nodiscard]] Bytes content() const {
    Bytes bytes(size_);
    CudaDevice::download(stream_, bytes.data(), data(), size_);
    return bytes;
  }

 private:
  CudaStream& stream_;
  std::byte* base_;
  std::size_t size_;
  std::size_t offset_;
};

template <class T>
[[nodiscard]] Bytes bytes_of(const std::vector<T>& values) {
  Bytes bytes(values.size() * sizeof(T));
  if (!values.empty()) std::memcpy(bytes.data(), values.data(), bytes.size());
  return bytes;
}

}  // namespace shardwise::test
