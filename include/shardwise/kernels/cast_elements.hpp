#pragma once

#include <concepts>
#include <cstddef>
#include <cstring>
#include <type_traits>

#include "../core/dtype.hpp"
#include "cast.hpp"
#include "octet.hpp"
#include "wide.hpp"

namespace shardwise::inline v0_1 {

namespace detail {

template <class From, class To>
void cast_host(const From* from, To* to, std::size_t count, Vectors vectors) noexcept {
  using Real = std::conditional_t<std::same_as<From, double>, double, float>;
  const Cast<From, To> cast{from, to};
  if constexpr (sizeof(To) <= sizeof(From)) {
    std::size_t first = convert_wide(from, to, count, vectors);
    for (; first + octet <= count; first += octet) {
      convert_octets<Real, octet>(from + first, to + first);
    }
    for (; first < count; ++first) cast.template run<1>(first);
  } else {
    // In place, the elements beyond those being written have been read already.
    std::size_t end = count;
    for (; end % most_lanes != 0; --end) cast.template run<1>(end - 1);
    if (convert_wide(from, to, end, vectors) == end) return;
    for (; end % octet != 0; --end) cast.template run<1>(end - 1);
    for (; end > 0; end -= octet) {
      convert_octets<Real, octet>(from + end - octet, to + end - octet);
    }
  }
}

}  // namespace detail

/// Casts `count` elements on the host, at once, by cast_element. Both types are floating ones. The
/// buffers do not overlap, or begin at one address (in place; the buffer has room for the larger
/// type). `vectors`: for tests; all give the same bits.
inline void cast_elements(const void* from, DType from_type, void* to, DType to_type,
                          std::size_t count,
                          detail::Vectors vectors = detail::widest_vectors()) noexcept {
  if (from_type == to_type) {
    if (from != to && count > 0) std::memcpy(to, from, count * size_of(to_type));
    return;
  }
  dispatch_floating(from_type, [&]<class From>() {
    dispatch_floating(to_type, [&]<class To>() {
      if constexpr (!std::same_as<From, To>) {
        detail::cast_host(static_cast<const From*>(from), static_cast<To*>(to), count, vectors);
      }
    });
  });
}

}  // namespace shardwise::inline v0_1
