#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <shardwise/memory.hpp>
#include <string>
#include <vector>

namespace libtorch_gpt {

/// Everything that the program can be told.
struct Options {
  std::size_t ranks = 2;
  std::string strategy = "zero3";
  bool debug = false;  ///< a weight that is read while it is not gathered is a fault
  bool plain = false;  ///< one rank, without the library

  double learning_rate = 1e-3;
  double weight_decay = 0.01;  ///< of matrices; biases and norms do not decay
  double clip = 1;             ///< largest norm of the gradient; 0: not clipped
  std::size_t steps = 50;
  std::size_t batch = 12;  ///< sequences per step, over all ranks
  std::uint64_t seed = 1;
  std::string text;  ///< a file; empty: see Text

  std::size_t layers = 4;
  std::size_t width = 64;
  std::size_t heads = 4;
  std::size_t sequence = 32;
  bool tied = true;  ///< the head's weight is the token embedding

  /// `clip` as a number: infinity where nothing is clipped.
  [[nodiscard]] double max_norm() const {
    return clip > 0 ? clip : std::numeric_limits<double>::infinity();
  }
};

/// What one rank computes of every batch: a contiguous range of its sequences.
struct Share {
  Share(const Options& options, int rank, int world)
      : sequences(options.batch / static_cast<std::size_t>(world)),
        first(sequences * static_cast<std::size_t>(rank)) {}

  std::size_t sequences;
  std::size_t first;
};

/// What a training run tells.
struct Report {
  std::vector<double> loss;       ///< of each step: mean over the global batch, before the update
  std::vector<double> grad_norm;  ///< of each step: global, before clipping
  std::vector<float> values;      ///< of all parameters at the end, in the model's order
  std::size_t bytes = 0;          ///< that rank 0 holds of the three states between steps
  shardwise::Bytes held;          ///< by the library: shards, slots, crumbs of released weights
  shardwise::Bytes planned;       ///< the same by the planner
};

/// Trains in one rank, without the library: the reference.
struct plain {
  [[nodiscard]] static Report train(const Options& options);
};

/// Trains over `options.ranks` ranks, the training state sharded by shardwise.
struct sharded {
  [[nodiscard]] static Report train(const Options& options);
};

}  // namespace libtorch_gpt
