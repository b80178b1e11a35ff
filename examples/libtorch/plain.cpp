#include "model.hpp"
#include "options.hpp"
#include "text.hpp"

namespace libtorch_gpt {

Report plain::train(const Options& options) {
  const Text text(options);
  Gpt model = make_model(options, text.vocabulary());
  auto& embedding = model->embedding;
  auto& blocks = model->blocks;
  auto& head = model->head;
  std::vector<torch::Tensor> decaying, others;
  for (const auto& parameter : unique_parameters(model)) {
    (parameter.dim() > 1 ? decaying : others).push_back(parameter);
  }
  auto optimizer = make_optimizer(options, decaying, others);

  Report report;
  for (std::size_t step = 0; step < options.steps; ++step) {
    const Batch batch = text.batch(step, 0, options.batch);
    auto x = embedding(batch.inputs);
    for (auto& block : blocks) x = block(x);
    const auto loss =
        torch::nn::functional::cross_entropy(head(x).flatten(0, 1), batch.targets.flatten());
    optimizer.zero_grad();
    loss.backward();
    const double norm =
        torch::nn::utils::clip_grad_norm_(unique_parameters(model), options.max_norm());
    optimizer.step();
    report.loss.push_back(loss.item<double>());
    report.grad_norm.push_back(norm);
  }
  report.values = values_of(model);
  report.bytes = 2 * sizeof(float) * report.values.size() + bytes_of(optimizer);
  return report;
}

}  // namespace libtorch_gpt
