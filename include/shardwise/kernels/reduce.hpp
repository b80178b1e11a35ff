#pragma once

#include <algorithm>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <type_traits>
#include <utility>

#include "../core/dtype.hpp"
#include "../core/host_device.hpp"
#include "../core/reduce_spec.hpp"
#include "canonical_sum.hpp"
#include "cast.hpp"
#include "cast_elements.hpp"
#include "copy.hpp"
#include "finish.hpp"
#include "octet.hpp"
#include "vectors.hpp"
#include "wide.hpp"

namespace shardwise::inline v0_1 {

namespace detail {

/// Accumulators on the stack per tree level.
inline constexpr std::size_t reduce_chunk = 512;

/// Calls body.operator()<Width>(first) so that [0, count) is covered in ascending order. Constant
/// trip counts over pointers that do not alias are what g++ vectorises at a plain -O2; floating
/// types are written in lanes.
template <class Body>
inline void for_blocks(std::size_t count, const Body& body) {
  std::size_t first = 0;
  for (; first + reduce_chunk <= count; first += reduce_chunk) {
    body.template operator()<reduce_chunk>(first);
  }
  for (; first + 16 <= count; first += 16) body.template operator()<16>(first);
  for (; first < count; ++first) body.template operator()<1>(first);
}

/// a + b; integers wrap around.
template <class T>
[[nodiscard]] SHARDWISE_HOST_DEVICE constexpr T add(T a, T b) noexcept {
  if constexpr (std::integral<T>) {
    using Unsigned = std::make_unsigned_t<T>;
    return static_cast<T>(
        static_cast<Unsigned>(static_cast<Unsigned>(a) + static_cast<Unsigned>(b)));
  } else {
    return a + b;
  }
}

/// Elements of T in one cache line, and how far ahead sums of pairs fetch: where they are finished
/// in the same pass, the core sees enough loads ahead by itself.
template <class T>
inline constexpr std::size_t per_line = cache_line / sizeof(T);
inline constexpr std::size_t reduce_ahead = 1024;

template <std::size_t Width, class Sum>
inline constexpr bool in_octets = std::floating_point<Sum>&& Width % octet == 0;

template <std::size_t Width, class In, class Sum>
inline void load(const In* __restrict in, Sum* __restrict sums) noexcept {
  if constexpr (in_octets<Width, Sum>) {
    for (std::size_t k = 0; k < Width; k += octet) store_octet(sums + k, load_octet<Sum>(in + k));
  } else {
    for (std::size_t k = 0; k < Width; ++k) sums[k] = static_cast<Sum>(in[k]);
  }
}

template <std::size_t Width, class In, class Sum>
inline void load_weighted(const In* __restrict in, Sum* __restrict sums, Sum weight) noexcept {
  if constexpr (in_octets<Width, Sum>) {
    for (std::size_t k = 0; k < Width; k += octet) {
      store_octet(sums + k, load_octet<Sum>(in + k) * weight);
    }
  } else {
    for (std::size_t k = 0; k < Width; ++k) sums[k] = static_cast<Sum>(in[k]) * weight;
  }
}

template <std::size_t Width, class In, class Sum>
inline void add_pair(const In* __restrict a, const In* __restrict b,
                     Sum* __restrict sums) noexcept {
  if constexpr (in_octets<Width, Sum>) {
    for (std::size_t k = 0; k < Width; k += octet) {
      if (k % per_line<In> == 0) {
        prefetch_line(a + k, reduce_ahead);
        prefetch_line(b + k, reduce_ahead);
      }
      store_octet(sums + k, load_octet<Sum>(a + k) + load_octet<Sum>(b + k));
    }
  } else {
    for (std::size_t k = 0; k < Width; ++k) {
      sums[k] = add(static_cast<Sum>(a[k]), static_cast<Sum>(b[k]));
    }
  }
}

template <std::size_t Width, class Sum>
inline void add_to(Sum* __restrict sums, const Sum* __restrict other) noexcept {
  if constexpr (in_octets<Width, Sum>) {
    for (std::size_t k = 0; k < Width; k += octet) {
      store_octet(sums + k, load_octet<Sum>(sums + k) + load_octet<Sum>(other + k));
    }
  } else {
    for (std::size_t k = 0; k < Width; ++k) sums[k] = add(sums[k], other[k]);
  }
}

template <bool Accumulate, std::size_t Width, class T>
inline void finish_integers(const T* __restrict sums, T* __restrict out) noexcept {
  for (std::size_t k = 0; k < Width; ++k) out[k] = Accumulate ? add(out[k], sums[k]) : sums[k];
}

/// The contributions of all ranks to one result, and what becomes of their sum.
template <class In>
class HostReduction {
 public:
  /// `weights`: null where all are 1.
  HostReduction(std::span<const void* const> inputs, const double* weights, const ReduceSpec& spec,
                Vectors vectors)
      : inputs_(inputs.data()),
        weights_(weights),
        ranks_(inputs.size()),
        spec_(spec),
        vectors_(vectors) {}

  void run(std::size_t count, std::byte* out, bool streaming) const noexcept {
    if (!finish_inputs(count, out, streaming)) {
      const std::size_t size = size_of(spec_.output);
      const std::size_t done = finish_four(count, out, streaming);
      // Results begin a line in all chunks but the first.
      std::byte* const rest = out + done * size;
      std::size_t length =
          reduce_chunk - reinterpret_cast<std::uintptr_t>(rest) % cache_line / size;
      for (std::size_t first = done; first < count; first += std::exchange(length, reduce_chunk)) {
        length = std::min(length, count - first);
        chunk(first, length, out + first * size, streaming);
      }
    }
    if (streaming) end_streaming();
  }

 private:
  using Sum = Accumulator<In>;

  void chunk(std::size_t first, std::size_t count, void* out, bool streaming) const noexcept {
    if constexpr (std::integral<Sum>) {
      Sum sums[reduce_chunk];
      tree(0, ranks_, first, count, sums);
      auto* const results = static_cast<In*>(out);
      if (spec_.accumulate) {
        for_blocks(count, [=]<std::size_t Width>(std::size_t i) {
          finish_integers<true, Width>(sums + i, results + i);
        });
      } else {
        for_blocks(count, [=]<std::size_t Width>(std::size_t i) {
          finish_integers<false, Width>(sums + i, results + i);
        });
      }
    } else {
      floats(first, count, out, streaming);
    }
  }

  // One pass over what ranks have, where there are two at most and the types are usual ones.
  [[nodiscard]] bool finish_inputs(std::size_t count, void* out, bool streaming) const noexcept {
    bool done = false;
    if constexpr (std::floating_point<Sum>) {
      if (ranks_ > 2 || weights_ != nullptr) return false;
      const In* const other = ranks_ == 1 ? nullptr : input(1);
      dispatch_floating(spec_.output, [&]<class Out>() {
        if constexpr (std::same_as<Out, In> || std::same_as<Out, Sum>) {
          finish<Sum>(input(0), other, static_cast<Out*>(out), count, spec_, streaming, vectors_);
          done = true;
        }
      });
    }
    return done;
  }

  // Likewise three or four, by wide vectors as far as these go; how many elements.
  [[nodiscard]] std::size_t finish_four(std::size_t count, void* out,
                                        bool streaming) const noexcept {
    std::size_t done = 0;
    if constexpr (WideElement<In>) {
      const bool four = ranks_ == 4;
      if (!(four || ranks_ == 3) || weights_ != nullptr || vectors_ == Vectors::baseline) return 0;
      const Inputs<In> inputs{input(0), input(1), input(2), four ? input(3) : nullptr};
      dispatch_floating(spec_.output, [&]<class Out>() {
        if constexpr (std::same_as<Out, In> || std::same_as<Out, Sum>) {
          auto* const results = static_cast<Out*>(out);
          const std::size_t head = before_line(results, count);
          if (head > reduce_chunk) return;  // results that begin no line anywhere
          if (head > 0) chunk(0, head, results, false);
          done = head + finish_wide(inputs.from(head), results + head, count - head, spec_,
                                    streaming, vectors_);
        }
      });
    }
    return done;
  }

  // The last addition, the scaling and the rounding are one pass.
  void floats(std::size_t first, std::size_t count, void* out, bool streaming) const noexcept {
    Sum left[reduce_chunk];
    Sum right[reduce_chunk];
    const std::size_t split = ranks_ == 1 ? 1 : canonical_split(ranks_);
    const Sum* const a = subtree(0, split, first, count, left);
    const Sum* const b =
        ranks_ == 1 ? nullptr : subtree(split, ranks_ - split, first, count, right);
    if constexpr (std::same_as<Sum, double>) {
      if (spec_.output != DType::f64) return finish_rounded(a, b, count, out);
      finish<Sum>(a, b, static_cast<double*>(out), count, spec_, streaming, vectors_);
    } else {
      dispatch_floating(spec_.output, [&]<class Out>() {
        finish<Sum>(a, b, static_cast<Out*>(out), count, spec_, streaming, vectors_);
      });
    }
  }

  // Sums of doubles that are stored as less, which is rare: not worth loops of their own.
  void finish_rounded(const double* a, const double* b, std::size_t count,
                      void* out) const noexcept {
    double results[reduce_chunk];
    if (spec_.accumulate) cast_elements(out, spec_.output, results, DType::f64, count, vectors_);
    finish<double>(a, b, results, count, spec_, false, vectors_);
    cast_elements(results, DType::f64, out, spec_.output, count, vectors_);
  }

  [[nodiscard]] const In* input(std::size_t rank) const noexcept {
    return static_cast<const In*>(inputs_[rank]);
  }

  // Where the sum over ranks [begin, begin + n) lies: in `sums`, or where a rank has it.
  [[nodiscard]] const Sum* subtree(std::size_t begin, std::size_t n, std::size_t first,
                                   std::size_t count, Sum* sums) const noexcept {
    if constexpr (std::same_as<In, Sum>) {
      if (n == 1 && weights_ == nullptr) return input(begin) + first;
    }
    tree(begin, n, first, count, sums);
    return sums;
  }

  // sums[0, count) = the canonical tree's sum over ranks [begin, begin + n) of elements
  // [first, first + count).
  void tree(std::size_t begin, std::size_t n, std::size_t first, std::size_t count,
            Sum* sums) const noexcept {
    if (n == 1) {
      leaf(begin, first, count, sums);
    } else if (n == 2 && weights_ == nullptr) {
      const In* const a = input(begin) + first;
      const In* const b = input(begin + 1) + first;
      const std::size_t done = add_wide(a, b, sums, count);
      for_blocks(count - done, [a = a + done, b = b + done, to = sums + done]<std::size_t Width>(
                                   std::size_t i) { add_pair<Width>(a + i, b + i, to + i); });
    } else {
      const std::size_t split = canonical_split(n);
      Sum other[reduce_chunk];
      tree(begin, split, first, count, sums);
      tree(begin + split, n - split, first, count, other);
      const std::size_t done = add_wide(sums, other, sums, count);
      for_blocks(count - done, [to = sums + done, from = other + done]<std::size_t Width>(
                                   std::size_t i) { add_to<Width>(to + i, from + i); });
    }
  }

  // sums = a + b, as far as wide vectors go; b may be null. How far.
  template <class T>
  [[nodiscard]] std::size_t add_wide(const T* a, const T* b, Sum* sums,
                                     std::size_t count) const noexcept {
    if constexpr (WideElement<T>) {
      return run_wide<Sum>(vectors_, count,
                           [=]<class Wide>(std::size_t whole) { Wide::add(a, b, sums, whole); });
    } else {
      return 0;
    }
  }

  void leaf(std::size_t rank, std::size_t first, std::size_t count, Sum* sums) const noexcept {
    const In* const in = input(rank) + first;
    if constexpr (std::floating_point<Sum>) {
      if (weights_ != nullptr) {
        const auto weight = static_cast<Sum>(weights_[rank]);
        for_blocks(count, [=]<std::size_t Width>(std::size_t i) {
          load_weighted<Width>(in + i, sums + i, weight);
        });
        return;
      }
    }
    const std::size_t done = add_wide(in, static_cast<const In*>(nullptr), sums, count);
    for_blocks(count - done, [from = in + done, to = sums + done]<std::size_t Width>(
                                 std::size_t i) { load<Width>(from + i, to + i); });
  }

  const void* const* inputs_;
  const double* weights_;
  std::size_t ranks_;
  const ReduceSpec& spec_;
  Vectors vectors_;
};

}  // namespace detail

/// One rank's part of a reduction, on the host, in one pass: inputs[r] is rank r's contribution
/// (`count` elements of `dtype`), `out` gets `count` elements of spec.output by the formula of
/// ReduceSpec. Contributions are added in the canonical order, so the result depends on nothing but
/// the inputs. `weights` holds one number per rank, or is empty where all are 1 (spec.weight is not
/// looked at). `out` may be one of the inputs where the types are equal, and overlaps none
/// otherwise. At least one input. Integers: spec.output is `dtype`, scale and weights are 1.
/// `streaming`: past the caches, as copy_bytes. `vectors`: for tests; all give the same bits. Does
/// not allocate.
inline void canonical_reduce(std::span<const void* const> inputs, std::span<const double> weights,
                             DType dtype, std::size_t count, void* out, const ReduceSpec& spec,
                             bool streaming = false,
                             detail::Vectors vectors = detail::widest_vectors()) noexcept {
  const double* scales = nullptr;
  for (const double weight : weights) {
    if (weight != 1) scales = weights.data();
  }
  dispatch(dtype, [&]<class In>() {
    detail::HostReduction<In>(inputs, scales, spec, vectors)
        .run(count, static_cast<std::byte*>(out), streaming);
  });
}

}  // namespace shardwise::inline v0_1
