// Times one optimizer step over all elements against a triad (a = b + s * c) of the same run: both
// are limited by memory where the buffers do not fit into caches, so that equal rates are the goal.
// Rates count each value that is read or written once: 12 bytes an element for the triad, 28 for
// AdamW in fp32. Best of several rounds in which all take turns, on one core.

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <shardwise/device/host.hpp>
#include <shardwise/optim/adam.hpp>
#include <shardwise/optim/adamw.hpp>
#include <shardwise/optim/lion.hpp>
#include <shardwise/optim/sgd.hpp>
#include <string>
#include <vector>

namespace {

using shardwise::bf16;
using shardwise::HostDevice;

/// What AdamW must reach of the triad's rate in memory; well below what it does on a quiet machine.
constexpr double required_share = 0.6;

struct Case {
  std::string name;
  double bytes;  // an element
  virtual ~Case() = default;
  virtual void run() = 0;
  double best = 1e30;  // seconds

 protected:
  Case(std::string given, double bytes_each) : name(std::move(given)), bytes(bytes_each) {}
};

struct Triad : Case {
  explicit Triad(std::size_t count) : Case("triad", 12), a(count), b(count, 1.0f), c(count, 2.0f) {}
  void run() override {
    // The same blocks that functors run in, so that plain -O2 vectorises.
    for (std::size_t i = 0; i + 16 <= a.size(); i += 16) {
      float sum[16];
      for (std::size_t k = 0; k < 16; ++k) sum[k] = b[i + k] + 3.0f * c[i + k];
      std::memcpy(a.data() + i, sum, sizeof(sum));
    }
  }
  std::vector<float> a, b, c;
};

template <class Optimizer, class Parameter, class Gradient>
struct Step : Case {
  using Functor = shardwise::UpdateOf<Optimizer, Parameter, Gradient>;

  Step(std::string given, std::size_t count)
      : Case(std::move(given), 2.0 * sizeof(Parameter) + sizeof(Gradient) +
                                   2.0 * sizeof(float) * Optimizer::States::count),
        parameter(count, Parameter(1.0f)),
        gradient(count, Gradient(0.5f)),
        states(Optimizer::States::count, std::vector<float>(count)) {}
  void run() override {
    using Real = typename Functor::Real;
    Functor functor{
        parameter.data(), gradient.data(), {}, 0.5f, Optimizer{}.template constants<Real>(1, {})};
    for (std::size_t i = 0; i < states.size(); ++i) functor.states[i] = states[i].data();
    HostDevice::run(parameter.size(), functor);
  }
  std::vector<Parameter> parameter;
  std::vector<Gradient> gradient;
  std::vector<std::vector<float>> states;
};

/// Prints one table; returns AdamW's share of the triad's rate.
double measure(std::size_t count) {
  using namespace shardwise;
  std::vector<std::unique_ptr<Case>> cases;
  cases.push_back(std::make_unique<Triad>(count));
  cases.push_back(std::make_unique<Step<AdamW, float, float>>("AdamW, fp32", count));
  cases.push_back(std::make_unique<Step<AdamW, float, bf16>>("AdamW, bf16 gradient", count));
  cases.push_back(std::make_unique<Step<AdamW, bf16, bf16>>("AdamW, bf16 parameter", count));
  cases.push_back(std::make_unique<Step<Adam, float, float>>("Adam, fp32", count));
  cases.push_back(std::make_unique<Step<SgdMomentum, float, float>>("SGD momentum, fp32", count));
  cases.push_back(std::make_unique<Step<Lion, float, float>>("Lion, fp32", count));

  const std::size_t repeats = std::max<std::size_t>(1, (std::size_t{1} << 22) / count);
  for (int round = 0; round < 7; ++round) {
    for (const auto& each : cases) {
      const auto begin = std::chrono::steady_clock::now();
      for (std::size_t i = 0; i < repeats; ++i) each->run();
      const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - begin;
      each->best = std::min(each->best, taken.count() / static_cast<double>(repeats));
    }
  }
  const auto rate = [&](const Case& each) {
    return each.bytes * static_cast<double>(count) / each.best * 1e-9;
  };
  std::printf("%zu elements\n%-24s %12s %10s %12s\n", count, "", "ns/element", "GB/s", "of triad");
  for (const auto& each : cases) {
    std::printf("%-24s %12.3f %10.2f %11.0f%%\n", each->name.c_str(),
                each->best / static_cast<double>(count) * 1e9, rate(*each),
                100 * rate(*each) / rate(*cases[0]));
  }
  std::printf("\n");
  return rate(*cases[1]) / rate(*cases[0]);
}

}  // namespace

int main() {
  measure(std::size_t{1} << 13);  // second-level cache
  const double share = measure(std::size_t{1} << 24);
  if (share >= required_share) return EXIT_SUCCESS;
  std::printf("AdamW runs at %.2f of the triad's rate; expected %.2f at least\n", share,
              required_share);
  return EXIT_FAILURE;
}
