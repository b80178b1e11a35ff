#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <optional>

namespace shardwise::inline v0_1 {

/// One kind of link, by the model of Hockney: a message of s bytes takes latency + s / bandwidth.
struct Link {
  double latency = 0;    ///< seconds
  double bandwidth = 0;  ///< bytes per second that one device sends, and receives at the same time

  [[nodiscard]] bool operator==(const Link&) const = default;
};

/// What whole collectives took on a machine: latency + ring bytes / bandwidth, the ring bytes being
/// (N-1)/N of the buffer (twice that for an all_reduce). For one number of ranks.
struct MeasuredCollectives {
  Link all_gather;
  Link reduce_scatter;
  Link all_reduce;
  double scalar = 0;  ///< seconds of a collective over one number, for which the host waits

  [[nodiscard]] bool operator==(const MeasuredCollectives&) const = default;
};

/// How sums over ranks travel.
enum class SumPath : std::uint8_t {
  ring,    ///< each hop adds: as many bytes as an all-gather (NCCL's own order)
  direct,  ///< every rank sends every other one its part, which sums them (the canonical order)
};

/// Devices and what lies between them; the model of what collectives take. Consecutive ranks share
/// a node.
///
/// A ring over N ranks on M nodes of G moves (N-1)/N of the buffer over each device's link in the
/// node; the buffer enters each node once, over the links of all its devices together: (M-1)/M of
/// it, divided by G. Direct sums have no partner in the node who adds first: (N-G)/N of the buffer
/// leaves each device over its own network link. The slower of both is the transfer's time (they
/// overlap). Latency: a message for each hop of a ring within the node, and one for each doubling
/// between nodes.
struct Topology {
  int devices_per_node = 8;
  Link node;
  Link network;              ///< of each device, to other nodes
  double sum_bandwidth = 0;  ///< bytes of contributions that a device adds in a second; 0: free
  SumPath sums = SumPath::ring;
  /// Takes the place of all the above.
  std::optional<MeasuredCollectives> measured = std::nullopt;

  /// Seconds for a buffer of `bytes`, the whole of it, over `world` ranks.
  [[nodiscard]] double all_gather(double bytes, int world) const noexcept {
    if (world <= 1) return 0;
    if (measured) return of(measured->all_gather, ring_bytes(bytes, world));
    return latency(world) + ring(bytes, world);
  }
  [[nodiscard]] double reduce_scatter(double bytes, int world) const noexcept {
    if (world <= 1) return 0;
    if (measured) return of(measured->reduce_scatter, ring_bytes(bytes, world));
    return latency(world) + (sums == SumPath::ring ? ring(bytes, world) : direct(bytes, world)) +
           (sum_bandwidth > 0 ? bytes / sum_bandwidth : 0);
  }
  [[nodiscard]] double all_reduce(double bytes, int world) const noexcept {
    if (world <= 1) return 0;
    if (measured) return of(measured->all_reduce, 2 * ring_bytes(bytes, world));
    return reduce_scatter(bytes, world) + all_gather(bytes, world);
  }
  /// A collective over a few numbers, or none.
  [[nodiscard]] double scalar(int world) const noexcept {
    if (world <= 1) return 0;
    return measured ? measured->scalar : latency(world);
  }

  /// What lies between ranks of one part, where the ranks are shared out into parts of `size` that
  /// are `stride` apart, and all parts communicate at the same time, each device over its own
  /// links. Where parts do not fill nodes alike: the part that has the fewest of its ranks in a
  /// node. What was measured is taken to hold for any part.
  [[nodiscard]] Topology part(int size, int stride) const noexcept {
    Topology result = *this;
    const int devices = std::max(1, devices_per_node);
    if (stride == 1) {
      const bool aligned = devices % size == 0 || size % devices == 0;
      result.devices_per_node = aligned ? std::min(devices, size) : std::gcd(devices, size);
    } else {
      result.devices_per_node = devices % stride == 0 ? devices / stride : 1;
    }
    return result;
  }

  [[nodiscard]] bool operator==(const Topology&) const = default;

 private:
  struct Shape {
    double devices;  // of a node
    double nodes;
    double world;
  };
  [[nodiscard]] Shape shape(int world) const noexcept {
    const int devices = std::clamp(devices_per_node, 1, world);
    const int nodes = (world + devices - 1) / devices;
    return {static_cast<double>(devices), static_cast<double>(nodes), static_cast<double>(world)};
  }
  [[nodiscard]] static double ring_bytes(double bytes, int world) noexcept {
    return bytes * (world - 1) / world;
  }
  [[nodiscard]] static double of(const Link& link, double bytes) noexcept {
    return link.latency + (link.bandwidth > 0 ? bytes / link.bandwidth : 0);
  }
  [[nodiscard]] static double over(const Link& link, double bytes) noexcept {
    return link.bandwidth > 0 ? bytes / link.bandwidth : 0;
  }
  [[nodiscard]] double ring(double bytes, int world) const noexcept {
    const Shape s = shape(world);
    const double inside = s.devices > 1 ? over(node, bytes * (s.world - 1) / s.world) : 0;
    const double between =
        s.nodes > 1 ? over(network, bytes * (s.nodes - 1) / s.nodes / s.devices) : 0;
    return std::max(inside, between);
  }
  [[nodiscard]] double direct(double bytes, int world) const noexcept {
    const Shape s = shape(world);
    const double inside = over(node, bytes * (s.devices - 1) / s.world);
    const double between = over(network, bytes * std::max(0.0, s.world - s.devices) / s.world);
    return std::max(inside, between);
  }
  [[nodiscard]] double latency(int world) const noexcept {
    const Shape s = shape(world);
    const auto doublings = std::bit_width(static_cast<std::uint64_t>(s.nodes) - 1);
    return node.latency * (s.devices - 1) + network.latency * static_cast<double>(doublings);
  }
};

}  // namespace shardwise::inline v0_1
