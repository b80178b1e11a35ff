#include <fmt/core.h>

#include <CLI/CLI.hpp>
#include <cstdint>
#include <cstring>
#include <exception>
#include <shardwise/plan/memory.hpp>
#include <stdexcept>

#include "options.hpp"

namespace libtorch_gpt {
namespace {

// FNV-1a 64 over the bytes of the values.
std::string checksum(const std::vector<float>& values) {
  std::uint64_t hash = 0xcbf29ce484222325u;
  for (const float value : values) {
    unsigned char bytes[sizeof value];
    std::memcpy(bytes, &value, sizeof value);
    for (const unsigned char byte : bytes) hash = (hash ^ byte) * 0x100000001b3u;
  }
  return fmt::format("{:016x}", hash);
}

void train(const Options& options) {
  const Report report = options.plain ? plain::train(options) : sharded::train(options);
  for (std::size_t step = 0; step < report.loss.size(); ++step) {
    fmt::print("step {:3}  loss {:.6f}  norm {:.4f}\n", step, report.loss[step],
               report.grad_norm[step]);
  }
  fmt::print(
      "{} parameters, checksum {}; rank 0 holds {} bytes of state, its optimizer's included\n",
      report.values.size(), checksum(report.values), report.bytes);
  if (!options.plain) fmt::print("{}", shardwise::compare_bytes(report.planned, report.held));
}

}  // namespace
}  // namespace libtorch_gpt

int main(int count, char** arguments) {
  libtorch_gpt::Options o;
  CLI::App app("Trains a character-level GPT of libtorch modules, its state sharded by shardwise.",
               "libtorch_gpt");
  app.option_defaults()->always_capture_default();
  app.add_flag("--plain", o.plain, "One rank, without the library");
  app.add_option("--ranks", o.ranks, "Ranks that share the work")->check(CLI::PositiveNumber);
  app.add_option("--strategy", o.strategy, "ddp, zero1, zero2, zero3, zero3-no-reshard");
  app.add_flag("--debug", o.debug, "A weight that is read while it is not gathered is a fault");
  app.add_option("--steps", o.steps, "Optimizer steps");
  app.add_option("--batch", o.batch, "Sequences per step, over all ranks")
      ->check(CLI::PositiveNumber);
  app.add_option("--learning-rate", o.learning_rate, "Learning rate")->check(CLI::PositiveNumber);
  app.add_option("--clip", o.clip, "Largest norm of the gradient; 0: any")
      ->check(CLI::NonNegativeNumber);
  app.add_option("--layers", o.layers, "Transformer blocks")->check(CLI::PositiveNumber);
  app.add_option("--width", o.width, "Size of the residual stream")->check(CLI::PositiveNumber);
  app.add_option("--heads", o.heads, "Attention heads of each block")->check(CLI::PositiveNumber);
  app.add_option("--sequence", o.sequence, "Characters at once")->check(CLI::PositiveNumber);
  app.add_flag("!--untied", o.tied, "Give the head a weight of its own");
  app.add_option("--seed", o.seed, "Of the initial values and of the order of the text");
  app.add_option("--text", o.text, "Text to learn; by default the README.md of this repository")
      ->check(CLI::ExistingFile);
  CLI11_PARSE(app, count, arguments);
  try {
    if (o.width % o.heads != 0) throw std::invalid_argument("--width does not divide into --heads");
    if (o.batch % o.ranks != 0) throw std::invalid_argument("--batch does not divide into --ranks");
    libtorch_gpt::train(o);
  } catch (const std::exception& error) {
    fmt::print(stderr, "libtorch_gpt: {}\n", error.what());
    return 1;
  }
}
