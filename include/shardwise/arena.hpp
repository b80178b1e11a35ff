#pragma once

#include <algorithm>
#include <cstddef>
#include <string>
#include <utility>

#include "context.hpp"
#include "core/error.hpp"
#include "detail/address_range.hpp"
#include "detail/in_place.hpp"
#include "detail/share_pages.hpp"
#include "device/host.hpp"

namespace shardwise::inline v0_1 {

/// How memory comes below an arena's addresses.
using ArenaRecycling = detail::Recycling;
/// When a released parameter's memory leaves its addresses.
using ArenaRelease = detail::Release;

/// For arenas of the CPU; a device has its own way.
struct ArenaOptions {
  /// How memory comes below the addresses of parameters; one of both first kinds for all arenas
  /// whose parameters take turns in a context. Slots, and so gathers, are the same.
  /// - `move`: a release gives the range back to the system's eyes, too: it has no pages until the
  ///   next gather. Each move makes the system interrupt every core on which a thread of the
  ///   process runs, so where ranks are threads it is dear (a multiple of the copy at 4 MiB in many
  ///   spans).
  /// - `alias`: memory that a parameter was once gathered into stays below its addresses, below
  ///   several parameters' at once, until it is gathered into another slot. Steps of a forward and
  ///   a backward pass use the same slots each time, so they ask nothing of the system and cost
  ///   what Residency::slots costs (forward passes alone of a number of layers that the slots do
  ///   not divide change slots, and pay about what moving costs). The price: a released parameter
  ///   shows what was gathered into the same memory since, and a write to it damages that, or its
  ///   own next gather where that is free; debug mode moves pages, and finds both. Shared memory is
  ///   counted where it is shown: the resident size of the process (RSS, which some batch systems
  ///   limit) and its page tables grow with the arena, its proportional size (Pss) does not. A
  ///   child process shares the memory; race detectors do not see that two addresses are one. Where
  ///   the system cannot, pages move. `release` makes no difference.
  /// - `refill`: for systems that cannot move pages (Linux before 5.7), where it is chosen without
  ///   being asked for; it is several times slower.
  /// Gradients are zero when they are not leased, so their arenas take `alias` for `move`.
  ArenaRecycling recycling = ArenaRecycling::move;
  /// `lazy` moves pages once for each gather, not twice. The memory in all is the same. Debug mode
  /// is eager.
  ArenaRelease release = ArenaRelease::lazy;
  /// Of parameters, for ranks on one machine: they share the memory, as Residency::shared (what the
  /// ranks cannot share, and which strategies, is said there), in groups of the context's own
  /// strategy. A gather moves nothing; releases give nothing back, since what is there is the
  /// storage of all ranks, of which each writes its shard. Leases are of the storage type. Where
  /// ranks are threads all arenas of one group begin at the same address. Gradients are each
  /// rank's own: their arena is not shared.
  bool shared = false;
};

/// An address range for all of a host's parameters, or for all of its gradients, in the layout that
/// the host wants (residency in_place). Pointers into it stay valid as long as it lives; memory is
/// there only where a parameter is gathered, or its gradient leased. What belongs to no parameter
/// is ordinary memory, zero at the beginning. One for each rank. Made after the Context, destroyed
/// after the parameters in it and before the Context. Linux.
///
/// CPU: pages move between a pool and these addresses (or stay below several parameters at once,
/// see ArenaOptions::recycling), so a release gives back what lies in whole pages, from 64 KiB on;
/// what shares its pages with neighbours stays (Bytes::crumbs). Reading a released parameter gives
/// zeros, or values of long ago: ContextOptions::debug makes it an error.
///
/// CUDA: memory is mapped below these addresses in granules (2 MiB), and granules that tensors of
/// several parameters share stay (Bytes::crumbs counts their bytes, resident_bytes() whole
/// granules). Bytes of no parameter have no memory. Mapping is in no stream's order: a released
/// parameter keeps its memory until a gather needs it elsewhere, and that gather makes the host
/// wait until the last reader has run. So plan one slot more than for Residency::slots
/// (Strategy::prefetch = 2): then what is waited for is a layer earlier, and the device has work
/// meanwhile. Which memory is taken depends on program order alone. What was taken away faults;
/// until then it holds values of long ago, a gradient zeros. Collectives read and write these
/// addresses themselves: no window can cover memory that is mapped anew, so they are not in an
/// NcclArena.
template <class Device>
class DeviceArena {
 public:
  /// A shared one is made by all ranks together. UsageError where there are no bytes, or the ranks
  /// cannot share any, BackendError where the system has no such address range.
  DeviceArena(Context<Device>& context, std::size_t bytes, std::string name = "arena",
              ArenaOptions options = {})
      : engine_(&context.engine()),
        range_(
            bytes, name, options.recycling, options.release, engine_->options.debug,
            options.shared ? detail::share_pages(*engine_, bytes, name) : detail::SharedPages{}) {
    engine_->arenas.push_back(&range_);
  }
  DeviceArena(const DeviceArena&) = delete;
  DeviceArena& operator=(const DeviceArena&) = delete;
  ~DeviceArena() {
    engine_->quiesce();
    std::erase(engine_->arenas, &range_);
  }

  /// Where it begins: at a page.
  [[nodiscard]] std::byte* data() const noexcept { return range_.data(); }
  [[nodiscard]] std::size_t size() const noexcept { return range_.size(); }
  /// The element of type T at this offset; UsageError where that is not within the arena or not
  /// aligned.
  template <class T>
  [[nodiscard]] T* as(std::size_t byte_offset = 0) const {
    if (byte_offset > size() || byte_offset % alignof(T) != 0) {
      raise("arena '{}': byte {} of {} is outside, or not aligned to {}", range_.name(),
            byte_offset, size(), alignof(T));
    }
    return reinterpret_cast<T*>(data() + byte_offset);
  }

  /// Call it when all parameters are made: UsageError that lists the bytes that belong to none.
  /// (Bytes that would belong to two are an error when the second is made.)
  void check_coverage() const { range_.check_coverage(); }
  /// Bytes whose memory goes back when everything is released; the rest of size() stays.
  [[nodiscard]] std::size_t recycled_bytes() const noexcept { return range_.recycled_bytes(); }
  /// Bytes of memory that stay below these addresses: size() - recycled_bytes(), on a device in
  /// whole granules of what parameters use. Shared: of all ranks together.
  [[nodiscard]] std::size_t resident_bytes() const noexcept {
    if constexpr (detail::MapsMemory<Device>) {
      return range_.resident_bytes();
    } else {
      return size() - recycled_bytes();
    }
  }
  /// How memory comes below these addresses on this system.
  [[nodiscard]] ArenaRecycling recycling() const noexcept { return range_.recycling(); }

  /// The library's own side; not for hosts. UsageError where the arena is of another context.
  [[nodiscard]] detail::RangeOf<Device>* range(Context<Device>& context) {
    if (&context.engine() != engine_) {
      raise("arena '{}' was made for another context than the one that uses it", range_.name());
    }
    return &range_;
  }

 private:
  detail::Engine<Device>* engine_;
  detail::RangeOf<Device> range_;
};

/// Of a host whose memory is the CPU's.
using Arena = DeviceArena<HostDevice>;

}  // namespace shardwise::inline v0_1
