#include "output.hpp"

#include <fmt/core.h>

#include <nlohmann/json.hpp>
#include <shardwise/config/write.hpp>

#include "../plan/options.hpp"

namespace compare_strategies {
namespace {

using Json = nlohmann::ordered_json;

double kib(std::size_t bytes) { return static_cast<double>(bytes) / 1024; }

std::string setting_line(const TunedValue& tried, double base) {
  return fmt::format("  {:<22} = {:<10}{:>9.1f} ms{:>+7.1f} %   predicted {:.1f} ms{}\n",
                     tried.setting, tried.value, tried.measured_ms,
                     100 * (tried.measured_ms / base - 1), tried.predicted_ms,
                     tried.taken ? "   taken" : "");
}

std::string explanation(const Comparison& comparison) {
  const bool all_claim = comparison.trials.back().report.same_bits;
  std::string text =
      fmt::format("\nParameters after training: {}. Planned bytes of every kind {}.\n",
                  comparison.same_bits() ? fmt::format("the same bits with every strategy{} ({})",
                                                       all_claim ? "" : " but the hybrid one",
                                                       comparison.trials[0].report.parameters_hash)
                                         : "DIFFERENT between strategies, which is a bug",
                  comparison.planned_right() ? "equal the held ones"
                                             : "DIFFER from the held ones, which is a bug");
  return text +
         "Each trades memory for traffic: zero1 shards the optimizer state, zero2 the gradients "
         "too, zero3 the\nparameters as well, at up to 1.5 times ddp's traffic. Between threads "
         "the "
         "traffic is cheap; between\nmachines it is not (`plan` predicts what it takes there). "
         "Slots "
         "do not grow with the number of layers,\nthe rest does; but zero3-no-reshard has one slot "
         "for each layer.\n";
}

}  // namespace

std::string table(const Comparison& comparison) {
  const auto& options = comparison.options;
  std::string text = fmt::format("\nGPT of {} parameters, {} ranks ({}), leases {}, {} steps\n\n",
                                 comparison.trials[0].report.parameters, options.ranks,
                                 options.backend, options.lease, options.steps);
  text +=
      fmt::format("{:<17}|{:>9}{:>9}{:>9}{:>9}{:>9}{:>9} |{:>9} |{:>8}{:>8}{:>8}{:>10} |{:>9}\n",
                  "", "param.", "grad.", "optim.", "slots", "peak", "planned", "sent", "step",
                  "compute", "wait", "predicted", "loss");
  text += fmt::format("{:<17}|{:^54} |{:>9} |{:^34} |{:>9}\n", "strategy", "KiB per rank",
                      "KiB/step", "ms, median", "last");
  for (const Trial& trial : comparison.trials) {
    const auto& held = trial.report.bytes_per_rank;
    text += fmt::format(
        "{:<17}|{:>9.0f}{:>9.0f}{:>9.0f}{:>9.0f}{:>9.0f}{:>9.0f} |{:>9.0f} "
        "|{:>8.1f}{:>8.1f}{:>8.1f}{:>10.1f} |{:>9.5f}\n",
        trial.name, kib(held.parameters), kib(held.gradients), kib(held.optimizer_state),
        kib(held.slots), kib(held.peak), kib(trial.prediction.bytes.total()), kib(trial.sent()),
        trial.measured_ms(), trial.report.compute_ms, trial.report.wait_ms, trial.predicted_ms(),
        trial.report.loss.back());
  }
  text += explanation(comparison);
  text += fmt::format("\nI would take {}: {}.\n", comparison.trials[comparison.chosen].name,
                      comparison.reason);
  if (comparison.untuned_ms == 0) return text;
  text += fmt::format("\nTuning {}, {:.1f} ms before, one setting after the other:\n",
                      comparison.trials[comparison.chosen].name, comparison.untuned_ms);
  for (const TunedValue& tried : comparison.tuning) {
    text += setting_line(tried, comparison.untuned_ms);
  }
  return text +
         fmt::format(
             "Together: {:.1f} ms, {:+.1f} %. Rounds of the same differ by {:.1f} ms: less says "
             "nothing.\n",
             comparison.tuned_ms, 100 * (comparison.tuned_ms / comparison.untuned_ms - 1),
             comparison.noise_ms);
}

std::string to_json(const Comparison& comparison) {
  Json strategies = Json::array();
  for (const Trial& trial : comparison.trials) {
    const auto& held = trial.report.bytes_per_rank;
    const auto& planned = trial.prediction.bytes;
    const auto& traffic = trial.report.traffic_per_step;
    strategies.push_back({{"name", trial.name},
                          {"bytes_per_rank",
                           {{"parameters", held.parameters},
                            {"gradients", held.gradients},
                            {"optimizer_state", held.optimizer_state},
                            {"slots", held.slots},
                            {"peak", held.peak}}},
                          {"planned_bytes_per_rank",
                           {{"parameters", planned.parameters},
                            {"gradients", planned.gradients},
                            {"optimizer_state", planned.optimizer_state},
                            {"slots", planned.slots},
                            {"peak", planned.total()}}},
                          {"traffic_per_step",
                           {{"all_gather", traffic.all_gather.bytes},
                            {"reduce_scatter", traffic.reduce_scatter.bytes},
                            {"all_reduce", traffic.all_reduce.bytes}}},
                          {"step_ms", trial.measured_ms()},
                          {"step_ms_of_rounds", trial.step_ms},
                          {"compute_ms", trial.report.compute_ms},
                          {"wait_ms", trial.report.wait_ms},
                          {"predicted_ms", trial.predicted_ms()},
                          {"loss", trial.report.loss.back()},
                          {"parameters_hash", trial.report.parameters_hash}});
  }
  Json tuning = Json::array();
  for (const TunedValue& tried : comparison.tuning) {
    tuning.push_back({{"setting", tried.setting},
                      {"value", tried.value},
                      {"step_ms", tried.measured_ms},
                      {"predicted_ms", tried.predicted_ms},
                      {"taken", tried.taken}});
  }
  Json json = {{"parameters", comparison.trials[0].report.parameters},
               {"ranks", comparison.options.ranks},
               {"steps", comparison.options.steps},
               {"hardware", comparison.hardware.name},
               {"strategies", strategies},
               {"same_bits", comparison.same_bits()},
               {"planned_bytes_are_held", comparison.planned_right()},
               {"recommended", comparison.trials[comparison.chosen].name},
               {"reason", comparison.reason}};
  if (comparison.untuned_ms > 0) {
    json["tuning"] = {{"before_ms", comparison.untuned_ms},
                      {"after_ms", comparison.tuned_ms},
                      {"noise_ms", comparison.noise_ms},
                      {"tried", tuning}};
  }
  return json.dump(2) + '\n';
}

std::string config_of(const Comparison& comparison) {
  const auto& options = comparison.options;
  shardwise::Configuration configuration;
  configuration.strategy = comparison.strategy;
  configuration.gradient_storage = plan::type_of(options.gradient);
  configuration.ranks = options.ranks;
  configuration.global_batch = options.batch;
  configuration.micro_batches = options.micro_batches;
  configuration.micro_batch = options.batch / options.ranks / options.micro_batches;
  if (options.clip > 0) configuration.clip = options.clip;
  return shardwise::write_config(configuration,
                                 "recommended by compare_strategies: " + comparison.reason);
}

}  // namespace compare_strategies
