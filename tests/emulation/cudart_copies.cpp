#include <cstring>

#include "world.hpp"

using namespace emulation;

namespace {

bool is_device(const void* pointer) { return classify(pointer).kind == Memory::device; }

/// Ends the process where the ranges are not of the kinds that the copy names.
void check_copy(const char* api, const void* to, const void* from, std::size_t bytes,
                cudaMemcpyKind kind) {
  const bool to_device = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
  const bool from_device = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
  check_range(api, to, bytes, -1, to_device);
  check_range(api, from, bytes, -1, from_device);
  if (kind == cudaMemcpyDefault) return;
  if (!to_device && is_device(to)) fatal("%s: the destination is memory of a device", api);
  if (!from_device && is_device(from)) fatal("%s: the source is memory of a device", api);
  const auto* const a = static_cast<const char*>(to);
  const auto* const b = static_cast<const char*>(from);
  if (a < b + bytes && b < a + bytes) fatal("%s: the ranges overlap", api);
}

/// Whether an asynchronous copy is one: the runtime stages pageable memory and may make the host
/// wait. Here it copies late, so that a program that counts on either order is caught.
void check_pageable(const char* api, const void* to, const void* from) {
  if (!world().options.pageable_is_error) return;
  for (const void* pointer : {to, from}) {
    if (classify(pointer).kind == Memory::none) {
      report("%s: %p is pageable host memory; the host may wait: use pinned memory", api, pointer);
    }
  }
}

double copy_time(const void* to, const void* from, std::size_t bytes) {
  const Options& o = world().options;
  const bool on_device = is_device(to) && is_device(from);
  return static_cast<double>(bytes) / (on_device ? o.memory_bytes_per_us : o.copy_bytes_per_us);
}

void move(void* to, const void* from, std::size_t bytes) {
  all_device_access(true);
  std::memcpy(to, from, bytes);
  all_device_access(false);
}

cudaError_t issue(const char* api, cudaStream_t stream, std::string label,
                  std::function<void()> run, double microseconds) {
  const Guard guard(big_lock());
  Stream* const target = resolve(api, stream);
  if (target == nullptr) return status(cudaErrorInvalidResourceHandle);
  push(target, std::move(label), std::move(run), microseconds);
  return cudaSuccess;
}

cudaError_t copy(const char* api, void* to, const void* from, std::size_t bytes,
                 cudaMemcpyKind kind, cudaStream_t stream) {
  if (const cudaError_t failed = entry(api)) return failed;
  if (kind < cudaMemcpyHostToHost || kind > cudaMemcpyDefault) {
    return status(cudaErrorInvalidMemcpyDirection);
  }
  if (bytes == 0) return cudaSuccess;
  if (to == nullptr || from == nullptr) return status(cudaErrorInvalidValue);
  check_copy(api, to, from, bytes, kind);
  return issue(
      api, stream, "copy of " + std::to_string(bytes) + " bytes", [=] { move(to, from, bytes); },
      copy_time(to, from, bytes));
}

cudaError_t set(const char* api, void* to, int value, std::size_t bytes, cudaStream_t stream) {
  if (const cudaError_t failed = entry(api)) return failed;
  if (bytes == 0) return cudaSuccess;
  if (to == nullptr) return status(cudaErrorInvalidValue);
  check_range(api, to, bytes, stream_exists(stream) ? stream_device(stream) : -1, true);
  return issue(
      api, stream, "fill of " + std::to_string(bytes) + " bytes",
      [=] { std::memset(to, value, bytes); },
      static_cast<double>(bytes) / world().options.memory_bytes_per_us);
}

/// The end of a call without a stream: it used the legacy stream, and the host waits.
cudaError_t wait_for_legacy(const char* api) {
  const Guard guard(big_lock());
  const int device = this_thread().device;
  Stream* const legacy = world().devices.at(static_cast<std::size_t>(device)).legacy;
  if (legacy != nullptr) host_wait(record(legacy, "all work"), api);
  return device_status(device);
}

}  // namespace

SHARDWISE_EMULATED cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes,
                                               cudaMemcpyKind kind, cudaStream_t stream) {
  if (bytes > 0) check_pageable("cudaMemcpyAsync", to, from);
  return copy("cudaMemcpyAsync", to, from, bytes, kind, stream);
}

SHARDWISE_EMULATED cudaError_t cudaMemcpy(void* to, const void* from, std::size_t bytes,
                                          cudaMemcpyKind kind) {
  if (const cudaError_t failed = copy("cudaMemcpy", to, from, bytes, kind, nullptr)) return failed;
  return wait_for_legacy("cudaMemcpy");
}

SHARDWISE_EMULATED cudaError_t cudaMemcpyPeerAsync(void* to, int to_device, const void* from,
                                                   int from_device, std::size_t bytes,
                                                   cudaStream_t stream) {
  if (bytes > 0 && (classify(to).device != to_device || classify(from).device != from_device)) {
    fatal("cudaMemcpyPeerAsync: the pointers are not of devices %d and %d", to_device, from_device);
  }
  return copy("cudaMemcpyPeerAsync", to, from, bytes, cudaMemcpyDeviceToDevice, stream);
}

SHARDWISE_EMULATED cudaError_t cudaMemcpyBatchAsync(void* const* to, const void* const* from,
                                                    const std::size_t* bytes, std::size_t count,
                                                    cudaMemcpyAttributes*, std::size_t*,
                                                    std::size_t attributes, cudaStream_t stream) {
  if (count == 0 || attributes == 0 || stream == nullptr) return status(cudaErrorInvalidValue);
  for (std::size_t i = 0; i < count; ++i) {
    const cudaError_t failed =
        copy("cudaMemcpyBatchAsync", to[i], from[i], bytes[i], cudaMemcpyDefault, stream);
    if (failed != cudaSuccess) return failed;
  }
  return cudaSuccess;
}

SHARDWISE_EMULATED cudaError_t cudaMemcpy2DAsync(void* to, std::size_t to_pitch, const void* from,
                                                 std::size_t from_pitch, std::size_t width,
                                                 std::size_t height, cudaMemcpyKind kind,
                                                 cudaStream_t stream) {
  if (const cudaError_t failed = entry("cudaMemcpy2DAsync")) return failed;
  if (width > to_pitch || width > from_pitch) return status(cudaErrorInvalidPitchValue);
  if (width == 0 || height == 0) return cudaSuccess;
  check_copy("cudaMemcpy2DAsync", to, from, 1, kind);
  check_range("cudaMemcpy2DAsync", to, (height - 1) * to_pitch + width, -1, false);
  check_range("cudaMemcpy2DAsync", from, (height - 1) * from_pitch + width, -1, false);
  return issue(
      "cudaMemcpy2DAsync", stream, "copy of " + std::to_string(height) + " rows",
      [=] {
        for (std::size_t row = 0; row < height; ++row) {
          move(static_cast<char*>(to) + row * to_pitch,
               static_cast<const char*>(from) + row * from_pitch, width);
        }
      },
      copy_time(to, from, width * height));
}

SHARDWISE_EMULATED cudaError_t cudaMemsetAsync(void* to, int value, std::size_t bytes,
                                               cudaStream_t stream) {
  return set("cudaMemsetAsync", to, value, bytes, stream);
}

SHARDWISE_EMULATED cudaError_t cudaMemset(void* to, int value, std::size_t bytes) {
  if (const cudaError_t failed = set("cudaMemset", to, value, bytes, nullptr)) return failed;
  return wait_for_legacy("cudaMemset");
}
