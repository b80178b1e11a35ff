// A trainer built of dlib's layers, without a loop over them that one could gather in: the layers
// gather themselves. Trains alone, then on several ranks (threads), and compares.
#include <fmt/core.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <exception>
#include <shardwise/plan/memory.hpp>

#include "train.hpp"

int main(int count, char** arguments) try {
  callback_host::Options options;
  CLI::App app("Trains a small net of dlib's to read digits, plain and sharded", "callback_host");
  app.add_option("--ranks", options.ranks, "ranks; they divide the batch")->capture_default_str();
  app.add_option("--strategy", options.strategy, "ddp, zero1, zero2 or zero3")
      ->capture_default_str();
  app.add_flag("--debug", options.debug, "the library checks how it is used");
  app.add_option("--steps", options.steps, "steps of training")->capture_default_str();
  app.add_option("--batch", options.batch, "digits a step, over all ranks")->capture_default_str();
  app.add_option("--rate", options.learning_rate, "learning rate")->capture_default_str();
  app.add_option("--seed", options.seed, "of parameters and digits")->capture_default_str();
  CLI11_PARSE(app, count, arguments);

  const auto alone = callback_host::plain::train(options);
  const auto together = callback_host::sharded::train(options).front();

  fmt::print("step  loss alone  on {} ranks\n", options.ranks);
  for (std::size_t step = 0; step < options.steps; ++step) {
    if (step % 10 != 0 && step + 1 != options.steps) continue;
    fmt::print("{:4}  {:10.6f}  {:10.6f}\n", step, alone.loss[step], together.loss[step]);
  }
  double largest = 0;
  for (std::size_t i = 0; i < alone.parameters.size(); ++i) {
    const auto a = static_cast<double>(alone.parameters[i]);
    largest = std::max(largest, std::abs(a - static_cast<double>(together.parameters[i])));
  }
  fmt::print(
      "{:.1f} % and {:.1f} % of unseen digits are read right\n"
      "{} parameters, none of which differs by more than {:.1e}\n"
      "bytes at rest: {} alone, {} on each of {} ranks\n{}",
      100 * alone.accuracy, 100 * together.accuracy, alone.parameters.size(), largest,
      alone.bytes.held.total(), together.bytes.held.total(), options.ranks,
      shardwise::compare_bytes(together.bytes.planned, together.bytes.held));
  return 0;
} catch (const std::exception& error) {
  fmt::print(stderr, "callback_host: {}\n", error.what());
  return 1;
}
