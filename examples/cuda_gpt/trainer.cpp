#include "trainer.hpp"

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <optional>
#include <shardwise/device/cuda.hpp>
#include <shardwise/shardwise.hpp>
#include <span>
#include <vector>

#include "../train_gpt/sharding.hpp"
#include "model.hpp"
#include "step_data.hpp"

namespace cuda_gpt {
namespace {

using shardwise::CudaDevice;

/// The program's own stream. It does not wait for the default stream, which nothing here uses.
class OwnStream {
 public:
  OwnStream() {
    shardwise::cuda_check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking),
                          "cudaStreamCreateWithFlags");
  }
  OwnStream(const OwnStream&) = delete;
  OwnStream& operator=(const OwnStream&) = delete;
  ~OwnStream() { cudaStreamDestroy(stream_); }

  [[nodiscard]] cudaStream_t native() const { return stream_; }

 private:
  cudaStream_t stream_ = nullptr;
};

/// Tensors begin at multiples of 64 elements.
std::size_t padded(std::size_t elements) { return (elements + 63) / 64 * 64; }

/// The tensors of a unit in one allocation of all of them, `at` elements from `begin` on.
template <class W>
std::vector<shardwise::HostTensor> place(const train_gpt::Unit& unit, W* begin, std::size_t& at) {
  std::vector<shardwise::HostTensor> tensors;
  for (const shardwise::TensorSpec& spec : train_gpt::specs_of(unit)) {
    tensors.emplace_back(spec.name, begin + at, spec.shape, spec.options);
    at += padded(tensors.back().count());
  }
  return tensors;
}

template <class W>
Report run(const Options& options, const train_gpt::Text& text,
           shardwise::Communicator& communicator) {
  const OwnStream own;
  shardwise::CudaStream stream(own.native());  // the same one, as CudaDevice takes it
  // The context adopts it: a gather has ended before what is enqueued here on the lease's weights,
  // and their slot is used again after it. The head reads the embedding beside the final norm: two
  // parameters open at once.
  shardwise::Context<CudaDevice> context(communicator, train_gpt::strategy_of(options),
                                         {.open_parameters = 2, .stream = stream.ref()});
  const train_gpt::Share share(options, context.rank(), context.world());
  const GptShape shape{options.layers, options.width, options.heads, options.sequence};
  const std::vector<train_gpt::Unit> units = shape.units();
  // As a trainer with one flat allocation has it (llm.c): addresses that stay, and memory where a
  // unit is gathered.
  std::size_t elements = 0;
  for (const train_gpt::Unit& unit : units) {
    for (const train_gpt::Tensor& tensor : unit) elements += padded(tensor.size());
  }
  std::optional<shardwise::DeviceArena<CudaDevice>> weight_arena;
  std::optional<shardwise::DeviceArena<CudaDevice>> gradient_arena;
  if (options.in_place) {
    weight_arena.emplace(context, elements * sizeof(W), "weights");
    gradient_arena.emplace(context, elements * sizeof(W), "gradients");
  }
  std::vector<shardwise::ShardedParameter<float, CudaDevice>> parameters;
  std::vector<shardwise::ShardedGradient<float, CudaDevice>> gradients;
  std::vector<shardwise::ShardedOptimizerState<shardwise::AdamW, CudaDevice>> states;
  shardwise::ShardedSequence<float, W, float, W, CudaDevice> sequence;
  std::size_t placed = 0;
  for (const train_gpt::Unit& unit : units) {
    if (options.in_place) {
      parameters.emplace_back(context, place(unit, weight_arena->as<W>(), placed),
                              train_gpt::options_of(unit));
    } else {
      parameters.emplace_back(context, train_gpt::specs_of(unit), train_gpt::options_of(unit));
    }
    parameters.back().initialize([&](const auto& tensor, std::size_t element) {
      return shape.initial_value(tensor.name, element, options.seed);
    });
    if (options.in_place) {
      gradients.emplace_back(parameters.back(), *gradient_arena);
    } else {
      gradients.emplace_back(parameters.back());
    }
    states.emplace_back(parameters.back(), train_gpt::adamw_of(options));
    sequence.add(parameters.back(), gradients.back(), !unit.tied);
  }
  const std::size_t embedding = 0;
  const std::size_t final_norm = options.layers + 1;  // the blocks are between them

  // A gradient is running, whole, from its first contribution to its last: in a micro-batch or,
  // held, in the step.
  std::vector<shardwise::GradientLease<W, CudaDevice>> running(units.size());
  std::size_t micro = 0;
  const bool hold = options.accumulate == train_gpt::Accumulate::hold;
  const auto weights = [&](std::size_t unit) { return sequence.gather(unit); };
  const auto open = [&](std::size_t unit) -> auto& {
    if (!hold || micro == 0) running[unit] = gradients[unit].template lease<W>();
    return running[unit];
  };
  const auto close = [&](std::size_t unit) {
    if (!hold || micro + 1 == options.micro_batches) std::move(running[unit]).reduce();
  };

  Gpt<W> model(shape, share.at_once, stream);
  const auto forward = [&](const std::uint8_t* inputs, std::size_t sequences) {
    model.embed_forward(weights(embedding), inputs, sequences);
    for (std::size_t layer = 0; layer < options.layers; ++layer) {
      model.block_forward(layer, weights(1 + layer));
    }
  };

  StepData data(options, share);
  context.prepare();  // the slots too: a step allocates nothing
  train_gpt::Recorder recorder(options, share.rank == 0);
  for (std::size_t step = 0; step < options.steps; ++step) {
    recorder.begin_step();
    context.reset_statistics();
    data.send(text, options.seed, step, share.first(0), stream);
    for (micro = 0; micro < options.micro_batches; ++micro) {
      forward(data.inputs(micro), share.at_once);
      {
        const auto& token = weights(embedding);
        const auto& norm = weights(final_norm);
        model.head_forward(token, norm);
        model.loss(data.targets(micro), share.loss_scale, data.losses(micro));
        auto& token_gradient = open(embedding);
        auto& norm_gradient = open(final_norm);
        model.head_backward(token, norm, token_gradient, norm_gradient);
      }
      // From here on reductions run on the library's stream, beside the blocks that follow.
      close(final_norm);
      for (std::size_t unit = options.layers; unit > 0; --unit) {
        auto& gradient = open(unit);
        model.block_backward(unit - 1, weights(unit), gradient);
        close(unit);
      }
      model.embed_backward(running[embedding]);
      close(embedding);
    }
    data.fetch(stream);
    // The host has only enqueued so far, so that the report has no compute_ms and wait_ms. The norm
    // is the first number that it waits for.
    const double norm = clip_gradient_norm(context, options.max_norm());
    for (std::size_t unit = 0; unit < parameters.size(); ++unit) {
      states[unit].step(parameters[unit], gradients[unit]);
    }
    stream.synchronize();
    recorder.end_step(context.mean(data.sum_of_losses() * share.loss_scale), norm);
  }

  Report report = recorder.finish();
  train_gpt::account(context, report);
  report.world = share.world;
  report.parameters = shape.parameters();
  const DeviceArray<std::uint8_t> window(options.sequence);
  std::vector<float> logits(options.sequence * GptShape::vocabulary);
  report.sample = generate(options, [&](std::span<const std::uint8_t> inputs) {
    CudaDevice::upload(stream, window.data(), inputs.data(), inputs.size());
    forward(window.data(), 1);
    const auto& token = weights(embedding);
    const auto& norm = weights(final_norm);
    model.head_forward(token, norm);
    CudaDevice::download(stream, logits.data(), model.logits(), logits.size() * sizeof(float));
    return std::span<const float>(logits);
  });
  train_gpt::ParametersHash hash(options.keep_parameters ? &report.values : nullptr);
  for (auto& parameter : parameters) {
    parameter.read([&](const auto&, std::size_t, auto values) { hash.add(values); });
  }
  report.parameters_hash = hash.hex();
  return report;
}

}  // namespace

Report train(const Options& options, shardwise::Communicator& communicator) {
  const auto text = train_gpt::Text::load(options.text);
  text.require(options.sequence);
  if (options.lease == "bf16") return run<shardwise::bf16>(options, text, communicator);
  return run<float>(options, text, communicator);
}

}  // namespace cuda_gpt
