#pragma once

#include <algorithm>
#include <cstdint>

#include "context.hpp"
#include "core/loss_scaler_state.hpp"
#include "core/math.hpp"
#include "gradient_norm.hpp"

namespace shardwise::inline v0_1 {

/// Dynamic loss scaling for gradients in f16 (Micikevicius et al., Mixed Precision Training, 2018,
/// section 3.2): the host multiplies its loss by scale(); unscale() undoes it in the next step, or
/// skips that step on all ranks where any rank's gradients overflowed. Every rank makes one with
/// the same settings.
class LossScaler {
 public:
  struct Options {
    double initial_scale = 65536;
    double growth_factor = 2;     ///< after growth_interval good steps in a row
    double backoff_factor = 0.5;  ///< after an overflow
    std::uint64_t growth_interval = 2000;
    double minimum_scale = 1;
  };

  LossScaler() = default;
  /// UsageError where a factor cannot work. Powers of two keep all bits.
  explicit LossScaler(const Options& options) : options_(options), scale_(options.initial_scale) {
    if (!(options.initial_scale > 0) || !(options.minimum_scale > 0) ||
        !(options.growth_factor >= 1) || !(options.backoff_factor > 0) ||
        !(options.backoff_factor < 1) || options.growth_interval == 0) {
      raise(
          "loss scaler: initial scale {}, minimum {} must be above 0, growth factor {} at least 1, "
          "backoff factor {} between 0 and 1, growth interval {} at least 1",
          options.initial_scale, options.minimum_scale, options.growth_factor,
          options.backoff_factor, options.growth_interval);
    }
  }

  /// Multiply the loss, or its gradient, by this.
  [[nodiscard]] double scale() const noexcept { return scale_; }
  /// Steps skipped so far.
  [[nodiscard]] std::uint64_t skipped() const noexcept { return skipped_; }

  /// For a checkpoint, between two steps; restore() on all ranks alike, of a scaler with the same
  /// options.
  [[nodiscard]] LossScalerState state() const noexcept { return {scale_, good_, skipped_}; }
  void restore(const LossScalerState& state) noexcept {
    scale_ = state.scale;
    good_ = state.good;
    skipped_ = state.skipped;
  }

  /// After the reductions, before clipping and the steps. True: the gradients are finite on every
  /// rank, and the next step divides by the scale. False: some are not; all gradients of the
  /// context are thrown away, the scale shrinks, and the host must not step. One collective; all
  /// ranks agree.
  template <class Device>
  [[nodiscard]] bool unscale(Context<Device>& context) {
    const bool finite = detail::is_finite(gradient_norm(context));
    for (auto* gradient : context.gradient_store().gradients()) {
      if (finite) {
        gradient->coefficient *= static_cast<float>(1 / scale_);
      } else {
        context.gradient_store().consume(*gradient);
      }
    }
    if (!finite) {
      ++skipped_;
      good_ = 0;
      scale_ = std::max(scale_ * options_.backoff_factor, options_.minimum_scale);
    } else if (++good_ >= options_.growth_interval) {  // above it where that has become shorter
      good_ = 0;
      scale_ *= options_.growth_factor;
    }
    return finite;
  }

 private:
  Options options_;
  double scale_ = Options().initial_scale;
  std::uint64_t good_ = 0;
  std::uint64_t skipped_ = 0;
};

}  // namespace shardwise::inline v0_1
