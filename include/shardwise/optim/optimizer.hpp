#pragma once

#include <array>
#include <concepts>
#include <cstdint>
#include <string>
#include <type_traits>

#include "../core/dtype.hpp"
#include "../core/tensor_options.hpp"
#include "../kernels/update.hpp"

namespace shardwise::inline v0_1 {

class UsageError;

namespace detail {

template <class Optimizer, class Real, class... States>
concept UpdatesElements =
    std::is_trivially_copyable_v<typename Optimizer::template Constants<Real>> &&
    requires(const Optimizer& optimizer, const TensorOptions& options,
             const typename Optimizer::template Constants<Real>& constants, Real& parameter,
             Real gradient, States&... state) {
  {
    optimizer.template constants<Real>(std::uint64_t{1}, options)
    } -> std::same_as<typename Optimizer::template Constants<Real>>;
  Optimizer::update(constants, parameter, gradient, state...);
};

template <class Real, class>
using AsReal = Real;

template <class Optimizer, class Real, class States>
inline constexpr bool updates_elements = false;
template <class Optimizer, class Real, class... States>
inline constexpr bool updates_elements<Optimizer, Real, StateTypes<States...>> =
    UpdatesElements<Optimizer, Real, AsReal<Real, States>...>;

template <class Optimizer, class Parameter, class Gradient, class States>
struct UpdateFor {};
template <class Optimizer, class Parameter, class Gradient, class... States>
struct UpdateFor<Optimizer, Parameter, Gradient, StateTypes<States...>> {
  using type = Update<Optimizer, Parameter, Gradient, States...>;
};

// Nothing here formats or knows the exception's definition: fmt stays out of device code.
template <class Thrown>
void require_hyperparameter(bool holds, const char* name, double value, const char* rule) {
  if (holds) return;
  throw Thrown(std::string(name) + " is " + std::to_string(value) + ", but must be " + rule);
}
template <class Thrown>
void require_fraction(const char* name, double value) {
  const bool holds = value >= 0 && value < 1;
  require_hyperparameter<Thrown>(holds, name, value, "at least 0 and below 1");
}
template <class Thrown>
void require_magnitude(const char* name, double value) {
  const bool holds = value >= 0 && value < __builtin_huge_val();
  require_hyperparameter<Thrown>(holds, name, value, "finite and not negative");
}

}  // namespace detail

/// An optimizer whose step updates each element from that element's values alone: a small aggregate
/// of hyperparameters with
///
/// - `using States = StateTypes<...>`: the types of its state, zero at the beginning;
/// - `static constexpr std::array state_names{"...", ...}`, or an empty std::array: one name each;
/// - `template <class Real> struct Constants`, trivially copyable: what a step needs, and
///   `constants<Real>(step, options)`, which makes them for one tensor; steps count from 1;
/// - `template <class Real> static void update(const Constants<Real>&, Real& parameter,
///   Real gradient, Real& state...)`, which must not throw. It computes in Real: float, or double
///   for parameters of doubles; the library loads, rounds and stores.
///
/// Optional: `void validate() const` throws UsageError where hyperparameters make no sense. `static
/// constexpr bool in_lanes = true` says that `update` is a template on the values' type too,
/// `template <class Real, class Value> update(const Constants<Real>&, Value&, Value, Value&...)`,
/// and works for Lanes<Real>: no branches on values; square_root and sign from kernels/lanes.hpp.
template <class Optimizer>
concept ElementwiseOptimizer = requires {
  requires Optimizer::state_names.size() == Optimizer::States::count;
  requires detail::updates_elements<Optimizer, float, typename Optimizer::States>;
  requires detail::updates_elements<Optimizer, double, typename Optimizer::States>;
};

/// The functor that runs a step of Optimizer over these types; its `states` are in the order of
/// Optimizer::States.
template <ElementwiseOptimizer Optimizer, FloatingElement Parameter, FloatingElement Gradient>
using UpdateOf =
    typename detail::UpdateFor<Optimizer, Parameter, Gradient, typename Optimizer::States>::type;

}  // namespace shardwise::inline v0_1
