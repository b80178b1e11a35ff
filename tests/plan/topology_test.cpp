#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_floating_point.hpp>
#include <shardwise/comm/topology.hpp>

using namespace shardwise;
using Catch::Matchers::WithinRel;

namespace {

// Numbers without common factors, so that no two terms are alike.
Topology two_levels() {
  Topology topology;
  topology.devices_per_node = 4;
  topology.node = {2e-6, 100e9};
  topology.network = {11e-6, 10e9};
  return topology;
}

}  // namespace

TEST_CASE("a world of one sends nothing") {
  CHECK(two_levels().all_gather(1e9, 1) == 0);
  CHECK(two_levels().reduce_scatter(1e9, 1) == 0);
  CHECK(two_levels().all_reduce(1e9, 1) == 0);
  CHECK(two_levels().scalar(1) == 0);
}

TEST_CASE("a ring within a node moves (N-1)/N of the buffer over each link") {
  const Topology topology = two_levels();
  CHECK_THAT(topology.all_gather(8e9, 4), WithinRel(3 * 2e-6 + 8e9 * 3 / 4 / 100e9));
  CHECK_THAT(topology.all_gather(8e9, 2), WithinRel(1 * 2e-6 + 8e9 * 1 / 2 / 100e9));
  CHECK_THAT(topology.all_reduce(8e9, 4), WithinRel(2 * topology.all_gather(8e9, 4)));
  CHECK_THAT(topology.scalar(4), WithinRel(3 * 2e-6));
}

TEST_CASE("parts of consecutive ranks lie in a node, those across groups do not") {
  const Topology topology = two_levels();  // 4 devices a node
  CHECK(topology.part(4, 1).devices_per_node == 4);
  CHECK(topology.part(2, 1).devices_per_node == 2);
  CHECK(topology.part(8, 1).devices_per_node == 4);
  CHECK(topology.part(3, 1).devices_per_node == 1);  // one of them lies in two nodes
  CHECK(topology.part(6, 1).devices_per_node == 2);
  CHECK(topology.part(3, 4).devices_per_node == 1);
  CHECK(topology.part(4, 2).devices_per_node == 2);
  CHECK(topology.part(2, 8).devices_per_node == 1);
  // Within a node no byte takes the network; across groups of a node's ranks all do.
  CHECK_THAT(topology.part(4, 1).all_gather(8e9, 4), WithinRel(3 * 2e-6 + 8e9 * 3 / 4 / 100e9));
  CHECK_THAT(topology.part(2, 4).all_gather(8e9, 2), WithinRel(11e-6 + 8e9 / 2 / 10e9));
}

TEST_CASE("between nodes the buffer enters each node once, over all its devices' links") {
  const Topology topology = two_levels();
  // 3 nodes: two doublings of messages; 2/3 of the buffer over four links of 10 GB/s.
  CHECK_THAT(topology.all_gather(6e9, 12),
             WithinRel(3 * 2e-6 + 2 * 11e-6 + 6e9 * 2 / 3 / (4 * 10e9)));
  // Where the network is fast the links in the node are what takes the time.
  Topology fast = topology;
  fast.network.bandwidth = 1e15;
  CHECK_THAT(fast.all_gather(6e9, 12), WithinRel(3 * 2e-6 + 2 * 11e-6 + 6e9 * 11 / 12 / 100e9));
}

TEST_CASE("direct sums send each part over the sender's own network link") {
  Topology topology = two_levels();
  topology.sums = SumPath::direct;
  CHECK_THAT(topology.reduce_scatter(6e9, 12),
             WithinRel(3 * 2e-6 + 2 * 11e-6 + 6e9 * (12 - 4) / 12 / 10e9));
  // Within one node there is no difference to a ring but the sum itself.
  CHECK_THAT(topology.reduce_scatter(8e9, 4), WithinRel(two_levels().reduce_scatter(8e9, 4)));
  topology.sum_bandwidth = 1e12;
  CHECK_THAT(topology.reduce_scatter(8e9, 4),
             WithinRel(two_levels().reduce_scatter(8e9, 4) + 8e9 / 1e12));
}

TEST_CASE("what was measured takes the place of the model") {
  Topology topology = two_levels();
  topology.measured = MeasuredCollectives{{1e-3, 1e9}, {2e-3, 2e9}, {3e-3, 4e9}, 5e-5};
  CHECK_THAT(topology.all_gather(4e9, 4), WithinRel(1e-3 + 3e9 / 1e9));
  CHECK_THAT(topology.reduce_scatter(4e9, 4), WithinRel(2e-3 + 3e9 / 2e9));
  CHECK_THAT(topology.all_reduce(4e9, 4), WithinRel(3e-3 + 6e9 / 4e9));
  CHECK_THAT(topology.scalar(4), WithinRel(5e-5));
}
