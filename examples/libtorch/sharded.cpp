#include <functional>
#include <shardwise/adapters/torch.hpp>
#include <shardwise/comm/thread.hpp>
#include <shardwise/plan/registered_model.hpp>
#include <shardwise/shardwise.hpp>

#include "model.hpp"
#include "options.hpp"
#include "text.hpp"

namespace libtorch_gpt {
namespace {

Report run(const Options& options, shardwise::Context<>& context) {
  const Share share(options, context.rank(), context.world());
  const Text text(options);
  Gpt model = make_model(options, text.vocabulary());
  shardwise::TorchAdapter adapter(context, *model);
  auto embedding = adapter.wrap(model->embedding);
  auto blocks = adapter.wrap(model->blocks);
  auto head = adapter.wrap(model->head);
  const auto decays = [](const auto& parameter) { return parameter.shape.size() > 1; };
  auto optimizer =
      make_optimizer(options, adapter.shards(decays), adapter.shards(std::not_fn(decays)));

  Report report;
  for (std::size_t step = 0; step < options.steps; ++step) {
    const Batch batch = text.batch(step, share.first, share.sequences);
    auto x = embedding(batch.inputs);
    for (auto& block : blocks) x = block(x);
    const auto loss =
        torch::nn::functional::cross_entropy(head(x).flatten(0, 1), batch.targets.flatten());
    loss.backward();
    const double norm = clip_gradient_norm(context, options.max_norm());
    adapter.step([&] { optimizer.step(); });
    report.loss.push_back(context.mean(loss.item<double>()));
    report.grad_norm.push_back(norm);
  }
  report.held = context.held();
  report.planned = plan_memory(context, context.strategy()).bytes;
  report.bytes = report.held.parameters + report.held.gradients + bytes_of(optimizer);
  const auto whole = shardwise::full_parameters(context);
  report.values = values_of(model);
  return report;
}

}  // namespace

Report sharded::train(const Options& options) {
  at::set_num_threads(1);  // ranks are threads
  std::vector<Report> reports(options.ranks);
  shardwise::run_ranks(static_cast<int>(options.ranks), [&](shardwise::Communicator& comm) {
    // The head uses the tied embedding beside its norm: two parameters at once.
    shardwise::Context context(comm, shardwise::Strategy::parse(options.strategy),
                               {.open_parameters = 2, .debug = options.debug});
    reports[static_cast<std::size_t>(comm.rank())] = run(options, context);
  });
  return reports[0];
}

}  // namespace libtorch_gpt
