#include "world.hpp"

using namespace emulation;

namespace {

/// With the big lock held; null where there is no such event (after a report).
Event* resolve_event(const char* api, cudaEvent_t event) {
  if (world().events.count(event) != 0) return event;
  report("%s: %p is no event that lives", api, static_cast<void*>(event));
  return nullptr;
}

}  // namespace

SHARDWISE_EMULATED cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned flags) {
  if (const cudaError_t failed = entry("cudaEventCreateWithFlags")) return failed;
  const unsigned known = cudaEventBlockingSync | cudaEventDisableTiming | cudaEventInterprocess;
  if (event == nullptr || (flags & ~known) != 0) return status(cudaErrorInvalidValue);
  const Guard guard(big_lock());
  *event = new Event;
  (*event)->device = this_thread().device;
  (*event)->timing = (flags & cudaEventDisableTiming) == 0;
  world().events.insert(*event);
  return cudaSuccess;
}

SHARDWISE_EMULATED cudaError_t cudaEventCreate(cudaEvent_t* event) {
  return cudaEventCreateWithFlags(event, cudaEventDefault);
}

// Waits that were issued keep the record.
SHARDWISE_EMULATED cudaError_t cudaEventDestroy(cudaEvent_t event) {
  const Guard guard(big_lock());
  if (resolve_event("cudaEventDestroy", event) == nullptr) {
    return status(cudaErrorInvalidResourceHandle);
  }
  world().events.erase(event);
  delete event;
  return cudaSuccess;
}

SHARDWISE_EMULATED cudaError_t cudaEventRecordWithFlags(cudaEvent_t event, cudaStream_t stream,
                                                        unsigned /*flags*/) {
  if (const cudaError_t failed = entry("cudaEventRecord")) return failed;
  const Guard guard(big_lock());
  Stream* const target = resolve("cudaEventRecord", stream);
  if (target == nullptr || resolve_event("cudaEventRecord", event) == nullptr) {
    return status(cudaErrorInvalidResourceHandle);
  }
  if (target->device != event->device) return status(cudaErrorInvalidResourceHandle);
  event->record = record_operation(target);
  return cudaSuccess;
}

SHARDWISE_EMULATED cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  return cudaEventRecordWithFlags(event, stream, cudaEventRecordDefault);
}

SHARDWISE_EMULATED cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event,
                                                   unsigned /*flags*/) {
  if (const cudaError_t failed = entry("cudaStreamWaitEvent")) return failed;
  const Guard guard(big_lock());
  Stream* const target = resolve("cudaStreamWaitEvent", stream);
  if (target == nullptr || resolve_event("cudaStreamWaitEvent", event) == nullptr) {
    return status(cudaErrorInvalidResourceHandle);
  }
  if (event->record != nullptr) {
    push_wait(target, event->record);
  } else if (!event->noted) {
    event->noted = true;
    (world().options.unrecorded_wait_is_error ? report : note)(
        "cudaStreamWaitEvent: the event was never recorded, the wait does nothing");
  }
  return cudaSuccess;
}

SHARDWISE_EMULATED cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  if (const cudaError_t failed = entry("cudaEventSynchronize")) return failed;
  const Guard guard(big_lock());
  if (resolve_event("cudaEventSynchronize", event) == nullptr) {
    return status(cudaErrorInvalidResourceHandle);
  }
  const int device = event->device;
  const std::shared_ptr<Record> target = event->record;  // another thread may record meanwhile
  if (target != nullptr) host_wait(target, "cudaEventSynchronize");
  return device_status(device);
}

SHARDWISE_EMULATED cudaError_t cudaEventQuery(cudaEvent_t event) {
  if (const cudaError_t failed = entry("cudaEventQuery")) return failed;
  const Guard guard(big_lock());
  if (resolve_event("cudaEventQuery", event) == nullptr) {
    return status(cudaErrorInvalidResourceHandle);
  }
  if (event->record == nullptr) return cudaSuccess;
  if (!event->record->done) return cudaErrorNotReady;
  host_wait(event->record, "cudaEventQuery");
  return cudaSuccess;
}

SHARDWISE_EMULATED cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t start,
                                                    cudaEvent_t end) {
  if (const cudaError_t failed = entry("cudaEventElapsedTime")) return failed;
  const Guard guard(big_lock());
  if (resolve_event("cudaEventElapsedTime", start) == nullptr ||
      resolve_event("cudaEventElapsedTime", end) == nullptr || !start->timing || !end->timing ||
      start->record == nullptr || end->record == nullptr) {
    return status(cudaErrorInvalidResourceHandle);
  }
  if (!start->record->done || !end->record->done) return cudaErrorNotReady;
  *milliseconds = static_cast<float>((end->record->time - start->record->time) / 1000);
  return cudaSuccess;
}
