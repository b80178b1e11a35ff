// Times one optimizer step over all elements against a triad (a = b + s * c) over the same memory,
// in turns, on one core. Rates count each value that is read or written once: 12 bytes an element
// for the triad, 28 for AdamW in fp32. Both are limited by memory where the arrays do not fit into
// caches: triad_ratio, the quotient of their rates, goes to 1. The triad is the faster one of two,
// through the caches or past them. "copy": the step writes what leases see, too.

#include <cstring>
#include <memory>
#include <new>
#include <shardwise/device/host.hpp>
#include <shardwise/optim/adam.hpp>
#include <shardwise/optim/adamw.hpp>
#include <shardwise/optim/lion.hpp>
#include <shardwise/optim/sgd.hpp>

#include "memory_work.hpp"
#include "program.hpp"

namespace {

using namespace benchmarks;
using shardwise::bf16;
using shardwise::f16;
using shardwise::HostDevice;

/// One allocation for all arrays of a step, which the triad takes as its three.
class Arrays {
 public:
  explicit Arrays(std::size_t bytes)
      : size_(bytes), memory_(static_cast<std::byte*>(HostDevice::allocate(bytes))) {}

  template <class T>
  [[nodiscard]] T* next(std::size_t count, float value) {
    auto* const begin = reinterpret_cast<T*>(memory_.get() + used_);
    for (std::size_t i = 0; i < count; ++i) new (begin + i) T(value);
    used_ += count * sizeof(T);
    return begin;
  }

  [[nodiscard]] std::size_t third() const { return size_ / 3 / 64 * 64; }

  void triad(bool streaming) const {
    const auto part = [&](std::size_t i) {
      return reinterpret_cast<float*>(memory_.get() + i * third());
    };
    (streaming ? triad_streaming : triad_cached)(part(2), part(0), part(1), 1e-6f, third() / 4);
  }

 private:
  struct Free {
    void operator()(std::byte* memory) const { HostDevice::deallocate(memory, 0); }
  };
  std::size_t size_;
  std::size_t used_ = 0;
  std::unique_ptr<std::byte, Free> memory_;
};

/// `Copy`: of what leases see; void where it is the parameter itself.
template <class Optimizer, class Parameter, class Gradient, class Copy = void>
void measure(Program& program, const char* name, std::size_t count) {
  using Functor = shardwise::UpdateOf<Optimizer, Parameter, Gradient>;
  constexpr bool copies = !std::is_void_v<Copy>;
  constexpr std::size_t states = Optimizer::States::count;
  std::size_t held = sizeof(Parameter) + sizeof(Gradient) + states * sizeof(float);
  std::size_t moved = held + sizeof(Parameter) + states * sizeof(float);
  if constexpr (copies) {
    held += sizeof(Copy);
    moved += sizeof(Copy);
  }
  Arrays arrays(held * count);
  auto* const parameter = arrays.next<Parameter>(count, 1.0f);
  auto* const gradient = arrays.next<Gradient>(count, 0.5f);
  using Real = typename Functor::Real;
  Functor step{parameter, gradient, {}, 0.5f, Optimizer{}.template constants<Real>(1, {})};
  for (std::size_t i = 0; i < states; ++i) step.states[i] = arrays.next<float>(count, 0.25f);
  const auto times = [&](const auto& functor) {
    return in_turns(program.sampling, {[&, functor] { HostDevice::run(count, functor); },
                                       [&] { arrays.triad(false); }, [&] { arrays.triad(true); }});
  };
  const std::vector<Series> found = [&] {
    if constexpr (copies) {
      return times(shardwise::UpdateAndCast<Functor, Copy>{step, arrays.next<Copy>(count, 1.0f)});
    } else {
      return times(step);
    }
  }();
  const Series& triad = found[1].middle() < found[2].middle() ? found[1] : found[2];
  const double seconds = found[0].middle();
  const auto bytes = static_cast<double>(moved * count);
  const auto triad_bytes = static_cast<double>(3 * arrays.third());
  const auto type = [](auto* of) {
    return std::string(
        shardwise::name_of(shardwise::dtype_of<std::remove_pointer_t<decltype(of)>>));
  };
  std::string copy = "none";
  if constexpr (copies) copy = type(static_cast<Copy*>(nullptr));
  program.results.add({{"optimizer", name},
                       {"parameter", type(parameter)},
                       {"gradient", type(const_cast<Gradient*>(gradient))},
                       {"copy", copy},
                       {"elements", count},
                       {"bytes_moved", moved * count},
                       {"time_us", seconds * 1e6},
                       {"time_us_min", found[0].least() * 1e6},
                       {"time_us_max", found[0].most() * 1e6},
                       {"elements_per_s", static_cast<double>(count) / seconds},
                       {"gbs", bytes / seconds * 1e-9},
                       {"triad_gbs", triad_bytes / triad.middle() * 1e-9},
                       {"triad_ratio", (triad / found[0]).middle() * bytes / triad_bytes}});
}

}  // namespace

int main(int count, char** arguments) {
  std::vector<std::size_t> elements{std::size_t{1} << 13, std::size_t{1} << 24};
  Program program("bench_optimizer", "Times optimizer steps against a triad over the same memory");
  program.options.add_option("--elements", elements, "of the parameter: in a cache, in memory")
      ->delimiter(',')
      ->check(CLI::Range(std::size_t{64}, std::size_t{1} << 32));
  return program.run(count, arguments, [&] {
    using namespace shardwise;
    for (const std::size_t each : elements) {
      measure<AdamW, float, float>(program, "AdamW", each);
      measure<AdamW, float, bf16>(program, "AdamW", each);
      measure<AdamW, float, bf16, bf16>(program, "AdamW", each);
      measure<AdamW, float, f16, f16>(program, "AdamW", each);
      measure<AdamW, bf16, bf16>(program, "AdamW", each);
      measure<AdamW, double, double>(program, "AdamW", each);
      measure<Adam, float, float>(program, "Adam", each);
      measure<SgdMomentum, float, float>(program, "SGD momentum", each);
      measure<Sgd, float, float>(program, "SGD", each);
      measure<Lion, float, float>(program, "Lion", each);
    }
    return true;
  });
}
