#pragma once

#include <shardwise/plan/model.hpp>
#include <shardwise/plan/step.hpp>

#include "../train_gpt/options.hpp"

namespace plan {

/// train_gpt's model and the work of its loops, on one of its ranks.
[[nodiscard]] shardwise::PlannedModel planned_gpt(const train_gpt::Options& options);

/// How its steps are made.
[[nodiscard]] shardwise::StepOptions planned_steps(const train_gpt::Options& options);

/// shardwise::predict_step of them, for a strategy by name with train_gpt's settings; compiled
/// once.
[[nodiscard]] shardwise::StepPrediction predict_gpt(const train_gpt::Options& options,
                                                    const shardwise::Hardware& hardware);

}  // namespace plan
