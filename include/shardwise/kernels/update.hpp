#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#include "../core/dtype.hpp"
#include "../core/host_device.hpp"
#include "cast.hpp"
#include "lanes.hpp"
#include "octet.hpp"
#include "pack.hpp"
#include "wide.hpp"

namespace shardwise::inline v0_1 {

/// The element types of an optimizer's state: so many values for each element of a parameter.
template <FloatingElement... States>
struct StateTypes {
  static constexpr std::size_t count = sizeof...(States);
};

namespace detail {
/// The tile after the next one, which may be past the end: conversions read and write in bursts,
/// which the processor does not foresee.
template <std::size_t tile, class T>
inline void prefetch_tile(T* from) noexcept {
  const auto address = reinterpret_cast<std::uintptr_t>(from) + 2 * tile * sizeof(T);
  for (std::size_t i = 0; i < tile * sizeof(T); i += 64) {
    __builtin_prefetch(reinterpret_cast<const void*>(address + i), std::is_const_v<T> ? 0 : 1);
  }
}
}  // namespace detail

/// A functor for Device::launch: one optimizer step over elements of a parameter, its gradient and
/// its state, in place. Computes in Real = Accumulator<Parameter>:
/// `g = Real(gradient[i]) * Real(coefficient)`, then Optimizer::update; parameter and state are
/// rounded once to their types. An element depends on its own values alone and lanes round as
/// scalars do, so that any split of a range gives the same bits.
template <class Optimizer, FloatingElement Parameter, FloatingElement Gradient,
          FloatingElement... States>
struct Update {
  using Real = Accumulator<Parameter>;
  using Constants = typename Optimizer::template Constants<Real>;
  static constexpr std::size_t state_count = sizeof...(States);

  Parameter* parameter;
  const Gradient* gradient;
  void* states[state_count > 0 ? state_count : 1];  ///< in the order of States
  float coefficient;                                ///< of the gradient; 1 changes no bit
  Constants constants;

  template <std::size_t Width>
  SHARDWISE_HOST_DEVICE void run(std::size_t first) const {
    using Indices = std::index_sequence_for<States...>;
#if !defined(__CUDA_ARCH__)
    if constexpr (requires { requires Optimizer::in_lanes; }) {
      if constexpr (Width % (sizeof(Lanes<Real>) / sizeof(Real)) == 0) {
        return step<Lanes<Real>, Width>(first, Indices());
      }
    }
#endif
    step<Real, Width>(first, Indices());
  }

  /// Whether wide vectors convert what this step reads and writes: a tile at once, whose Reals stay
  /// in the first cache meanwhile.
  static constexpr bool in_tiles =
      std::is_same_v<Real, float> && detail::WideElement<Gradient> &&
      !(std::is_same_v<Parameter, float> && std::is_same_v<Gradient, float>);
  static constexpr std::size_t tile = 256;

  /// Elements [first, first + tile) on the host; the bits of run.
  void run_tile(std::size_t first, detail::Vectors vectors) const {
    if constexpr (in_tiles) {
      step_tile(first, vectors, std::index_sequence_for<States...>());
    } else {
      run_blocks(*this, first);
    }
  }

  static constexpr std::size_t block_width = detail::block_width<Parameter, Gradient, States...>();
  template <std::size_t Width>
  [[nodiscard]] bool aligned(std::size_t first) const noexcept {
    return detail::is_aligned_for<Width>(parameter + first) &&
           detail::is_aligned_for<Width>(gradient + first) &&
           are_aligned<Width>(first, std::index_sequence_for<States...>());
  }
  /// The same step through the widest accesses: what a device runs.
  template <std::size_t Width>
  SHARDWISE_HOST_DEVICE void run_block(std::size_t first) const {
    static_cast<void>(step_block<Width>(first));
  }
  /// What run_block does; returns the new values of the parameter.
  template <std::size_t Width>
  SHARDWISE_HOST_DEVICE detail::Block<Parameter, Width> step_block(std::size_t first) const {
    return step_block<Width>(first, std::index_sequence_for<States...>());
  }

 private:
  template <class Step>
  static void run_blocks(const Step& step, std::size_t first) {
    constexpr std::size_t width = 16;
    for (std::size_t i = 0; i < tile; i += width) step.template run<width>(first + i);
  }

  template <std::size_t... Index>
  void step_tile(std::size_t first, detail::Vectors vectors, std::index_sequence<Index...>) const {
    constexpr bool narrow = !std::is_same_v<Parameter, float>;
    constexpr bool narrow_gradient = !std::is_same_v<Gradient, float>;
    alignas(64) float values[narrow ? tile : 1];
    alignas(64) float gradients[narrow_gradient ? tile : 1];
    Update<Optimizer, float, float, States...> plain{
        nullptr, nullptr, {static_cast<States*>(states[Index]) + first...}, coefficient, constants};
    if constexpr (narrow) {
      detail::prefetch_tile<tile>(parameter + first);
      detail::cast_whole(parameter + first, values, tile, vectors);
      plain.parameter = values;
    } else {
      plain.parameter = parameter + first;
    }
    if constexpr (narrow_gradient) {
      detail::prefetch_tile<tile>(gradient + first);
      detail::cast_whole(gradient + first, gradients, tile, vectors);
      plain.gradient = gradients;
    } else {
      plain.gradient = gradient + first;
    }
    run_blocks(plain, 0);
    if constexpr (narrow) detail::cast_whole(values, parameter + first, tile, vectors);
  }

  template <std::size_t Width, std::size_t... Index>
  [[nodiscard]] bool are_aligned([[maybe_unused]] std::size_t first,
                                 std::index_sequence<Index...>) const noexcept {
    return (detail::is_aligned_for<Width>(static_cast<const States*>(states[Index]) + first) &&
            ...);
  }

  template <std::size_t Width, std::size_t... Index>
  SHARDWISE_HOST_DEVICE detail::Block<Parameter, Width> step_block(
      std::size_t first, std::index_sequence<Index...>) const {
    const auto factor = static_cast<Real>(coefficient);
    detail::Block<Parameter, Width> p;
    detail::Block<Gradient, Width> g;
    p.load(parameter + first);
    g.load(gradient + first);
    const auto update = [&](auto... s) {
      (s.load(static_cast<States*>(states[Index]) + first), ...);
      for (std::size_t i = 0; i < Width; ++i) {
        auto value = cast_element<Real>(p.values[i]);
        const Real scaled = cast_element<Real>(g.values[i]) * factor;
        update_values(value, scaled, i, s...);
        p.values[i] = cast_element<Parameter>(value);
      }
      p.store(parameter + first);
      (s.store(static_cast<States*>(states[Index]) + first), ...);
    };
    update(detail::Block<States, Width>()...);
    return p;
  }

  template <class... Blocks>
  SHARDWISE_HOST_DEVICE void update_values(Real& p, Real g, std::size_t i,
                                           Blocks&... blocks) const {
    const auto update = [&](auto... s) {
      Optimizer::update(constants, p, g, s...);
      ((blocks.values[i] = cast_element<std::remove_reference_t<decltype(blocks.values[i])>>(s)),
       ...);
    };
    update(cast_element<Real>(blocks.values[i])...);
  }

  // Width elements as Reals: the memory itself where lanes read and write it, else a copy, so that
  // loops over scalars vectorise without a proof that the buffers are apart.
  template <class T, class Value, std::size_t Width>
  class Block {
   public:
    SHARDWISE_HOST_DEVICE explicit Block(T* home) : home_(home) {
      if constexpr (!std::is_same_v<Value, Real>) prefetch();
      if constexpr (is_copy && in_octets) {
        detail::convert_octets<Real, Width>(home, copy_);
      } else if constexpr (is_copy) {
        for (std::size_t i = 0; i < Width; ++i) copy_[i] = cast_element<Real>(home[i]);
      }
    }
    SHARDWISE_HOST_DEVICE Value load(std::size_t i) const {
      Value value;
      std::memcpy(&value, reals() + i, sizeof(Value));
      return value;
    }
    SHARDWISE_HOST_DEVICE void store(std::size_t i, const Value& value) {
      std::memcpy(reals() + i, &value, sizeof(Value));
    }
    SHARDWISE_HOST_DEVICE void commit() const {
      if constexpr (is_copy && in_octets) {
        detail::convert_octets<Real, Width>(copy_, home_);
      } else if constexpr (is_copy) {
        T out[Width];
        for (std::size_t i = 0; i < Width; ++i) out[i] = cast_element<T>(copy_[i]);
        std::memcpy(home_, out, sizeof(out));
      }
    }

   private:
    static constexpr bool is_copy =
        !std::is_same_v<std::remove_const_t<T>, Real> || std::is_same_v<Value, Real>;
    static constexpr bool in_octets = !std::is_same_v<Value, Real> && Width % detail::octet == 0;

    // Division and root keep the core busy for so long that it sees too few loads ahead by itself.
    SHARDWISE_HOST_DEVICE void prefetch() const {
      constexpr std::size_t ahead = 1024;
      const auto address = reinterpret_cast<std::uintptr_t>(home_) + ahead;  // may be past the end
      for (std::size_t i = 0; i < Width * sizeof(T); i += 64) {
        __builtin_prefetch(reinterpret_cast<const void*>(address + i));
      }
    }
    SHARDWISE_HOST_DEVICE auto* reals() {
      if constexpr (is_copy) {
        return copy_;
      } else {
        return home_;
      }
    }
    SHARDWISE_HOST_DEVICE const Real* reals() const { return const_cast<Block*>(this)->reals(); }

    T* home_;
    alignas(16) Real copy_[is_copy ? Width : 1];
  };

  template <class Value, std::size_t Width, std::size_t... Index>
  SHARDWISE_HOST_DEVICE void step(std::size_t first, std::index_sequence<Index...>) const {
    const Constants c = constants;  // a copy, so that no store through a pointer can change it
    const auto factor = static_cast<Real>(coefficient);
    Block<Parameter, Value, Width> p(parameter + first);
    const Block<const Gradient, Value, Width> g(gradient + first);
    const auto update = [&](auto... s) {
      for (std::size_t i = 0; i < Width; i += sizeof(Value) / sizeof(Real)) {
        Value value = p.load(i);
        update_one(c, value, g.load(i) * factor, i, s...);
        p.store(i, value);
      }
      p.commit();
      (s.commit(), ...);
    };
    update(Block<States, Value, Width>(static_cast<States*>(states[Index]) + first)...);
  }

  template <class Value, class... Blocks>
  SHARDWISE_HOST_DEVICE static void update_one(const Constants& c, Value& p, Value g, std::size_t i,
                                               Blocks&... blocks) {
    const auto update = [&](auto... s) {
      Optimizer::update(c, p, g, s...);
      (blocks.store(i, s), ...);
    };
    update(blocks.load(i)...);
  }
};

/// A functor for Device::launch: the step of an Update, and its result rounded to Out beside it, so
/// that a copy of the parameter in a narrower type costs no further pass. `out` overlaps nothing of
/// the update.
template <class Step, FloatingElement Out>
struct UpdateAndCast {
  Step step;
  Out* out;

  static constexpr bool in_tiles =
      Step::in_tiles || (std::is_same_v<typename Step::Real, float> && sizeof(Out) == 2);
  static constexpr std::size_t tile = Step::tile;
  void run_tile(std::size_t first, detail::Vectors vectors) const {
    detail::prefetch_tile<tile>(out + first);
    step.run_tile(first, vectors);
    detail::cast_whole(step.parameter + first, out + first, tile, vectors);
  }

  static constexpr std::size_t block_width = Step::block_width < detail::block_width<Out>()
                                                 ? Step::block_width
                                                 : detail::block_width<Out>();
  template <std::size_t Width>
  [[nodiscard]] bool aligned(std::size_t first) const noexcept {
    return step.template aligned<Width>(first) && detail::is_aligned_for<Width>(out + first);
  }
  template <std::size_t Width>
  SHARDWISE_HOST_DEVICE void run_block(std::size_t first) const {
    const auto parameter = step.template step_block<Width>(first);
    detail::Block<Out, Width> result;
    for (std::size_t i = 0; i < Width; ++i) {
      result.values[i] = cast_element<Out>(parameter.values[i]);
    }
    result.store(out + first);
  }
  template <std::size_t Width>
  SHARDWISE_HOST_DEVICE void run(std::size_t first) const {
    step.template run<Width>(first);
#if !defined(__CUDA_ARCH__)
    if constexpr (Width % detail::octet == 0) {
      return detail::convert_octets<typename Step::Real, Width>(step.parameter + first,
                                                                out + first);
    }
#endif
    for (std::size_t i = first; i < first + Width; ++i) {
      out[i] = cast_element<Out>(step.parameter[i]);
    }
  }
};

}  // namespace shardwise::inline v0_1
