#pragma once

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <functional>
#include <utility>
#include <vector>

namespace benchmarks {

/// The middle one; of an even number the upper of the two.
[[nodiscard]] inline double median(std::vector<double> values) {
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

/// What was measured again and again: seconds of one call, or quotients.
struct Series {
  std::vector<double> values;

  [[nodiscard]] double middle() const { return median(values); }
  [[nodiscard]] double least() const { return *std::min_element(values.begin(), values.end()); }
  [[nodiscard]] double most() const { return *std::max_element(values.begin(), values.end()); }
};

/// Turn by turn: a machine whose speed drifts changes both sides of a turn alike.
template <class F>
[[nodiscard]] Series by_turns(const Series& a, const Series& b, const F& f) {
  Series result;
  for (std::size_t i = 0; i < a.values.size(); ++i) {
    result.values.push_back(f(a.values[i], b.values[i]));
  }
  return result;
}
[[nodiscard]] inline Series operator/(const Series& a, const Series& b) {
  return by_turns(a, b, [](double x, double y) { return x / y; });
}
[[nodiscard]] inline Series operator-(const Series& a, const Series& b) {
  return by_turns(a, b, [](double x, double y) { return x - y; });
}

/// How functions are measured. Where several ranks measure together, `barrier` makes them begin and
/// end a sample at once, and `agree` gives all of them the same number.
struct Sampling {
  int samples = 7;
  double seconds = 0.01;  ///< a sample repeats its call for so long
  bool warms_up = false;  ///< in turns: a sample's calls go before it, and are not measured
  std::function<void()> barrier = [] {};
  std::function<double(double)> agree = [](double seconds_here) { return seconds_here; };
  /// Seconds that so many calls take, where the host's clock is not what counts.
  std::function<double(const std::function<void()>& f, std::size_t calls)> clock = nullptr;
};

/// Seconds that `calls` calls take, from a barrier to a barrier.
[[nodiscard]] inline double seconds_of(const Sampling& how, const std::function<void()>& f,
                                       std::size_t calls) {
  if (how.clock) return how.clock(f, calls);
  how.barrier();
  const auto begin = std::chrono::steady_clock::now();
  for (std::size_t i = 0; i < calls; ++i) f();
  how.barrier();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

/// How many calls make a sample; finding out warms up.
[[nodiscard]] inline std::size_t calls_of(const Sampling& how, const std::function<void()>& f) {
  f();
  for (double calls = 1;;) {
    const double took = how.agree(seconds_of(how, f, static_cast<std::size_t>(calls)));
    if (took >= how.seconds / 2) {
      return static_cast<std::size_t>(std::max(1.0, calls * how.seconds / took));
    }
    calls = std::ceil(calls * std::clamp(how.seconds / std::max(took, 1e-9), 2.0, 10.0));
  }
}

/// Seconds of one call of each function, which take turns: sample i of all belongs together.
[[nodiscard]] inline std::vector<Series> in_turns(
    const Sampling& how, const std::vector<std::function<void()>>& functions) {
  std::vector<std::size_t> calls;
  calls.reserve(functions.size());
  for (const auto& f : functions) calls.push_back(calls_of(how, f));
  std::vector<Series> result(functions.size());
  for (int sample = 0; sample < how.samples; ++sample) {
    for (std::size_t i = 0; i < functions.size(); ++i) {
      for (std::size_t call = 0; how.warms_up && call < calls[i]; ++call) functions[i]();
      result[i].values.push_back(seconds_of(how, functions[i], calls[i]) /
                                 static_cast<double>(calls[i]));
    }
  }
  return result;
}

}  // namespace benchmarks
