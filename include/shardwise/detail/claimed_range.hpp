#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "../core/checked.hpp"
#include "../core/error.hpp"
#include "../host_tensor.hpp"
#include "pages.hpp"

namespace shardwise::inline v0_1::detail {

/// What of a parameter's tensors comes and goes, and what stays. Most parameters are claimed in no
/// arena: theirs is a null pointer.
class Placed {
 public:
  Placed() = default;
  explicit Placed(std::uint64_t claim) : parts_(std::make_unique<Parts>()) {
    parts_->claim = claim;
  }

  /// Which one of its arena; 0: none.
  [[nodiscard]] std::uint64_t claim() const noexcept {
    return parts_ == nullptr ? 0 : parts_->claim;
  }
  /// What comes and goes.
  [[nodiscard]] std::span<const PageRange> pages() const noexcept {
    return parts_ == nullptr ? std::span<const PageRange>() : parts_->pages;
  }
  /// The rest, to the byte.
  [[nodiscard]] std::span<const std::span<std::byte>> crumbs() const noexcept {
    return parts_ == nullptr ? std::span<const std::span<std::byte>>() : parts_->crumbs;
  }
  [[nodiscard]] std::size_t page_bytes() const noexcept {
    std::size_t bytes = 0;
    for (const PageRange& range : pages()) bytes += range.bytes;
    return bytes;
  }
  [[nodiscard]] std::size_t crumb_bytes() const noexcept {
    std::size_t bytes = 0;
    for (const auto& crumb : crumbs()) bytes += crumb.size();
    return bytes;
  }

  /// Of one that has a claim.
  void add(PageRange pages) { parts_->pages.push_back(pages); }
  void add(std::span<std::byte> crumb) { parts_->crumbs.push_back(crumb); }
  /// Nothing comes or goes, and nothing is left over.
  void clear() noexcept {
    parts_->pages.clear();
    parts_->crumbs.clear();
  }

 private:
  struct Parts {
    std::uint64_t claim;
    std::vector<PageRange> pages;
    std::vector<std::span<std::byte>> crumbs;
  };
  std::unique_ptr<Parts> parts_;
};

/// The whole granules within a stretch of bytes of a range that begins at `base`.
[[nodiscard]] inline PageRange inner_granules(std::byte* base, const std::byte* begin,
                                              std::size_t bytes, std::size_t granule) noexcept {
  const auto first = static_cast<std::size_t>(begin - base);
  const std::size_t from = round_up(first, granule);
  const std::size_t to = (first + bytes) / granule * granule;
  return from < to ? PageRange{base + from, to - from} : PageRange{};
}

/// Which bytes of an address range belong to which tensor. Knows no memory: whoever derives from it
/// says where the range begins and what may come and go.
class ClaimedRange {
 public:
  ClaimedRange(const ClaimedRange&) = delete;
  ClaimedRange& operator=(const ClaimedRange&) = delete;

  [[nodiscard]] std::byte* data() const noexcept { return begin_; }
  [[nodiscard]] std::size_t size() const noexcept { return size_; }
  [[nodiscard]] const std::string& name() const noexcept { return name_; }
  [[nodiscard]] std::size_t recycled_bytes() const noexcept { return recycled_; }
  [[nodiscard]] bool contains(const std::byte* data, std::size_t bytes) const noexcept {
    return data >= begin_ && data <= begin_ + size_ &&
           bytes <= static_cast<std::size_t>(begin_ + size_ - data);
  }

  /// UsageError that lists the bytes that belong to no parameter.
  void check_coverage() const {
    std::string gaps;
    std::size_t missing = 0;
    std::size_t shown = 0;
    const std::byte* end = begin_;
    const std::string* before = nullptr;
    const auto gap = [&](const std::byte* next, const std::string* after) {
      if (next == end) return;
      const auto bytes = static_cast<std::size_t>(next - end);
      missing += bytes;
      if (++shown > 8) return;
      gaps += "\n  bytes [" + std::to_string(end - begin_) + ", " + std::to_string(next - begin_) +
              "), after " + (before == nullptr ? "the beginning" : *before) + ", before " +
              (after == nullptr ? "the end" : *after);
    };
    for (const Claim& claim : claims_) {
      gap(claim.begin, &claim.tensor);
      end = claim.begin + claim.bytes;
      before = &claim.tensor;
    }
    gap(begin_ + size_, nullptr);
    if (missing == 0) return;
    throw UsageError("arena '" + name_ + "': " + std::to_string(missing) + " of " +
                     std::to_string(size_) +
                     " bytes belong to no parameter, so nobody shards or updates them; make a "
                     "ShardedParameter of them, or take them out of the arena:" +
                     gaps + (shown > 8 ? "\n  ..." : ""));
  }

 protected:
  ClaimedRange(std::size_t bytes, std::string name) : name_(std::move(name)), size_(bytes) {
    if (bytes == 0) raise("arena '{}' has no bytes", name_);
  }
  ~ClaimedRange() = default;

  void begin_at(std::byte* begin) noexcept { begin_ = begin; }

  /// Claims the tensors' bytes. Of each stretch of them inner(begin, bytes) comes and goes, whole
  /// pages at its inside, and the rest stays. UsageError, with both names, where a byte has an
  /// owner already.
  template <class Inner>
  [[nodiscard]] Placed claim_inner(const std::string& parameter,
                                   std::span<const HostTensor> tensors, const Inner& inner) {
    const std::vector<std::size_t> order = order_by_address(tensors);
    Placed placed(++last_claim_);
    try {
      for (const std::size_t i : order) add(placed.claim(), parameter, tensors[i]);
    } catch (...) {
      erase(placed.claim());
      throw;
    }
    std::byte* begin = nullptr;
    std::byte* end = nullptr;
    for (const std::size_t i : order) {
      const HostTensor& tensor = tensors[i];
      if (tensor.data != end) {
        place(placed, begin, end, inner);
        begin = tensor.data;
      }
      end = tensor.data + tensor.bytes();
    }
    place(placed, begin, end, inner);
    recycled_ += placed.page_bytes();
    return placed;
  }

  void disclaim(const Placed& placed) noexcept {
    recycled_ -= placed.page_bytes();
    erase(placed.claim());
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
    return who + " byte " + std::to_string(address - begin_) + " of arena '" + name_ +
           "', which belongs to no parameter";
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

  template <class Inner>
  static void place(Placed& placed, std::byte* begin, std::byte* end, const Inner& find) {
    if (begin == end) return;
    PageRange inner = find(begin, static_cast<std::size_t>(end - begin));
    if (inner.bytes == 0) inner = {begin, 0};
    if (inner.bytes > 0) placed.add(inner);
    std::byte* const rest = inner.begin + inner.bytes;
    for (const std::span<std::byte> crumb :
         {std::span<std::byte>(begin, inner.begin), {rest, end}}) {
      if (!crumb.empty()) placed.add(crumb);
    }
  }

  std::string name_;
  std::size_t size_;
  std::byte* begin_ = nullptr;
  std::vector<Claim> claims_;  // by address
  std::uint64_t last_claim_ = 0;
  std::size_t recycled_ = 0;
};

}  // namespace shardwise::inline v0_1::detail
