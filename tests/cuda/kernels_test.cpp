#include <cuda_fp8.h>

#include <algorithm>
#include <catch2/catch_test_macros.hpp>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <iterator>
#include <limits>
#include <memory>
#include <shardwise/device/cuda.hpp>
#include <shardwise/device/host.hpp>
#include <shardwise/kernels/cast.hpp>
#include <shardwise/kernels/cast_elements.hpp>
#include <shardwise/kernels/e4m3.hpp>
#include <shardwise/kernels/elements.hpp>
#include <shardwise/kernels/norm.hpp>
#include <shardwise/kernels/quantize.hpp>
#include <shardwise/kernels/reduce.hpp>
#include <shardwise/optim/adam.hpp>
#include <shardwise/optim/adamw.hpp>
#include <shardwise/optim/lion.hpp>
#include <shardwise/optim/sgd.hpp>
#include <utility>
#include <vector>

#include "../support/contributions.hpp"
#include "device_bytes.hpp"
#include "stepping_on_device.hpp"

namespace shardwise::test {
namespace {

namespace cuda = detail::cuda;

constexpr DType floating_types[] = {DType::f64, DType::f32, DType::bf16, DType::f16};
constexpr std::size_t sizes[] = {0, 1, 7, 8, 15, 16, 17, 2047, 2048, 2049, 10007};

/// What no conversion may round in a way of its own: specials, ties, subnormals, in any type.
Bytes with_specials(Bytes bytes, DType type) {
  dispatch_floating(type, [&]<class T>() {
    const double infinity = std::numeric_limits<double>::infinity();
    const double values[] = {0.0,     -0.0,    infinity,   -infinity,      65504,          65520,
                             0x1p-24, 0x1p-25, 1 + 0x1p-8, 1 + 3 * 0x1p-8, -(1 + 0x1p-11), 0x1p-149,
                             1e300,   -3.5e38, 0x1p-133};
    std::size_t at = 3;
    for (const double value : values) {
      if ((at + 1) * sizeof(T) > bytes.size()) return;
      const T element = cast_element<T>(value);
      std::memcpy(bytes.data() + at * sizeof(T), &element, sizeof(T));
      at += 5;
    }
  });
  return bytes;
}

TEST_CASE("convert has the host's bits, from any address") {
  CudaStream stream;
  std::size_t cases = 0;
  for (const DType from : floating_types) {
    for (const DType to : floating_types) {
      for (const std::size_t count : sizes) {
        // Of elements: together aligned after a few, or never.
        for (const auto& [shift_from, shift_to] :
             {std::pair<std::size_t, std::size_t>{0, 0}, {3, 3}, {0, 1}, {5, 2}}) {
          const Bytes source = with_specials(contribution(from, 1, count, count), from);
          Bytes expected(count * size_of(to));
          cast_elements(source.data(), from, expected.data(), to, count);
          const DeviceBytes in(stream, source, shift_from * size_of(from));
          const DeviceBytes out(stream, Bytes(expected.size(), std::byte{0x5a}),
                                shift_to * size_of(to));
          CudaDevice::convert(stream, out.data(), to, in.data(), from, count);
          if (out.content() != expected) {
            FAIL(name_of(from) << " -> " << name_of(to) << ", count " << count << ", shifts "
                               << shift_from << " and " << shift_to);
          }
          ++cases;
        }
      }
    }
  }
  CHECK(cases == 4 * 4 * 11 * 4);
}

TEST_CASE("elements go in blocks from the first that is aligned, where there is one") {
  alignas(32) float from[64] = {};
  alignas(32) bf16 to[64] = {};
  const auto plan = [&](std::size_t shift_from, std::size_t shift_to, std::size_t count) {
    return detail::plan_elements(count, Cast<float, bf16>{from + shift_from, to + shift_to});
  };
  const auto is = [](const detail::ElementPlan& found, std::size_t head, std::size_t blocks) {
    return found.head == head && found.blocks == blocks;
  };
  CHECK(is(plan(0, 0, 56), 0, 14));
  CHECK(is(plan(0, 0, 55), 0, 13));
  CHECK(is(plan(3, 3, 56), 1, 13));
  CHECK(is(plan(2, 10, 20), 2, 4));
  CHECK(is(plan(1, 1, 6), 0, 0));
  CHECK(is(plan(0, 1, 56), 0, 0));
  const UpdateOf<AdamW, float, bf16> step{from, to, {from, from}, 1, {}};
  CHECK(is(detail::plan_elements(32, step), 0, 8));
  const UpdateOf<AdamW, float, bf16> crooked{from, to, {from, from + 2}, 1, {}};
  CHECK(is(detail::plan_elements(32, crooked), 0, 0));
}

TEST_CASE("convert in place, whichever type is larger") {
  CudaStream stream;
  for (const DType from : floating_types) {
    for (const DType to : floating_types) {
      for (const std::size_t count :
           {0u, 1u, 7u, 255u, 256u, 257u, 511u, 513u, 2047u, 2049u, 4097u, 10007u}) {
        const std::size_t room = count * std::max(size_of(from), size_of(to));
        Bytes content = contribution(from, 2, count, count);
        content.resize(room, std::byte{0x77});
        Bytes expected = content;
        cast_elements(content.data(), from, expected.data(), to, count);
        expected.resize(count * size_of(to));
        const DeviceBytes memory(stream, content);
        CudaDevice::convert(stream, memory.data(), to, memory.data(), from, count);
        Bytes found = memory.content();
        found.resize(expected.size());
        if (found != expected) FAIL(name_of(from) << " -> " << name_of(to) << ", " << count);
      }
    }
  }
}

/// The device's canonical reduction against the host's.
struct ReduceCase {
  DType dtype;
  DType output;
  std::size_t ranks;
  std::size_t count;
  bool accumulate;
  bool weighted;
  double scale;
  std::size_t shift = 0;  ///< elements of every buffer
  std::size_t gap = 0;    ///< elements between contributions
  int own_rank = -1;      ///< whose contribution lies apart, if any
};

bool has_host_bits(CudaStream& stream, const ReduceCase& c) {
  const std::size_t in_size = size_of(c.dtype);
  const std::size_t stride = c.count + c.gap;
  std::vector<Bytes> inputs;
  std::vector<const void*> pointers;
  std::vector<double> weights;
  Bytes all;
  for (std::size_t r = 0; r < c.ranks; ++r) {
    inputs.push_back(contribution(c.dtype, r, c.count, c.count));
    weights.push_back(c.weighted ? 0.25 + 0.3 * static_cast<double>(r) : 1);
    Bytes stored = inputs.back();
    if (static_cast<int>(r) == c.own_rank) stored.assign(stored.size(), std::byte{0xff});
    all.insert(all.end(), stored.begin(), stored.end());
    all.resize((r + 1) * stride * in_size, std::byte{0xff});
  }
  for (const Bytes& input : inputs) pointers.push_back(input.data());
  const ReduceSpec spec{.output = c.output, .scale = c.scale, .accumulate = c.accumulate};
  const Bytes old = contribution(c.output, 99, 2, c.count);
  Bytes expected = old;
  canonical_reduce(pointers, weights, c.dtype, c.count, expected.data(), spec);

  const DeviceBytes in(stream, all, c.shift * in_size);
  const DeviceBytes own(stream,
                        c.own_rank >= 0 ? inputs[static_cast<std::size_t>(c.own_rank)] : Bytes(),
                        c.shift * in_size);
  const DeviceBytes out(stream, old, c.shift * size_of(c.output));
  const DeviceBytes device_weights(stream, bytes_of(weights));
  cuda::Reduction reduction;
  reduction.inputs = in.data();
  reduction.stride = stride;
  if (c.own_rank >= 0) {
    reduction.own = own.data();
    reduction.own_rank = c.own_rank;
  }
  reduction.ranks = static_cast<int>(c.ranks);
  if (c.weighted) reduction.weights = device_weights.as<double>();
  reduction.dtype = c.dtype;
  reduction.count = c.count;
  reduction.out = out.data();
  reduction.output = c.output;
  reduction.scale = c.scale;
  reduction.accumulate = c.accumulate;
  cuda::canonical_reduce(stream.native(), reduction);
  return out.content() == expected;
}

TEST_CASE("canonical_reduce has the host's bits over types and sizes") {
  CudaStream stream;
  std::size_t cases = 0;
  for (const DType dtype : all_dtypes) {
    for (const DType output : all_dtypes) {
      if (is_floating(dtype) != is_floating(output)) continue;
      if (!is_floating(dtype) && dtype != output) continue;
      for (const std::size_t count : sizes) {
        for (const bool accumulate : {false, true}) {
          for (const bool weighted : {false, true}) {
            if (weighted && !is_floating(dtype)) continue;
            const double scale = is_floating(dtype) && count % 2 == 1 ? 1.0 / 3 : 1;
            const ReduceCase c{dtype, output, 3, count, accumulate, weighted, scale};
            if (!has_host_bits(stream, c)) {
              FAIL(name_of(dtype) << " -> " << name_of(output) << ", count " << count
                                  << ", accumulate " << accumulate << ", weighted " << weighted);
            }
            ++cases;
          }
        }
      }
    }
  }
  CHECK(cases == 11 * (16 * 4 + 4 * 2));
}

TEST_CASE("canonical_reduce has the host's tree for any number of ranks") {
  CudaStream stream;
  for (std::size_t ranks = 1; ranks <= 70; ++ranks) {
    for (const DType dtype : {DType::f64, DType::f32, DType::bf16, DType::i32, DType::u8}) {
      if (ranks > 20 && dtype != DType::f32) continue;
      const double scale = is_floating(dtype) ? 1.0 / static_cast<double>(ranks) : 1;
      const bool weighted = is_floating(dtype) && ranks % 2 == 0;
      const ReduceCase c{dtype, dtype, ranks, 53, false, weighted, scale};
      if (!has_host_bits(stream, c)) FAIL(name_of(dtype) << ", " << ranks << " ranks");
    }
  }
}

TEST_CASE("canonical_reduce from any address, with one contribution apart") {
  CudaStream stream;
  for (const DType dtype : {DType::f32, DType::bf16, DType::i8}) {
    for (const std::size_t shift : {0u, 1u, 3u, 5u}) {
      for (const std::size_t gap : {0u, 1u, 16u}) {
        for (const int own_rank : {-1, 0, 2, 4}) {
          const ReduceCase c{dtype, dtype, 5, 160 + gap, true, false, 1, shift, gap, own_rank};
          if (!has_host_bits(stream, c)) {
            FAIL(name_of(dtype) << ", shift " << shift << ", gap " << gap << ", own " << own_rank);
          }
        }
      }
    }
  }
  CHECK(has_host_bits(stream, {DType::f32, DType::bf16, 1, 33, true, false, 0.5, 0, 0, 0}));
}

TEST_CASE("canonical_reduce in place on any contribution") {
  CudaStream stream;
  constexpr std::size_t count = 1100;
  for (const DType dtype : {DType::f64, DType::f32, DType::bf16, DType::i32}) {
    for (std::size_t target = 0; target < 4; ++target) {
      std::vector<Bytes> inputs;
      std::vector<const void*> pointers;
      Bytes all;
      for (std::size_t r = 0; r < 4; ++r) {
        inputs.push_back(contribution(dtype, r, 3, count));
        all.insert(all.end(), inputs.back().begin(), inputs.back().end());
      }
      for (const Bytes& input : inputs) pointers.push_back(input.data());
      Bytes expected(count * size_of(dtype));
      canonical_reduce(pointers, {}, dtype, count, expected.data(), {.output = dtype});
      const DeviceBytes in(stream, all);
      cuda::Reduction reduction;
      reduction.inputs = in.data();
      reduction.stride = count;
      reduction.ranks = 4;
      reduction.dtype = reduction.output = dtype;
      reduction.count = count;
      reduction.out = in.data() + target * expected.size();
      cuda::canonical_reduce(stream.native(), reduction);
      const Bytes found = in.content();
      const auto begin = found.begin() + static_cast<std::ptrdiff_t>(target * expected.size());
      CHECK(Bytes(begin, begin + static_cast<std::ptrdiff_t>(expected.size())) == expected);
    }
  }
}

TEST_CASE("a number of ranks that no tree holds is refused") {
  CudaStream stream;
  cuda::Reduction reduction;
  reduction.count = 1;
  reduction.ranks = 0;
  CHECK_THROWS_AS(cuda::canonical_reduce(stream.native(), reduction), UsageError);
  reduction.ranks = 1 << 20;
  CHECK_THROWS_AS(cuda::canonical_reduce(stream.native(), reduction), UsageError);
}

TEST_CASE("scale_add is one rounding of old + scale * in") {
  CudaStream stream;
  for (const DType in_type : floating_types) {
    for (const DType output : floating_types) {
      for (const bool accumulate : {false, true}) {
        for (const std::size_t count : sizes) {
          const Bytes source = contribution(in_type, 1, 4, count);
          const Bytes old = contribution(output, 2, 5, count);
          const void* const pointer = source.data();
          Bytes expected = old;
          canonical_reduce({&pointer, 1}, {}, in_type, count, expected.data(),
                           {.output = output, .scale = 0.3, .accumulate = accumulate});
          const DeviceBytes in(stream, source);
          const DeviceBytes out(stream, old);
          cuda::scale_add(stream.native(), out.data(), output, in.data(), in_type, count, 0.3,
                          accumulate);
          if (out.content() != expected) {
            FAIL(name_of(in_type) << " -> " << name_of(output) << ", count " << count);
          }
        }
      }
    }
  }
}

TEST_CASE("sums of squares have the host's bits, many ranges at once") {
  CudaStream stream;
  std::vector<NormRange> ranges;
  std::vector<double> expected;
  std::vector<std::unique_ptr<DeviceBytes>> memory;
  // More than one table of ranges holds, of types that alternate and repeat.
  for (std::size_t i = 0; i < 200; ++i) {
    const DType type = floating_types[i % 7 < 4 ? i % 4 : 1];
    const std::size_t count = sizes[i % std::size(sizes)] + (i % 5 == 0 ? i : 0);
    const Bytes content = contribution(type, i, 7, count);
    memory.push_back(std::make_unique<DeviceBytes>(stream, content, i % 3 * size_of(type)));
    ranges.push_back({memory.back()->data(), type, count});
    expected.push_back(sum_of_squares(content.data(), type, count));
  }
  const Bytes groups = contribution(DType::bf16, 1, 7, norm_tile * norm_tile + 10 * norm_tile + 1);
  memory.push_back(std::make_unique<DeviceBytes>(stream, groups, 0));
  const std::size_t many = groups.size() / size_of(DType::bf16);
  ranges.push_back({memory.back()->data(), DType::bf16, many});
  expected.push_back(sum_of_squares(groups.data(), DType::bf16, many));
  std::vector<double> found(ranges.size(), -1);
  CudaDevice::sums_of_squares(stream, ranges, found.data());
  CHECK(bytes_of(found) == bytes_of(expected));
  CudaDevice::sums_of_squares(stream, {}, nullptr);
}

TEST_CASE("one element that is not finite is found, wherever it is") {
  CudaStream stream;
  for (const DType type : floating_types) {
    dispatch_floating(type, [&]<class T>() {
      const double infinity = std::numeric_limits<double>::infinity();
      const T specials[] = {cast_element<T>(infinity), cast_element<T>(-infinity),
                            cast_element<T>(std::numeric_limits<double>::quiet_NaN())};
      for (const std::size_t count : {1u, 15u, 16u, 17u, 1000u}) {
        std::vector<T> values(count, cast_element<T>(65504.0));
        if (count > 1) values[1] = cast_element<T>(-0x1p-24);
        CHECK(CudaDevice::is_finite(stream, DeviceBytes(stream, bytes_of(values)).data(), type,
                                    count));
        for (const T special : specials) {
          for (const std::size_t at : {std::size_t{0}, count / 2, count - 1}) {
            std::vector<T> spoilt = values;
            spoilt[at] = special;
            CHECK_FALSE(CudaDevice::is_finite(stream, DeviceBytes(stream, bytes_of(spoilt)).data(),
                                              type, count));
          }
        }
      }
      CHECK(CudaDevice::is_finite(stream, nullptr, type, 0));
    });
  }
}

TEST_CASE("poison is told from everything else, byte by byte") {
  CudaStream stream;
  for (const std::size_t bytes : {1u, 31u, 32u, 33u, 1000u}) {
    for (const std::size_t offset : {0u, 1u, 7u}) {
      const DeviceBytes memory(stream, Bytes(bytes), offset);
      CHECK_FALSE(CudaDevice::is_poisoned(stream, memory.data(), bytes));
      CudaDevice::poison(stream, memory.data(), bytes);
      CHECK(CudaDevice::is_poisoned(stream, memory.data(), bytes));
      for (const std::size_t at : {std::size_t{0}, bytes / 2, bytes - 1}) {
        Bytes spoilt(bytes, std::byte{0xff});
        spoilt[at] = std::byte{0xfe};
        const DeviceBytes other(stream, spoilt, offset);
        CHECK_FALSE(CudaDevice::is_poisoned(stream, other.data(), bytes));
      }
    }
  }
}

constexpr Quantized quantized_types[] = {Quantized::int8, Quantized::int4, Quantized::e4m3};

/// Blocks of every size of numbers, one of zeros, one of tiny values, one with an infinity and one
/// with a NaN, where there is room.
template <class T>
std::vector<T> values_to_quantize(std::size_t count) {
  std::vector<T> values(count);
  for (std::size_t i = 0; i < count; ++i) {
    const std::size_t block = i / quantized_block;
    auto value = static_cast<double>(number<float>(1, 8, i)) * static_cast<double>(1 + block);
    if (block == 1) value = 0;
    if (block == 2) value *= 0x1p-132;
    if (block == 3 && i % quantized_block == 200) value = std::numeric_limits<double>::infinity();
    if (block == 4 && i % quantized_block == 7) value = std::numeric_limits<double>::quiet_NaN();
    values[i] = cast_element<T>(value);
  }
  return values;
}

/// The same bits, but for those of a NaN, which are nobody's.
bool are_same_numbers(DType type, const Bytes& a, const Bytes& b) {
  return a.size() == b.size() && dispatch_floating(type, [&]<class T>() {
           for (std::size_t at = 0; at < a.size(); at += sizeof(T)) {
             T x;
             T y;
             std::memcpy(&x, a.data() + at, sizeof x);
             std::memcpy(&y, b.data() + at, sizeof y);
             const bool is_nan =
                 std::isnan(cast_element<double>(x)) && std::isnan(cast_element<double>(y));
             if (!is_nan && std::memcmp(a.data() + at, b.data() + at, sizeof x) != 0) return false;
           }
           return true;
         });
}

TEST_CASE("blocks are quantised and come back with the host's bits, from any address") {
  CudaStream stream;
  for (const Quantized type : quantized_types) {
    for (const DType dtype : floating_types) {
      for (const std::size_t count : sizes) {
        for (const std::size_t shift : {0u, 1u}) {
          Bytes source;
          dispatch_floating(dtype,
                            [&]<class T>() { source = bytes_of(values_to_quantize<T>(count)); });
          Bytes expected(quantized_bytes(type, count));
          std::vector<float> expected_factors(quantized_factors(count));
          quantize(source.data(), dtype, count, type, expected.data(), expected_factors.data());
          Bytes expected_back(source.size());
          dequantize(expected.data(), type, expected_factors.data(), count, expected_back.data(),
                     dtype);

          const DeviceBytes in(stream, source, shift * size_of(dtype));
          const DeviceBytes out(stream, Bytes(expected.size(), std::byte{0x5a}), shift);
          const DeviceBytes factors(stream, Bytes(expected_factors.size() * sizeof(float)));
          const DeviceBytes back(stream, Bytes(source.size()), shift * size_of(dtype));
          cuda::quantize(stream.native(), in.data(), dtype, count, type, out.data(),
                         factors.as<float>());
          cuda::dequantize(stream.native(), out.data(), type, factors.as<float>(), count,
                           back.data(), dtype);
          if (out.content() != expected || factors.content() != bytes_of(expected_factors) ||
              !are_same_numbers(dtype, back.content(), expected_back)) {
            FAIL(name_of(dtype) << " as " << name_of(type) << ", count " << count << ", shift "
                                << shift);
          }
        }
      }
    }
  }
}

TEST_CASE("e4m3 has the bits of CUDA's own conversions") {
  std::size_t wrong = 0;
  const auto compare = [&](float value) {
    const auto theirs =
        static_cast<std::uint8_t>(__nv_cvt_float_to_fp8(value, __NV_SATFINITE, __NV_E4M3));
    const std::uint8_t ours = e4m3(value).bits;
    // The sign of a NaN is nobody's.
    const bool is_same = ours == theirs || ((ours & 0x7fu) == 0x7fu && (theirs & 0x7fu) == 0x7fu);
    wrong += is_same ? 0u : 1u;
  };
  // Every upper half of a float, and what lies on either side of the ties below it.
  for (std::uint32_t half = 0; half < 0x10000; ++half) {
    for (const std::uint32_t low : {0u, 1u, 0x7fffu, 0x8000u, 0x8001u, 0xffffu}) {
      compare(__builtin_bit_cast(float, half << 16 | low));
    }
  }
  CHECK(wrong == 0);
  for (unsigned bits = 0; bits < 256; ++bits) {
    e4m3 ours;
    ours.bits = static_cast<std::uint8_t>(bits);
    __nv_fp8_e4m3 theirs;
    theirs.__x = static_cast<__nv_fp8_storage_t>(bits);
    const auto a = static_cast<float>(ours);
    const auto b = static_cast<float>(theirs);
    CHECK((a == b || (a != a && b != b)));
  }
}

TEST_CASE("optimizer steps have the host's bits, in any segments") {
  CHECK(device_steps_as_the_host<AdamW, float>());
  CHECK(device_steps_as_the_host<AdamW, bf16>());
  CHECK(device_steps_as_the_host<AdamW, f16>());
  CHECK(device_steps_as_the_host<Adam, float>());
  CHECK(device_steps_as_the_host<Adam, bf16>());
  CHECK(device_steps_as_the_host<Adam, f16>());
  CHECK(device_steps_as_the_host<Lion, float>());
  CHECK(device_steps_as_the_host<Lion, bf16>());
  CHECK(device_steps_as_the_host<Lion, f16>());
  CHECK(device_steps_as_the_host<Sgd, float>());
  CHECK(device_steps_as_the_host<Sgd, bf16>());
  CHECK(device_steps_as_the_host<Sgd, f16>());
  CHECK(device_steps_as_the_host<SgdMomentum, float>());
  CHECK(device_steps_as_the_host<SgdMomentum, bf16>());
  CHECK(device_steps_as_the_host<SgdMomentum, f16>());
}

TEST_CASE("a step and a narrower copy of its result in one pass have the host's bits") {
  CudaStream stream;
  const auto check = [&]<class Optimizer, class Gradient>(Optimizer optimizer, Gradient) {
    using Step = UpdateOf<Optimizer, float, Gradient>;
    for (const std::size_t count : sizes) {
      for (const std::size_t shift : {0u, 3u}) {
        Stepping<Optimizer, float, Gradient> host(count);
        const auto gradient = host.gradient(1);
        const DeviceBytes parameter(stream, bytes_of(host.parameter), shift * sizeof(float));
        const DeviceBytes g(stream, bytes_of(gradient), shift * sizeof(Gradient));
        const DeviceBytes m(stream, Bytes(count * sizeof(float)), shift * sizeof(float));
        const DeviceBytes v(stream, Bytes(count * sizeof(float)), shift * sizeof(float));
        const DeviceBytes copy(stream, Bytes(count * sizeof(bf16)), shift * sizeof(bf16));
        host.step(1, {}, 0.7f);
        const UpdateAndCast<Step, bf16> functor{{parameter.as<float>(),
                                                 g.as<const Gradient>(),
                                                 {m.data(), v.data()},
                                                 0.7f,
                                                 optimizer.template constants<float>(1, {})},
                                                copy.as<bf16>()};
        CudaDevice::launch(stream, count, functor);
        std::vector<bf16> expected(count);
        cast_elements(host.parameter.data(), DType::f32, expected.data(), DType::bf16, count);
        CHECK(parameter.content() == bytes_of(host.parameter));
        CHECK(m.content() == bytes_of(std::get<0>(host.states)));
        CHECK(v.content() == bytes_of(std::get<1>(host.states)));
        CHECK(copy.content() == bytes_of(expected));
      }
    }
  };
  check(AdamW{}, float{});
  check(AdamW{}, bf16{});
  check(Adam{}, float{});
  check(Adam{}, bf16{});
}

TEST_CASE("a step and a narrower copy of its result on the host") {
  constexpr std::size_t count = 203;
  Stepping<AdamW, float, bf16> plain(count);
  Stepping<AdamW, float, bf16> copied(count);
  const auto gradient = plain.gradient(1);
  std::vector<bf16> copy(count);
  plain.step(1);
  const UpdateAndCast<UpdateOf<AdamW, float, bf16>, bf16> functor{
      {copied.parameter.data(),
       gradient.data(),
       {std::get<0>(copied.states).data(), std::get<1>(copied.states).data()},
       1,
       AdamW{}.constants<float>(1, {})},
      copy.data()};
  HostDevice::run(count, functor);
  std::vector<bf16> expected(count);
  cast_elements(plain.parameter.data(), DType::f32, expected.data(), DType::bf16, count);
  CHECK(copied.same_as(plain));
  CHECK(bytes_of(copy) == bytes_of(expected));
}

}  // namespace
}  // namespace shardwise::test
