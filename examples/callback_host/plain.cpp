#include <dlib/dnn/core.h>
#include <dlib/dnn/input.h>
#include <dlib/dnn/layers.h>
#include <dlib/dnn/loss.h>

#include <cstddef>
#include <cstdlib>
#include <span>
#include <vector>

#include "adam.hpp"
#include "digits.hpp"
#include "train.hpp"

namespace callback_host {
namespace {

// Small images make a small net; its layers are of very different sizes.
template <class SUBNET>
using features = dlib::max_pool<2, 2, 2, 2, dlib::relu<dlib::con<12, 5, 5, 1, 1, SUBNET>>>;
template <class SUBNET>
using hidden = dlib::relu<dlib::fc<64, dlib::relu<dlib::fc<128, SUBNET>>>>;
using Net = dlib::loss_multiclass_log<
    dlib::fc<digits::classes, hidden<features<dlib::input<dlib::matrix<float>>>>>>;

Report run(const Options& options) {
  const Share share(options, 0, 1);
  Net net;
  std::vector<Adam> solvers(Net::num_computational_layers, Adam(options.weight_decay));

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
    report.loss.push_back(loss);
  }

  draw(Options::unseen + share.first(Options::unseen_count), share.part(Options::unseen_count));
  const double right = fraction_equal(labels, net(images));
  report.accuracy = right;
  net.clean();
  dlib::visit_layer_parameters(net, [&](const dlib::tensor& parameters) {
    report.parameters.insert(report.parameters.end(), parameters.begin(), parameters.end());
  });
  const std::size_t bytes = sizeof(float) * report.parameters.size();
  report.bytes.held = {bytes, bytes, 3 * bytes};  // solvers keep 3
  return report;
}

}  // namespace

Report plain::train(const Options& options) {
  std::srand(options.seed);  // dlib's layers draw their first parameters by std::rand
  return run(options);
}

}  // namespace callback_host
