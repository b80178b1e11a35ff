#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <iterator>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "../core/checked.hpp"
#include "../core/error.hpp"
#include "../host_tensor.hpp"
#include "fault_watch.hpp"
#include "page_pool.hpp"
#include "pages.hpp"

namespace shardwise::inline v0_1::detail {

/// When a released parameter's memory leaves its addresses.
enum class Release : std::uint8_t {
  lazy,  ///< when the next parameter needs it, or when a parameter is written (a step)
  eager  ///< at once
};

/// What of a parameter's tensors comes and goes, and what stays.
struct Placed {
  std::uint64_t claim = 0;                   ///< which one of its arena
  std::vector<PageRange> pages;              ///< recycled
  std::vector<std::span<std::byte>> crumbs;  ///< the rest, to the byte

  [[nodiscard]] std::size_t page_bytes() const noexcept {
    std::size_t bytes = 0;
    for (const PageRange& range : pages) bytes += range.bytes;
    return bytes;
  }
  [[nodiscard]] std::size_t crumb_bytes() const noexcept {
    std::size_t bytes = 0;
    for (const auto& crumb : crumbs) bytes += crumb.size();
    return bytes;
  }
};

/// A host's address range: which bytes of it belong to which tensor. What the public Arena stands
/// on. In debug mode it also notes the first access to what is not lent.
class AddressRange final : public FaultObserver {
 public:
  /// Pages below it are worth a system call.
  static constexpr std::size_t least_recycled = std::size_t{64} << 10;

  AddressRange(std::size_t bytes, std::string name, Recycling recycling, Release release,
               bool debug)
      : name_(std::move(name)),
        recycling_(recycling),
        release_(debug ? Release::eager : release),
        debug_(debug),
        size_(bytes) {
    if (bytes == 0) raise("arena '{}' has no bytes", name_);
    if (recycling_ == Recycling::move && !can_move_pages()) recycling_ = Recycling::refill;
    pages_.bytes = round_up(bytes, page_size());
    pages_.begin = reserve_pages(pages_.bytes);
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
    unmap_pages(pages_);
  }

  [[nodiscard]] std::byte* data() const noexcept { return pages_.begin; }
  [[nodiscard]] std::size_t size() const noexcept { return size_; }
  [[nodiscard]] const std::string& name() const noexcept { return name_; }
  [[nodiscard]] Recycling recycling() const noexcept { return recycling_; }
  [[nodiscard]] Release release() const noexcept { return release_; }
  [[nodiscard]] std::size_t recycled_bytes() const noexcept { return recycled_; }
  [[nodiscard]] bool contains(const std::byte* data, std::size_t bytes) const noexcept {
    return data >= data_begin() && data <= data_begin() + size_ &&
           bytes <= static_cast<std::size_t>(data_begin() + size_ - data);
  }

  /// The bytes of these tensors belong to `parameter` until release(claim). `recycle`: their pages
  /// come and go (their crumbs stay); else all of it stays. UsageError, with both names, where a
  /// byte has an owner already.
  [[nodiscard]] Placed claim(const std::string& parameter, std::span<const HostTensor> tensors,
                             bool recycle) {
    const std::vector<std::size_t> order = order_by_address(tensors);
    Placed placed;
    placed.claim = ++last_claim_;
    try {
      for (const std::size_t i : order) add(placed.claim, parameter, tensors[i]);
    } catch (...) {
      erase(placed.claim);
      throw;
    }
    std::byte* begin = nullptr;
    std::byte* end = nullptr;
    for (const std::size_t i : order) {
      const HostTensor& tensor = tensors[i];
      if (tensor.data != end) {
        place(placed, begin, end, recycle);
        begin = tensor.data;
      }
      end = tensor.data + tensor.bytes();
    }
    place(placed, begin, end, recycle);
    recycled_ += placed.page_bytes();
    mappings_ += 2 * placed.pages.size();
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
    recycled_ -= placed.page_bytes();
    mappings_ -= 2 * placed.pages.size();
    for (const PageRange& range : placed.pages) {
      static_cast<void>(empty_pages(range, Access::write));
    }
    erase(placed.claim);
  }

  /// UsageError that lists the bytes that belong to no parameter.
  void check_coverage() const {
    std::string gaps;
    std::size_t missing = 0;
    std::size_t shown = 0;
    const std::byte* end = data_begin();
    const std::string* before = nullptr;
    const auto gap = [&](const std::byte* next, const std::string* after) {
      if (next == end) return;
      const auto bytes = static_cast<std::size_t>(next - end);
      missing += bytes;
      if (++shown > 8) return;
      gaps += "\n  bytes [" + std::to_string(end - data_begin()) + ", " +
              std::to_string(next - data_begin()) + "), after " +
              (before == nullptr ? "the beginning" : *before) + ", before " +
              (after == nullptr ? "the end" : *after);
    };
    for (const Claim& claim : claims_) {
      gap(claim.begin, &claim.tensor);
      end = claim.begin + claim.bytes;
      before = &claim.tensor;
    }
    gap(data_begin() + size_, nullptr);
    if (missing == 0) return;
    throw UsageError("arena '" + name_ + "': " + std::to_string(missing) + " of " +
                     std::to_string(size_) +
                     " bytes belong to no parameter, so nobody shards or updates them; make a "
                     "ShardedParameter of them, or take them out of the arena:" +
                     gaps + (shown > 8 ? "\n  ..." : ""));
  }

  /// Debug mode: what a released range holds where it stays readable.
  static constexpr int poison = 0xff;  // a NaN in every floating type

  static void poison_crumbs(const Placed& placed) noexcept {
    for (const auto& crumb : placed.crumbs) std::memset(crumb.data(), poison, crumb.size());
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
    for (const auto& crumb : placed.crumbs) {
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
  struct Claim {
    std::byte* begin;
    std::uint64_t id;
    std::size_t bytes;
    std::string parameter;
    std::string tensor;
    std::size_t element_size;
  };

  [[nodiscard]] std::byte* data_begin() const noexcept { return pages_.begin; }

  void add(std::uint64_t id, const std::string& parameter, const HostTensor& tensor) {
    const std::size_t bytes = tensor.bytes();
    if (!contains(tensor.data, bytes)) {
      raise("tensor '{}' of parameter '{}' is not within arena '{}' ({} bytes)", tensor.spec.name,
            parameter, name_, size_);
    }
    const auto next = after(tensor.data);
    const auto overlaps = [&](const Claim& other) {
      return other.begin < tensor.data + bytes && tensor.data < other.begin + other.bytes;
    };
    const Claim* owner = nullptr;
    if (next != claims_.end() && overlaps(*next)) owner = &*next;
    if (next != claims_.begin() && overlaps(*std::prev(next))) owner = &*std::prev(next);
    if (owner != nullptr) {
      raise(
          "tensor '{}' of parameter '{}' overlaps tensor '{}' of parameter '{}' in arena '{}': "
          "each "
          "byte belongs to one parameter. List a tied tensor once (deduplicate)",
          tensor.spec.name, parameter, owner->tensor, owner->parameter, name_);
    }
    claims_.insert(
        next, Claim{tensor.data, id, bytes, parameter, tensor.spec.name, size_of(tensor.dtype)});
  }

  // The first claim that begins behind `address`.
  [[nodiscard]] std::vector<Claim>::const_iterator after(const std::byte* address) const noexcept {
    return std::partition_point(claims_.begin(), claims_.end(),
                                [&](const Claim& claim) { return claim.begin <= address; });
  }

  void erase(std::uint64_t id) noexcept {
    std::erase_if(claims_, [&](const Claim& claim) { return claim.id == id; });
  }

  static void place(Placed& placed, std::byte* begin, std::byte* end, bool recycle) {
    if (begin == end) return;
    PageRange inner = inner_pages(begin, static_cast<std::size_t>(end - begin));
    if (!recycle || inner.bytes < least_recycled) inner = {begin, 0};
    if (inner.bytes > 0) placed.pages.push_back(inner);
    std::byte* const rest = inner.begin + inner.bytes;
    for (const std::span<std::byte> crumb :
         {std::span<std::byte>(begin, inner.begin), {rest, end}}) {
      if (!crumb.empty()) placed.crumbs.push_back(crumb);
    }
  }

  void take_away(const Placed& placed) {
    for (const PageRange& range : placed.pages) {
      if (empty_pages(range, debug_ ? Access::none : Access::write)) continue;
      raise_pages("emptying pages of an arena", range.bytes);
    }
    if (debug_) poison_crumbs(placed);
  }

  // A range that comes and goes cuts the arena's mapping in two places.
  void check_mappings(const std::string& parameter) const {
    const std::size_t most = most_mappings();
    if (mappings_ <= most / 2) return;
    throw BackendError("arena '" + name_ + "' with parameter '" + parameter + "' needs up to " +
                       std::to_string(mappings_) + " mappings of the " + std::to_string(most) +
                       " that vm.max_map_count gives the whole process: raise it, or put small "
                       "tensors next to each other");
  }

  [[nodiscard]] std::string describe(const std::byte* address, bool is_write, int rank) const {
#if defined(__x86_64__)
    const char* const did = is_write ? "wrote to" : "read";
#else
    const char* const did = is_write ? "wrote to" : "touched";
#endif
    const char* const rule =
        is_write
            ? "while no lease allowed it. Parameters are written by step() and update() alone, "
              "gradients between lease() (ensure_open()) and reduce()"
            : "while it was not gathered. Call gather() (ensure_gathered()) first, and release "
              "it after the last use";
    const auto next = after(address);
    const std::string who = "rank " + std::to_string(rank) + ' ' + did;
    if (next != claims_.begin() && address < std::prev(next)->begin + std::prev(next)->bytes) {
      const Claim& claim = *std::prev(next);
      const auto inside = static_cast<std::size_t>(address - claim.begin);
      return who + " element " + std::to_string(inside / claim.element_size) + " of tensor '" +
             claim.tensor + "' of parameter '" + claim.parameter + "', in arena '" + name_ + "', " +
             rule;
    }
    return who + " byte " + std::to_string(address - pages_.begin) + " of arena '" + name_ +
           "', which belongs to no parameter";
  }

  std::string name_;
  Recycling recycling_;
  Release release_;
  bool debug_;
  std::size_t size_;
  PageRange pages_;
  std::vector<Claim> claims_;  // by address
  std::uint64_t last_claim_ = 0;
  std::size_t recycled_ = 0;
  std::size_t mappings_ = 0;
  std::atomic<std::uintptr_t> violation_{0};  // address, its last bit: a write
};

}  // namespace shardwise::inline v0_1::detail
