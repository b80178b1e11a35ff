#include <dlib/dnn/core.h>
#include <dlib/dnn/input.h>
#include <dlib/dnn/layers.h>
#include <dlib/dnn/loss.h>

#include <cstddef>
#include <cstdlib>
#include <shardwise/comm/thread.hpp>
#include <shardwise/plan/registered_model.hpp>
#include <shardwise/shardwise.hpp>
#include <span>
#include <vector>

#include "digits.hpp"
#include "sharded_layer.hpp"
#include "train.hpp"

namespace callback_host {
namespace {

// Small images make a small net; its layers are of very different sizes.
template <class SUBNET>
using features = dlib::max_pool<2, 2, 2, 2, dlib::relu<sharded_con<12, 5, 5, 1, 1, SUBNET>>>;
template <class SUBNET>
using hidden = dlib::relu<sharded_fc<64, dlib::relu<sharded_fc<128, SUBNET>>>>;
using Net = dlib::loss_multiclass_log<
    sharded_fc<digits::classes, hidden<features<dlib::input<dlib::matrix<float>>>>>>;

Report run(const Options& options, shardwise::Context<>& context) {
  const Share share(options, context.rank(), context.world());
  Net net;
  shard(net, context);
  using Solver = ShardedSolver<shardwise::Adam>;
  std::vector<Solver> solvers(Net::num_computational_layers,
                              Solver({.weight_decay = options.weight_decay}));

  Report report;
  std::vector<dlib::matrix<float>> images;
  std::vector<unsigned long> labels;
  const auto draw = [&](std::size_t first, std::size_t count) {
    images.resize(count, dlib::matrix<float>(digits::side, digits::side));
    labels.resize(count);
    for (std::size_t i = 0; i < count; ++i) {
      const std::span<float, digits::pixels> pixels(images[i].begin(), digits::pixels);
      labels[i] = digits::draw(options.seed, first + i, pixels);
    }
  };
  for (std::size_t step = 0; step < options.steps; ++step) {
    draw(step * options.batch + share.first(options.batch), share.part(options.batch));
    const double loss =
        net.compute_parameter_gradients(images.begin(), images.end(), labels.begin());
    net.update_parameters(solvers, options.learning_rate);
    report.loss.push_back(context.mean(loss));
  }

  draw(Options::unseen + share.first(Options::unseen_count), share.part(Options::unseen_count));
  const double right = fraction_equal(labels, net(images));
  report.accuracy = context.mean(right);
  net.clean();
  visit_gathered(net, [&](const dlib::tensor& parameters) {
    report.parameters.insert(report.parameters.end(), parameters.begin(), parameters.end());
  });
  report.bytes = {context.held(), plan_memory(context, context.strategy()).bytes};
  return report;
}

}  // namespace

std::vector<Report> sharded::train(const Options& options) {
  std::srand(options.seed);  // dlib's layers draw their first parameters by std::rand
  std::vector<Report> reports(options.ranks);
  shardwise::run_ranks(static_cast<int>(options.ranks), [&](shardwise::Communicator& comm) {
    const auto strategy = shardwise::Strategy::parse(options.strategy);
    shardwise::Context<> context(comm, strategy, {.debug = options.debug});
    reports[static_cast<std::size_t>(comm.rank())] = run(options, context);
  });
  return reports;
}

}  // namespace callback_host
