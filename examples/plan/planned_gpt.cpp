#include "planned_gpt.hpp"

#include <utility>

#include "../train_gpt/model.hpp"
#include "../train_gpt/sharding.hpp"
#include "options.hpp"

namespace plan {
namespace {

using shardwise::PlannedWork;

// What the loops of train_gpt/model.cpp do beside their products, in floats that they read and
// write; a reduction over a row counts its row.
struct Loops {
  double tokens, width, sequence, heads, weight_type;

  [[nodiscard]] double probabilities() const { return tokens * heads * sequence; }
  // Weights in another type than float are cast where they are used; gradients are added to what
  // is there, through a buffer.
  [[nodiscard]] double weights(double elements) const {
    return weight_type < 4 ? elements * (weight_type + 4) : 0;
  }
  [[nodiscard]] double gradients(double elements) const { return elements * (4 + 2 * weight_type); }

  [[nodiscard]] PlannedWork block_forward() const {
    const double elements = 12 * width * width;
    const double floats = (8 + 18 + 6 + 8) * tokens * width + 3 * probabilities();
    return {2 * tokens * elements, 4 * tokens * sequence * width, 4 * floats,
            4 * tokens * width + probabilities() / 2, weights(elements)};
  }
  [[nodiscard]] PlannedWork block_backward() const {
    const double elements = 12 * width * width;
    const double floats = (20 + 9 + 12) * tokens * width + 4 * probabilities();
    return {4 * tokens * elements, 8 * tokens * sequence * width, 4 * floats, 4 * tokens * width,
            weights(elements) + gradients(elements)};
  }
  [[nodiscard]] PlannedWork embed_forward() const {
    return {0, 0, tokens * width * (2 * weight_type + 4), 0, 0};
  }
  [[nodiscard]] PlannedWork embed_backward(double rows) const {
    return {0, 0, 4 * 6 * tokens * width, 0, rows * width * 4 + gradients(rows * width)};
  }
  [[nodiscard]] PlannedWork head_forward(double vocabulary) const {
    return {2 * tokens * vocabulary * width, 0, 4 * (4 * tokens * width + 4 * tokens * vocabulary),
            tokens * vocabulary, weights(vocabulary * width)};
  }
  [[nodiscard]] PlannedWork head_backward(double vocabulary) const {
    return {4 * tokens * vocabulary * width, 0, 4 * 10 * tokens * width, 0,
            weights(vocabulary * width) + gradients(vocabulary * width)};
  }
};

}  // namespace

shardwise::PlannedModel planned_gpt(const train_gpt::Options& options) {
  const train_gpt::GptShape shape{options.layers, options.width, options.heads, options.sequence};
  const train_gpt::Share share(options, 0, static_cast<int>(options.ranks));
  shardwise::PlannedModel model;
  model.name = "train_gpt";
  for (const train_gpt::Unit& unit : shape.units()) {
    shardwise::PlannedParameter parameter{train_gpt::specs_of(unit)};
    parameter.options = train_gpt::options_of(unit);
    parameter.gradient = type_of(options.gradient);
    parameter.state = shardwise::state_of(shardwise::OptimizerKind::adamw);
    model.parameters.push_back(std::move(parameter));
  }
  const Loops loops{static_cast<double>(share.at_once * options.sequence),
                    static_cast<double>(options.width), static_cast<double>(options.sequence),
                    static_cast<double>(options.heads),
                    static_cast<double>(shardwise::size_of(type_of(options.lease)))};
  const auto vocabulary = static_cast<double>(train_gpt::GptShape::vocabulary);
  model.visits.push_back(
      {{0}, loops.embed_forward(), loops.embed_backward(vocabulary + loops.sequence), false});
  for (std::size_t layer = 0; layer < options.layers; ++layer) {
    model.visits.push_back({{1 + layer}, loops.block_forward(), loops.block_backward(), true});
  }
  model.visits.push_back({{0, options.layers + 1},
                          loops.head_forward(vocabulary),
                          loops.head_backward(vocabulary),
                          true});
  return model;
}

shardwise::StepOptions planned_steps(const train_gpt::Options& options) {
  shardwise::StepOptions steps;
  steps.world = static_cast<int>(options.ranks);
  steps.micro_batches = options.micro_batches;
  steps.backend.like = options.communicator;  // its landing buffers; threads have none
  return steps;
}

}  // namespace plan
