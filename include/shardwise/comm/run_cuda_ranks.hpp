#pragma once

#include <cuda_runtime_api.h>

#include <concepts>
#include <cstddef>
#include <exception>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "../core/error.hpp"
#include "../device/cuda_error.hpp"
#include "communicator.hpp"
#include "nccl_communicator.hpp"
#include "nccl_options.hpp"
#include "rendezvous.hpp"

namespace shardwise::inline v0_1 {

/// Runs f(communicator) on `size` threads, rank r with device r as its current one, and waits for
/// all of them. A rank that throws aborts the group: its peers get PeerFailed, and run_cuda_ranks
/// rethrows the first rank's own exception. A rank that returns has left the group. BackendError
/// where there are fewer devices.
template <class F>
requires std::invocable<F&, Communicator&>
void run_cuda_ranks(int size, F&& f, const NcclOptions& options = {}) {
  static_assert(std::same_as<std::invoke_result_t<F&, Communicator&>, void>,
                "run_cuda_ranks: the function must return void; hand results out by captures");
  int devices = 0;
  cuda_check(cudaGetDeviceCount(&devices), "cudaGetDeviceCount");
  if (size > devices) {
    raise<BackendError>("{} ranks need a CUDA device each, and there are {}", size, devices);
  }
  const std::vector<std::shared_ptr<Rendezvous>> meeting = LocalRendezvous::make(size);
  std::vector<std::exception_ptr> failures(meeting.size());
  const auto run = [&](std::size_t r) {
    const auto failed = [&](const char* message) {
      failures[r] = std::current_exception();
      meeting[r]->fail({static_cast<int>(r), message});
    };
    try {
      cuda_check(cudaSetDevice(static_cast<int>(r)), "cudaSetDevice");
      NcclCommunicator communicator(meeting[r], options);
      f(static_cast<Communicator&>(communicator));
    } catch (const std::exception& error) {
      failed(error.what());
    } catch (...) {
      failed("an exception that is not a std::exception");
    }
  };
  std::vector<std::thread> threads;
  try {
    threads.reserve(meeting.size());
    for (std::size_t r = 0; r < meeting.size(); ++r) threads.emplace_back(run, r);
  } catch (const std::exception& error) {
    meeting.back()->fail({size - 1, error.what()});
    for (std::thread& thread : threads) thread.join();
    throw;
  }
  for (std::thread& thread : threads) thread.join();
  const auto first = meeting.front()->failure();
  if (first && failures[static_cast<std::size_t>(first->rank)]) {
    std::rethrow_exception(failures[static_cast<std::size_t>(first->rank)]);
  }
  for (const std::exception_ptr& failure : failures) {
    if (failure) std::rethrow_exception(failure);
  }
}

}  // namespace shardwise::inline v0_1
