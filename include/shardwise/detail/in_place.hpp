#pragma once

#include <concepts>
#include <type_traits>

#include "address_range.hpp"
#include "mapped_pool.hpp"
#include "mapped_range.hpp"
#include "page_pool.hpp"

namespace shardwise::inline v0_1::detail {

/// Whether memory comes below a host's addresses by mappings of the device's driver, which are in
/// no stream's order: the host waits before it changes one, and does so late.
template <class Device>
concept MapsMemory = requires {
  typename Device::VirtualMemory;
};

/// The address range and the pool of residency in_place on a device.
template <class Device>
using RangeOf = std::conditional_t<MapsMemory<Device>, MappedRange<Device>, AddressRange>;
template <class Device>
using PoolOf = std::conditional_t<MapsMemory<Device>, MappedPool<Device>, PagePool>;

}  // namespace shardwise::inline v0_1::detail
