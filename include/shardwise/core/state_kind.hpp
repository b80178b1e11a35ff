#pragma once

#include <array>
#include <cstdint>
#include <string_view>

namespace shardwise::inline v0_1 {

/// What a buffer is for.
enum class StateKind : std::uint8_t {
  parameters,       ///< storage at rest and replicated copies in the lease type
  gradients,        ///< stored gradients
  optimizer_state,  ///< element state of the optimizer
  slots,            ///< everything else that a step needs: slots, landing buffers, scalars
  crumbs            ///< of residency in_place: what stays below the host's addresses at release
};

/// All of them, in order.
inline constexpr std::array<StateKind, 5> state_kinds{StateKind::parameters, StateKind::gradients,
                                                      StateKind::optimizer_state, StateKind::slots,
                                                      StateKind::crumbs};

/// "parameters", "gradients", "optimizer state", "slots" or "crumbs".
[[nodiscard]] constexpr std::string_view name_of(StateKind kind) noexcept {
  constexpr std::string_view names[] = {"parameters", "gradients", "optimizer state", "slots",
                                        "crumbs"};
  return names[static_cast<std::size_t>(kind)];
}

}  // namespace shardwise::inline v0_1
