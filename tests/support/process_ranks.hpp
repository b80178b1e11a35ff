#pragma once

#include <cuda_runtime_api.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <memory>
#include <shardwise/comm/file_rendezvous.hpp>
#include <shardwise/comm/nccl.hpp>
#include <string>

namespace shardwise::test {

/// This process as one rank of several that run the same tests in the same order, each with a
/// device of its own: launch variables say which, and SHARDWISE_TEST_PROCESSES names an empty
/// directory for their meetings.
class ProcessRanks {
 public:
  /// Null where this program runs alone.
  [[nodiscard]] static ProcessRanks* of_this_run() {
    static const std::unique_ptr<ProcessRanks> ranks =
        std::getenv("SHARDWISE_TEST_PROCESSES") == nullptr
            ? nullptr
            : std::unique_ptr<ProcessRanks>(new ProcessRanks);
    return ranks.get();
  }

  ProcessRanks(const ProcessRanks&) = delete;
  ProcessRanks& operator=(const ProcessRanks&) = delete;
  ~ProcessRanks() {
    std::printf("emulated: %d runs as rank %d of %d processes\n", runs_, launch_.rank,
                launch_.size);
  }

  [[nodiscard]] int rank() const noexcept { return launch_.rank; }
  [[nodiscard]] int size() const noexcept { return launch_.size; }

  /// What f(communicator) gives on this rank; all processes call it.
  template <class F>
  auto run(F& f, const NcclOptions& options) {
    const auto meeting = std::make_shared<FileRendezvous>(
        directory_ + "/" + std::to_string(++runs_), launch_.rank, launch_.size, patience);
    const CudaDeviceGuard guard(launch_.rank);
    auto result = as_rank(f, meeting, options);
    // The emulation's ranks meet in the first one's process, and its part in a run is over later.
    static_cast<void>(meeting->exchange("done", "", patience));
    return result;
  }

 private:
  static constexpr std::chrono::seconds patience{100};

  ProcessRanks() : directory_(std::getenv("SHARDWISE_TEST_PROCESSES")), launch_(detect_launch()) {}

  template <class F>
  static auto as_rank(F& f, const std::shared_ptr<FileRendezvous>& meeting,
                      const NcclOptions& options) {
    NcclCommunicator communicator(meeting, options);
    try {
      return f(static_cast<Communicator&>(communicator));
    } catch (const std::exception& error) {
      communicator.abort(error.what());
      throw;
    }
  }

  std::string directory_;
  Launch launch_;
  int runs_ = 0;
};

}  // namespace shardwise::test
