#pragma once

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <limits>
#include <new>
#include <span>
#include <string>
#include <vector>

#include "comm/collectives.hpp"
#include "context.hpp"
#include "core/format.hpp"
#include "core/math.hpp"
#include "core/observer.hpp"
#include "detail/engine.hpp"
#include "detail/overlap_meter.hpp"
#include "detail/registration.hpp"
#include "detail/slot_plan.hpp"

namespace shardwise::inline v0_1 {

/// What measure_overlap is told; the same on all ranks.
struct OverlapOptions {
  /// Bytes of the smallest and of the largest collective that is measured. Smaller ones stay in the
  /// caller, larger ones are taken to be like the largest.
  std::size_t least = std::size_t{256} << 10;
  std::size_t most = std::size_t{32} << 20;
  /// How long a layer computes, in times of what its collectives take.
  double compute = 3;
  /// About how long each size takes. At least five runs of each form, or three where one takes
  /// more than this, however long they take: those of 32 MiB, and their compute, most of a second.
  std::chrono::nanoseconds budget = std::chrono::milliseconds(100);
};

/// What measure_overlap found; the same on all ranks where it has measured.
struct OverlapChoice {
  std::size_t overlap_from = 0;        ///< what Context::overlap_from() says now
  std::vector<OverlapSample> samples;  ///< by size; empty: nothing was measured

  [[nodiscard]] bool measured() const noexcept { return !samples.empty(); }

  /// One line for people: what was chosen, and what of.
  [[nodiscard]] std::string describe() const {
    const auto mebibytes = [](std::size_t bytes) {
      return detail::format("{:.4g} MiB", static_cast<double>(bytes) / (1 << 20));
    };
    std::string text = "collectives of " + mebibytes(overlap_from) + " and more run beside compute";
    if (overlap_from == 0) text = "all collectives run beside compute";
    if (overlap_from == std::numeric_limits<std::size_t>::max()) {
      text = "all collectives run in the caller";
    }
    if (!measured()) return text + " (not measured)";
    text += "; ms measured in the caller and beside compute";
    for (const OverlapSample& sample : samples) {
      text += detail::format("{} {} {:.3f} {:.3f}", &sample == samples.data() ? ":" : ",",
                             mebibytes(sample.bytes), sample.in_caller * 1e3, sample.beside * 1e3);
    }
    return text;
  }
};

namespace detail {

/// Parameters whose gathers move something.
template <class Device>
[[nodiscard]] std::vector<const Registration*> gathered_entries(Context<Device>& context) {
  std::vector<const Registration*> entries;
  for (const Registration* entry : context.parameter_store().parameters()) {
    if (!entry->lends_storage()) entries.push_back(entry);
  }
  return entries;
}

/// Sizes of the collectives of registered parameters and gradients, ascending and bounded: each
/// stands for those up to half as large again. The same on all ranks.
template <class Device>
[[nodiscard]] std::vector<std::size_t> measured_sizes(Context<Device>& context,
                                                      const OverlapOptions& options) {
  std::vector<std::size_t> all;
  const std::vector<const Registration*> gathered = gathered_entries(context);
  for_each_unit(gathered, group_parameters(gathered),
                [&](std::span<const Registration* const> unit) {
                  std::size_t& bytes = all.emplace_back(0);
                  for (const Registration* entry : unit) bytes += entry->lease_bytes();
                });
  std::vector<const Registration*> reduced;
  for (const auto* gradient : context.gradient_store().gradients()) {
    reduced.push_back(&gradient->parameter);
  }
  for_each_unit(reduced, group_gradients(reduced), [&](std::span<const Registration* const> unit) {
    std::size_t& bytes = all.emplace_back(0);
    for (const Registration* entry : unit) bytes += entry->gradient_bytes();
  });
  std::sort(all.begin(), all.end());
  std::vector<std::size_t> sizes;
  for (const std::size_t bytes : all) {
    const std::size_t size = std::min(bytes, options.most);
    if (size < options.least) continue;
    if (sizes.empty() || size > sizes.back() + sizes.back() / 2) sizes.push_back(size);
  }
  return sizes;
}

}  // namespace detail

/// Chooses by measurement which collectives of this context run beside compute and which the caller
/// runs itself, in place of the rule that ContextOptions::overlap_from has for hosts that do not
/// say: those of the smallest size that gains, where all larger ones gain, and above; none where
/// the largest does not. The same bits afterwards.
///
/// A collective call: all ranks make it at the same point, once everything is registered and before
/// the first step. It makes collectives of the registered parameters' sizes, of f32, on the whole
/// communicator (also where groups shard), beside a loop that needs no memory; the largest first,
/// and smaller ones only where that gains. Statistics and observers see none of them. Until it
/// returns it holds the largest once, and a rank's part of it, in the device's memory, counted as
/// slots: before these are allocated (Context::prepare, the first gather) it is less than they will
/// need where parameters and gradients have some, and peak_held() does not grow by it.
///
/// Nothing is measured and nothing changes where one of the ranks named an overlap_from or has no
/// Strategy::overlap; with one rank; where no size is as large as OverlapOptions::least; and on
/// devices whose streams are not the host's (CUDA).
///
/// Throws what collectives throw: where a rank fails, or does not come, the others' calls end with
/// PeerFailed.
template <class Device>
OverlapChoice measure_overlap(Context<Device>& context, const OverlapOptions& options = {}) {
  detail::Engine<Device>& engine = context.engine();
  OverlapChoice choice{engine.overlap_from, {}};
  if constexpr (detail::Engine<Device>::has_overlap_rule) {
    engine.check();
    if (!detail::is_finite(options.compute) || options.compute < 0) {
      raise("OverlapOptions::compute is a number of times, not negative, found {}",
            options.compute);
    }
    const std::vector<std::size_t> sizes = detail::measured_sizes(context, options);
    if (sizes.empty() || context.world() == 1) return choice;
    const bool mine = engine.leaves_overlap_open();
    if (!shardwise::all(engine.comm, mine, engine.info("measure_overlap"))) return choice;
    engine.communication.synchronize();
    engine.ledger.about(no_subject);
    choice.overlap_from = std::numeric_limits<std::size_t>::max();
    try {
      const bool gathers = !detail::gathered_entries(context).empty();
      detail::OverlapMeter<Device> meter(engine, sizes, options.compute, gathers);
      for (std::size_t i = sizes.size(); i > 0; --i) {
        choice.samples.push_back(meter.measure(sizes[i - 1], options.budget));
        if (!choice.samples.back().gains) break;
        choice.overlap_from = sizes[i - 1];
      }
    } catch (const std::bad_alloc&) {  // which this rank alone may see
      engine.comm.abort("there is no memory to measure overlap in");
      throw;
    }
    std::reverse(choice.samples.begin(), choice.samples.end());
    engine.overlap_from = choice.overlap_from;
  }
  return choice;
}

}  // namespace shardwise::inline v0_1
