#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <shardwise/device/cuda.hpp>

#include "../train_gpt/options.hpp"
#include "../train_gpt/text.hpp"
#include "array.hpp"

namespace cuda_gpt {

/// What goes to the device for a step, the bytes of this rank's sequences, and what comes back, the
/// loss of each. One copy each way a step, beside what the host does: from and to page-locked
/// memory, which the host touches only where the stream has nothing to do with it.
class StepData {
 public:
  StepData(const train_gpt::Options& options, const train_gpt::Share& share)
      : sequence_(options.sequence),
        micro_tokens_(share.at_once * options.sequence),
        tokens_(share.sequences * options.sequence),
        host_bytes_(2 * tokens_),
        device_bytes_(2 * tokens_),
        host_losses_(tokens_),
        device_losses_(tokens_) {}

  /// Reads the step's sequences from `first` on. The stream has run all that was enqueued for the
  /// step before.
  void send(const train_gpt::Text& text, std::uint64_t seed, std::size_t step, std::size_t first,
            const shardwise::CudaStream& stream) {
    for (std::size_t at = 0; at < tokens_; at += sequence_) {
      text.read(seed, step, first + at / sequence_, {host_bytes_.data() + at, sequence_},
                {host_bytes_.data() + tokens_ + at, sequence_});
    }
    shardwise::cuda_check(
        cudaMemcpyAsync(device_bytes_.data(), host_bytes_.data(), host_bytes_.size(),
                        cudaMemcpyHostToDevice, stream.native()),
        "cudaMemcpyAsync");
  }

  /// On the device, of a micro-batch: its bytes, those that follow, and where its losses go.
  [[nodiscard]] const std::uint8_t* inputs(std::size_t micro_batch) const {
    return device_bytes_.data() + micro_batch * micro_tokens_;
  }
  [[nodiscard]] const std::uint8_t* targets(std::size_t micro_batch) const {
    return inputs(micro_batch) + tokens_;
  }
  [[nodiscard]] double* losses(std::size_t micro_batch) const {
    return device_losses_.data() + micro_batch * micro_tokens_;
  }

  /// Enqueues the copy of the losses. sum_of_losses() is of the step after the host has waited for
  /// the stream.
  void fetch(const shardwise::CudaStream& stream) {
    shardwise::cuda_check(
        cudaMemcpyAsync(host_losses_.data(), device_losses_.data(), tokens_ * sizeof(double),
                        cudaMemcpyDeviceToHost, stream.native()),
        "cudaMemcpyAsync");
  }
  [[nodiscard]] double sum_of_losses() const {
    double sum = 0;
    for (std::size_t i = 0; i < tokens_; ++i) sum += host_losses_.data()[i];
    return sum;
  }

 private:
  std::size_t sequence_;
  std::size_t micro_tokens_;
  std::size_t tokens_;                    // of the step
  PinnedArray<std::uint8_t> host_bytes_;  // inputs, then targets
  DeviceArray<std::uint8_t> device_bytes_;
  PinnedArray<double> host_losses_;
  DeviceArray<double> device_losses_;
};

}  // namespace cuda_gpt
