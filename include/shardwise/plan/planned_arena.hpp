#pragma once

#include <cstddef>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "../core/checked.hpp"
#include "../core/error.hpp"
#include "../detail/address_range.hpp"
#include "../detail/claimed_range.hpp"
#include "../detail/pages.hpp"
#include "../detail/registration.hpp"
#include "../host_tensor.hpp"

namespace shardwise::inline v0_1::detail {

/// The claims of a device's arena, whose driver maps memory in granules: addresses alone.
class PlannedGranules final : public ClaimedRange {
 public:
  PlannedGranules(std::size_t bytes, std::size_t granule)
      : ClaimedRange(bytes, "planned"),
        granule_(granule),
        pages_{nullptr, round_up(bytes, page_size())} {
    pages_.begin = reserve_pages(pages_.bytes);
    begin_at(pages_.begin);
  }
  ~PlannedGranules() { unmap_pages(pages_); }

  [[nodiscard]] Placed claim(const std::string& parameter, std::span<const HostTensor> tensors,
                             bool recycle) {
    return claim_inner(parameter, tensors, [&](std::byte* begin, std::size_t bytes) {
      return recycle ? inner_granules(data(), begin, bytes, granule_) : PageRange{};
    });
  }

 private:
  std::size_t granule_;
  PageRange pages_;
};

/// The arena of parameters in place, or of their gradients, made when the first of them comes.
class PlannedArena {
 public:
  /// `elements` of it; `granule`: bytes that a device maps at once, 0: an arena of the CPU.
  PlannedArena(std::size_t elements, std::size_t granule)
      : elements_(elements), granule_(granule) {}

  /// Where the tensors are, `offsets` elements of `type` from the beginning. UsageError where they
  /// are not within it.
  [[nodiscard]] Placed place(const Registration& entry, const std::vector<std::size_t>& offsets,
                             DType type, bool recycle) {
    if (entry.layout.size() == 0) return {};
    if (granule_ > 0) return claim(device_, granule_, entry, offsets, type, recycle);
    return claim(host_, 0, entry, offsets, type, recycle);
  }

 private:
  template <class Range>
  [[nodiscard]] Placed claim(std::unique_ptr<Range>& range, std::size_t granule,
                             const Registration& entry, const std::vector<std::size_t>& offsets,
                             DType type, bool recycle) {
    if (range == nullptr) {
      const std::size_t bytes = checked_multiply(elements_, size_of(type), "bytes of the arena");
      if constexpr (std::is_same_v<Range, AddressRange>) {
        range = std::make_unique<Range>(bytes, "planned", Recycling::move, Release::lazy, false);
      } else {
        range = std::make_unique<Range>(bytes, granule);
      }
    }
    std::vector<HostTensor> tensors;
    for (std::size_t i = 0; i < entry.layout.tensors().size(); ++i) {
      const Layout::Tensor& tensor = entry.layout.tensors()[i];
      HostTensor placed(tensor.name, static_cast<float*>(nullptr), {tensor.count});
      placed.dtype = type;
      placed.data = range->data() + offsets[i] * size_of(type);
      if (!range->contains(placed.data, placed.bytes())) {
        raise("tensor '{}' does not lie in the planned arena: {} elements from {} on", tensor.name,
              tensor.count, offsets[i]);
      }
      tensors.push_back(std::move(placed));
    }
    return range->claim(entry.name(), tensors, recycle);
  }

  std::size_t elements_;
  std::size_t granule_;
  std::unique_ptr<AddressRange> host_;
  std::unique_ptr<PlannedGranules> device_;
};

}  // namespace shardwise::inline v0_1::detail
