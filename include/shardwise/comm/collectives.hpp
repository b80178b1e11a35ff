#pragma once

#include <array>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <string_view>
#include <type_traits>
#include <vector>

#include "../core/checked.hpp"
#include "../core/dtype.hpp"
#include "../core/error.hpp"
#include "../core/math.hpp"
#include "communicator.hpp"

/// @file
/// Collectives over anything that is contiguous (std::vector, std::array, std::span, a C array),
/// and scalars agreed by a group. They need no other part of the library: any Communicator on host
/// memory will do. Every function here is collective: all ranks of `comm` call it, in the same
/// order. It has completed when it returns. The last argument names the call in messages and sets
/// its time-out: `barrier(comm, {.name = "epoch", .timeout = 30s})`. Sizes that do not fit are
/// UsageErrors, before anything is sent; for the rest see Communicator.
///
/// Sums depend on nothing but the contributions and the number of ranks (see ReduceSpec): equal
/// bits on all ranks, in every run, with every backend.
namespace shardwise::inline v0_1 {

/// A contiguous range of elements that a communicator can carry.
template <class R>
concept ElementRange = requires(R& range) {
  std::span(range);
  requires Element<typename decltype(std::span(range))::value_type>;
};

/// The element type of an ElementRange.
template <ElementRange R>
using ElementOf = typename decltype(std::span(std::declval<R&>()))::value_type;

/// An ElementRange whose elements can be written.
template <class R>
concept MutableElementRange = ElementRange<R> &&
    !std::is_const_v<typename decltype(std::span(std::declval<R&>()))::element_type>;

/// Sum or mean over ranks. A mean is the sum times float(1 / ranks), as in the sharded types.
enum class Reduce : std::uint8_t { sum, mean };

namespace detail {

[[nodiscard]] inline std::size_t ranks_of(const Communicator& comm) noexcept {
  return static_cast<std::size_t>(comm.size());
}

inline void expect_size(const Communicator& comm, const CallInfo& info, std::string_view operation,
                        std::string_view buffer, std::size_t found, std::size_t expected,
                        std::string_view rule) {
  if (found == expected) return;
  raise("{} \"{}\" on rank {} of {}: the {} buffer holds {} elements, expected {} ({})", operation,
        info.name, comm.rank(), comm.size(), buffer, found, expected, rule);
}

[[nodiscard]] inline std::size_t expect_parts(const Communicator& comm, const CallInfo& info,
                                              std::string_view operation, std::string_view buffer,
                                              std::size_t found) {
  const std::size_t ranks = ranks_of(comm);
  if (found % ranks != 0) {
    raise(
        "{} \"{}\" on rank {}: the {} buffer holds {} elements, which is not a multiple of the {} "
        "ranks; the next size that is: {}",
        operation, info.name, comm.rank(), buffer, found, ranks, round_up(found, ranks));
  }
  return found / ranks;
}

// Scalars come this way: the range concepts of all_reduce cost every unit that includes this more
// compile time than the rest of the header.
inline void sum_in_place(Communicator& comm, void* numbers, std::size_t count, DType dtype,
                         const CallInfo& info) {
  const ReduceItem item{numbers, numbers, count, dtype, {.output = dtype}};
  comm.all_reduce({&item, 1}, info, {});
}

template <class T>
[[nodiscard]] ReduceSpec spec_of(const Communicator& comm, Reduce reduce) {
  return {.output = dtype_of<T>, .scale = reduce == Reduce::mean ? 1.0 / comm.size() : 1.0};
}

}  // namespace detail

/// Rank r's `send` becomes part r of everybody's `recv`, which is comm.size() times as long.
template <ElementRange Send, MutableElementRange Recv>
requires std::same_as<ElementOf<Send>, ElementOf<Recv>>
void all_gather(Communicator& comm, const Send& send, Recv&& recv,
                const CallInfo& info = {"all_gather"}) {
  const std::span from(send);
  const std::span to(recv);
  detail::expect_size(comm, info, "all_gather", "receive", to.size(),
                      checked_multiply(from.size(), detail::ranks_of(comm), "all_gather"),
                      "ranks x send");
  const GatherItem item{from.data(), to.data(), from.size(), dtype_of<ElementOf<Recv>>};
  comm.all_gather({&item, 1}, info, {});
}

/// In place: `buffer` is ranks x part; each rank has filled its own part.
template <MutableElementRange Buffer>
void all_gather(Communicator& comm, Buffer&& buffer, const CallInfo& info = {"all_gather"}) {
  const std::span whole(buffer);
  const std::size_t part = detail::expect_parts(comm, info, "all_gather", "in-place", whole.size());
  const GatherItem item{whole.data() + static_cast<std::size_t>(comm.rank()) * part, whole.data(),
                        part, dtype_of<ElementOf<Buffer>>};
  comm.all_gather({&item, 1}, info, {});
}

/// Part r of everybody's `send` is reduced into rank r's `recv`; `send` is comm.size() times as
/// long.
template <ElementRange Send, MutableElementRange Recv>
requires std::same_as<ElementOf<Send>, ElementOf<Recv>>
void reduce_scatter(Communicator& comm, const Send& send, Recv&& recv, Reduce reduce = Reduce::sum,
                    const CallInfo& info = {"reduce_scatter"}) {
  const std::span from(send);
  const std::span to(recv);
  using T = ElementOf<Recv>;
  detail::expect_size(comm, info, "reduce_scatter", "send", from.size(),
                      checked_multiply(to.size(), detail::ranks_of(comm), "reduce_scatter"),
                      "ranks x receive");
  const ReduceItem item{from.data(), to.data(), to.size(), dtype_of<T>,
                        detail::spec_of<T>(comm, reduce)};
  comm.reduce_scatter({&item, 1}, info, {});
}

/// Everybody's `send` is reduced into everybody's `recv`, which is as long.
template <ElementRange Send, MutableElementRange Recv>
requires std::same_as<ElementOf<Send>, ElementOf<Recv>>
void all_reduce(Communicator& comm, const Send& send, Recv&& recv, Reduce reduce = Reduce::sum,
                const CallInfo& info = {"all_reduce"}) {
  const std::span from(send);
  const std::span to(recv);
  using T = ElementOf<Recv>;
  detail::expect_size(comm, info, "all_reduce", "receive", to.size(), from.size(), "as send");
  const ReduceItem item{from.data(), to.data(), to.size(), dtype_of<T>,
                        detail::spec_of<T>(comm, reduce)};
  comm.all_reduce({&item, 1}, info, {});
}

/// In place.
template <MutableElementRange Buffer>
void all_reduce(Communicator& comm, Buffer&& buffer, Reduce reduce = Reduce::sum,
                const CallInfo& info = {"all_reduce"}) {
  const std::span whole(buffer);
  all_reduce(comm, whole, whole, reduce, info);
}

/// Everybody's `buffer` becomes the root's.
template <MutableElementRange Buffer>
void broadcast(Communicator& comm, Buffer&& buffer, int root = 0,
               const CallInfo& info = {"broadcast"}) {
  const std::span whole(buffer);
  const BroadcastItem item{whole.data(), whole.size(), dtype_of<ElementOf<Buffer>>};
  comm.broadcast({&item, 1}, root, info, {});
}

/// Part q of rank r's `send` becomes part r of rank q's `recv`; both are ranks x part.
template <ElementRange Send, MutableElementRange Recv>
requires std::same_as<ElementOf<Send>, ElementOf<Recv>>
void all_to_all(Communicator& comm, const Send& send, Recv&& recv,
                const CallInfo& info = {"all_to_all"}) {
  const std::span from(send);
  const std::span to(recv);
  const std::size_t part = detail::expect_parts(comm, info, "all_to_all", "send", from.size());
  detail::expect_size(comm, info, "all_to_all", "receive", to.size(), from.size(), "as send");
  const ExchangeItem item{from.data(), to.data(), part, dtype_of<ElementOf<Recv>>};
  comm.all_to_all({&item, 1}, info, {});
}

/// Returns when all ranks have called it.
inline void barrier(Communicator& comm, const CallInfo& info = {"barrier"}) {
  comm.barrier(info, {});
}

/// The sum over ranks: floating values in double, integers exactly in 64 bits (wrapping around).
template <class T>
requires std::floating_point<T> ||(std::integral<T> && !std::same_as<T, bool>) [[nodiscard]] T
    sum(Communicator& comm, T value, const CallInfo& info = {"sum"}) {
  using Wide = std::conditional_t<std::floating_point<T>, double, std::int64_t>;
  auto number = static_cast<Wide>(value);
  detail::sum_in_place(comm, &number, 1, dtype_of<Wide>, info);
  return static_cast<T>(number);
}

/// The mean over ranks, in double.
[[nodiscard]] inline double mean(Communicator& comm, double value,
                                 const CallInfo& info = {"mean"}) {
  return sum(comm, value, info) / comm.size();
}

/// sum(weight x value) / sum(weight) over ranks, in double: the mean where batches are uneven. A
/// rank without a share gives weight 0, and its value is not looked at. UsageError on all ranks
/// where the weights add to 0.
[[nodiscard]] inline double weighted_mean(Communicator& comm, double value, double weight,
                                          const CallInfo& info = {"weighted_mean"}) {
  double numbers[] = {weight == 0 ? 0.0 : weight * value, weight};
  detail::sum_in_place(comm, numbers, 2, DType::f64, info);
  if (numbers[1] == 0) {
    raise("weighted_mean \"{}\": the weights of all {} ranks add to 0", info.name, comm.size());
  }
  return numbers[0] / numbers[1];
}

/// True on all ranks where it is true on one.
[[nodiscard]] inline bool any(Communicator& comm, bool value, const CallInfo& info = {"any"}) {
  return sum(comm, value ? 1 : 0, info) > 0;
}

/// True on all ranks where it is true on all.
[[nodiscard]] inline bool all(Communicator& comm, bool value, const CallInfo& info = {"all"}) {
  return sum(comm, value ? 0 : 1, info) == 0;
}

/// The Euclidean norm of the group's vector, of which `part` is this rank's piece (they may differ
/// in length): the square root of the sum of squares, each rank's in order and in double, added
/// over ranks in the canonical order.
template <ElementRange Part>
[[nodiscard]] double norm(Communicator& comm, const Part& part, const CallInfo& info = {"norm"}) {
  double squares = 0;
  for (const auto element : std::span(part)) {
    const auto number = static_cast<double>(element);
    squares += number * number;
  }
  return square_root(sum(comm, squares, info));
}

namespace detail {

template <class T, class Better>
[[nodiscard]] T best(Communicator& comm, T value, const CallInfo& info, const Better& better) {
  using Wide = std::conditional_t<std::floating_point<T>, double, std::int64_t>;
  std::array<Wide, 1> mine{static_cast<Wide>(value)};
  std::vector<Wide> values(ranks_of(comm));
  all_gather(comm, mine, values, info);
  Wide result = values.front();
  for (const Wide other : values) {
    if (other != other || better(other, result)) result = other;
  }
  return static_cast<T>(result);
}

}  // namespace detail

/// The largest value of the group; NaN where one is NaN.
template <class T>
requires std::floating_point<T> ||(std::integral<T> && !std::same_as<T, bool>) [[nodiscard]] T
    max(Communicator& comm, T value, const CallInfo& info = {"max"}) {
  return detail::best(comm, value, info, [](auto a, auto b) { return a > b; });
}

/// The smallest value of the group; NaN where one is NaN.
template <class T>
requires std::floating_point<T> ||(std::integral<T> && !std::same_as<T, bool>) [[nodiscard]] T
    min(Communicator& comm, T value, const CallInfo& info = {"min"}) {
  return detail::best(comm, value, info, [](auto a, auto b) { return a < b; });
}

}  // namespace shardwise::inline v0_1
