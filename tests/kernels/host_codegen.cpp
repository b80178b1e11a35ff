// What check_host_codegen.py compiles as a consumer would and reads as assembly: one function for
// each step, sum and cast, over blocks alone, so that nothing in it has a reason to be scalar.

#include <cstddef>
#include <shardwise/kernels/reduce.hpp>
#include <shardwise/kernels/update.hpp>
#include <shardwise/optim/adam.hpp>
#include <shardwise/optim/adamw.hpp>
#include <shardwise/optim/lion.hpp>
#include <shardwise/optim/sgd.hpp>
#include <span>

namespace {

using namespace shardwise;

template <class Functor>
inline void run_blocks(const Functor& functor, std::size_t count) {
  constexpr std::size_t width = 16;
  for (std::size_t first = 0; first < count; first += width) functor.template run<width>(first);
}

template <class Step>
using WithCopy = UpdateAndCast<Step, bf16>;

/// What cast_elements does with octets.
template <class From, class To>
struct Octets {
  const From* from;
  To* to;

  template <std::size_t width>
  void run(std::size_t first) const {
    detail::convert_octets<float, width>(from + first, to + first);
  }
};

/// What sums of two ranks do with octets: the result is scaled, and added to what is there.
template <class In, class Out>
struct SumOfTwo {
  const In *a, *b;
  Out* out;
  detail::Finish<detail::Store::accumulate, float, Out> finish;

  template <std::size_t width>
  void run(std::size_t first) const {
    for (std::size_t i = first; i < first + width; i += detail::octet) {
      const auto sum = detail::load_octet<float>(a + i) + detail::load_octet<float>(b + i);
      finish.elements(sum, out + i);
    }
  }
};

}  // namespace

#define STEP(name, ...)                                          \
  extern "C" void name(const __VA_ARGS__& f, std::size_t count); \
  void name(const __VA_ARGS__& f, std::size_t count) { run_blocks(f, count); }

STEP(step_adamw_f32_f32, UpdateOf<AdamW, float, float>)
STEP(step_adamw_f32_bf16, UpdateOf<AdamW, float, bf16>)
STEP(step_adamw_f32_f16, UpdateOf<AdamW, float, f16>)
STEP(step_adamw_bf16_bf16, UpdateOf<AdamW, bf16, bf16>)
STEP(step_adamw_f64_f64, UpdateOf<AdamW, double, double>)
STEP(step_adamw_f32_f32_copy, WithCopy<UpdateOf<AdamW, float, float>>)
STEP(step_adamw_f32_bf16_copy, WithCopy<UpdateOf<AdamW, float, bf16>>)
STEP(step_adam_f32_f32, UpdateOf<Adam, float, float>)
STEP(plain_sgd_f32_f32, UpdateOf<Sgd, float, float>)
STEP(plain_momentum_f32_bf16, UpdateOf<SgdMomentum, float, bf16>)
STEP(plain_lion_f32_f32, UpdateOf<Lion, float, float>)
STEP(plain_sum_f32_f32, SumOfTwo<float, float>)
STEP(plain_sum_bf16_f32, SumOfTwo<bf16, float>)
STEP(plain_sum_bf16_bf16, SumOfTwo<bf16, bf16>)
STEP(plain_sum_f16_f16, SumOfTwo<f16, f16>)
STEP(cast_f32_bf16, Octets<float, bf16>)
STEP(cast_bf16_f32, Octets<bf16, float>)
STEP(cast_f32_f16, Octets<float, f16>)
STEP(cast_f16_f32, Octets<f16, float>)

// Sums that are scaled and added to what is there, by vectors that the options do not promise.
extern "C" void wide_sums(std::span<const void* const> inputs, DType dtype, std::size_t count,
                          void* out, const ReduceSpec& spec);
void wide_sums(std::span<const void* const> inputs, DType dtype, std::size_t count, void* out,
               const ReduceSpec& spec) {
  canonical_reduce(inputs, {}, dtype, count, out, spec);
}
