#include <algorithm>
#include <array>
#include <bit>
#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <optional>
#include <string>
#include <vector>

#include "support/device.hpp"
#include "support/ranks.hpp"

using namespace shardwise;
using Catch::Matchers::ContainsSubstring;
using namespace shardwise::test;

namespace {

/// What is wrong, in words; nothing where all is well.
using Faults = std::vector<std::string>;

std::vector<Faults> faults_of(int world, const std::function<void(Communicator&, Faults&)>& f) {
  return on_ranks(world, [&](Communicator& communicator) {
    Faults faults;
    f(communicator, faults);
    return faults;
  });
}

void check(const std::vector<Faults>& ranks) {
  for (std::size_t r = 0; r < ranks.size(); ++r) {
    for (const std::string& fault : ranks[r]) FAIL_CHECK("rank " << r << ": " << fault);
  }
  SUCCEED();
}

// The canonical order of sums: values[0, n) split at the largest power of two below n.
template <class T>
T tree_sum(const T* values, std::size_t n) {
  if (n == 1) return values[0];
  const std::size_t split = std::bit_floor(n - 1);
  return tree_sum(values, split) + tree_sum(values + split, n - split);
}

void expect(Faults& faults, bool good, const char* what) {
  if (!good) faults.emplace_back(what);
}
#define EXPECT(...) expect(faults, __VA_ARGS__, #__VA_ARGS__)

std::string error_of(const std::function<void()>& f) {
  try {
    f();
  } catch (const UsageError& error) {
    return error.what();
  }
  return "no UsageError";
}

std::vector<Strategy> placements() {
  Strategy persistent = Strategy::zero3();
  persistent.persistence_threshold = 1000;
  Strategy mixed = Strategy::zero3();
  mixed.gradients = Placement::replicated;
  return {Strategy::ddp(),
          Strategy::zero1(),
          Strategy::zero2(),
          Strategy::zero3(),
          Strategy::zero3_no_reshard(),
          persistent,
          mixed};
}

/// Runs `f(communicator, strategy, faults)` for each placement, world and overlap.
void everywhere(
    const std::function<void(Communicator&, const Strategy&, Faults&)>& f,
    const std::function<void(Strategy&)>& change = [](Strategy&) {}) {
  for (const int world : worlds) {
    for (Strategy strategy : placements()) {
      strategy.overlap = world % 2 == 0;
      change(strategy);
      INFO(strategy.name() << " world " << world << " threshold "
                           << strategy.persistence_threshold);
      check(faults_of(world, [&](Communicator& communicator, Faults& faults) {
        f(communicator, strategy, faults);
      }));
    }
  }
}

/// Tensors with holes between them, and one longer than the 65536 elements that travel at once, so
/// that a later piece has padding where an earlier one had values.
std::vector<TensorSpec> long_block() {
  return {
      {"first", {70001}}, {"none", {0, 3}}, {"second", {3, 11}}, {"third", {1}}, {"last", {61000}}};
}
float long_value(const Layout::Tensor& tensor, std::size_t element) {
  return static_cast<float>((tensor.offset * 7 + element * 13) % 8191 + 1);  // never zero
}

/// Elements of the flat range [begin, begin + values.size()) that belong to no tensor and are not
/// 0.
template <class T>
std::size_t dirty_padding(const Layout& layout, std::size_t begin, std::span<const T> values) {
  std::vector<bool> used(values.size());
  layout.for_each_segment(begin, begin + values.size(), [&](const Layout::Segment& segment) {
    for (std::size_t i = 0; i < segment.count; ++i) used[segment.offset - begin + i] = true;
  });
  std::size_t dirty = 0;
  for (std::size_t i = 0; i < values.size(); ++i) {
    if (!used[i] && std::bit_cast<std::array<std::byte, sizeof(T)>>(values[i]) !=
                        std::array<std::byte, sizeof(T)>{}) {
      ++dirty;
    }
  }
  return dirty;
}
template <class T>
std::size_t dirty_padding(const Layout& layout, std::size_t begin, const std::vector<T>& values) {
  return dirty_padding(layout, begin, std::span<const T>(values));
}
template <class T>
std::size_t dirty_shard(const Parameter<T>& parameter) {
  return dirty_padding(parameter.layout(), parameter.flat().owned_begin(),
                       to_host(parameter.context(), parameter.shard()));
}

/// The flat buffer of a lease, padding included.
template <class Lease>
auto whole_of(const Parameter<float>& parameter, const Lease& lease) {
  return std::span(lease.data(), parameter.layout().padded_size());
}

// All of `parameter` as the ranks' reads, leases and shards show it.
template <class L>
void check_values(Parameter<float>& parameter, float added, Faults& faults) {
  std::size_t next = 0, wrong = 0, tensor_index = 0;
  parameter.read(
      [&](const Layout::Tensor& tensor, std::size_t first, std::span<const float> values) {
        if (first == 0) next = 0;
        EXPECT(first == next);
        next += values.size();
        for (std::size_t i = 0; i < values.size(); ++i) {
          if (values[i] != long_value(tensor, first + i) + added) ++wrong;
        }
      });
  EXPECT(wrong == 0);
  EXPECT(next == 61000);
  Context<Device>& context = parameter.context();
  const auto lease = parameter.gather<L>();
  for (const auto& tensor : parameter.layout().tensors()) {
    const auto view = lease[tensor_index++];
    EXPECT(view.size() == tensor.count);
    EXPECT(view.shape().size() == tensor.shape.size());
    const auto values = to_host(context, view);
    for (std::size_t i = 0; i < values.size(); ++i) {
      const L expected = static_cast<L>(long_value(tensor, i) + added);
      if (static_cast<float>(values[i]) != static_cast<float>(expected)) ++wrong;
    }
  }
  EXPECT(wrong == 0);
  EXPECT(dirty_padding(parameter.layout(), 0, to_host(context, whole_of(parameter, lease))) == 0);
  EXPECT(dirty_shard(parameter) == 0);
  const std::vector<float> shard = to_host(context, parameter.shard());
  parameter.for_each_tensor(std::span(shard), [&](const Layout::Tensor& tensor, std::size_t first,
                                                  std::span<const float> values) {
    for (std::size_t i = 0; i < values.size(); ++i) {
      if (values[i] != long_value(tensor, first + i) + added) ++wrong;
    }
  });
  EXPECT(wrong == 0);
}

template <class L>
void check_round_trips() {
  everywhere(
      [](Communicator& communicator, const Strategy& strategy, Faults& faults) {
        Context<Device> context(communicator, strategy);
        Parameter<float> parameter(context, long_block());
        parameter.initialize(long_value);
        check_values<L>(parameter, 0, faults);
        std::size_t seen = 0;
        parameter.load(
            [&](const Layout::Tensor& tensor, std::size_t first, std::span<float> values) {
              seen += values.size();
              for (std::size_t i = 0; i < values.size(); ++i) {
                values[i] = long_value(tensor, first + i) + 1;
              }
            });
        EXPECT(seen <= parameter.flat().value.size() / sizeof(float));
        check_values<L>(parameter, 1, faults);
        for (int root = 0; root < context.world(); root += 3) {
          std::size_t calls = 0;
          const auto added = static_cast<float>(root + 2);
          parameter.broadcast(
              root, [&](const Layout::Tensor& tensor, std::size_t first, std::span<float> values) {
                ++calls;
                for (std::size_t i = 0; i < values.size(); ++i) {
                  values[i] = long_value(tensor, first + i) + added;
                }
              });
          EXPECT((calls > 0) == (context.rank() == root));
          check_values<L>(parameter, added, faults);
        }
        EXPECT(error_of([&] {
                 parameter.broadcast(context.world(),
                                     [](const auto&, std::size_t, std::span<float>) {});
               }).find("ranks are 0 to") != std::string::npos);
      },
      [](Strategy& strategy) { strategy.lease = dtype_of<L>; });
}

}  // namespace

TEST_CASE("values written by function, file and broadcast are read back: fp32 leases") {
  check_round_trips<float>();
}
TEST_CASE("values written by function, file and broadcast are read back: bf16 leases") {
  check_round_trips<bf16>();
}

TEST_CASE("other leases of other storage types, empty parameters, more ranks than elements") {
  everywhere([](Communicator& communicator, const Strategy& strategy, Faults& faults) {
    Context<Device> context(communicator, strategy, {.open_parameters = 6});
    Strategy as_f16 = strategy;
    as_f16.lease = DType::f16;
    Parameter<double> wide(context, {{"wide", {33}}});
    Parameter<bf16> narrow(context, {{"narrow", {2}}});
    Parameter<double> cast(context, {{"cast", {65}}}, {.strategy = as_f16});
    Parameter<float> nothing(context, {{"nothing", {0}}, {"either", {5, 0}}});
    Parameter<float> bare(context, {});
    Parameter<float> scalar(context, {{"scalar", {}}});
    Gradient<double> wide_gradient(wide);
    Gradient<bf16> narrow_gradient(narrow);
    Gradient<float> nothing_gradient(nothing);
    Gradient<float> scalar_gradient(scalar);
    State<Sgd> wide_state(wide, {.learning_rate = 1});
    State<Sgd> narrow_state(narrow, {.learning_rate = 1});
    State<AdamW> nothing_state(nothing);
    State<Sgd> scalar_state(scalar, {.learning_rate = 0.5});
    const auto value = [](const auto&, std::size_t i) { return static_cast<float>(i) + 0.25f; };
    wide.initialize([](const auto&, std::size_t i) { return static_cast<double>(i) + 0.1; });
    narrow.initialize(value);
    cast.initialize([](const auto&, std::size_t i) { return static_cast<double>(i) + 0.1; });
    nothing.initialize(value);
    bare.initialize(value);
    scalar.initialize(value);
    nothing.broadcast(0, [](const auto&, std::size_t, std::span<float>) {});
    for (int step = 0; step < 3; ++step) {
      {
        auto [a, b, c, d] = gather(wide, narrow, nothing, scalar);
        const auto e = cast.gather<f16>();
        const auto f = bare.gather();
        EXPECT(at(context, a[0], 32) == 32.1 - step);
        EXPECT(at(context, b[0], 1) == 1.25f - static_cast<float>(step));
        EXPECT(c[0].empty() && c["either"].shape()[0] == 5);
        EXPECT(d[0].size() == 1 && d[0].shape().empty());
        EXPECT(at(context, d[0], 0) == 0.25f - 0.5f * static_cast<float>(step));
        EXPECT(static_cast<float>(at(context, e[0], 64)) == static_cast<float>(f16(64.1f)));
        EXPECT(f.size() == 0);
      }
      auto a = wide_gradient.lease();
      edit(context, a[0], [](auto elements) {
        for (double& element : elements) element += 1;
      });
      std::move(a).reduce();
      auto b = narrow_gradient.lease();
      fill(context, b[0], [](std::size_t) { return 1.0f; });
      std::move(b).reduce();
      auto c = nothing_gradient.lease();
      std::move(c).reduce();
      auto d = scalar_gradient.lease();
      add(context, d[0], 1);
      std::move(d).reduce();
      EXPECT(std::abs(gradient_norm(context) - 6) < 1e-12);  // 33 + 2 + 0 + 1 ones
      wide_state.step(wide, wide_gradient);
      narrow_state.step(narrow, narrow_gradient);
      nothing_state.step(nothing, nothing_gradient);
      scalar_state.step(scalar, scalar_gradient);
    }
    EXPECT(dirty_shard(wide) + dirty_shard(narrow) + dirty_shard(scalar) == 0);
    EXPECT(context.held() == context.plan().bytes);
    std::size_t calls = 0;
    nothing.read([&](const auto&, std::size_t, std::span<const float>) { ++calls; });
    EXPECT(calls == 0);
  });
}

namespace {

template <class Optimizer>
void train_padding(Context<Device>& context, Optimizer settings, Faults& faults) {
  Parameter<float> parameter(
      context, {{"w", {45}}, {"none", {0}}, {"b", {7}, {.weight_decay = 0}}, {"c", {33}}});
  ShardedGradient gradient(parameter);
  State<Optimizer> state(parameter, settings);
  parameter.initialize([](const auto&, std::size_t i) { return noise(i, 2) + 1; });
  for (int step = 0; step < 3; ++step) {
    auto lease = gradient.lease();
    // Also a host that writes where no tensor is.
    fill(context, whole_of(parameter, lease), [](std::size_t i) { return noise(i, 4) + 2; });
    std::move(lease).reduce();
    // Norms do not see it.
    double squares = 0;
    for (const auto& tensor : parameter.layout().tensors()) {
      for (std::size_t i = 0; i < tensor.count; ++i) {
        const double value = noise(tensor.offset + i, 4) + 2;
        squares += value * value;
      }
    }
    EXPECT(std::abs(gradient_norm(context, gradient) - std::sqrt(squares)) < 1e-5);
    state.step(parameter, gradient);
  }
  EXPECT(dirty_shard(parameter) == 0);
  for (const char* name : Optimizer::state_names) {
    EXPECT(dirty_padding(parameter.layout(), parameter.flat().owned_begin(),
                         to_host(context, state.template values<float>(name))) == 0);
  }
  const auto whole = parameter.gather();
  EXPECT(dirty_padding(parameter.layout(), 0, to_host(context, whole_of(parameter, whole))) == 0);
  std::size_t bad = 0;
  parameter.read([&](const auto&, std::size_t, std::span<const float> values) {
    for (const float value : values) bad += std::isfinite(value) ? 0u : 1u;
  });
  EXPECT(bad == 0);
}

}  // namespace

TEST_CASE("padding stays zero with every optimizer and never enters a norm") {
  everywhere([](Communicator& communicator, const Strategy& strategy, Faults& faults) {
    const auto with = [&](auto optimizer) {
      Context<Device> context(communicator, strategy);
      train_padding(context, optimizer, faults);
    };
    with(AdamW{.epsilon = 0});
    with(Adam{.epsilon = 0, .weight_decay = 0.1});
    with(Sgd{.weight_decay = 0.1});
    with(SgdMomentum{.nesterov = true, .weight_decay = 0.1});
    with(Lion{.weight_decay = 0.1});
  });
}

TEST_CASE("a host's own AdamW on shards gives the bits of ours") {
  everywhere(
      [](Communicator& communicator, const Strategy& strategy, Faults& faults) {
        Context<Device> context(communicator, strategy);
        const std::vector<TensorSpec> tensors = {{"w", {37, 5}}, {"b", {9}, {.weight_decay = 0}}};
        Parameter<float> ours(context, tensors);
        Parameter<float> theirs(context, tensors);
        ShardedGradient our_gradient(ours);
        ShardedGradient their_gradient(theirs);
        const AdamW settings{.learning_rate = 0.01, .weight_decay = 0.1};
        State<AdamW> state(ours, settings);
        for (auto* parameter : {&ours, &theirs}) {
          parameter->initialize([](const auto& t, std::size_t i) { return noise(t.count, i); });
        }
        const float* const address = theirs.shard().data();
        std::vector<float> m(theirs.shard().size()), v(theirs.shard().size());
        for (int step = 1; step <= 4; ++step) {
          const auto contribute = [&](auto& parameter, auto& gradient) {
            const auto weights = parameter.gather();
            auto lease = gradient.lease();
            for (std::size_t t = 0; t < 2; ++t) {
              const auto weight = to_host(context, weights[t]);
              edit(context, lease[t], [&](std::span<float> g) {
                for (std::size_t i = 0; i < g.size(); ++i) {
                  g[i] += weight[i] + noise(i, t, static_cast<std::uint64_t>(context.rank()));
                }
              });
            }
            std::move(lease).reduce();
          };
          contribute(ours, our_gradient);
          contribute(theirs, their_gradient);
          EXPECT(clip_gradient_norm(context, 0.5, our_gradient) ==
                 clip_gradient_norm(context, 0.5, their_gradient));
          state.step(ours, our_gradient);
          const auto gradient = to_host(context, their_gradient.shard());
          const float coefficient = their_gradient.coefficient();
          EXPECT(coefficient < 1);
          theirs.update([&](std::span<float> stored) {
            EXPECT(stored.data() == address && gradient.size() == stored.size());
            edit(context, stored, [&](std::span<float> shard) {
              theirs.for_each_tensor(
                  shard, [&](const Layout::Tensor& tensor, std::size_t, std::span<float> values) {
                    const double lr = 0.01;
                    const double wd = 0.1 * static_cast<double>(tensor.options.weight_decay);
                    const auto decay = static_cast<float>(1 - lr * wd);
                    const auto step_size = static_cast<float>(lr / (1 - std::pow(0.9, step)));
                    const auto root = static_cast<float>(1 / std::sqrt(1 - std::pow(0.999, step)));
                    const auto b1 = 0.9f, b2 = 0.999f;
                    const auto c1 = static_cast<float>(1 - 0.9), c2 = static_cast<float>(1 - 0.999);
                    const auto at = static_cast<std::size_t>(values.data() - shard.data());
                    for (std::size_t i = 0; i < values.size(); ++i) {
                      const float g = gradient[at + i] * coefficient;
                      float& p = values[i];
                      p = p * decay;
                      m[at + i] = b1 * m[at + i] + c1 * g;
                      v[at + i] = b2 * v[at + i] + c2 * (g * g);
                      p = p - step_size * (m[at + i] / (std::sqrt(v[at + i]) * root + 1e-8f));
                    }
                  });
            });
          });
          their_gradient.consume();
          EXPECT(their_gradient.coefficient() == 1);
        }
        EXPECT(to_host(context, ours.shard()) == to_host(context, theirs.shard()));
        EXPECT(to_host(context, state.values<float>("exp_avg")) == m);
        {
          const auto [a, b] = gather_as<float>(ours, theirs);
          EXPECT(to_host(context, whole_of(ours, a)) == to_host(context, whole_of(theirs, b)));
        }
        EXPECT(state.steps() == 4);
        EXPECT(error_of([&] {
                 (void)state.values<float>("momentum");
               }).find("'exp_avg_sq' (f32)") != std::string::npos);
        EXPECT(error_of([&] { (void)state.values<bf16>("exp_avg"); }).find("bf16") !=
               std::string::npos);
      },
      [](Strategy& strategy) {
        if (strategy.prefetch == 1) strategy.prefetch = 2;
      });
}

namespace {

/// Reduces given gradients once or more and compares this rank's part with the definition.
struct Reduction {
  bool weighted = false;
  int times = 1;
  std::optional<DType> wire = std::nullopt;
  bool zero_weight = false;  // of rank 0
};

template <class GL, class G>
void check_reduction(const Reduction& how) {
  everywhere(
      [&](Communicator& communicator, const Strategy& strategy, Faults& faults) {
        Context<Device> context(communicator, strategy);
        Parameter<float> parameter(context, {{"w", {150}}, {"b", {40}}});
        Gradient<G> gradient(parameter);
        const auto n = static_cast<std::size_t>(context.world());
        const auto element = [](std::size_t rank, int round, std::size_t i) {
          return static_cast<GL>(noise(rank, i, static_cast<std::uint64_t>(round)));
        };
        const auto weight_of = [&](std::size_t rank) {
          return how.zero_weight && rank == 0 && n > 1 ? 0.0 : static_cast<double>(3 * rank + 1);
        };
        const auto rank = static_cast<std::size_t>(context.rank());
        for (int round = 0; round < how.times; ++round) {
          auto lease = gradient.template lease<GL>();
          fill(context, whole_of(parameter, lease),
               [&](std::size_t i) { return element(rank, round, i); });
          if (how.weighted) {
            std::move(lease).reduce(context.weigh(weight_of(rank)));
          } else {
            std::move(lease).reduce();
          }
        }
        const auto shard = to_host(context, gradient.shard());
        const std::size_t begin = parameter.flat().owned_begin();
        std::size_t wrong = 0, far = 0;
        for (std::size_t i = 0; i < shard.size(); ++i) {
          G stored{};
          long double mean = 0;
          for (int round = 0; round < how.times; ++round) {
            std::vector<float> values;
            double total = 0;
            for (std::size_t r = 0; r < n; ++r) total += how.weighted ? weight_of(r) : 1;
            for (std::size_t r = 0; r < n; ++r) {
              float value = static_cast<float>(element(r, round, begin + i));
              if (how.wire == DType::bf16) value = static_cast<float>(bf16(value));
              const double weight = how.weighted ? weight_of(r) : 1;
              mean += static_cast<long double>(weight) * value / total;
              values.push_back(how.weighted ? value * static_cast<float>(weight / total) : value);
            }
            const float sum = tree_sum(values.data(), n);
            const float scaled = how.weighted ? sum : sum * static_cast<float>(1 / total);
            stored = static_cast<G>(round == 0 ? scaled : static_cast<float>(stored) + scaled);
          }
          if (static_cast<float>(shard[i]) != static_cast<float>(stored)) ++wrong;
          const double bound = std::is_same_v<G, float> ? 1e-6 : 0.02;
          if (std::abs(static_cast<double>(mean) -
                       static_cast<double>(static_cast<float>(shard[i]))) > bound) {
            ++far;
          }
        }
        EXPECT(wrong == 0);
        EXPECT(far == 0);
      },
      [&](Strategy& strategy) {
        strategy.lease = dtype_of<GL>;
        strategy.wire = how.wire;
        if (how.times == 1 && strategy.prefetch == 1) strategy.accumulation = Accumulation::hold;
      });
}

}  // namespace

TEST_CASE("a reduction is the mean, in the canonical order") {
  check_reduction<float, float>({});
  check_reduction<float, float>({.times = 3});
}
TEST_CASE("a weighted reduction is the weighted mean") {
  check_reduction<float, float>({.weighted = true});
  check_reduction<float, float>({.weighted = true, .times = 2, .zero_weight = true});
}
TEST_CASE("gradients in bf16 are summed in fp32 and rounded once") {
  check_reduction<bf16, bf16>({.times = 2});
  check_reduction<bf16, float>({.weighted = true});
}
TEST_CASE("a wire of bf16 rounds what travels and nothing else") {
  check_reduction<float, float>({.wire = DType::bf16});
  check_reduction<float, float>({.times = 2, .wire = DType::bf16});
}

TEST_CASE("norm and clipping agree in every placement and with long double") {
  for (const int world : worlds) {
    std::optional<double> bits;
    for (const Strategy& strategy : placements()) {
      INFO(strategy.name() << " world " << world);
      std::vector<double> norms(static_cast<std::size_t>(world));
      check(faults_of(world, [&](Communicator& communicator, Faults& faults) {
        Context<Device> context(communicator, strategy);
        Parameter<float> a(context, {{"a", {1003}}, {"a2", {3}}});
        Parameter<float> b(context, {{"b", {77}}});
        Gradient<float> gradient_a(a);
        Gradient<bf16> gradient_b(b);
        State<Sgd> state(a, {.learning_rate = 1});
        a.initialize([](const auto&, std::size_t) { return 0.0f; });
        EXPECT(gradient_norm(context) == 0);
        EXPECT(clip_gradient_norm(context, 1) == 0 && gradient_a.coefficient() == 1);
        const auto n = static_cast<std::size_t>(context.world());
        const auto rank = static_cast<std::size_t>(context.rank());
        auto lease_a = gradient_a.lease();
        fill(context, lease_a[0], [&](std::size_t i) { return noise(rank, i); });
        fill(context, lease_a[1], [&](std::size_t i) { return noise(rank, i, 9); });
        std::move(lease_a).reduce();
        auto lease_b = gradient_b.lease<float>();
        fill(context, lease_b[0], [&](std::size_t i) { return noise(rank, i, 5); });
        std::move(lease_b).reduce();
        const auto reduced = [&](std::size_t i, std::uint64_t kind) {
          std::vector<float> values;
          for (std::size_t r = 0; r < n; ++r) values.push_back(noise(r, i, kind));
          return tree_sum(values.data(), n) * static_cast<float>(1.0 / static_cast<double>(n));
        };
        long double squares_a = 0, squares_b = 0;
        const auto square = [](float value) {
          return static_cast<long double>(value) * static_cast<long double>(value);
        };
        for (std::size_t i = 0; i < 1003; ++i) squares_a += square(reduced(i, 0));
        for (std::size_t i = 0; i < 3; ++i) squares_a += square(reduced(i, 9));
        for (std::size_t i = 0; i < 77; ++i) {
          squares_b += square(static_cast<float>(bf16(reduced(i, 5))));
        }
        const auto close = [](double found, long double expected) {
          return std::abs(static_cast<long double>(found) - expected) <= 1e-13L * expected;
        };
        const double norm = gradient_norm(context);
        EXPECT(close(norm, std::sqrt(squares_a + squares_b)));
        EXPECT(close(gradient_norm(context, gradient_a), std::sqrt(squares_a)));
        EXPECT(gradient_norm(context, gradient_a, gradient_b) == norm);
        EXPECT(clip_gradient_norm(context, 2 * norm) == norm && gradient_a.coefficient() == 1);
        EXPECT(clip_gradient_norm(context, norm / 4) == norm);
        const auto coefficient = static_cast<float>((norm / 4) / (norm + 1e-6));
        EXPECT(gradient_a.coefficient() == coefficient && gradient_b.coefficient() == coefficient);
        // A norm after clipping is that of what will be applied.
        EXPECT(std::abs(gradient_norm(context) - norm / 4) < 1e-5 * norm);
        EXPECT(error_of([&] { clip_gradient_norm(context, 0); }).find("max_norm") !=
               std::string::npos);
        EXPECT(error_of([&] { clip_gradient_norm(context, std::nan("")); }).find("max_norm") !=
               std::string::npos);
        state.step(a, gradient_a);
        EXPECT(gradient_a.coefficient() == 1);
        a.read([&](const Layout::Tensor& tensor, std::size_t first, std::span<const float> values) {
          std::size_t wrong = 0;
          for (std::size_t i = 0; i < values.size(); ++i) {
            const float g = reduced(first + i, tensor.name == "a" ? 0 : 9);
            if (values[i] != 0.0f - g * coefficient) ++wrong;
          }
          EXPECT(wrong == 0);
        });
        norms[rank] = norm;
      }));
      if (!bits) bits = norms[0];
      for (const double norm : norms) CHECK(norm == *bits);
    }
  }
}

TEST_CASE("a norm that is not finite is seen by all and changes nothing") {
  everywhere([](Communicator& communicator, const Strategy& strategy, Faults& faults) {
    for (const float poison : {std::numeric_limits<float>::infinity(), std::nanf("")}) {
      Context<Device> context(communicator, strategy);
      Parameter<float> parameter(context, {{"w", {100}}});
      ShardedGradient gradient(parameter);
      auto lease = gradient.lease();
      add(context, lease[0], 1);
      if (context.rank() == context.world() - 1) {
        fill(context, lease[0].last(1), [&](std::size_t) { return poison; });
      }
      std::move(lease).reduce();
      EXPECT(!std::isfinite(gradient_norm(context)));
      EXPECT(!std::isfinite(clip_gradient_norm(context, 1)));
      EXPECT(gradient.coefficient() == 1);
    }
  });
}

TEST_CASE("an overflow on one rank skips the step on all, backs off and grows again") {
  everywhere(
      [](Communicator& communicator, const Strategy& strategy, Faults& faults) {
        Context<Device> context(communicator, strategy);
        Parameter<float> parameter(context, {{"w", {70}}});
        Parameter<float> fine(context, {{"fine", {3}}});
        Gradient<float> gradient(parameter);
        Gradient<float> fine_gradient(fine);
        State<Sgd> state(parameter, {.learning_rate = 1});
        parameter.initialize([](const auto&, std::size_t) { return 0.0f; });
        LossScaler scaler({.initial_scale = 8, .growth_interval = 2, .minimum_scale = 3});
        const auto step = [&](bool overflows) {
          auto lease = gradient.lease<f16>();
          fill(context, lease[0], [&](std::size_t i) {
            const bool is_too_large = overflows && context.rank() == 0 && i == 0;
            return is_too_large ? 1e6f : static_cast<float>(scaler.scale());
          });
          std::move(lease).reduce();
          auto other = fine_gradient.lease<f16>();
          fill(context, other[0].first(1), [](std::size_t) { return 1.0f; });
          std::move(other).reduce();
          const bool good = scaler.unscale(context);
          EXPECT(good != overflows);
          if (good) {
            EXPECT(std::abs(gradient_norm(context, gradient) - std::sqrt(70.0)) < 1e-5);
            state.step(parameter, gradient);
          } else {
            // All gradients of the context are gone.
            EXPECT(gradient_norm(context) == 0);
          }
          fine_gradient.consume();
          return scaler.scale();
        };
        EXPECT(step(true) == 4);
        EXPECT(step(true) == 3);
        EXPECT(step(true) == 3);
        EXPECT(scaler.skipped() == 3 && state.steps() == 0);
        EXPECT(step(false) == 3);
        EXPECT(step(false) == 6);
        EXPECT(step(false) == 6);
        EXPECT(step(true) == 3);
        EXPECT(step(false) == 3);
        EXPECT(step(false) == 6);
        EXPECT(scaler.skipped() == 4 && state.steps() == 5);
        const auto lease = parameter.gather<f16>();
        const auto values = to_host(context, lease[0]);
        EXPECT(std::all_of(values.begin(), values.end(),
                           [](f16 value) { return std::abs(value + 5.0f) < 1e-2f; }));
        EXPECT(error_of([] {
                 LossScaler(LossScaler::Options{.backoff_factor = 1});
               }).find("backoff") != std::string::npos);
        EXPECT(LossScaler().scale() == 65536);
      },
      [](Strategy& strategy) { strategy.lease = DType::f16; });
}

TEST_CASE("plain calls are idempotent and give the bits of leases") {
  everywhere([](Communicator& communicator, const Strategy& strategy, Faults& faults) {
    const auto train = [&](bool plain) {
      Context<Device> context(communicator, strategy);
      Parameter<float> parameter(context, {{"w", {99}}, {"b", {3}}});
      Parameter<float> other(context, {{"other", {50}}});
      ShardedGradient gradient(parameter);
      State<AdamW> state(parameter, {.learning_rate = 0.1});
      parameter.initialize([](const auto&, std::size_t i) { return noise(i, 1); });
      other.initialize([](const auto&, std::size_t) { return 0.0f; });
      const auto backward = [&](const auto& weights, auto& into) {
        const auto weight = to_host(context, weights[0]);
        edit(context, into[0], [&](std::span<float> g) {
          for (std::size_t i = 0; i < 99; ++i) {
            g[i] += weight[i] + noise(i, static_cast<std::uint64_t>(context.rank()));
          }
        });
      };
      for (int step = 0; step < 3; ++step) {
        if (plain) {
          const auto first = parameter.ensure_gathered();
          const auto weights = parameter.ensure_gathered();
          EXPECT(first.data() == weights.data());
          {
            const auto beside = parameter.gather();  // a lease does not end it
            EXPECT(beside.data() == weights.data());
          }
          auto into = gradient.ensure_open();
          const auto again = gradient.ensure_open();
          EXPECT(again.data() == into.data());
          backward(weights, into);
          parameter.release();
          parameter.release();
          gradient.reduce();
          gradient.reduce();
        } else {
          const auto weights = parameter.gather();
          auto into = gradient.lease();
          backward(weights, into);
          std::move(into).reduce();
        }
        state.step(parameter, gradient);
        // Evicts.
        (void)other.gather();
      }
      std::vector<float> values;
      parameter.read([&](const auto&, std::size_t, std::span<const float> part) {
        values.insert(values.end(), part.begin(), part.end());
      });
      EXPECT(context.held() == context.plan().bytes);
      return values;
    };
    EXPECT(train(true) == train(false));
  });
}

TEST_CASE("moved parameters, gradients and states go on") {
  everywhere([](Communicator& communicator, const Strategy& strategy, Faults& faults) {
    Context<Device> context(communicator, strategy);
    Parameter<float> born(context, {{"w", {10}}});
    born.initialize([](const auto&, std::size_t) { return 1.0f; });
    Gradient<float> gradient_born(born);
    State<Sgd> state_born(born, {.learning_rate = 1});
    auto open = gradient_born.lease();
    const auto weights = born.gather();
    Parameter<float> parameter(std::move(born));
    Gradient<float> gradient(std::move(gradient_born));
    State<Sgd> state(std::move(state_born));
    Device::launch(context.stream(), 10, AddElements<float>{open[0].data(), weights[0].data()});
    std::move(open).reduce();
    EXPECT(error_of([&] { state.step(parameter, gradient); }).find("'w'") != std::string::npos);
    auto released = std::move(const_cast<Weights<float>&>(weights));
    released.release();
    state.step(parameter, gradient);
    const auto lease = parameter.gather();
    EXPECT(at(context, lease[0], 9) == 0);
    EXPECT(parameter.tensor("w") == 0 && parameter.name() == "w");
  });
}

TEST_CASE("a sequence visits layers both ways, tied and frozen ones too") {
  for (const int prefetch : {0, 1, 3}) {
    everywhere(
        [](Communicator& communicator, const Strategy& strategy, Faults& faults) {
          Context<Device> context(communicator, strategy);
          std::vector<Parameter<float>> parameters;
          std::vector<Gradient<float>> gradients;
          Sequence<float> sequence;
          for (std::size_t i = 0; i < 5; ++i) {
            parameters.emplace_back(context, std::vector<TensorSpec>{{fmt::format("p{}", i), {40}}},
                                    ParameterOptions{.tied = i == 0});
            parameters.back().initialize(
                [&](const auto&, std::size_t) { return static_cast<float>(i); });
          }
          gradients.reserve(5);
          for (std::size_t i = 0; i < 5; ++i) {
            if (i == 2) {
              sequence.add(parameters[i]);
              continue;
            }
            gradients.emplace_back(parameters[i]);
            sequence.add(parameters[i], gradients.back(), i != 3);
          }
          sequence.add(parameters[0], gradients[0]);
          EXPECT(sequence.size() == 6);
          for (int micro = 0; micro < 2; ++micro) {
            const bool hold = strategy.accumulation == Accumulation::hold;
            for (std::size_t i = 0; i < 6; ++i) {
              auto visit = sequence.forward(i);
              EXPECT(at(context, visit.weights[0], 39) == static_cast<float>(i % 5));
              EXPECT(!visit.gradient);
              if (i % 2 == 0) visit.finish();
              visit.finish();
            }
            for (std::size_t i = 6; i-- > 0;) {
              auto visit = sequence.backward(i);
              EXPECT(at(context, visit.weights[0], 0) == static_cast<float>(i % 5));
              EXPECT(static_cast<bool>(visit.gradient) == (i != 2));
              if (visit.gradient) {
                add(context, visit.gradient[0].subspan(1, 1), static_cast<float>(i + 1));
              }
              visit.finish(!hold || micro == 1);
              visit.finish();
            }
          }
          // The last micro-batch ends all: nothing is open.
          float sum = 0;
          for (auto& gradient : gradients) {
            for (const float element : to_host(context, gradient.shard())) sum += element;
          }
          // 1 + 2 + 4 + 5 + 6, twice, of which this rank holds its part.
          EXPECT(sum == 36 || strategy.optimizer_state == Placement::sharded);
          EXPECT(context.sum(static_cast<double>(sum)) ==
                 36.0 * (strategy.optimizer_state == Placement::sharded ? 1 : context.world()));
          // Alone, and away from the last visit.
          EXPECT(at(context, sequence.gather(3)[0], 0) == 3);
          EXPECT(error_of([&] { (void)sequence.backward(6); }).find("layer 6") !=
                 std::string::npos);
        },
        [&](Strategy& strategy) {
          strategy.prefetch = prefetch;
          if (prefetch == 1) strategy.accumulation = Accumulation::hold;
          if (prefetch == 3) strategy.bucket_bytes = 700;
        });
  }
}

TEST_CASE("prefetch is a hint: early, late, twice, without room, of what is open") {
  for (const int prefetch : {0, 1, 2}) {
    everywhere(
        [](Communicator& communicator, const Strategy& strategy, Faults& faults) {
          Context<Device> context(communicator, strategy);
          std::vector<Parameter<float>> parameters;
          for (std::size_t i = 0; i < 5; ++i) {
            parameters.emplace_back(context,
                                    std::vector<TensorSpec>{{fmt::format("p{}", i), {40}}});
            parameters.back().initialize(
                [&](const auto&, std::size_t) { return static_cast<float>(i); });
          }
          const auto is = [&](std::size_t i, float value) {
            const auto lease = parameters[i].gather();
            return all_are(context, lease[0], value);
          };
          for (auto& parameter : parameters) parameter.prefetch();
          for (std::size_t i = 5; i-- > 0;) EXPECT(is(i, static_cast<float>(i)));
          for (std::size_t i = 0; i < 5; ++i) {
            const auto lease = parameters[i].gather();
            parameters[i].prefetch();
            parameters[(i + 1) % 5].prefetch();
            parameters[(i + 1) % 5].prefetch();
            parameters[(i + 2) % 5].prefetch();
            parameters[(i + 3) % 5].prefetch();
            EXPECT(at(context, lease[0], 7) == static_cast<float>(i));
          }
          // What was fetched before a write is not what is lent after it.
          for (std::size_t i = 0; i < 5; ++i) {
            parameters[i].prefetch();
            parameters[i].update([&](std::span<float> shard) {
              fill(context, shard, [&](std::size_t) { return i + 10; });
            });
            parameters[(i + 1) % 5].prefetch();
          }
          for (std::size_t i = 0; i < 5; ++i) EXPECT(is(i, static_cast<float>(i + 10)));
        },
        [&](Strategy& strategy) {
          strategy.prefetch = prefetch;
          if (prefetch == 2) strategy.max_live_bytes = std::size_t{5 * 4 * 32} * largest_world;
        });
  }
}

TEST_CASE("group scalars are the same bits on all ranks") {
  for (const int world : worlds) {
    for (const bool overlap : {false, true}) {
      std::vector<std::vector<double>> seen(static_cast<std::size_t>(world));
      Strategy strategy = Strategy::zero3();
      strategy.overlap = overlap;
      check(faults_of(world, [&](Communicator& communicator, Faults& faults) {
        Context<Device> context(communicator, strategy);
        const int rank = context.rank();
        const double mine = noise(static_cast<std::uint64_t>(rank), 3) + 1e-9;
        const auto n = static_cast<std::size_t>(world);
        std::vector<double> all, weighted, weights;
        for (std::size_t r = 0; r < n; ++r) {
          all.push_back(noise(r, 3) + 1e-9);
          weights.push_back(static_cast<double>(r));
          weighted.push_back(all.back() * weights.back());
        }
        const double sum = context.sum(mine);
        EXPECT(sum == tree_sum(all.data(), n));
        EXPECT(context.mean(mine) == tree_sum(all.data(), n) / world);
        EXPECT(context.any(rank == world - 1) && !context.any(false));
        EXPECT(context.all(true) && !context.all(rank != 0));
        EXPECT(context.statistics().traffic.scalar_calls == 6);
        if (world > 1) {
          EXPECT(context.weighted_mean(mine, rank) ==
                 tree_sum(weighted.data(), n) / tree_sum(weights.data(), n));
        }
        EXPECT(error_of([&] { (void)context.weighted_mean(1, 0, "loss"); }).find("loss") !=
               std::string::npos);
        EXPECT(error_of([&] { (void)context.weigh(0, "tokens"); }).find("'tokens'") == 0);
        EXPECT(error_of([&] {
                 (void)context.weigh(rank == 0 ? -1 : 1, "tokens");
               }).find("gave the weight -1") != std::string::npos);
        EXPECT(error_of([&] {
                 (void)context.weigh(rank == 0 ? std::nan("") : 1);
               }).find("gave the weight nan") != std::string::npos);
        EXPECT(error_of([&] {
                 (void)context.weigh(rank == 0 ? std::numeric_limits<double>::infinity() : 1);
               }).find("gave the weight inf") != std::string::npos);
        const ReductionWeight weight = context.weigh(rank + 1);
        EXPECT(weight.share == (rank + 1) / (world * (world + 1) / 2.0));
        context.barrier();
        seen[static_cast<std::size_t>(rank)] = {sum};
      }));
      for (const auto& values : seen) CHECK(values == seen[0]);
    }
  }
}

TEST_CASE("a context refuses what cannot work") {
  check(faults_of(2, [](Communicator& communicator, Faults& faults) {
    Strategy strategy = Strategy::zero3();
    strategy.prefetch = -1;
    EXPECT(error_of([&] { Context<Device> context(communicator, strategy); }).find("prefetch") !=
           std::string::npos);
    strategy = Strategy::ddp();
    strategy.gradients = Placement::sharded;
    EXPECT(error_of([&] { Context<Device> context(communicator, strategy); }).find("gradients") !=
           std::string::npos);
    Context<Device> context(communicator, Strategy::ddp());
    EXPECT(error_of([&] {
             Parameter<float> parameter(context, {{"w", {1}}}, {.strategy = strategy});
           }).find("gradients") != std::string::npos);
    EXPECT(context.plan().bytes == context.held());
  }));
}
