#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <optional>
#include <shardwise/comm/thread.hpp>
#include <shardwise/plan/registered_model.hpp>
#include <shardwise/shardwise.hpp>
#include <utility>
#include <vector>

#include "../train_gpt/text.hpp"
#include "gpt.hpp"
#include "options.hpp"
#include "train.hpp"

namespace flat_host::sharded {

using Tensors = std::vector<shardwise::HostTensor>;

// What is gathered together: the embedding, a layer, the final norm.
struct Unit {
  shardwise::ShardedParameter<float> weights;
  shardwise::ShardedGradient<float> gradient;
  shardwise::ShardedOptimizerState<shardwise::AdamW> state;

  Unit(shardwise::Context<>& context, const Tensors& tensors, shardwise::ParameterOptions options,
       shardwise::Arena& gradients, const shardwise::AdamW& adamw)
      : weights(context, tensors, std::move(options)),
        gradient(weights, gradients),
        state(weights, adamw) {}

  void open() {
    weights.ensure_gathered();
    gradient.ensure_open();
  }
  void close() {
    weights.release();
    gradient.reduce();
  }
};

struct Model : GPT {
  std::optional<shardwise::Arena> params_arena;
  std::optional<shardwise::Arena> grads_arena;
  std::vector<Unit> units;  // the embedding, the layers, the final norm
};

// One allocation for all parameters, one of the same shape for all gradients.
void gpt_build(Model* model, const Options* options, std::size_t batch,
               shardwise::Context<>& context) {
  model->config = options->config;
  model->batch = batch;
  model->num_parameters = describe_parameters(&model->config, model->table);
  const std::size_t bytes = model->num_parameters * sizeof(float);
  const shardwise::ArenaOptions own{.shared = options->shared};
  model->params_memory = model->params_arena.emplace(context, bytes, "parameters", own).as<float>();
  model->grads_memory = model->grads_arena.emplace(context, bytes, "gradients").as<float>();
  point_parameters(&model->params, model->table, model->params_memory);
  point_parameters(&model->grads, model->table, model->grads_memory);

  float* next = model->params_memory;
  Tensors tensors;
  for (const TensorInfo& tensor : model->table) {
    const shardwise::TensorOptions how{.weight_decay = tensor.decays ? 1.0f : 0.0f};
    tensors.push_back({tensor.name, next, {tensor.rows, tensor.columns}, how});
    next += tensor.count;
  }
  const shardwise::AdamW adamw{options->learning_rate, options->beta1, options->beta2,
                               options->epsilon, options->weight_decay};
  const auto add = [&](const Tensors& unit, const shardwise::ParameterOptions& how) {
    model->units.emplace_back(context, unit, how, *model->grads_arena, adamw);
    model->units.back().weights.initialize([&](const auto& tensor, std::size_t i) {
      return initial_value(&model->config, tensor.name.c_str(), i, options->seed);
    });
  };
  const auto first = tensors.begin() + first_stacked, end = tensors.begin() + end_stacked;
  add({tensors.begin(), first}, {.name = "embedding", .tied = true});
  const auto layer = shardwise::stacked(options->config.layers, {first, end});
  for (std::size_t l = 0; l < layer.size(); ++l)
    add(layer[l], {.name = fmt::format("layer {}", l)});
  add({end, tensors.end()}, {.name = "final norm"});
  model->params_arena->check_coverage();
  model->acts_memory = allocate_activations(&model->acts, &model->config, batch);
}

void gpt_free(Model* model) { std::free(model->acts_memory); }

void gpt_forward(Model* model, const std::uint8_t* inputs, const std::uint8_t* targets) {
  const std::size_t B = model->batch, T = model->config.sequence, C = model->config.channels;
  const std::size_t L = model->config.layers, heads = model->config.heads, N = B * T;
  const ParameterTensors params = model->params;
  const ActivationTensors acts = model->acts;
  model->inputs = inputs;
  model->targets = targets;

  model->units.front().weights.ensure_gathered();
  encoder_forward(acts.encoded, inputs, params.wte, params.wpe, B, T, C);
  model->units.front().weights.release();
  const float* residual = acts.encoded;
  for (std::size_t l = 0; l < L; ++l) {
    model->units[1 + l].weights.ensure_gathered();
    const float* l_ln1w = params.ln1w + l * C;
    const float* l_ln1b = params.ln1b + l * C;
    const float* l_qkvw = params.qkvw + l * 3 * C * C;
    const float* l_qkvb = params.qkvb + l * 3 * C;
    const float* l_attprojw = params.attprojw + l * C * C;
    const float* l_attprojb = params.attprojb + l * C;
    const float* l_ln2w = params.ln2w + l * C;
    const float* l_ln2b = params.ln2b + l * C;
    const float* l_fcw = params.fcw + l * 4 * C * C;
    const float* l_fcb = params.fcb + l * 4 * C;
    const float* l_fcprojw = params.fcprojw + l * C * 4 * C;
    const float* l_fcprojb = params.fcprojb + l * C;
    float* l_ln1 = acts.ln1 + l * N * C;
    float* l_qkv = acts.qkv + l * N * 3 * C;
    float* l_att = acts.att + l * N * heads * T;
    float* l_atty = acts.atty + l * N * C;
    float* l_residual2 = acts.residual2 + l * N * C;
    float* l_ln2 = acts.ln2 + l * N * C;
    float* l_fch = acts.fch + l * N * 4 * C;
    float* l_fch_gelu = acts.fch_gelu + l * N * 4 * C;
    float* l_residual3 = acts.residual3 + l * N * C;

    layernorm_forward(l_ln1, acts.ln1_mean + l * N, acts.ln1_rstd + l * N, residual, l_ln1w, l_ln1b,
                      N, C);
    matmul_forward(l_qkv, l_ln1, l_qkvw, l_qkvb, N, C, 3 * C);
    attention_forward(l_atty, l_att, l_qkv, B, T, C, heads);
    matmul_forward(acts.projected, l_atty, l_attprojw, l_attprojb, N, C, C);
    residual_forward(l_residual2, residual, acts.projected, N * C);
    layernorm_forward(l_ln2, acts.ln2_mean + l * N, acts.ln2_rstd + l * N, l_residual2, l_ln2w,
                      l_ln2b, N, C);
    matmul_forward(l_fch, l_ln2, l_fcw, l_fcb, N, C, 4 * C);
    gelu_forward(l_fch_gelu, l_fch, N * 4 * C);
    matmul_forward(acts.projected, l_fch_gelu, l_fcprojw, l_fcprojb, N, 4 * C, C);
    residual_forward(l_residual3, l_residual2, acts.projected, N * C);
    residual = l_residual3;
    model->units[1 + l].weights.release();
  }
  model->units.back().weights.ensure_gathered();
  model->units.front().weights.ensure_gathered();  // the head's; both until gpt_backward is there
  layernorm_forward(acts.lnf, acts.lnf_mean, acts.lnf_rstd, residual, params.lnfw, params.lnfb, N,
                    C);
  matmul_forward(acts.logits, acts.lnf, params.wte, nullptr, N, C, vocabulary);
  softmax_forward(acts.probs, acts.logits, N, vocabulary);
  crossentropy_forward(acts.losses, acts.probs, targets, N, vocabulary);
  model->mean_loss = mean_of(acts.losses, N);
}

void gpt_zero_grad(Model* model) {
  for (Unit& unit : model->units) unit.gradient.consume();
}

// After gpt_forward; adds to the gradients.
void gpt_backward(Model* model) {
  const std::size_t B = model->batch, T = model->config.sequence, C = model->config.channels;
  const std::size_t L = model->config.layers, heads = model->config.heads, N = B * T;
  const ParameterTensors params = model->params;
  const ParameterTensors grads = model->grads;
  const ActivationTensors acts = model->acts;

  model->units.front().open();
  model->units.back().open();
  const float* residual = acts.residual3 + (L - 1) * N * C;
  std::memset(acts.dresidual, 0, N * C * sizeof(float));
  crossentropy_softmax_backward(acts.dlogits, acts.probs, model->targets, N, vocabulary);
  matmul_backward(acts.dnarrow, grads.wte, nullptr, acts.dlogits, acts.lnf, params.wte, N, C,
                  vocabulary);
  layernorm_backward(acts.dresidual, grads.lnfw, grads.lnfb, acts.dnarrow, residual, params.lnfw,
                     acts.lnf_mean, acts.lnf_rstd, N, C);
  model->units.back().close();
  model->units.front().weights.release();  // its gradient is open until the encoder's is in it
  for (std::size_t l = L; l-- > 0;) {
    model->units[1 + l].open();
    residual = l == 0 ? acts.encoded : acts.residual3 + (l - 1) * N * C;
    const float* l_ln1w = params.ln1w + l * C;
    const float* l_qkvw = params.qkvw + l * 3 * C * C;
    const float* l_attprojw = params.attprojw + l * C * C;
    const float* l_ln2w = params.ln2w + l * C;
    const float* l_fcw = params.fcw + l * 4 * C * C;
    const float* l_fcprojw = params.fcprojw + l * C * 4 * C;
    float* dl_ln1w = grads.ln1w + l * C;
    float* dl_ln1b = grads.ln1b + l * C;
    float* dl_qkvw = grads.qkvw + l * 3 * C * C;
    float* dl_qkvb = grads.qkvb + l * 3 * C;
    float* dl_attprojw = grads.attprojw + l * C * C;
    float* dl_attprojb = grads.attprojb + l * C;
    float* dl_ln2w = grads.ln2w + l * C;
    float* dl_ln2b = grads.ln2b + l * C;
    float* dl_fcw = grads.fcw + l * 4 * C * C;
    float* dl_fcb = grads.fcb + l * 4 * C;
    float* dl_fcprojw = grads.fcprojw + l * C * 4 * C;
    float* dl_fcprojb = grads.fcprojb + l * C;
    const float* l_ln1 = acts.ln1 + l * N * C;
    const float* l_qkv = acts.qkv + l * N * 3 * C;
    const float* l_att = acts.att + l * N * heads * T;
    const float* l_atty = acts.atty + l * N * C;
    const float* l_residual2 = acts.residual2 + l * N * C;
    const float* l_ln2 = acts.ln2 + l * N * C;
    const float* l_fch = acts.fch + l * N * 4 * C;
    const float* l_fch_gelu = acts.fch_gelu + l * N * 4 * C;

    matmul_backward(acts.dwide, dl_fcprojw, dl_fcprojb, acts.dresidual, l_fch_gelu, l_fcprojw, N,
                    4 * C, C);
    gelu_backward(acts.dwider, l_fch, acts.dwide, N * 4 * C);
    matmul_backward(acts.dnarrow, dl_fcw, dl_fcb, acts.dwider, l_ln2, l_fcw, N, C, 4 * C);
    layernorm_backward(acts.dresidual, dl_ln2w, dl_ln2b, acts.dnarrow, l_residual2, l_ln2w,
                       acts.ln2_mean + l * N, acts.ln2_rstd + l * N, N, C);
    matmul_backward(acts.dnarrow, dl_attprojw, dl_attprojb, acts.dresidual, l_atty, l_attprojw, N,
                    C, C);
    attention_backward(acts.dwide, acts.dscores, acts.dnarrow, l_qkv, l_att, B, T, C, heads);
    matmul_backward(acts.dnarrow, dl_qkvw, dl_qkvb, acts.dwide, l_ln1, l_qkvw, N, C, 3 * C);
    layernorm_backward(acts.dresidual, dl_ln1w, dl_ln1b, acts.dnarrow, residual, l_ln1w,
                       acts.ln1_mean + l * N, acts.ln1_rstd + l * N, N, C);
    model->units[1 + l].close();
  }
  encoder_backward(grads.wte, grads.wpe, acts.dresidual, model->inputs, B, T, C);
  model->units.front().close();
}

void gpt_update(Model* model) {
  for (Unit& unit : model->units) unit.state.step(unit.weights, unit.gradient);
}

void run(const Options* options, shardwise::Context<>& context, Result* result) {
  const train_gpt::Text text = train_gpt::Text::load(options->text);
  text.require(options->config.sequence);
  const std::size_t rank = static_cast<std::size_t>(context.rank());
  Model model{};
  gpt_build(&model, options, options->batch / options->ranks, context);
  train_gpt::Batch batch(model.batch, options->config.sequence);
  for (std::size_t step = 0; step < options->steps; ++step) {
    batch.read(text, options->seed, step, rank * model.batch);
    gpt_forward(&model, batch.inputs().data(), batch.targets().data());
    gpt_zero_grad(&model);
    gpt_backward(&model);
    gpt_update(&model);
    result->loss.push_back(context.mean(model.mean_loss));
    if (!options->quiet && rank == 0)
      std::printf("step %zu  loss %.6f\n", step, result->loss.back());
  }
  result->bytes = context.held();
  result->planned = shardwise::plan_memory(context, context.strategy()).bytes;
  const auto full = full_parameters(context);
  const float* const p = model.params_memory;
  if (rank == 0) result->parameters.assign(p, p + model.num_parameters);
  gpt_free(&model);
}

Result train(const Options& options) {
  std::vector<Result> results(options.ranks);
  shardwise::run_ranks(static_cast<int>(options.ranks), [&](shardwise::Communicator& comm) {
    auto strategy = shardwise::Strategy::parse(options.strategy);
    strategy.prefetch = 0;  // the loops ask for none
    // The head uses the embedding beside the final norm: two units open at once.
    shardwise::Context<> context(comm, strategy, {.open_parameters = 2, .debug = options.debug});
    run(&options, context, &results[static_cast<std::size_t>(comm.rank())]);
  });
  return results[0];
}

}  // namespace flat_host::sharded
