#include "plain.hpp"

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "../train_gpt/text.hpp"
#include "gpt.hpp"
#include "options.hpp"
#include "train.hpp"

namespace flat_host::plain {

// One allocation for all parameters, one of the same shape for all gradients.
void gpt_build(Model* model, const Options* options, std::size_t batch) {
  model->config = options->config;
  model->batch = batch;
  model->num_parameters = describe_parameters(&model->config, model->table);
  const std::size_t bytes = model->num_parameters * sizeof(float);
  model->params_memory = allocate_floats(model->num_parameters);
  model->grads_memory = allocate_floats(model->num_parameters);
  model->m_memory = allocate_floats(model->num_parameters);
  model->v_memory = allocate_floats(model->num_parameters);
  std::memset(model->m_memory, 0, bytes);
  std::memset(model->v_memory, 0, bytes);
  point_parameters(&model->params, model->table, model->params_memory);
  point_parameters(&model->grads, model->table, model->grads_memory);

  float* next = model->params_memory;
  for (const TensorInfo& tensor : model->table) {
    const std::size_t per_layer = tensor.rows * tensor.columns;
    for (std::size_t i = 0; i < tensor.count; ++i) {
      char name[32];
      name_tensor(name, sizeof(name), &tensor, i / per_layer);
      *next++ = initial_value(&model->config, name, i % per_layer, options->seed);
    }
  }
  model->acts_memory = allocate_activations(&model->acts, &model->config, batch);
}

void gpt_free(Model* model) {
  std::free(model->params_memory);
  std::free(model->grads_memory);
  std::free(model->m_memory);
  std::free(model->v_memory);
  std::free(model->acts_memory);
}

void gpt_forward(Model* model, const std::uint8_t* inputs, const std::uint8_t* targets) {
  const std::size_t B = model->batch, T = model->config.sequence, C = model->config.channels;
  const std::size_t L = model->config.layers, heads = model->config.heads, N = B * T;
  const ParameterTensors params = model->params;
  const ActivationTensors acts = model->acts;
  model->inputs = inputs;
  model->targets = targets;

  encoder_forward(acts.encoded, inputs, params.wte, params.wpe, B, T, C);
  const float* residual = acts.encoded;
  for (std::size_t l = 0; l < L; ++l) {
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
  }
  layernorm_forward(acts.lnf, acts.lnf_mean, acts.lnf_rstd, residual, params.lnfw, params.lnfb, N,
                    C);
  matmul_forward(acts.logits, acts.lnf, params.wte, nullptr, N, C, vocabulary);
  softmax_forward(acts.probs, acts.logits, N, vocabulary);
  crossentropy_forward(acts.losses, acts.probs, targets, N, vocabulary);
  model->mean_loss = mean_of(acts.losses, N);
}

void gpt_zero_grad(Model* model) {
  std::memset(model->grads_memory, 0, model->num_parameters * sizeof(float));
}

// After gpt_forward; adds to the gradients.
void gpt_backward(Model* model) {
  const std::size_t B = model->batch, T = model->config.sequence, C = model->config.channels;
  const std::size_t L = model->config.layers, heads = model->config.heads, N = B * T;
  const ParameterTensors params = model->params;
  const ParameterTensors grads = model->grads;
  const ActivationTensors acts = model->acts;

  const float* residual = acts.residual3 + (L - 1) * N * C;
  std::memset(acts.dresidual, 0, N * C * sizeof(float));
  crossentropy_softmax_backward(acts.dlogits, acts.probs, model->targets, N, vocabulary);
  matmul_backward(acts.dnarrow, grads.wte, nullptr, acts.dlogits, acts.lnf, params.wte, N, C,
                  vocabulary);
  layernorm_backward(acts.dresidual, grads.lnfw, grads.lnfb, acts.dnarrow, residual, params.lnfw,
                     acts.lnf_mean, acts.lnf_rstd, N, C);
  for (std::size_t l = L; l-- > 0;) {
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
  }
  encoder_backward(grads.wte, grads.wpe, acts.dresidual, model->inputs, B, T, C);
}

// AdamW (Loshchilov, Hutter, 2019) over the whole array, in the steps of PyTorch's. What does not
// depend on the element is computed in double and rounded once. `t` counts from 1.
void gpt_update(Model* model, const Options* o, std::size_t t) {
  const double steps = static_cast<double>(t);
  const float beta1 = static_cast<float>(o->beta1);
  const float beta2 = static_cast<float>(o->beta2);
  const float one_minus_beta1 = static_cast<float>(1 - o->beta1);
  const float one_minus_beta2 = static_cast<float>(1 - o->beta2);
  const float step_size = static_cast<float>(o->learning_rate / (1 - std::pow(o->beta1, steps)));
  const float inverse_root = static_cast<float>(1 / std::sqrt(1 - std::pow(o->beta2, steps)));
  const float epsilon = static_cast<float>(o->epsilon);
  std::size_t i = 0;
  for (const TensorInfo& tensor : model->table) {
    const float decay =
        tensor.decays ? static_cast<float>(1 - o->learning_rate * o->weight_decay) : 1;
    for (const std::size_t end = i + tensor.count; i < end; ++i) {
      const float g = model->grads_memory[i];
      float* const p = model->params_memory + i;
      float* const m = model->m_memory + i;
      float* const v = model->v_memory + i;
      *p = *p * decay;
      *m = beta1 * *m + one_minus_beta1 * g;
      *v = beta2 * *v + one_minus_beta2 * (g * g);
      *p = *p - step_size * (*m / (std::sqrt(*v) * inverse_root + epsilon));
    }
  }
}

void run(const Options* options, Result* result) {
  const train_gpt::Text text = train_gpt::Text::load(options->text);
  text.require(options->config.sequence);
  Model model{};
  gpt_build(&model, options, options->batch);
  train_gpt::Batch batch(model.batch, options->config.sequence);
  for (std::size_t step = 0; step < options->steps; ++step) {
    batch.read(text, options->seed, step, 0);
    gpt_forward(&model, batch.inputs().data(), batch.targets().data());
    gpt_zero_grad(&model);
    gpt_backward(&model);
    gpt_update(&model, options, step + 1);
    result->loss.push_back(model.mean_loss);
    if (!options->quiet) std::printf("step %zu  loss %.6f\n", step, result->loss.back());
  }
  const std::size_t bytes = model.num_parameters * sizeof(float);
  result->bytes = {.parameters = bytes, .gradients = bytes, .optimizer_state = 2 * bytes};
  const float* const p = model.params_memory;
  result->parameters.assign(p, p + model.num_parameters);
  gpt_free(&model);
}

Result train(const Options& options) {
  Result result;
  run(&options, &result);
  return result;
}

}  // namespace flat_host::plain
