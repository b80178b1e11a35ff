#pragma once

#include <cstdint>

#include "gpt.hpp"

// What the plain trainer is made of.
namespace flat_host::plain {

struct Model : GPT {
  float* m_memory;  // AdamW's moments, laid out as the parameters
  float* v_memory;
};

void gpt_forward(Model* model, const std::uint8_t* inputs, const std::uint8_t* targets);
void gpt_backward(Model* model);

}  // namespace flat_host::plain
