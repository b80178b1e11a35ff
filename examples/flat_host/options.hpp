#pragma once

#include <cstddef>

#include "gpt.hpp"

namespace flat_host {

struct Options {
  Config config = {.layers = 4, .channels = 64, .heads = 4, .sequence = 64};
  std::size_t ranks = 2;
  const char* strategy = "zero3";  // the library's word: it checks it
  bool plain = false;              // train without the library, in one rank
  bool shared = false;             // one memory of parameters for all ranks
  bool debug = false;              // the library's debug mode
  std::size_t steps = 20;
  std::size_t batch = 12;  // sequences of a step, over all ranks
  std::size_t seed = 1;    // of the initial values and of the order of the text
  double learning_rate = 1e-3;
  double beta1 = 0.9;
  double beta2 = 0.95;
  double epsilon = 1e-8;
  double weight_decay = 0.1;
  const char* text = "";  // a file; empty: the licence texts of the system
  bool quiet = false;     // no line for each step
};

extern const char* const help;

// Reads a command line. Null where it is good, else what is wrong with it.
const char* parse_options(Options* options, int count, const char* const* arguments);

// Null where the options fit together, else why not.
const char* check_options(const Options* options);

}  // namespace flat_host
