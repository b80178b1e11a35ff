#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>
#include <shardwise/fwd.hpp>
#include <shardwise/memory.hpp>
#include <shardwise/strategy.hpp>
#include <stdexcept>
#include <string>

namespace train_gpt {

/// When a step's micro-batches reach the stored gradient.
enum class Accumulate {
  reduce,  ///< each one is reduced and added
  hold,    ///< they add up in one whole gradient, which is reduced once
};

/// Everything that `train_gpt` can be told. Strategies and residencies are the library's words: it
/// checks them.
struct Options {
  std::string config;              ///< file of configuration; empty: none
  bool allow_unsupported = false;  ///< of it, what is not built is left out instead of refused
  /// What the file, and the options that override it, say of the strategy; and the text for a
  /// person, with where each value comes from.
  std::optional<shardwise::Strategy> strategy_of_file = std::nullopt;
  std::string effective;

  std::size_t ranks = 2;
  std::string backend = "threads";
  int process = 0;  ///< number of this process among those that a launcher started; 0 speaks
  /// The ranks, of which this process is one; null: they are threads of this process.
  shardwise::Communicator* communicator = nullptr;
  shardwise::SlotMemory* slot_memory = nullptr;  ///< where its slots are; null: anywhere
  std::string strategy = "zero3";
  std::size_t shard_group = 0;  ///< ranks that shard what is sharded; 0: all
  std::string lease = "fp32";
  std::string gradient = "fp32";
  std::string residency = "slots";
  std::size_t prefetch = 1;
  /// Bytes of the collectives that run beside compute; none: chosen for the machine.
  std::optional<std::size_t> overlap_from = std::nullopt;

  std::string optimizer = "adamw";
  double learning_rate = 1e-3;
  double beta1 = 0.9;
  double beta2 = 0.999;
  double epsilon = 1e-8;
  double weight_decay = 0.01;  ///< of matrices; biases and norms do not decay
  double clip = 0;             ///< largest norm of the gradient; 0: not clipped

  std::size_t steps = 50;
  std::size_t layers = 4;
  std::size_t width = 64;
  std::size_t heads = 4;
  std::size_t sequence = 64;
  std::size_t batch = 8;  ///< sequences per step, over all ranks
  std::size_t micro_batches = 1;
  Accumulate accumulate = Accumulate::reduce;
  std::uint64_t seed = 1;

  std::string checkpoint;      ///< folder of saves; empty: nothing is saved
  std::size_t save_every = 0;  ///< steps; 0: the last one alone
  std::size_t keep = 2;        ///< saves that stay; 0: all
  bool resume = false;         ///< go on from the newest save

  std::string text;        ///< a file; empty: see Text::load
  std::size_t sample = 0;  ///< bytes to write after training
  std::string json;        ///< file for the report; empty: none
  std::string monitor;     ///< folder for what a monitor saw; empty: none watches
  bool world_of_one_reference = false;
  bool quiet = false;            ///< no progress line; for programs that train several times
  bool keep_parameters = false;  ///< Report::values; for programs that compare trainers

  /// `clip` as a number: infinity where nothing is clipped.
  [[nodiscard]] double max_norm() const {
    return clip > 0 ? clip : std::numeric_limits<double>::infinity();
  }
};

/// What one rank computes of every batch: a contiguous range of its sequences.
struct Share {
  Share(const Options& options, int rank_in_world, int world_size)
      : rank(static_cast<std::size_t>(rank_in_world)),
        world(static_cast<std::size_t>(world_size)),
        sequences(options.batch / world),
        at_once(sequences / options.micro_batches),
        loss_scale(1 / static_cast<double>(sequences * options.sequence)) {}

  /// The first sequence of a micro-batch, counted over all ranks.
  [[nodiscard]] std::size_t first(std::size_t micro_batch) const {
    return rank * sequences + micro_batch * at_once;
  }

  std::size_t rank;
  std::size_t world;
  std::size_t sequences;
  std::size_t at_once;  ///< sequences of one micro-batch
  double loss_scale;    ///< makes the sum of its tokens' losses its mean
};

/// Thrown by parse_options to end the program: what() is the text to print, to standard output if
/// the code is 0 (help was asked for), else to standard error.
class OptionsExit : public std::runtime_error {
 public:
  OptionsExit(const std::string& text, int code) : std::runtime_error(text), code_(code) {}
  [[nodiscard]] int code() const noexcept { return code_; }

 private:
  int code_;
};

/// Reads a command line and validates it; throws OptionsExit.
[[nodiscard]] Options parse_options(int count, const char* const* arguments);

/// Throws std::invalid_argument if the options do not fit together: a batch that does not divide
/// into ranks x micro-batches, heads that do not divide the width, a zero where there must be one.
void validate(const Options& options);

}  // namespace train_gpt
