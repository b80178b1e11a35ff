#include <cstdio>

#include "world.hpp"

using namespace emulation;

namespace {

bool valid_device(int device) {
  return device >= 0 && static_cast<std::size_t>(device) < world().devices.size();
}

}  // namespace

SHARDWISE_EMULATED cudaError_t cudaGetDeviceCount(int* count) {
  if (const int failed = injected_failure("cudaGetDeviceCount")) {
    *count = 0;
    return status(static_cast<cudaError_t>(failed));
  }
  *count = static_cast<int>(world().devices.size());
  return status(*count > 0 ? cudaSuccess : cudaErrorNoDevice);
}

SHARDWISE_EMULATED cudaError_t cudaSetDevice(int device) {
  if (const int failed = injected_failure("cudaSetDevice")) {
    return status(static_cast<cudaError_t>(failed));
  }
  if (world().devices.empty()) return status(cudaErrorNoDevice);
  if (!valid_device(device)) return status(cudaErrorInvalidDevice);
  this_thread().device = device;
  return cudaSuccess;
}

SHARDWISE_EMULATED cudaError_t cudaGetDevice(int* device) {
  if (world().devices.empty()) return status(cudaErrorNoDevice);
  *device = this_thread().device;
  return cudaSuccess;
}

SHARDWISE_EMULATED cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute,
                                                      int device) {
  if (!valid_device(device)) return status(cudaErrorInvalidDevice);
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount:
      *value = 4;
      break;
    case cudaDevAttrComputeCapabilityMajor:
      *value = 9;
      break;
    case cudaDevAttrComputeCapabilityMinor:
      *value = 0;
      break;
    case cudaDevAttrWarpSize:
      *value = 32;
      break;
    case cudaDevAttrMaxThreadsPerBlock:
      *value = 1024;
      break;
    case cudaDevAttrMaxThreadsPerMultiProcessor:
      *value = 2048;
      break;
    case cudaDevAttrMaxGridDimX:
      *value = 0x7fffffff;
      break;
    case cudaDevAttrMaxGridDimY:
    case cudaDevAttrMaxGridDimZ:
      *value = 65535;
      break;
    case cudaDevAttrMaxSharedMemoryPerBlock:
      *value = 48 << 10;
      break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = 227 << 10;
      break;
    case cudaDevAttrMemoryPoolsSupported:
    case cudaDevAttrUnifiedAddressing:
    case cudaDevAttrStreamPrioritiesSupported:
      *value = 1;
      break;
    case cudaDevAttrAsyncEngineCount:
      *value = 2;
      break;
    case cudaDevAttrPciBusId:
      *value = device + 1;
      break;
    default:
      *value = 0;
  }
  return cudaSuccess;
}

SHARDWISE_EMULATED cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
  if (!valid_device(device)) return status(cudaErrorInvalidDevice);
  *properties = {};
  std::snprintf(properties->name, sizeof properties->name, "emulated device %d", device);
  properties->totalGlobalMem = world().options.device_bytes;
  properties->major = 9;
  properties->multiProcessorCount = 4;
  properties->warpSize = 32;
  properties->maxThreadsPerBlock = 1024;
  properties->maxThreadsPerMultiProcessor = 2048;
  properties->sharedMemPerBlock = 48 << 10;
  properties->sharedMemPerBlockOptin = 227 << 10;
  properties->asyncEngineCount = 2;
  properties->memoryPoolsSupported = 1;
  properties->unifiedAddressing = 1;
  properties->streamPrioritiesSupported = 1;
  properties->pciBusID = device + 1;
  return cudaSuccess;
}

SHARDWISE_EMULATED cudaError_t cudaDeviceGetPCIBusId(char* text, int length, int device) {
  if (!valid_device(device)) return status(cudaErrorInvalidDevice);
  if (text == nullptr || length < 13) return status(cudaErrorInvalidValue);
  std::snprintf(text, static_cast<std::size_t>(length), "0000:%02x:00.0", device + 1);
  return cudaSuccess;
}

SHARDWISE_EMULATED cudaError_t cudaDriverGetVersion(int* version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}

SHARDWISE_EMULATED cudaError_t cudaRuntimeGetVersion(int* version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}

SHARDWISE_EMULATED cudaError_t cudaDeviceCanAccessPeer(int* can, int device, int peer) {
  if (!valid_device(device) || !valid_device(peer)) return status(cudaErrorInvalidDevice);
  *can = device != peer ? 1 : 0;
  return cudaSuccess;
}

SHARDWISE_EMULATED cudaError_t cudaDeviceEnablePeerAccess(int peer, unsigned flags) {
  if (const cudaError_t failed = entry("cudaDeviceEnablePeerAccess")) return failed;
  if (!valid_device(peer) || peer == this_thread().device) return status(cudaErrorInvalidDevice);
  if (flags != 0) return status(cudaErrorInvalidValue);
  const Guard guard(big_lock());
  auto& peers = world().devices.at(static_cast<std::size_t>(this_thread().device)).peers;
  return status(peers.insert(peer).second ? cudaSuccess : cudaErrorPeerAccessAlreadyEnabled);
}

SHARDWISE_EMULATED cudaError_t cudaDeviceDisablePeerAccess(int peer) {
  if (!valid_device(peer)) return status(cudaErrorInvalidDevice);
  const Guard guard(big_lock());
  auto& peers = world().devices.at(static_cast<std::size_t>(this_thread().device)).peers;
  return status(peers.erase(peer) == 1 ? cudaSuccess : cudaErrorPeerAccessNotEnabled);
}

SHARDWISE_EMULATED cudaError_t cudaGetLastError() {
  const cudaError_t error = this_thread().last_error;
  this_thread().last_error = cudaSuccess;
  const Guard guard(big_lock());
  if (error != cudaSuccess || world().devices.empty()) return error;
  return device_status(this_thread().device);
}

SHARDWISE_EMULATED cudaError_t cudaPeekAtLastError() { return this_thread().last_error; }
