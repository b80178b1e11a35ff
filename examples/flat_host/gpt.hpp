#pragma once

#include <cstddef>
#include <cstdint>

// A byte-level GPT-2 in plain C style: floats, pointers, sizes. Both trainers use this file as it
// is.
namespace flat_host {

constexpr std::size_t vocabulary = 256;

struct Config {
  std::size_t layers;
  std::size_t channels;  // of the residual stream
  std::size_t heads;     // divides channels
  std::size_t sequence;  // tokens of one sequence
};

// All parameters (or all gradients) lie in one piece of memory, one tensor after another. Tensors
// of a layer are stacked: layer 0's, layer 1's, ...
constexpr std::size_t tensor_count = 16;
constexpr std::size_t first_stacked = 2;  // tensors 2 to 13
constexpr std::size_t end_stacked = 14;

struct ParameterTensors {
  float* wte;  // [vocabulary][C]: the tokens, for the encoder and for the head
  float* wpe;  // [T][C]: the positions
  float* ln1w;
  float* ln1b;
  float* qkvw;  // [layers][3 C][C]
  float* qkvb;
  float* attprojw;  // [layers][C][C]
  float* attprojb;
  float* ln2w;
  float* ln2b;
  float* fcw;  // [layers][4 C][C]
  float* fcb;
  float* fcprojw;  // [layers][C][4 C]
  float* fcprojb;
  float* lnfw;
  float* lnfb;
};

struct TensorInfo {
  const char* name;
  std::size_t layers;  // 0 where it is not stacked
  std::size_t rows;    // of one layer's
  std::size_t columns;
  bool decays;        // matrices do; biases and norms do not
  std::size_t count;  // elements of all layers
};

// Fills the table of the 16 tensors in the order of ParameterTensors; returns the elements of all.
std::size_t describe_parameters(const Config* config, TensorInfo table[tensor_count]);

// Points the 16 tensors into `memory`.
void point_parameters(ParameterTensors* tensors, const TensorInfo table[tensor_count],
                      float* memory);

// Writes a tensor's name, with the layer where it is stacked: "wte", "qkvw.3".
void name_tensor(char* name, std::size_t size, const TensorInfo* tensor, std::size_t layer);

// The value with which an element starts, as GPT-2's: normal, deviation 0.02 and less where it adds
// to the residual stream; norms 1, biases 0. `name` is of name_tensor, and `element`
// counts within that layer. Depends on its arguments alone.
float initial_value(const Config* config, const char* name, std::size_t element,
                    std::uint64_t seed);

// What the forward pass leaves for the backward pass, and the scratch memory of both. N = B T
// tokens.
struct ActivationTensors {
  float* encoded;    // [N][C]
  float* ln1;        // [layers][N][C]
  float* ln1_mean;   // [layers][N]
  float* ln1_rstd;   // [layers][N], 1 / deviation
  float* qkv;        // [layers][N][3 C]
  float* att;        // [layers][B][heads][T][T]: the probabilities
  float* atty;       // [layers][N][C]
  float* residual2;  // [layers][N][C]: between attention and MLP
  float* ln2;        // [layers][N][C]
  float* ln2_mean;   // [layers][N]
  float* ln2_rstd;   // [layers][N]
  float* fch;        // [layers][N][4 C]
  float* fch_gelu;   // [layers][N][4 C]
  float* residual3;  // [layers][N][C]: after the layer
  float* lnf;        // [N][C]
  float* lnf_mean;   // [N]
  float* lnf_rstd;   // [N]
  float* logits;     // [N][vocabulary]
  float* probs;      // [N][vocabulary]
  float* losses;     // [N]

  float* projected;  // [N][C]: what a layer adds to the stream
  float* dresidual;  // [N][C]: the gradient of the residual stream
  float* dnarrow;    // [N][C]
  float* dwide;      // [N][4 C]
  float* dwider;     // [N][4 C]
  float* dscores;    // [T]
  float* dlogits;    // [N][vocabulary]
};

// What a trainer keeps of its model.
struct GPT {
  Config config;
  std::size_t batch;  // sequences at once
  TensorInfo table[tensor_count];
  std::size_t num_parameters;
  ParameterTensors params;
  float* params_memory;
  ParameterTensors grads;
  float* grads_memory;
  ActivationTensors acts;
  float* acts_memory;
  const std::uint8_t* inputs;  // of the forward pass
  const std::uint8_t* targets;
  double mean_loss;
};

// Memory for so many floats, not set; ends the program where there is none.
float* allocate_floats(std::size_t count);

// One piece of memory for all activations, for free() to give back.
float* allocate_activations(ActivationTensors* acts, const Config* config, std::size_t batch);

// The mathematics. `_forward` writes its first argument; `_backward` adds to the gradients of
// parameters and writes those of activations, save the residual stream's: what arrives there goes
// through an addition unchanged, so a branch adds its part to it.

void encoder_forward(float* out, const std::uint8_t* tokens, const float* wte, const float* wpe,
                     std::size_t B, std::size_t T, std::size_t C);
void encoder_backward(float* dwte, float* dwpe, const float* dout, const std::uint8_t* tokens,
                      std::size_t B, std::size_t T, std::size_t C);

void layernorm_forward(float* out, float* mean, float* rstd, const float* in, const float* weight,
                       const float* bias, std::size_t N, std::size_t C);
// Adds to dresidual.
void layernorm_backward(float* dresidual, float* dweight, float* dbias, const float* dout,
                        const float* in, const float* weight, const float* mean, const float* rstd,
                        std::size_t N, std::size_t C);

// out[n][o] = bias[o] + sum over i of in[n][i] weight[o][i]; bias may be null.
void matmul_forward(float* out, const float* in, const float* weight, const float* bias,
                    std::size_t N, std::size_t C, std::size_t OC);
void matmul_backward(float* din, float* dweight, float* dbias, const float* dout, const float* in,
                     const float* weight, std::size_t N, std::size_t C, std::size_t OC);

// Causal. qkv is [N][query, key, value][heads][C / heads].
void attention_forward(float* out, float* att, const float* qkv, std::size_t B, std::size_t T,
                       std::size_t C, std::size_t heads);
void attention_backward(float* dqkv, float* dscores, const float* dout, const float* qkv,
                        const float* att, std::size_t B, std::size_t T, std::size_t C,
                        std::size_t heads);

void gelu_forward(float* out, const float* in, std::size_t count);
void gelu_backward(float* din, const float* in, const float* dout, std::size_t count);

void residual_forward(float* out, const float* a, const float* b, std::size_t count);

void softmax_forward(float* probs, const float* logits, std::size_t N, std::size_t V);
void crossentropy_forward(float* losses, const float* probs, const std::uint8_t* targets,
                          std::size_t N, std::size_t V);
// Of the mean loss over N tokens, through the softmax.
void crossentropy_softmax_backward(float* dlogits, const float* probs, const std::uint8_t* targets,
                                   std::size_t N, std::size_t V);

double mean_of(const float* losses, std::size_t N);

// FNV-1a 64 over the bytes of the elements.
std::uint64_t hash_of(const float* elements, std::size_t count);

}  // namespace flat_host
