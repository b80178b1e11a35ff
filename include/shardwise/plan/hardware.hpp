#pragma once

#include <cstddef>
#include <string>

#include "../comm/topology.hpp"
#include "../device/simulated_clock.hpp"
#include "model.hpp"

namespace shardwise::inline v0_1 {

/// The machines that a plan is for. Rates are those that programs reach, not those of data sheets.
struct Hardware {
  std::string name;
  double flops = 0;            ///< of matrix products in a second; 0: step times are not predicted
  double attention_flops = 0;  ///< the same within attention; 0: flops
  double exponentials = 0;     ///< elements in a second; 0: they cost nothing beside the rest
  double element_bandwidth = 0;  ///< bytes in a second of the host's kernels that are no products;
                                 ///< 0: processor.memory_bandwidth
  std::size_t memory = 0;        ///< bytes of each device; 0: not known
  Processor processor;
  Topology topology;

  /// Seconds of this work on one device.
  [[nodiscard]] double seconds(const PlannedWork& work) const noexcept {
    const auto over = [](double amount, double rate) { return rate > 0 ? amount / rate : 0; };
    return over(work.flops, flops) +
           over(work.attention_flops, attention_flops > 0 ? attention_flops : flops) +
           over(work.bytes,
                element_bandwidth > 0 ? element_bandwidth : processor.memory_bandwidth) +
           over(work.exponentials, exponentials) + over(work.streamed, processor.memory_bandwidth);
  }
  [[nodiscard]] bool operator==(const Hardware&) const = default;
};

}  // namespace shardwise::inline v0_1
