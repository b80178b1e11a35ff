#include "world.hpp"

using namespace emulation;

SHARDWISE_EMULATED int shardwise_emulation_errors() { return world().errors.load(); }
SHARDWISE_EMULATED int shardwise_emulation_notes() { return world().notes.load(); }

SHARDWISE_EMULATED void shardwise_emulation_reset() {
  const Guard guard(big_lock());
  world().errors = 0;
  world().notes = 0;
  for (Device& device : world().devices) {
    device.peak = device.used;
    device.sticky = cudaSuccess;
  }
}

SHARDWISE_EMULATED std::size_t shardwise_emulation_peak_bytes(int device) {
  const Guard guard(big_lock());
  return world().devices.at(static_cast<std::size_t>(device)).peak;
}

SHARDWISE_EMULATED std::size_t shardwise_emulation_used_bytes(int device) {
  const Guard guard(big_lock());
  return world().devices.at(static_cast<std::size_t>(device)).used;
}

SHARDWISE_EMULATED double shardwise_emulation_virtual_time(cudaStream_t stream) {
  const Guard guard(big_lock());
  Stream* const target = resolve("shardwise_emulation_virtual_time", stream);
  return target != nullptr ? target->published : 0;
}

SHARDWISE_EMULATED double shardwise_emulation_host_time() { return this_thread().time; }

SHARDWISE_EMULATED void shardwise_emulation_spend(double microseconds) {
  if (Stream* const stream = this_thread().worker_of) {
    stream->time += microseconds;
  } else {
    this_thread().time += microseconds;
  }
}

SHARDWISE_EMULATED const char* shardwise_emulation_host_access() { return access_kind(); }

SHARDWISE_EMULATED void shardwise_emulation_set_option(const char* name, const char* value) {
  const Guard guard(big_lock());
  if (value == nullptr) {
    world().set_options.erase(name);
  } else {
    world().set_options.insert_or_assign(name, value);
  }
  world().read_options();
}
