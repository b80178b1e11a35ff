#include <unistd.h>

#include <algorithm>
#include <climits>
#include <thread>
#include <utility>

#include "world.hpp"

// A stream is a queue and a worker thread that runs its tasks in order.
namespace emulation {
namespace {

std::string name_of(const Stream* stream) {
  return "stream " + std::to_string(stream->number) + " of device " +
         std::to_string(stream->device);
}

void run(Stream* stream, Task& task) {
  int failure = 0;
  {
    const Guard guard(big_lock());
    cudaError_t& sticky = world().devices.at(static_cast<std::size_t>(stream->device)).sticky;
    failure = injected_task_failure(task.label);
    if (failure != 0) sticky = static_cast<cudaError_t>(failure);
    // a broken device runs nothing more; its records and waits still end
    if (sticky != cudaSuccess && !task.bookkeeping) failure = sticky;
  }
  if (task.bookkeeping) {
    if (task.run) task.run();  // touches no memory of the program
  } else if (failure == 0) {
    install_fault_handler();
    access_begin_task(stream->device);
    task.run();
    access_end_task();
  }
  stream->time += task.microseconds;
}

void work(Stream* stream) {
  World& w = world();
  this_thread().worker_of = stream;
  this_thread().device = stream->device;
  w.lock.lock();
  for (;;) {
    while (stream->queue.empty() && !stream->closing) stream->work.wait(w.lock, 60'000);
    if (stream->queue.empty()) break;
    std::unique_ptr<Task> task = std::move(stream->queue.front());
    stream->queue.pop_front();
    stream->running = true;
    stream->current = task->label;
    stream->current_uses = std::move(task->uses);
    const auto jitter = static_cast<unsigned>(w.options.jitter_us);
    // a third of the tasks run at once, the others up to twice the jitter later
    const long nap =
        jitter == 0 ? 0 : static_cast<long>(stream->random() % (3 * jitter)) - long{jitter};
    w.lock.unlock();

    if (nap > 0) usleep(static_cast<useconds_t>(nap));
    hb_acquire(task.get());
    stream->time = std::max(stream->time, task->issued);
    run(stream, *task);
    task->run = nullptr;  // what it owns goes before anybody learns that it ended
    hb_release(&stream->finished_edge);
    if (task->record != nullptr) hb_release(task->record.get());

    w.lock.lock();
    stream->running = false;
    stream->blocked.clear();
    stream->published = stream->time;
    ++stream->finished;
    ++w.progress;
    // whoever sees the record also sees the task finished
    if (task->record != nullptr) {
      task->record->done = true;
      task->record->time = stream->time;
      task->record->reached.notify();
    }
    task.reset();
  }
  w.lock.unlock();
}

void append(Stream* stream, std::string label, std::function<void()> run, double microseconds,
            bool bookkeeping) {
  auto task = std::make_unique<Task>();
  task->label = std::move(label);
  task->run = std::move(run);
  task->microseconds = microseconds;
  task->bookkeeping = bookkeeping;
  if (!bookkeeping) task->uses = std::exchange(this_thread().noted, {});
  task->issued = this_thread().worker_of != nullptr ? 0 : this_thread().time;
  hb_release(task.get());
  stream->queue.push_back(std::move(task));
  ++stream->enqueued;
  stream->work.notify();
}

/// The legacy stream and the blocking streams of its device wait for each other.
void order_with_legacy(Stream* stream) {
  Device& device = world().devices.at(static_cast<std::size_t>(stream->device));
  if (stream->legacy) {
    for (Stream* other : world().streams) {
      if (other->device != stream->device || !other->blocking || other->legacy) continue;
      if (other->finished < other->enqueued) push_wait(stream, record(other, "for legacy stream"));
    }
  } else if (stream->blocking && device.legacy != nullptr && device.legacy->last != nullptr &&
             device.legacy->last != stream->after_legacy) {
    stream->after_legacy = device.legacy->last;
    push_wait(stream, stream->after_legacy);
  }
}

bool is_legacy(cudaStream_t stream) { return stream == nullptr || stream == cudaStreamLegacy; }

}  // namespace

Stream* make_stream(int device, bool blocking, int priority) {
  World& w = world();
  auto* const stream = new Stream;
  stream->device = device;
  stream->blocking = blocking;
  stream->priority = priority;
  stream->number = w.devices.at(static_cast<std::size_t>(device)).next_stream++;
  stream->random.seed(w.options.seed * 7919 + static_cast<std::uint64_t>(device) * 1009 +
                      stream->number);
  w.streams.push_back(stream);
  std::thread(work, stream).detach();
  return stream;
}

Stream* resolve(const char* api, cudaStream_t stream) {
  World& w = world();
  if (is_legacy(stream)) {
    if (w.options.legacy_stream_is_error) {
      report("%s uses the legacy default stream: give it a stream of its own", api);
    }
    Device& device = w.devices.at(static_cast<std::size_t>(this_thread().device));
    if (device.legacy == nullptr) {
      device.legacy = make_stream(this_thread().device, true, 0);
      device.legacy->legacy = true;
    }
    return device.legacy;
  }
  if (std::find(w.streams.begin(), w.streams.end(), stream) == w.streams.end()) {
    report("%s: %p is no stream that lives", api, static_cast<void*>(stream));
    return nullptr;
  }
  return stream;
}

void push(Stream* stream, std::string label, std::function<void()> run, double microseconds) {
  order_with_legacy(stream);
  append(stream, std::move(label), std::move(run), microseconds, false);
  if (stream->legacy) stream->last = record(stream, "legacy stream");
}

std::shared_ptr<Record> record(Stream* stream, std::string where) {
  auto target = std::make_shared<Record>();
  target->where = std::move(where) + " on " + name_of(stream);
  append(stream, "record", nullptr, 0, true);
  stream->queue.back()->record = target;
  return target;
}

std::shared_ptr<Record> record_operation(Stream* stream) {
  order_with_legacy(stream);
  auto target = record(stream, "event recorded");
  if (stream->legacy) stream->last = target;
  return target;
}

void push_wait(Stream* stream, std::shared_ptr<Record> target) {
  append(
      stream, "wait",
      [target = std::move(target), stream] {
        {
          const Guard guard(big_lock());
          stream->blocked = target->where;
          wait_until(target->reached, name_of(stream) + " waits for " + target->where,
                     [&] { return target->done; });
          stream->blocked.clear();
          stream->time = std::max(stream->time, target->time);
        }
        hb_acquire(target.get());
      },
      0, true);
}

void host_wait(const std::shared_ptr<Record>& target, const std::string& what) {
  wait_until(target->reached, what + " waits for " + target->where, [&] { return target->done; });
  if (this_thread().worker_of == nullptr) {
    this_thread().time = std::max(this_thread().time, target->time);
  }
  hb_acquire(target.get());
}

void synchronize_device(int device, const std::string& what) {
  std::vector<std::shared_ptr<Record>> records;
  for (Stream* stream : world().streams) {
    if (stream->device == device) records.push_back(record(stream, "all work"));
  }
  for (const auto& target : records) host_wait(target, what);
}

void enqueue(cudaStream_t stream, std::string label, std::function<void()> run,
             double microseconds) {
  const Guard guard(big_lock());
  Stream* const target = resolve(label.c_str(), stream);
  if (target == nullptr) fatal("%s: no such stream", label.c_str());
  push(target, std::move(label), std::move(run), microseconds);
}

bool stream_exists(cudaStream_t stream) {
  const Guard guard(big_lock());
  const auto& streams = world().streams;
  return is_legacy(stream) || std::find(streams.begin(), streams.end(), stream) != streams.end();
}

int stream_device(cudaStream_t stream) {
  return is_legacy(stream) ? this_thread().device : stream->device;
}

double& stream_virtual_time(cudaStream_t stream) {
  return is_legacy(stream) ? this_thread().worker_of->time : stream->time;
}

void set_blocked(const std::string& why) {
  if (this_thread().worker_of != nullptr) this_thread().worker_of->blocked = why;
}

}  // namespace emulation

using namespace emulation;

SHARDWISE_EMULATED cudaError_t cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned flags,
                                                            int priority) {
  if (const cudaError_t failed = entry("cudaStreamCreateWithPriority")) return failed;
  if (stream == nullptr || (flags & ~unsigned{cudaStreamNonBlocking}) != 0) {
    return status(cudaErrorInvalidValue);
  }
  const Guard guard(big_lock());
  // outside the range the runtime takes the nearest
  *stream = make_stream(this_thread().device, (flags & cudaStreamNonBlocking) == 0,
                        std::clamp(priority, -5, 0));
  (*stream)->flags = flags;
  return cudaSuccess;
}

SHARDWISE_EMULATED cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags) {
  return cudaStreamCreateWithPriority(stream, flags, 0);
}

SHARDWISE_EMULATED cudaError_t cudaStreamCreate(cudaStream_t* stream) {
  return cudaStreamCreateWithPriority(stream, cudaStreamDefault, 0);
}

// Work that is queued still runs; the host neither waits nor learns what it did.
SHARDWISE_EMULATED cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  const Guard guard(big_lock());
  if (is_legacy(stream)) return status(cudaErrorInvalidResourceHandle);
  if (resolve("cudaStreamDestroy", stream) == nullptr) {
    return status(cudaErrorInvalidResourceHandle);
  }
  auto& streams = world().streams;
  streams.erase(std::find(streams.begin(), streams.end(), stream));
  world().retired.emplace_back(stream);
  stream->closing = true;
  stream->work.notify();
  return cudaSuccess;
}

SHARDWISE_EMULATED cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  if (const cudaError_t failed = entry("cudaStreamSynchronize")) return failed;
  const Guard guard(big_lock());
  Stream* const target = resolve("cudaStreamSynchronize", stream);
  if (target == nullptr) return status(cudaErrorInvalidResourceHandle);
  host_wait(record(target, "all work"), "cudaStreamSynchronize");
  return device_status(target->device);
}

SHARDWISE_EMULATED cudaError_t cudaDeviceSynchronize() {
  if (const cudaError_t failed = entry("cudaDeviceSynchronize")) return failed;
  const Guard guard(big_lock());
  synchronize_device(this_thread().device, "cudaDeviceSynchronize");
  return device_status(this_thread().device);
}

SHARDWISE_EMULATED cudaError_t cudaStreamQuery(cudaStream_t stream) {
  if (const cudaError_t failed = entry("cudaStreamQuery")) return failed;
  const Guard guard(big_lock());
  Stream* const target = resolve("cudaStreamQuery", stream);
  if (target == nullptr) return status(cudaErrorInvalidResourceHandle);
  if (target->finished < target->enqueued) return cudaErrorNotReady;
  this_thread().time = std::max(this_thread().time, target->published);
  hb_acquire(&target->finished_edge);
  return cudaSuccess;
}

SHARDWISE_EMULATED cudaError_t cudaStreamGetPriority(cudaStream_t stream, int* priority) {
  const Guard guard(big_lock());
  Stream* const target = resolve("cudaStreamGetPriority", stream);
  if (target == nullptr) return status(cudaErrorInvalidResourceHandle);
  *priority = target->priority;
  return cudaSuccess;
}

SHARDWISE_EMULATED cudaError_t cudaStreamGetFlags(cudaStream_t stream, unsigned* flags) {
  const Guard guard(big_lock());
  Stream* const target = resolve("cudaStreamGetFlags", stream);
  if (target == nullptr) return status(cudaErrorInvalidResourceHandle);
  *flags = target->flags;
  return cudaSuccess;
}

SHARDWISE_EMULATED cudaError_t cudaStreamGetDevice(cudaStream_t stream, int* device) {
  const Guard guard(big_lock());
  Stream* const target = resolve("cudaStreamGetDevice", stream);
  if (target == nullptr) return status(cudaErrorInvalidResourceHandle);
  *device = target->device;
  return cudaSuccess;
}

SHARDWISE_EMULATED cudaError_t cudaStreamGetId(cudaStream_t stream, unsigned long long* id) {
  const Guard guard(big_lock());
  Stream* const target = resolve("cudaStreamGetId", stream);
  if (target == nullptr) return status(cudaErrorInvalidResourceHandle);
  *id = static_cast<unsigned long long>(target->device) << 32 | target->number;
  return cudaSuccess;
}

// Kept, and nothing depends on it.
SHARDWISE_EMULATED cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode* mode) {
  std::swap(*mode, this_thread().capture_mode);
  return cudaSuccess;
}

// Capture is not emulated, so no stream is ever captured.
SHARDWISE_EMULATED cudaError_t cudaStreamIsCapturing(cudaStream_t,
                                                     cudaStreamCaptureStatus* capture) {
  *capture = cudaStreamCaptureStatusNone;
  return cudaSuccess;
}

SHARDWISE_EMULATED cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
  if (least != nullptr) *least = 0;
  if (greatest != nullptr) *greatest = -5;
  return cudaSuccess;
}

// What the function does costs nothing in modelled time unless it says so: see control.hpp.
SHARDWISE_EMULATED cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function,
                                                  void* argument) {
  if (const cudaError_t failed = entry("cudaLaunchHostFunc")) return failed;
  const Guard guard(big_lock());
  Stream* const target = resolve("cudaLaunchHostFunc", stream);
  if (target == nullptr) return status(cudaErrorInvalidResourceHandle);
  push(
      target, "host function", [function, argument] { function(argument); },
      world().options.kernel_us);
  return cudaSuccess;
}
