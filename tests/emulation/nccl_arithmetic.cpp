#include "nccl_arithmetic.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <type_traits>

#include "nccl_short_floats.hpp"

namespace emulation {

namespace {

// How an element type is stored and what it is computed in.
template <class Type>
struct Plain {
  using Stored = Type;
  using Value = Type;
  static Value load(Stored stored) { return stored; }
  static Stored store(Value value) { return value; }
};

struct Half {
  using Stored = std::uint16_t;
  using Value = float;
  static Value load(Stored stored) { return half_to_float(stored); }
  static Stored store(Value value) { return float_to_half(value); }
};

struct Bfloat16 {
  using Stored = std::uint16_t;
  using Value = float;
  static Value load(Stored stored) { return bfloat16_to_float(stored); }
  static Stored store(Value value) { return float_to_bfloat16(value); }
};

template <class Type>
struct Float8 {
  using Stored = std::uint8_t;
  using Value = float;
  static Value load(Stored stored) {
    Type value;
    value.__x = stored;
    return static_cast<float>(value);
  }
  static Stored store(Value value) { return Type(value).__x; }
};

template <class Value>
Value combine(ncclRedOp_t reduction, Value left, Value right) {
  if constexpr (std::is_integral_v<Value>) {
    using Wrapping = std::make_unsigned_t<Value>;  // overflow wraps, as on the device
    const auto a = static_cast<Wrapping>(left);
    const auto b = static_cast<Wrapping>(right);
    switch (reduction) {
      case ncclProd:
        return static_cast<Value>(static_cast<Wrapping>(std::uint64_t{a} * b));
      case ncclMax:
        return std::max(left, right);
      case ncclMin:
        return std::min(left, right);
      default:
        return static_cast<Value>(static_cast<Wrapping>(std::uint64_t{a} + b));
    }
  } else {
    switch (reduction) {
      case ncclProd:
        return left * right;
      case ncclMax:
        return std::fmax(left, right);
      case ncclMin:
        return std::fmin(left, right);
      default:
        return left + right;
    }
  }
}

template <class Codec, ncclRedOp_t Reduction, bool Scaled>
void reduce_as(std::span<const Contribution> ranks, std::size_t first, std::size_t count,
               std::byte* out) {
  using Stored = typename Codec::Stored;
  using Value = typename Codec::Value;
  constexpr std::size_t chunk = 4096;
  std::array<Value, chunk> running;
  std::array<Stored, chunk> next;
  for (std::size_t begin = 0; begin < count; begin += chunk) {
    const std::size_t elements = std::min(chunk, count - begin);
    for (std::size_t hop = 0; hop < ranks.size(); ++hop) {
      const Contribution& rank = ranks[(first + hop) % ranks.size()];
      std::memcpy(next.data(), rank.values + begin * sizeof(Stored), elements * sizeof(Stored));
      if constexpr (Scaled) {
        Stored bits{};
        std::memcpy(&bits, &rank.scalar, sizeof bits);
        const Value scalar = Codec::load(bits);
        for (std::size_t i = 0; i < elements; ++i) {
          next[i] = Codec::store(combine(ncclProd, Codec::load(next[i]), scalar));
        }
      }
      if (hop == 0) {
        for (std::size_t i = 0; i < elements; ++i) {
          running[i] = Codec::load(next[i]);
        }
      } else {
        for (std::size_t i = 0; i < elements; ++i) {
          running[i] =
              Codec::load(Codec::store(combine(Reduction, running[i], Codec::load(next[i]))));
        }
      }
    }
    for (std::size_t i = 0; i < elements; ++i) {
      next[i] = Codec::store(running[i]);
    }
    std::memcpy(out + begin * sizeof(Stored), next.data(), elements * sizeof(Stored));
  }
}

// An average of integers is divided at the end; of floating-point numbers each rank's part is
// multiplied by 1 / ranks before, as the real library does.
template <class Codec>
void average(std::span<const Contribution> ranks, std::size_t first, std::size_t count,
             std::byte* out) {
  using Stored = typename Codec::Stored;
  using Value = typename Codec::Value;
  if constexpr (std::is_integral_v<Value>) {
    reduce_as<Codec, ncclSum, false>(ranks, first, count, out);
    for (std::size_t i = 0; i < count; ++i) {
      Stored sum{};
      std::memcpy(&sum, out + i * sizeof sum, sizeof sum);
      if constexpr (std::is_signed_v<Stored>) {
        sum = static_cast<Stored>(sum / static_cast<std::int64_t>(ranks.size()));
      } else {
        sum = static_cast<Stored>(sum / ranks.size());
      }
      std::memcpy(out + i * sizeof sum, &sum, sizeof sum);
    }
  } else {
    const Stored scalar = Codec::store(Value{1} / static_cast<Value>(ranks.size()));
    std::array<Contribution, 256> scaled;
    for (std::size_t rank = 0; rank < ranks.size(); ++rank) {
      scaled.at(rank) = ranks[rank];
      scaled.at(rank).scalar = 0;
      std::memcpy(&scaled.at(rank).scalar, &scalar, sizeof scalar);
    }
    reduce_as<Codec, ncclSum, true>(std::span(scaled).first(ranks.size()), first, count, out);
  }
}

template <class Codec>
void reduce_type(ncclRedOp_t reduction, std::span<const Contribution> ranks, std::size_t first,
                 std::size_t count, std::byte* out) {
  switch (static_cast<int>(reduction)) {
    case ncclSum:
      return reduce_as<Codec, ncclSum, false>(ranks, first, count, out);
    case ncclProd:
      return reduce_as<Codec, ncclProd, false>(ranks, first, count, out);
    case ncclMax:
      return reduce_as<Codec, ncclMax, false>(ranks, first, count, out);
    case ncclMin:
      return reduce_as<Codec, ncclMin, false>(ranks, first, count, out);
    case ncclAvg:
      return average<Codec>(ranks, first, count, out);
    default:
      return reduce_as<Codec, ncclSum, true>(ranks, first, count, out);
  }
}

}  // namespace

void reduce(ncclDataType_t type, ncclRedOp_t reduction, std::span<const Contribution> ranks,
            std::size_t first, std::size_t count, std::byte* out) {
  switch (type) {
    case ncclInt8:
      return reduce_type<Plain<std::int8_t>>(reduction, ranks, first, count, out);
    case ncclUint8:
      return reduce_type<Plain<std::uint8_t>>(reduction, ranks, first, count, out);
    case ncclInt32:
      return reduce_type<Plain<std::int32_t>>(reduction, ranks, first, count, out);
    case ncclUint32:
      return reduce_type<Plain<std::uint32_t>>(reduction, ranks, first, count, out);
    case ncclInt64:
      return reduce_type<Plain<std::int64_t>>(reduction, ranks, first, count, out);
    case ncclUint64:
      return reduce_type<Plain<std::uint64_t>>(reduction, ranks, first, count, out);
    case ncclFloat16:
      return reduce_type<Half>(reduction, ranks, first, count, out);
    case ncclFloat32:
      return reduce_type<Plain<float>>(reduction, ranks, first, count, out);
    case ncclFloat64:
      return reduce_type<Plain<double>>(reduction, ranks, first, count, out);
    case ncclBfloat16:
      return reduce_type<Bfloat16>(reduction, ranks, first, count, out);
    case ncclFloat8e4m3:
      return reduce_type<Float8<__nv_fp8_e4m3>>(reduction, ranks, first, count, out);
    default:
      return reduce_type<Float8<__nv_fp8_e5m2>>(reduction, ranks, first, count, out);
  }
}

}  // namespace emulation
