#include <shardwise/plan/planner.hpp>

#include "../train_gpt/sharding.hpp"
#include "options.hpp"
#include "planned_gpt.hpp"

namespace plan {

shardwise::Plan make_plan(const shardwise::PlannedModel& model, const shardwise::Hardware& hardware,
                          const shardwise::PlanRequest& request) {
  return shardwise::make_plan(model, hardware, request);
}

shardwise::StepPrediction predict_step(const shardwise::PlannedModel& model,
                                       const shardwise::Strategy& strategy,
                                       const shardwise::Hardware& hardware,
                                       const shardwise::StepOptions& options) {
  return shardwise::predict_step(model, strategy, hardware, options);
}

shardwise::StepPrediction predict_gpt(const train_gpt::Options& options,
                                      const shardwise::Hardware& hardware) {
  return plan::predict_step(planned_gpt(options), train_gpt::strategy_of(options), hardware,
                            planned_steps(options));
}

}  // namespace plan
