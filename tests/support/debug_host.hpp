#pragma once

#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <chrono>
#include <cstddef>
#include <functional>
#include <shardwise/shardwise.hpp>
#include <string>
#include <vector>

#include "device.hpp"
#include "ranks.hpp"
#include "sanitized.hpp"

namespace shardwise::test {

/// Where a debugged host's tensors are: in slots of the library.
struct InSlots {
  static constexpr bool in_place = false;
  InSlots(Context<Device>&, std::size_t /*bytes*/) {}
};

/// A trainer in debug mode: two layers, each of a tensor large enough for pages of its own and a
/// small one. In place: all wide tensors, then all narrow ones, in `Place::weights` and, for the
/// gradients, `Place::gradients`.
template <class Place>
class DebugHost {
 public:
  static constexpr std::size_t layers = 2, wide = 60000, narrow = 100;

  explicit DebugHost(Communicator& communicator, const Strategy& strategy = Strategy::zero3(),
                     std::chrono::nanoseconds timeout = std::chrono::seconds(30))
      : context(communicator, strategy, {.timeout = timeout, .debug = true}),
        place(context, layers * (wide + narrow) * sizeof(float)) {
    for (std::size_t l = 0; l < layers; ++l) {
      const ParameterOptions options{.name = fmt::format("layer.{}", l)};
      if constexpr (Place::in_place) {
        const auto tensors = stacked(layers, {{"wide", place.weights.template as<float>(), {wide}},
                                              {"narrow", narrow_of(place.weights, 0), {narrow}}});
        parameter.emplace_back(context, tensors[l], options);
      } else {
        parameter.emplace_back(context,
                               std::vector<TensorSpec>{{fmt::format("wide.{}", l), {wide}},
                                                       {fmt::format("narrow.{}", l), {narrow}}},
                               options);
      }
      parameter[l].initialize([](const auto&, std::size_t) { return 1.0f; });
    }
    for (auto& p : parameter) {
      if constexpr (Place::in_place) {
        gradient.emplace_back(p, place.gradients);
      } else {
        gradient.emplace_back(p);
      }
      state.emplace_back(p);
    }
  }

  template <class Arena>
  [[nodiscard]] static float* wide_of(const Arena& arena, std::size_t layer) {
    return arena.template as<float>() + layer * wide;
  }
  template <class Arena>
  [[nodiscard]] static float* narrow_of(const Arena& arena, std::size_t layer) {
    return arena.template as<float>() + layers * wide + layer * narrow;
  }

  /// A step as it should be.
  void step() {
    for (std::size_t l = 0; l < layers; ++l) {
      parameter[l].ensure_gathered();
      parameter[l].release();
    }
    for (std::size_t l = layers; l-- > 0;) {
      parameter[l].ensure_gathered();
      gradient[l].ensure_open();
      gradient[l].reduce();
      parameter[l].release();
    }
    clip_gradient_norm(context, 1.0);
    for (std::size_t l = 0; l < layers; ++l) state[l].step(parameter[l], gradient[l]);
  }

  Context<Device> context;
  Place place;  // outlives the parameters
  std::vector<Parameter<float>> parameter;
  std::vector<Gradient<float>> gradient;
  std::vector<State<AdamW>> state;
};

/// What each rank's function threw: "Type: message".
inline std::vector<std::string> ends_of(int world, const std::function<void(Communicator&)>& f,
                                        const RankOptions& options = {}) {
  std::vector<std::string> ends(static_cast<std::size_t>(world));
  try {
    run_on_ranks(
        world,
        [&](Communicator& communicator) {
          std::string& end = ends[static_cast<std::size_t>(communicator.rank())];
          try {
            f(communicator);
          } catch (const CollectiveMismatch& error) {
            end = std::string("CollectiveMismatch: ") + error.what();
            throw;
          } catch (const UsageError& error) {
            end = std::string("UsageError: ") + error.what();
            throw;
          } catch (const PeerFailed& error) {
            end = std::string("PeerFailed: ") + error.what();
            throw;
          } catch (const TimedOut& error) {
            end = std::string("TimedOut: ") + error.what();
            throw;
          } catch (const std::exception& error) {
            end = std::string("other: ") + error.what();
            throw;
          }
        },
        options);
  } catch (const std::exception&) {
  }
  return ends;
}

/// Rank 0's mistake ends every rank, by the names in `parts`.
inline void check_all_end(int world, const std::vector<std::string>& parts,
                          const std::function<void(Communicator&)>& f,
                          const RankOptions& options = {}) {
  using Catch::Matchers::ContainsSubstring;
  const auto ends = ends_of(world, f, options);
  for (std::size_t rank = 0; rank < ends.size(); ++rank) {
    INFO("world " << world << " rank " << rank);
    CHECK_THAT(ends[rank],
               ContainsSubstring(rank == 0 || parts[0] != "UsageError" ? parts[0] : "PeerFailed"));
    if (rank > 0 && heard_early(ends[rank])) continue;
    for (std::size_t i = 1; i < parts.size(); ++i) {
      CHECK_THAT(ends[rank], ContainsSubstring(parts[i]));
    }
  }
}

}  // namespace shardwise::test
