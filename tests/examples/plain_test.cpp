#include <algorithm>
#include <catch2/catch_test_macros.hpp>
#include <cmath>
#include <cstddef>
#include <string>
#include <vector>

#include "../../examples/train_gpt/report.hpp"
#include "../../examples/train_gpt/train.hpp"

namespace {

using namespace train_gpt;

Options small() {
  Options o;
  o.ranks = 1;
  o.layers = 2;
  o.width = 32;
  o.heads = 2;
  o.sequence = 32;
  o.batch = 12;
  o.steps = 6;
  o.quiet = true;
  return o;
}

double largest_difference(const std::vector<double>& a, const std::vector<double>& b) {
  double largest = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    largest = std::max(largest, std::abs(a[i] - b[i]) / a[i]);
  }
  return largest;
}

}  // namespace

TEST_CASE("the loss falls") {
  Options o = small();
  o.steps = 50;
  const Report report = plain::train(o);
  REQUIRE(report.loss.size() == 50);
  CHECK(report.loss.back() < 0.8 * report.loss.front());
  CHECK(report.grad_norm.size() == 50);
  CHECK(report.bytes_per_rank.optimizer_state == 8 * report.parameters);
}

TEST_CASE("a run repeats itself, and micro-batches change float noise alone") {
  Options o = small();
  const Report report = plain::train(o);
  CHECK(plain::train(o).parameters_hash == report.parameters_hash);
  for (const Accumulate accumulate : {Accumulate::reduce, Accumulate::hold}) {
    o.accumulate = accumulate;
    o.micro_batches = 4;
    CHECK(largest_difference(report.loss, plain::train(o).loss) < 1e-6);
  }
}

TEST_CASE("narrow types train alike") {
  const Report report = plain::train(small());
  for (const char* lease : {"bf16", "f16"}) {
    for (const char* gradient : {"fp32", "bf16"}) {
      Options o = small();
      o.lease = lease;
      o.gradient = gradient;
      const Report narrow = plain::train(o);
      CHECK(largest_difference(report.loss, narrow.loss) < 1e-2);
      CHECK(narrow.parameters_hash != report.parameters_hash);
    }
  }
}

TEST_CASE("clipping scales what is above the norm and nothing else") {
  Options o = small();
  const Report report = plain::train(o);
  o.clip = 1e6;
  CHECK(plain::train(o).parameters_hash == report.parameters_hash);
  o.clip = 1e-3;
  const Report clipped = plain::train(o);
  CHECK(clipped.grad_norm.front() == report.grad_norm.front());
  CHECK(clipped.parameters_hash != report.parameters_hash);
}

TEST_CASE("a sample has the length that was asked for") {
  Options o = small();
  o.steps = 1;
  o.sample = 50;  // longer than a sequence: the window slides
  CHECK(plain::train(o).sample.size() == 50);
}

TEST_CASE("the hash is FNV-1a 64 over little-endian bytes") {
  CHECK(ParametersHash().hex() == "cbf29ce484222325");
  ParametersHash hash;
  hash.add(std::vector<float>{0x1.c2c2c2p+67f});  // the bytes "aaaa"
  CHECK(hash.hex() == "f5216183ea912259");
}
