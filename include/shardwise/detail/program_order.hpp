#pragma once

#include <algorithm>
#include <cstdint>

namespace shardwise::inline v0_1::detail {

/// Numbers a Context's operations in program order, the same on all ranks, and knows which of them
/// every rank has behind it. No clock and no event decides: ranks that call the same agree.
///
/// A collective of all ranks that has completed shows that each rank came to it: everything with a
/// smaller number is over on every rank.
class ProgramOrder {
 public:
  /// The number of the operation that happens now.
  std::uint64_t next() noexcept { return ++now_; }

  /// The same for a collective that cannot complete before all ranks have come to it, and which the
  /// communication stream runs: what it runs later is behind it.
  std::uint64_t issue() noexcept { return issued_ = next(); }
  /// The last of those; 0: none.
  [[nodiscard]] std::uint64_t issued() const noexcept { return issued_; }

  /// The host has waited for such a collective, of number `of`.
  void meet(std::uint64_t of) noexcept { met_ = std::max(met_, of); }
  /// The last one that it has waited for.
  [[nodiscard]] std::uint64_t met() const noexcept { return met_; }

 private:
  std::uint64_t now_ = 0;
  std::uint64_t issued_ = 0;
  std::uint64_t met_ = 0;
};

}  // namespace shardwise::inline v0_1::detail
