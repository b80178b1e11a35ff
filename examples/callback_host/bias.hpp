#pragma once

#include <dlib/dnn/layers.h>

#include <cstddef>

namespace callback_host {

/// How many of a layer's parameters are biases: its last ones. dlib's layers give them multipliers
/// of the learning rate and of the weight decay of their own.
template <class LAYER>
std::size_t bias_count(const LAYER& layer) {
  if constexpr (requires { layer.bias_is_disabled(); }) {
    if (layer.bias_is_disabled()) return 0;
  }
  if constexpr (requires { layer.get_bias_mode(); }) {  // fc_
    return layer.get_bias_mode() == dlib::FC_HAS_BIAS ? layer.get_num_outputs() : 0;
  } else if constexpr (requires { layer.num_filters(); }) {  // con_, cont_
    return static_cast<std::size_t>(layer.num_filters());
  } else {
    return 0;
  }
}

}  // namespace callback_host
