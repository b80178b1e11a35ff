#include "gpt.hpp"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <numbers>
#include <string_view>

#include "../train_gpt/random.hpp"

namespace flat_host {

std::size_t describe_parameters(const Config* config, TensorInfo table[tensor_count]) {
  const std::size_t C = config->channels, L = config->layers;
  const TensorInfo rows[tensor_count] = {
      {"wte", 0, vocabulary, C, true, 0}, {"wpe", 0, config->sequence, C, true, 0},
      {"ln1w", L, C, 1, false, 0},        {"ln1b", L, C, 1, false, 0},
      {"qkvw", L, 3 * C, C, true, 0},     {"qkvb", L, 3 * C, 1, false, 0},
      {"attprojw", L, C, C, true, 0},     {"attprojb", L, C, 1, false, 0},
      {"ln2w", L, C, 1, false, 0},        {"ln2b", L, C, 1, false, 0},
      {"fcw", L, 4 * C, C, true, 0},      {"fcb", L, 4 * C, 1, false, 0},
      {"fcprojw", L, C, 4 * C, true, 0},  {"fcprojb", L, C, 1, false, 0},
      {"lnfw", 0, C, 1, false, 0},        {"lnfb", 0, C, 1, false, 0},
  };
  std::size_t elements = 0;
  for (std::size_t t = 0; t < tensor_count; ++t) {
    table[t] = rows[t];
    table[t].count = std::max(table[t].layers, std::size_t{1}) * table[t].rows * table[t].columns;
    elements += table[t].count;
  }
  return elements;
}

void point_parameters(ParameterTensors* tensors, const TensorInfo table[tensor_count],
                      float* memory) {
  float** const pointers[tensor_count] = {
      &tensors->wte,     &tensors->wpe,     &tensors->ln1w,     &tensors->ln1b,
      &tensors->qkvw,    &tensors->qkvb,    &tensors->attprojw, &tensors->attprojb,
      &tensors->ln2w,    &tensors->ln2b,    &tensors->fcw,      &tensors->fcb,
      &tensors->fcprojw, &tensors->fcprojb, &tensors->lnfw,     &tensors->lnfb,
  };
  for (std::size_t t = 0; t < tensor_count; ++t) {
    *pointers[t] = memory;
    memory += table[t].count;
  }
}

void name_tensor(char* name, std::size_t size, const TensorInfo* tensor, std::size_t layer) {
  if (tensor->layers == 0) {
    std::snprintf(name, size, "%s", tensor->name);
  } else {
    std::snprintf(name, size, "%s.%zu", tensor->name, layer);
  }
}

float initial_value(const Config* config, const char* name, std::size_t element,
                    std::uint64_t seed) {
  const std::string_view kind = std::string_view(name).substr(0, std::string_view(name).find('.'));
  if (kind.starts_with("ln")) return kind.ends_with('w') ? 1 : 0;
  if (kind.ends_with('b')) return 0;
  double deviation = 0.02;
  if (kind == "attprojw" || kind == "fcprojw") {
    deviation /= std::sqrt(2 * static_cast<double>(config->layers));
  }
  // Box and Muller, 1958.
  const std::uint64_t key = train_gpt::key_of(name);
  const double u = train_gpt::to_unit_interval(train_gpt::random_bits(seed, key, element, 0));
  const double v = train_gpt::to_unit_interval(train_gpt::random_bits(seed, key, element, 1));
  const double normal = std::sqrt(-2 * std::log(u)) * std::cos(2 * std::numbers::pi * v);
  return static_cast<float>(deviation * normal);
}

float* allocate_floats(std::size_t count) {
  void* const memory = std::malloc(count * sizeof(float));
  if (memory == nullptr) {
    std::fprintf(stderr, "no memory for %zu floats\n", count);
    std::exit(1);
  }
  return static_cast<float*>(memory);
}

float* allocate_activations(ActivationTensors* acts, const Config* config, std::size_t batch) {
  const std::size_t L = config->layers, C = config->channels, T = config->sequence;
  const std::size_t N = batch * T, V = vocabulary;
  const struct {
    float** pointer;
    std::size_t count;
  } rows[] = {
      {&acts->encoded, N * C},
      {&acts->ln1, L * N * C},
      {&acts->ln1_mean, L * N},
      {&acts->ln1_rstd, L * N},
      {&acts->qkv, L * N * 3 * C},
      {&acts->att, L * N * config->heads * T},
      {&acts->atty, L * N * C},
      {&acts->residual2, L * N * C},
      {&acts->ln2, L * N * C},
      {&acts->ln2_mean, L * N},
      {&acts->ln2_rstd, L * N},
      {&acts->fch, L * N * 4 * C},
      {&acts->fch_gelu, L * N * 4 * C},
      {&acts->residual3, L * N * C},
      {&acts->lnf, N * C},
      {&acts->lnf_mean, N},
      {&acts->lnf_rstd, N},
      {&acts->logits, N * V},
      {&acts->probs, N * V},
      {&acts->losses, N},
      {&acts->projected, N * C},
      {&acts->dresidual, N * C},
      {&acts->dnarrow, N * C},
      {&acts->dwide, N * 4 * C},
      {&acts->dwider, N * 4 * C},
      {&acts->dscores, T},
      {&acts->dlogits, N * V},
  };
  std::size_t total = 0;
  for (const auto& row : rows) total += row.count;
  float* const memory = allocate_floats(total);
  float* next = memory;
  for (const auto& row : rows) {
    *row.pointer = next;
    next += row.count;
  }
  return memory;
}

void encoder_forward(float* out, const std::uint8_t* tokens, const float* wte, const float* wpe,
                     std::size_t B, std::size_t T, std::size_t C) {
  for (std::size_t n = 0; n < B * T; ++n) {
    const float* token = wte + tokens[n] * C;
    const float* position = wpe + n % T * C;
    for (std::size_t i = 0; i < C; ++i) out[n * C + i] = token[i] + position[i];
  }
}

void encoder_backward(float* dwte, float* dwpe, const float* dout, const std::uint8_t* tokens,
                      std::size_t B, std::size_t T, std::size_t C) {
  for (std::size_t n = 0; n < B * T; ++n) {
    float* dtoken = dwte + tokens[n] * C;
    float* dposition = dwpe + n % T * C;
    for (std::size_t i = 0; i < C; ++i) {
      dtoken[i] += dout[n * C + i];
      dposition[i] += dout[n * C + i];
    }
  }
}

void layernorm_forward(float* out, float* mean, float* rstd, const float* in, const float* weight,
                       const float* bias, std::size_t N, std::size_t C) {
  const float scale = 1 / static_cast<float>(C);
  for (std::size_t n = 0; n < N; ++n) {
    const float* x = in + n * C;
    float sum = 0;
    for (std::size_t i = 0; i < C; ++i) sum += x[i];
    mean[n] = sum * scale;
    float squares = 0;
    for (std::size_t i = 0; i < C; ++i) squares += (x[i] - mean[n]) * (x[i] - mean[n]);
    rstd[n] = 1 / std::sqrt(squares * scale + 1e-5f);
    for (std::size_t i = 0; i < C; ++i) {
      out[n * C + i] = (x[i] - mean[n]) * rstd[n] * weight[i] + bias[i];
    }
  }
}

void layernorm_backward(float* dresidual, float* dweight, float* dbias, const float* dout,
                        const float* in, const float* weight, const float* mean, const float* rstd,
                        std::size_t N, std::size_t C) {
  const float scale = 1 / static_cast<float>(C);
  for (std::size_t n = 0; n < N; ++n) {
    const float* x = in + n * C;
    const float* dy = dout + n * C;
    // The normed row has mean 0 and deviation 1: what would change these two is taken out.
    float along_one = 0, along_row = 0;
    for (std::size_t i = 0; i < C; ++i) {
      const float row = (x[i] - mean[n]) * rstd[n];
      const float drow = dy[i] * weight[i];
      dweight[i] += dy[i] * row;
      dbias[i] += dy[i];
      along_one += drow;
      along_row += drow * row;
    }
    along_one *= scale;
    along_row *= scale;
    for (std::size_t i = 0; i < C; ++i) {
      const float row = (x[i] - mean[n]) * rstd[n];
      dresidual[n * C + i] += (dy[i] * weight[i] - along_one - row * along_row) * rstd[n];
    }
  }
}

void matmul_forward(float* out, const float* in, const float* weight, const float* bias,
                    std::size_t N, std::size_t C, std::size_t OC) {
  // Four tokens at a time: a weight is read once for four, and four sums do not wait for each
  // other. The last rows may be computed more than once.
  for (std::size_t n = 0; n < N; n += 4) {
    const float* x[4];
    for (std::size_t k = 0; k < 4; ++k) x[k] = in + std::min(n + k, N - 1) * C;
    for (std::size_t o = 0; o < OC; ++o) {
      const float start = bias == nullptr ? 0 : bias[o];
      float sum[4] = {start, start, start, start};
      for (std::size_t i = 0; i < C; ++i) {
        const float w = weight[o * C + i];
        for (std::size_t k = 0; k < 4; ++k) sum[k] += x[k][i] * w;
      }
      for (std::size_t k = 0; k < 4; ++k) out[std::min(n + k, N - 1) * OC + o] = sum[k];
    }
  }
}

void matmul_backward(float* din, float* dweight, float* dbias, const float* dout, const float* in,
                     const float* weight, std::size_t N, std::size_t C, std::size_t OC) {
  std::memset(din, 0, N * C * sizeof(float));
  for (std::size_t n = 0; n < N; ++n) {
    for (std::size_t o = 0; o < OC; ++o) {
      const float d = dout[n * OC + o];
      for (std::size_t i = 0; i < C; ++i) {
        din[n * C + i] += d * weight[o * C + i];
        dweight[o * C + i] += d * in[n * C + i];
      }
      if (dbias != nullptr) dbias[o] += d;
    }
  }
}

void attention_forward(float* out, float* att, const float* qkv, std::size_t B, std::size_t T,
                       std::size_t C, std::size_t heads) {
  const std::size_t size = C / heads;
  const float scale = 1 / std::sqrt(static_cast<float>(size));
  for (std::size_t b = 0; b < B; ++b) {
    for (std::size_t h = 0; h < heads; ++h) {
      const float* query = qkv + b * T * 3 * C + h * size;
      const float* key = query + C;
      const float* value = query + 2 * C;
      for (std::size_t t = 0; t < T; ++t) {
        float* row = att + ((b * heads + h) * T + t) * T;
        float largest = -INFINITY;
        for (std::size_t s = 0; s <= t; ++s) {
          float dot = 0;
          for (std::size_t i = 0; i < size; ++i) dot += query[t * 3 * C + i] * key[s * 3 * C + i];
          row[s] = dot * scale;
          largest = std::max(largest, row[s]);
        }
        float sum = 0;
        for (std::size_t s = 0; s <= t; ++s) {
          row[s] = std::exp(row[s] - largest);
          sum += row[s];
        }
        for (std::size_t s = 0; s <= t; ++s) row[s] /= sum;
        float* y = out + (b * T + t) * C + h * size;
        for (std::size_t i = 0; i < size; ++i) y[i] = 0;
        for (std::size_t s = 0; s <= t; ++s) {
          for (std::size_t i = 0; i < size; ++i) y[i] += row[s] * value[s * 3 * C + i];
        }
      }
    }
  }
}

void attention_backward(float* dqkv, float* dscores, const float* dout, const float* qkv,
                        const float* att, std::size_t B, std::size_t T, std::size_t C,
                        std::size_t heads) {
  const std::size_t size = C / heads;
  const float scale = 1 / std::sqrt(static_cast<float>(size));
  std::memset(dqkv, 0, B * T * 3 * C * sizeof(float));
  for (std::size_t b = 0; b < B; ++b) {
    for (std::size_t h = 0; h < heads; ++h) {
      const std::size_t first = b * T * 3 * C + h * size;
      const float *query = qkv + first, *key = query + C, *value = query + 2 * C;
      float *dquery = dqkv + first, *dkey = dquery + C, *dvalue = dquery + 2 * C;
      for (std::size_t t = 0; t < T; ++t) {
        const float* row = att + ((b * heads + h) * T + t) * T;
        const float* dy = dout + (b * T + t) * C + h * size;
        float mean = 0;  // of the scores' gradients, by the probabilities
        for (std::size_t s = 0; s <= t; ++s) {
          float dot = 0;
          for (std::size_t i = 0; i < size; ++i) {
            dot += dy[i] * value[s * 3 * C + i];
            dvalue[s * 3 * C + i] += row[s] * dy[i];
          }
          dscores[s] = dot;
          mean += row[s] * dot;
        }
        for (std::size_t s = 0; s <= t; ++s) {
          const float d = row[s] * (dscores[s] - mean) * scale;
          for (std::size_t i = 0; i < size; ++i) {
            dquery[t * 3 * C + i] += d * key[s * 3 * C + i];
            dkey[s * 3 * C + i] += d * query[t * 3 * C + i];
          }
        }
      }
    }
  }
}

// GELU by its approximation with tanh (Hendrycks, Gimpel, 2016), as GPT-2 has it.
constexpr float gelu_rate = 0.7978845608f;  // sqrt(2 / pi)
constexpr float gelu_cubic = 0.044715f;

void gelu_forward(float* out, const float* in, std::size_t count) {
  for (std::size_t i = 0; i < count; ++i) {
    const float x = in[i];
    out[i] = 0.5f * x * (1 + std::tanh(gelu_rate * (x + gelu_cubic * x * x * x)));
  }
}

void gelu_backward(float* din, const float* in, const float* dout, std::size_t count) {
  for (std::size_t i = 0; i < count; ++i) {
    const float x = in[i];
    const float gate = std::tanh(gelu_rate * (x + gelu_cubic * x * x * x));
    const float dgate = (1 - gate * gate) * gelu_rate * (1 + 3 * gelu_cubic * x * x);
    din[i] = dout[i] * 0.5f * (1 + gate + x * dgate);
  }
}

void residual_forward(float* out, const float* a, const float* b, std::size_t count) {
  for (std::size_t i = 0; i < count; ++i) out[i] = a[i] + b[i];
}

void softmax_forward(float* probs, const float* logits, std::size_t N, std::size_t V) {
  for (std::size_t n = 0; n < N; ++n) {
    const float* row = logits + n * V;
    const float largest = *std::max_element(row, row + V);
    float sum = 0;
    for (std::size_t v = 0; v < V; ++v) {
      probs[n * V + v] = std::exp(row[v] - largest);
      sum += probs[n * V + v];
    }
    for (std::size_t v = 0; v < V; ++v) probs[n * V + v] /= sum;
  }
}

void crossentropy_forward(float* losses, const float* probs, const std::uint8_t* targets,
                          std::size_t N, std::size_t V) {
  for (std::size_t n = 0; n < N; ++n) losses[n] = -std::log(probs[n * V + targets[n]]);
}

void crossentropy_softmax_backward(float* dlogits, const float* probs, const std::uint8_t* targets,
                                   std::size_t N, std::size_t V) {
  const float scale = 1 / static_cast<float>(N);
  for (std::size_t n = 0; n < N; ++n) {
    for (std::size_t v = 0; v < V; ++v) dlogits[n * V + v] = probs[n * V + v] * scale;
    dlogits[n * V + targets[n]] -= scale;
  }
}

double mean_of(const float* losses, std::size_t N) {
  double sum = 0;
  for (std::size_t n = 0; n < N; ++n) sum += static_cast<double>(losses[n]);
  return sum / static_cast<double>(N);
}

std::uint64_t hash_of(const float* elements, std::size_t count) {
  std::uint64_t hash = 0xcbf29ce484222325u;
  const auto* const bytes = reinterpret_cast<const unsigned char*>(elements);
  for (std::size_t i = 0; i < count * sizeof(float); ++i) hash = (hash ^ bytes[i]) * 0x100000001b3u;
  return hash;
}

}  // namespace flat_host
