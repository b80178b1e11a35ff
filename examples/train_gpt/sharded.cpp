#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "checkpointing.hpp"
#include "model.hpp"
#include "options.hpp"
#include "report.hpp"
#include "sharding.hpp"
#include "text.hpp"
#include "train.hpp"

namespace train_gpt {
namespace {

template <class W, class S>
Report run(const Options& options, const Text& text, shardwise::Context<>& context) {
  const Share share(options, context.rank(), context.world());
  const GptShape shape{options.layers, options.width, options.heads, options.sequence};
  const std::vector<Unit> units = shape.units();
  std::vector<shardwise::ShardedParameter<float>> parameters;
  std::vector<shardwise::ShardedGradient<S>> gradients;
  std::vector<shardwise::ShardedOptimizerState<shardwise::AdamW>> states;
  shardwise::ShardedSequence<float, W, S> sequence;
  for (const Unit& unit : units) {
    parameters.emplace_back(context, specs_of(unit), options_of(unit));
    parameters.back().initialize([&](const auto& tensor, std::size_t element) {
      return shape.initial_value(tensor.name, element, options.seed);
    });
    gradients.emplace_back(parameters.back());
    states.emplace_back(parameters.back(), adamw_of(options));
    sequence.add(parameters.back(), gradients.back(), !unit.tied);
  }
  const std::size_t embedding = 0;
  const std::size_t final_norm = options.layers + 1;  // the blocks are between them

  // A gradient is running, whole, from its first contribution to its last: in a micro-batch or,
  // held, in the step.
  std::vector<shardwise::GradientLease<W>> running(units.size());
  std::size_t micro = 0;
  const bool hold = options.accumulate == Accumulate::hold;
  const auto weights = [&](std::size_t unit) { return sequence.gather(unit); };
  const auto open = [&](std::size_t unit) -> auto& {
    if (!hold || micro == 0) running[unit] = gradients[unit].template lease<W>();
    return running[unit];
  };
  const auto close = [&](std::size_t unit) {
    if (!hold || micro + 1 == options.micro_batches) std::move(running[unit]).reduce();
  };

  const Gpt<W> model(shape);
  Activations activations(shape, share.at_once);
  const auto forward = [&](std::span<const std::uint8_t> inputs) {
    model.embed_forward(weights(embedding), inputs, activations);
    for (std::size_t layer = 0; layer < options.layers; ++layer) {
      model.block_forward(layer, weights(1 + layer), activations);
    }
  };

  Batch batch(share.at_once, options.sequence);
  Recorder recorder(options, share.rank == 0);
  Checkpointing checkpointing(options, context);
  checkpointing.add(parameters, states);
  for (std::size_t step = checkpointing.resume(); step < options.steps; ++step) {
    recorder.begin_step();
    context.begin_step();
    double loss = 0;
    for (micro = 0; micro < options.micro_batches; ++micro) {
      batch.read(text, options.seed, step, share.first(micro));
      forward(batch.inputs());
      {
        const auto& token = weights(embedding);
        const auto& norm = weights(final_norm);
        model.head_forward(token, norm, activations);
        loss += model.loss(batch.targets(), share.loss_scale, activations);
        auto& token_gradient = open(embedding);
        auto& norm_gradient = open(final_norm);
        model.head_backward(token, norm, token_gradient, norm_gradient, activations);
      }
      close(final_norm);
      for (std::size_t unit = options.layers; unit > 0; --unit) {
        auto& gradient = open(unit);
        model.block_backward(unit - 1, weights(unit), gradient, activations);
        close(unit);
      }
      model.embed_backward(running[embedding], activations);
      close(embedding);
    }
    recorder.end_compute(context.statistics().waited);

    const double norm = clip_gradient_norm(context, options.max_norm());
    for (std::size_t unit = 0; unit < parameters.size(); ++unit) {
      states[unit].step(parameters[unit], gradients[unit]);
    }
    recorder.end_step(context.mean(loss), norm, context.statistics().waited);
    context.end_step({recorder.loss(), options.batch * options.sequence});
    checkpointing.after_step(step + 1);
  }
  checkpointing.finish();

  Report report = recorder.finish();
  account(context, report);
  report.world = share.world;
  report.parameters = shape.parameters();
  report.sample = generate(options, [&](std::span<const std::uint8_t> inputs) {
    forward(inputs);
    const auto& token = weights(embedding);
    const auto& norm = weights(final_norm);
    model.head_forward(token, norm, activations);
    return std::span<const float>(activations.logits);
  });
  ParametersHash hash(options.keep_parameters ? &report.values : nullptr);
  for (auto& parameter : parameters) {
    parameter.read([&](const auto&, std::size_t, auto values) { hash.add(values); });
  }
  report.parameters_hash = hash.hex();
  return report;
}

}  // namespace

Report sharded::train(const Options& options) {
  validate(options);
  const Text text = Text::load(options.text);
  text.require(options.sequence);
  return with_types(options, [&]<class W, class S>() {
    // W: of the weights and gradients that the compute sees; S: of the stored gradient.
    return on_ranks(options, [&](auto& context) { return run<W, S>(options, text, context); });
  });
}

}  // namespace train_gpt
