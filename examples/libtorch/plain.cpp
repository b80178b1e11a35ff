#include <functional>

#include "model.hpp"
#include "options.hpp"
#include "text.hpp"

namespace libtorch_gpt {

Report plain::train(const Options& options) {
  at::set_num_threads(1);  // as each rank
  const Share share(options, 0, 1);
  const Text text(options);
  Gpt model = make_model(options, text.vocabulary());
  auto& embedding = model->embedding;
  auto& blocks = model->blocks;
  auto& head = model->head;
  const auto decays = [](const torch::Tensor& parameter) { return parameter.dim() > 1; };
  auto optimizer = make_optimizer(options, unique_parameters(model, decays),
                                  unique_parameters(model, std::not_fn(decays)));

  Report report;
  for (std::size_t step = 0; step < options.steps; ++step) {
    const Batch batch = text.batch(step, share.first, share.sequences);
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
