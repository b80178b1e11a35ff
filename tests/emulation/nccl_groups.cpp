#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <map>
#include <set>
#include <thread>

#include "nccl_clique.hpp"
#include "nccl_communicator.hpp"
#include "nccl_model.hpp"

namespace emulation {

namespace {

// One launch at a time per device, in the host's order of issue: the strictest schedule that the
// real library may choose, so that ranks which issue on two communicators in different orders block
// each other every time, not once a week.
struct Turns {
  std::uint64_t next = 0;
  std::uint64_t serving = 0;
  std::set<std::uint64_t> finished;
};

Turns& turns(int device) {
  static auto* const all = new std::map<int, Turns>;
  return (*all)[device];
}

// Taking a turn and queueing the task must be one step among threads that share a device. Not a
// Lock: enqueue() states an edge, and one under a second lock would be lost.
class IssueOrder {
 public:
  IssueOrder() {
    while (flag().test_and_set(std::memory_order_acquire)) {
      sched_yield();
    }
  }
  ~IssueOrder() { flag().clear(std::memory_order_release); }
  IssueOrder(const IssueOrder&) = delete;
  IssueOrder& operator=(const IssueOrder&) = delete;

 private:
  static std::atomic_flag& flag() {
    static std::atomic_flag value;
    return value;
  }
};

struct Numbered {
  Call call;
  std::uint64_t number = 0;
};

/// What one communicator launches for one group. The turn passes when it goes, run or not: a broken
/// device runs nothing.
struct Launch {
  Launch(std::shared_ptr<Communicator> owner, cudaStream_t on)
      : communicator(std::move(owner)), stream(on) {}
  Launch(const Launch&) = delete;
  Launch& operator=(const Launch&) = delete;
  ~Launch() {
    const Guard guard(big_lock());
    Turns& order = turns(communicator->device);
    order.finished.insert(turn);
    while (order.finished.erase(order.serving) != 0) {
      ++order.serving;
    }
    --communicator->outstanding;
    for (const Numbered& collective : collectives) {
      use_windows(*communicator, collective.call, -1);
    }
    changed().notify();
    communicator.reset();
    collectives.clear();
    messages.clear();
  }

  void take_turn();
  void run();
  bool run_collective(const Numbered& collective, double& time);
  bool run_messages(double& time);
  void hang(const std::string& why);
  void fail(ncclResult_t result);

  std::shared_ptr<Communicator> communicator;
  cudaStream_t stream;
  std::uint64_t turn = 0;
  std::vector<Numbered> collectives;
  std::vector<Call> messages;
};

void Launch::take_turn() {
  const Guard guard(big_lock());
  wait_for(
      [&] {
        return label(*communicator) + " waits for an earlier launch on device " +
               std::to_string(communicator->device);
      },
      [&] { return !launches_serialised() || turns(communicator->device).serving == turn; },
      [&] { return communicator->stopped; });
}

// As on a device: what lost its peers does not end until the communicator is aborted.
void Launch::hang(const std::string& why) {
  const Guard guard(big_lock());
  wait_for([&] { return label(*communicator) + " " + why; }, [] { return false; },
           [&] { return communicator->stopped; });
}

void Launch::fail(ncclResult_t result) {
  const Guard guard(big_lock());
  if (communicator->state == ncclSuccess) {
    communicator->state = result;
  }
}

bool Launch::run_collective(const Numbered& collective, double& time) {
  Call call = collective.call;
  const NamedFrame frame(call.operation);
  const Link& link = *communicator->link;
  switch (fault_of(link.rank(), collective.number, communicator->name)) {
    case Fault::die:
      std::fflush(nullptr);
      _exit(1);
    case Fault::fail:
      fail(ncclSystemError);
      hang("has the injected failure of operation " + std::to_string(collective.number));
      return false;
    case Fault::lose:
      hang("has lost operation " + std::to_string(collective.number) + " by an injected fault");
      return false;
    case Fault::none:
      break;
  }
  Staging contribution(send_bytes(call, link.ranks(), link.rank()));
  read_device(contribution.data(), call.send, contribution.bytes());
  if (call.scalar_on_device != nullptr) {
    read_device(reinterpret_cast<std::byte*>(&call.scalar), call.scalar_on_device,
                size_of(call.type));
    call.scalar_on_device = nullptr;
  }
  const Outcome outcome = communicator->link->collective(
      call, collective.number, std::move(contribution),
      [&call](std::size_t offset, const std::byte* data, std::size_t bytes) {
        write_device(static_cast<std::byte*>(call.receive) + offset, data, bytes);
      },
      time);
  if (outcome == Outcome::lost) {
    fail(ncclRemoteError);
    hang("lost the process of a peer in number " + std::to_string(collective.number) + " [" +
         describe(call) + "]: poll ncclCommGetAsyncError and abort");
  }
  return outcome == Outcome::done;
}

bool Launch::run_messages(double& time) {
  std::vector<Staging> contributions;
  for (const Call& call : messages) {
    if (call.operation == Operation::send) {
      const NamedFrame frame(Operation::send);
      contributions.emplace_back(call.count * size_of(call.type));
      read_device(contributions.back().data(), call.send, contributions.back().bytes());
    }
  }
  const Outcome outcome = communicator->link->messages(
      messages, std::move(contributions),
      [this](std::size_t index, const std::byte* data, std::size_t bytes) {
        const NamedFrame frame(Operation::receive);
        write_device(messages[index].receive, data, bytes);
      },
      time);
  if (outcome == Outcome::lost) {
    fail(ncclRemoteError);
    hang("lost the process of a peer in a send or receive: poll ncclCommGetAsyncError and abort");
  }
  return outcome == Outcome::done;
}

void Launch::run() {
  take_turn();
  double& time = stream_virtual_time(stream);
  bool complete = true;
  for (const Numbered& collective : collectives) {
    complete = complete && run_collective(collective, time);
  }
  if (complete && !messages.empty()) {
    run_messages(time);
  }
}

struct Issued {
  std::shared_ptr<Communicator> communicator;
  Call call;
  cudaStream_t stream = nullptr;
};

struct Group {
  int depth = 0;
  ncclResult_t error = ncclSuccess;
  std::vector<Issued> calls;
  std::vector<Job> jobs;
};

Group& group() {
  static thread_local Group value;
  return value;
}

// A stream of the group waits for what another has queued.
bool join_streams(cudaStream_t from, cudaStream_t to) {
  cudaEvent_t event = nullptr;
  if (cudaEventCreateWithFlags(&event, cudaEventDisableTiming) != cudaSuccess) {
    return false;
  }
  const bool joined = cudaEventRecord(event, from) == cudaSuccess &&
                      cudaStreamWaitEvent(to, event, 0) == cudaSuccess;
  cudaEventDestroy(event);
  return joined;
}

ncclResult_t launch(const std::vector<const Issued*>& calls) {
  const std::shared_ptr<Communicator>& communicator = calls.front()->communicator;
  const cudaStream_t stream = calls.front()->stream;
  const DeviceScope scope(communicator->device);
  std::vector<cudaStream_t> others;
  for (const Issued* issued : calls) {
    if (issued->stream != stream && std::ranges::find(others, issued->stream) == others.end()) {
      others.push_back(issued->stream);
    }
  }
  bool joined = true;
  for (cudaStream_t other : others) {
    joined = joined && join_streams(other, stream);
  }
  auto task = std::make_shared<Launch>(communicator, stream);
  std::string title = "nccl";
  {
    const Guard guard(big_lock());
    for (const Issued* issued : calls) {
      title += std::string(" ") + name_of(issued->call.operation);
      if (issued->call.operation == Operation::send ||
          issued->call.operation == Operation::receive) {
        task->messages.push_back(issued->call);
      } else {
        task->collectives.push_back({issued->call, communicator->issued++});
        use_windows(*communicator, issued->call, +1);
      }
    }
    ++communicator->outstanding;
    communicator->polls = communicator->blocking ? 0 : 2;
  }
  {
    const IssueOrder order;
    {
      const Guard guard(big_lock());
      task->turn = turns(communicator->device).next++;
    }
    enqueue(
        stream, title, [task = std::move(task)] { task->run(); }, 0);
  }
  for (cudaStream_t other : others) {
    joined = joined && join_streams(stream, other);
  }
  return joined ? ncclSuccess : refuse(ncclUnhandledCudaError, "a stream's event failed");
}

ncclResult_t run_in_order(const std::vector<Job>& jobs) {
  const DeviceScope scope(jobs.front().communicator->device);
  ncclResult_t result = ncclSuccess;
  for (const Job& job : jobs) {
    if (result == ncclSuccess) {
      result = job.run();
    }
  }
  Communicator& communicator = *jobs.front().communicator;
  hb_release(&communicator.ready_edge);
  const Guard guard(big_lock());
  if (communicator.blocking || !jobs.front().beside) {
    communicator.state = result;
    communicator.polls = communicator.blocking ? 0 : 2;
  }
  changed().notify();
  return result;
}

/// One thread for each communicator: jobs of several wait for each other.
ncclResult_t run_jobs(std::vector<Job> jobs) {
  std::vector<std::vector<Job>> parts;
  for (Job& job : jobs) {
    const auto found = std::ranges::find_if(parts, [&](const std::vector<Job>& part) {
      return part.front().communicator == job.communicator && part.front().beside == job.beside;
    });
    if (found == parts.end()) {
      parts.push_back({std::move(job)});
    } else {
      found->push_back(std::move(job));
    }
  }
  std::vector<ncclResult_t> results(parts.size(), ncclSuccess);
  std::vector<std::thread> threads;
  for (std::size_t i = 0; i < parts.size(); ++i) {
    Communicator& communicator = *parts[i].front().communicator;
    if (!communicator.blocking) {
      if (!parts[i].front().beside) {
        const Guard guard(big_lock());
        communicator.state = ncclInProgress;
      }
      results[i] = ncclInProgress;
      std::thread([part = std::move(parts[i])] { run_in_order(part); }).detach();
    } else if (parts.size() == 1) {
      results[i] = run_in_order(parts[i]);
    } else {
      threads.emplace_back([&results, &parts, i] { results[i] = run_in_order(parts[i]); });
    }
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
  ncclResult_t result = ncclSuccess;
  for (const ncclResult_t part : results) {
    if (result == ncclSuccess || (result == ncclInProgress && part != ncclSuccess)) {
      result = part;
    }
  }
  return result;
}

ncclResult_t flush() {
  Group& open = group();
  const std::vector<Issued> calls = std::move(open.calls);
  std::vector<Job> jobs = std::move(open.jobs);
  open.calls.clear();
  open.jobs.clear();
  const ncclResult_t error = std::exchange(open.error, ncclSuccess);
  if (error != ncclSuccess) {
    return error;
  }
  ncclResult_t result = jobs.empty() ? ncclSuccess : run_jobs(std::move(jobs));
  std::vector<const Communicator*> order;
  std::map<const Communicator*, std::vector<const Issued*>> by_communicator;
  for (const Issued& issued : calls) {
    auto& part = by_communicator[issued.communicator.get()];
    if (part.empty()) {
      order.push_back(issued.communicator.get());
    }
    part.push_back(&issued);
  }
  for (const Communicator* communicator : order) {
    const ncclResult_t launched = launch(by_communicator[communicator]);
    if (launched != ncclSuccess) {
      return launched;
    }
    if (!communicator->blocking && result == ncclSuccess) {
      result = ncclInProgress;
    }
  }
  return result;
}

}  // namespace

ncclResult_t schedule(Job job) {
  group().jobs.push_back(std::move(job));
  return group().depth > 0 ? ncclSuccess : flush();
}

ncclResult_t submit(ncclComm_t handle, Call call, cudaStream_t stream) {
  const std::string api = std::string("nccl") + name_of(call.operation);
  const auto communicator = find(handle, api.c_str(), Use::issue);
  Group& open = group();
  ncclResult_t result = ncclInvalidArgument;
  if (communicator) {
    result = ensure_ready(*communicator, api.c_str());
    if (result == ncclSuccess) {
      result = check_call(*communicator, api.c_str(), call, stream);
    }
    if (result != ncclSuccess && !communicator->blocking) {
      const Guard guard(big_lock());
      communicator->state = result;
    }
  }
  if (result != ncclSuccess) {
    if (open.depth > 0) {
      open.error = result;
    }
    return result;
  }
  const bool message = call.operation == Operation::send || call.operation == Operation::receive;
  if (call.count > 0 || message) {
    open.calls.push_back({communicator, call, stream});
  }
  return open.depth > 0 ? ncclSuccess : flush();
}

}  // namespace emulation

using namespace emulation;

ncclResult_t ncclGroupStart() {
  ++group().depth;
  return ncclSuccess;
}
SHARDWISE_NCCL_ALIAS(GroupStart);

ncclResult_t ncclGroupEnd() {
  if (group().depth == 0) {
    return refuse(ncclInvalidUsage, "ncclGroupEnd: not in a group");
  }
  return --group().depth > 0 ? ncclSuccess : flush();
}
SHARDWISE_NCCL_ALIAS(GroupEnd);

ncclResult_t ncclGroupSimulateEnd(ncclSimInfo_t* info) {
  if (info == nullptr || group().depth == 0) {
    return refuse(ncclInvalidArgument, "ncclGroupSimulateEnd: not in a group, or no place");
  }
  Group& open = group();
  double microseconds = 0;
  for (const Issued& issued : open.calls) {
    microseconds += duration(issued.call, issued.communicator->link->ranks());
  }
  info->estimatedTime = static_cast<float>(microseconds);
  --open.depth;
  open.calls.clear();
  open.jobs.clear();
  return std::exchange(open.error, ncclSuccess);
}
SHARDWISE_NCCL_ALIAS(GroupSimulateEnd);
