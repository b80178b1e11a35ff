#pragma once

#include <cstddef>
#include <shardwise/memory.hpp>
#include <stdexcept>
#include <string>
#include <vector>

namespace callback_host {

struct Options {
  std::size_t ranks = 3;
  std::string strategy = "zero3";
  bool debug = false;  ///< the library's debug mode
  std::size_t steps = 100;
  std::size_t batch = 48;  ///< images a step, over all ranks; their number divides it
  double learning_rate = 2e-3;
  double weight_decay = 1e-4;  ///< of weights; biases do not decay, as dlib has it
  unsigned seed = 1;           ///< of the digits, and of std::rand, from which dlib's layers draw

  /// What training does not see: so many digits, from this one of the seed's row on.
  static constexpr std::size_t unseen_count = 960, unseen = std::size_t{1} << 32;
};

/// The part of each batch that one rank computes: equal ones, so that the mean of means is the
/// mean.
struct Share {
  Share(const Options& options, int rank_in_world, int world_size)
      : rank(static_cast<std::size_t>(rank_in_world)), world(static_cast<std::size_t>(world_size)) {
    if (options.batch % world != 0 || Options::unseen_count % world != 0) {
      throw std::invalid_argument("the ranks must divide the batch, and 960");
    }
  }

  [[nodiscard]] std::size_t part(std::size_t whole) const { return whole / world; }
  [[nodiscard]] std::size_t first(std::size_t whole) const { return rank * part(whole); }

  std::size_t rank, world;
};

/// What one rank tells of a training run.
struct Report {
  std::vector<double> loss;       ///< of each step: mean over the batch, before the update
  double accuracy = 0;            ///< on the unseen digits
  std::vector<float> parameters;  ///< in the end, whole: layer by layer, the last one first
  struct {
    shardwise::Bytes held;     ///< of parameters, gradients and what solvers keep
    shardwise::Bytes planned;  ///< the same by the planner; not without the library
  } bytes;
};

/// How much of two lists is equal.
template <class T>
[[nodiscard]] double fraction_equal(const std::vector<T>& a, const std::vector<T>& b) {
  std::size_t equal = 0;
  for (std::size_t i = 0; i < a.size(); ++i) equal += a[i] == b[i] ? 1u : 0u;
  return static_cast<double>(equal) / static_cast<double>(a.size());
}

namespace plain {
/// Trains in one thread with dlib alone.
[[nodiscard]] Report train(const Options& options);
}  // namespace plain

namespace sharded {
/// Trains over `options.ranks` ranks; the report of each.
[[nodiscard]] std::vector<Report> train(const Options& options);
}  // namespace sharded

}  // namespace callback_host
