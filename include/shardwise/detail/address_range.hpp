#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <span>
#include <string>
#include <utility>

#include "../comm/communicator.hpp"
#include "../comm/shared_block.hpp"
#include "../core/error.hpp"
#include "../host_tensor.hpp"
#include "claimed_range.hpp"
#include "fault_watch.hpp"
#include "page_pool.hpp"
#include "pages.hpp"

namespace shardwise::inline v0_1::detail {

/// When a released parameter's memory leaves its addresses.
enum class Release : std::uint8_t {
  lazy,  ///< when the next parameter needs it, or when a parameter is written (a step)
  eager  ///< at once
};

/// Memory of a range that ranks share: nothing comes or goes there.
struct SharedPages {
  const Communicator* ranks = nullptr;  ///< null: none do
  std::unique_ptr<SharedBlock> block;   ///< holds `pages`, zero at the beginning
  PageRange pages;
};

/// An address range of the host's memory: what the public Arena of a CPU stands on. In debug mode
/// it also notes the first access to what is not lent.
class AddressRange final : public ClaimedRange, public FaultObserver {
 public:
  /// Pages below it are worth a system call.
  static constexpr std::size_t least_recycled = std::size_t{64} << 10;

  AddressRange(std::size_t bytes, std::string name, Recycling recycling, Release release,
               bool debug, SharedPages shared = {})
      : ClaimedRange(bytes, std::move(name)),
        recycling_(recycling),
        singly_(recycling == Recycling::refill ? Recycling::refill : Recycling::move),
        release_(debug ? Release::eager : release),
        debug_(debug && shared.ranks == nullptr),
        shared_(std::move(shared)) {
    if (is_shared()) {
      release_ = Release::lazy;
      begin_at(shared_.pages.begin);
      return;
    }
    if (singly_ == Recycling::move && !can_move_pages()) singly_ = Recycling::refill;
    // What lies below several ranges at once cannot be kept from who reads the wrong one.
    if (recycling_ != Recycling::alias || debug_ || !can_alias_pages()) recycling_ = singly_;
    pages_.bytes = round_up(bytes, page_size());
    pages_.begin = reserve_pages(pages_.bytes);
    begin_at(pages_.begin);
    if (!debug_) return;
    try {
      FaultWatch::of_process().add(*this, pages_);
    } catch (...) {
      unmap_pages(pages_);
      throw;
    }
  }
  AddressRange(const AddressRange&) = delete;
  AddressRange& operator=(const AddressRange&) = delete;
  ~AddressRange() {
    if (debug_) FaultWatch::of_process().remove(*this);
    if (!is_shared()) unmap_pages(pages_);
  }

  /// Who sees the same memory at the same offsets; null: nobody else does.
  [[nodiscard]] const Communicator* ranks() const noexcept { return shared_.ranks; }
  [[nodiscard]] Recycling recycling() const noexcept { return recycling_; }
  /// The same for memory that lies below one range at a time, as that of gradients.
  [[nodiscard]] Recycling recycling_singly() const noexcept { return singly_; }
  [[nodiscard]] Release release() const noexcept { return release_; }

  /// The bytes of these tensors belong to `parameter` until release(claim). `recycle`: their pages
  /// come and go (their crumbs stay); else all of it stays, and nothing of it is a crumb where
  /// ranks share it. UsageError, with both names, where a byte has an owner already.
  [[nodiscard]] Placed claim(const std::string& parameter, std::span<const HostTensor> tensors,
                             bool recycle) {
    Placed placed = claim_inner(parameter, tensors, [&](std::byte* begin, std::size_t bytes) {
      const bool goes = recycle && !is_shared();
      const PageRange inner = goes ? inner_pages(begin, bytes) : PageRange{};
      return inner.bytes < least_recycled ? PageRange{} : inner;
    });
    if (is_shared()) placed.clear();
    mappings_ += 2 * placed.pages().size();
    try {
      check_mappings(parameter);
      if (recycle) take_away(placed);
    } catch (...) {
      release(placed);
      throw;
    }
    return placed;
  }

  /// Nobody's any more, and readable; `placed` is what claim returned.
  void release(const Placed& placed) noexcept {
    mappings_ -= 2 * placed.pages().size();
    for (const PageRange& range : placed.pages()) {
      static_cast<void>(empty_pages(range, Access::write));
    }
    disclaim(placed);
  }

  /// Debug mode: what a released range holds where it stays readable.
  static constexpr int poison = 0xff;  // a NaN in every floating type

  static void poison_crumbs(const Placed& placed) noexcept {
    for (const auto& crumb : placed.crumbs()) std::memset(crumb.data(), poison, crumb.size());
  }

  /// Debug mode: the first access to what was not lent since the last call, as a sentence; empty
  /// where there was none.
  [[nodiscard]] std::string take_violation(int rank) {
    const std::uintptr_t packed = violation_.exchange(0);
    if (packed == 0) return {};
    return describe(reinterpret_cast<const std::byte*>(packed & ~std::uintptr_t{1}),
                    (packed & 1) != 0, rank);
  }
  /// Debug mode: as take_violation, for crumbs that were written while they were not lent.
  [[nodiscard]] std::string find_written_crumb(const Placed& placed, int rank) const {
    for (const auto& crumb : placed.crumbs()) {
      for (const std::byte& byte : crumb) {
        if (byte != static_cast<std::byte>(poison)) return describe(&byte, true, rank);
      }
    }
    return {};
  }

  /// The page becomes accessible, full of NaN, so that the thread goes on to the next call of the
  /// library, which throws.
  bool on_fault(std::byte* address, bool is_write) noexcept override {
    std::uintptr_t none = 0;
    violation_.compare_exchange_strong(
        none, (reinterpret_cast<std::uintptr_t>(address) & ~std::uintptr_t{1}) |
                  static_cast<std::uintptr_t>(is_write));
    const std::size_t page = page_size();
    const auto inside = static_cast<std::size_t>(address - pages_.begin);
    const PageRange touched{pages_.begin + inside / page * page, page};
    unsigned char resident = 0;
    const bool was_there = mincore(touched.begin, page, &resident) == 0 && (resident & 1) != 0;
    if (!protect_pages(touched, Access::write)) return false;
    if (!was_there) std::memset(touched.begin, poison, page);
    return true;
  }

 private:
  [[nodiscard]] bool is_shared() const noexcept { return shared_.ranks != nullptr; }

  void take_away(const Placed& placed) {
    for (const PageRange& range : placed.pages()) {
      if (empty_pages(range, debug_ ? Access::none : Access::write)) continue;
      raise_pages("emptying pages of an arena", range.bytes);
    }
    if (debug_) poison_crumbs(placed);
  }

  // A range that comes and goes cuts the arena's mapping in two places.
  void check_mappings(const std::string& parameter) const {
    const std::size_t most = most_mappings();
    if (mappings_ <= most / 2) return;
    throw BackendError("arena '" + name() + "' with parameter '" + parameter + "' needs up to " +
                       std::to_string(mappings_) + " mappings of the " + std::to_string(most) +
                       " that vm.max_map_count gives the whole process: raise it, or put small "
                       "tensors next to each other");
  }

  Recycling recycling_;
  Recycling singly_;  // never alias
  Release release_;
  bool debug_;
  SharedPages shared_;
  PageRange pages_;  // its own
  std::size_t mappings_ = 0;
  std::atomic<std::uintptr_t> violation_{0};  // address, its last bit: a write
};

}  // namespace shardwise::inline v0_1::detail
