// Hashes of what the kernels make of fixed numbers, a line each: check_bits.py compares those of
// two architectures.

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <shardwise/kernels/cast_elements.hpp>
#include <shardwise/kernels/norm.hpp>
#include <shardwise/kernels/reduce.hpp>
#include <shardwise/optim/adam.hpp>
#include <shardwise/optim/adamw.hpp>
#include <shardwise/optim/lion.hpp>
#include <shardwise/optim/sgd.hpp>
#include <string>
#include <vector>

namespace {

using namespace shardwise;

constexpr std::size_t count = 1003;  // blocks, and a few elements more

std::uint64_t next(std::uint64_t& state) {
  state = state * 6364136223846793005u + 1442695040888963407u;
  return state >> 33;
}

/// Numbers of all magnitudes up to 2^10, of either sign, some of them subnormal in f16.
template <class T>
std::vector<T> numbers(std::uint64_t seed) {
  std::vector<T> result;
  for (std::size_t i = 0; i < count; ++i) {
    const auto high = static_cast<double>(next(seed)) * 0x1p-31;
    const double fraction = high - 0.5 + static_cast<double>(next(seed)) * 0x1p-62;
    result.push_back(cast_element<T>(std::ldexp(fraction, static_cast<int>(next(seed) % 32) - 20)));
  }
  return result;
}

template <class T>
std::uint64_t hash(const std::vector<T>& values, std::uint64_t before = 14695981039346656037u) {
  const auto* bytes = reinterpret_cast<const unsigned char*>(values.data());
  for (std::size_t i = 0; i < values.size() * sizeof(T); ++i) {
    before = (before ^ bytes[i]) * 1099511628211u;
  }
  return before;
}

void say(const std::string& what, std::uint64_t hash) {
  std::printf("%s: %016llx\n", what.c_str(), static_cast<unsigned long long>(hash));
}
template <class T>
std::string name() {
  return std::string(name_of(dtype_of<T>));
}

template <class Optimizer, class Parameter, class Gradient>
void step(const std::string& optimizer) {
  auto parameter = numbers<Parameter>(1);
  const auto gradient = numbers<Gradient>(2);
  std::vector<float> states[2] = {numbers<float>(3), numbers<float>(4)};
  for (float& value : states[1]) value = std::abs(value);
  using Functor = UpdateOf<Optimizer, Parameter, Gradient>;
  using Real = typename Functor::Real;
  const auto constants = Optimizer{}.template constants<Real>(3, {});
  Functor functor{parameter.data(), gradient.data(), {}, 0.75f, constants};
  for (std::size_t i = 0; i < Functor::state_count; ++i) functor.states[i] = states[i].data();
  std::vector<bf16> copy(count);
  const UpdateAndCast<Functor, bf16> both{functor, copy.data()};
  constexpr std::size_t width = 16;
  std::size_t i = 0;
  for (; i + width <= count; i += width) both.template run<width>(i);
  for (; i < count; ++i) both.template run<1>(i);
  say(optimizer + " of " + name<Parameter>() + " by " + name<Gradient>(),
      hash(copy, hash(states[0], hash(states[1], hash(parameter)))));
}

template <class Optimizer>
void steps(const std::string& optimizer) {
  step<Optimizer, float, float>(optimizer);
  step<Optimizer, float, bf16>(optimizer);
  step<Optimizer, float, f16>(optimizer);
  step<Optimizer, bf16, bf16>(optimizer);
  step<Optimizer, double, double>(optimizer);
}

template <class In, class Out>
void sums() {
  std::vector<std::vector<In>> inputs;
  std::vector<const void*> pointers;
  std::uint64_t result = 0;
  for (std::uint64_t ranks = 1; ranks <= 7; ++ranks) {
    inputs.push_back(numbers<In>(10 + ranks));
    pointers.push_back(inputs.back().data());
    for (const bool accumulate : {false, true}) {
      auto out = numbers<Out>(5);
      ReduceSpec spec;
      spec.output = dtype_of<Out>;
      spec.scale = 0.3;
      spec.accumulate = accumulate;
      canonical_reduce(pointers, {}, dtype_of<In>, count, out.data(), spec);
      result = hash(out, result);
    }
  }
  say("sums of " + name<In>() + " as " + name<Out>(), result);
}

/// All bits of 16, infinities and NaNs among them, and numbers of all magnitudes.
template <class From, class To>
void casts() {
  auto from = numbers<From>(6);
  if constexpr (sizeof(From) == 2) {
    from.resize(65536);
    for (std::size_t i = 0; i < from.size(); ++i) from[i].bits = static_cast<std::uint16_t>(i);
  } else {
    for (const double value : {1e30, -1e30, 65519.9, 65520.0, 1e-30, -0.0, 1e300 * 1e300}) {
      from.push_back(static_cast<From>(value));
    }
  }
  std::vector<To> to(from.size());
  cast_elements(from.data(), dtype_of<From>, to.data(), dtype_of<To>, from.size());
  say(name<From>() + " to " + name<To>(), hash(to));
}

template <class From>
void casts_and_norm() {
  casts<From, float>();
  casts<From, double>();
  casts<From, bf16>();
  casts<From, f16>();
  const auto values = numbers<From>(7);
  say("squares of " + name<From>(), hash(std::vector{sum_of_squares(values.data(), count)}));
}

}  // namespace

int main() {
  steps<AdamW>("AdamW");
  steps<Adam>("Adam");
  steps<Sgd>("SGD");
  steps<SgdMomentum>("SGD with momentum");
  steps<Lion>("Lion");
  sums<float, float>();
  sums<bf16, bf16>();
  sums<bf16, float>();
  sums<f16, f16>();
  sums<double, double>();
  casts_and_norm<float>();
  casts_and_norm<double>();
  casts_and_norm<bf16>();
  casts_and_norm<f16>();
}
