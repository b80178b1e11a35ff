#include <algorithm>
#include <catch2/catch_test_macros.hpp>
#include <cmath>
#include <cstddef>
#include <map>
#include <stdexcept>
#include <string>

#include "../../examples/libtorch/options.hpp"
#include "torch_cases.hpp"

using libtorch_gpt::Options;
using libtorch_gpt::Report;
using namespace shardwise::test;

namespace {

Options small(std::size_t ranks) {
  Options options;
  options.ranks = ranks;
  options.layers = 3;
  options.width = 48;
  options.sequence = 16;
  options.steps = 20;
  options.clip = 0;
  return options;
}

double distance(const std::vector<float>& a, const std::vector<float>& b) {
  TorchComparison comparison{a, b};
  return comparison.distance();
}

double distance(const std::vector<double>& a, const std::vector<double>& b) {
  REQUIRE(a.size() == b.size());
  double largest = 0;
  for (std::size_t i = 0; i < a.size(); ++i) largest = std::max(largest, std::abs(a[i] - b[i]));
  return largest;
}

}  // namespace

TEST_CASE("a transformer learns as without the library, on any number of ranks") {
  for (const bool tied : {true, false}) {
    for (const double clip : {0.0, 1.0}) {
      Options options = small(1);
      options.tied = tied;
      options.clip = clip;
      const Report plain = libtorch_gpt::plain::train(options);
      CHECK(plain.loss.back() < 0.9 * plain.loss.front());
      for (const std::size_t ranks : {1u, 2u, 3u, 4u}) {
        options.ranks = ranks;
        const Report sharded = libtorch_gpt::sharded::train(options);
        const double values = distance(plain.values, sharded.values);
        const double losses = distance(plain.loss, sharded.loss);
        INFO(ranks << " ranks, " << (tied ? "tied" : "untied") << ", clip " << clip << ": values "
                   << values << ", losses " << losses);
        UNSCOPED_INFO("x");
        if (ranks == 1 && clip == 0) {
          CHECK(sharded.values == plain.values);
          CHECK(sharded.loss == plain.loss);
        }
        WARN(ranks << " " << tied << " " << clip << " values " << values << " losses " << losses);
        CHECK(values < 1e-3);
        CHECK(losses < 1e-3);
      }
    }
  }
}
