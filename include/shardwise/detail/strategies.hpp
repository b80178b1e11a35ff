#pragma once

#include <forward_list>

#include "../strategy.hpp"

namespace shardwise::inline v0_1::detail {

/// The strategies of a Context's parameters, or of a plan's: each is there once, however many
/// parameters have it.
class Strategies {
 public:
  /// The one that equals `strategy`; stays where it is as long as this lives.
  [[nodiscard]] const Strategy& keep(const Strategy& strategy) {
    for (const Strategy& known : known_) {
      if (known == strategy) return known;
    }
    return known_.emplace_front(strategy);
  }

 private:
  std::forward_list<Strategy> known_;
};

}  // namespace shardwise::inline v0_1::detail
