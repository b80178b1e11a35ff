// A two-layer perceptron learns y = sin(3 x0) * x1 on 4 ranks (threads), its parameters, gradients
// and optimizer state sharded (ZeRO-3).
#include <array>
#include <cmath>
#include <random>
#include <shardwise/comm/thread.hpp>
#include <shardwise/plan/registered_model.hpp>
#include <shardwise/shardwise.hpp>

int main() {
  constexpr std::size_t inputs = 2, hidden = 64, batch = 32;  // batch: on each rank
  shardwise::run_ranks(4, [&](shardwise::Communicator& comm) {
    shardwise::Context context(comm, shardwise::Strategy::zero3());
    shardwise::ShardedParameter<float> net(
        context,
        {{"in.weight", {hidden, inputs}}, {"in.bias", {hidden}}, {"out.weight", {hidden}}});
    shardwise::ShardedGradient gradient(net);
    shardwise::ShardedOptimizerState<shardwise::AdamW> state(net, {.learning_rate = 1e-2f});
    const auto w1 = net.tensor("in.weight"), b1 = net.tensor("in.bias");
    const auto w2 = net.tensor("out.weight");
    net.initialize([](const auto& tensor, std::size_t i) {
      return 0.3f * std::sin(static_cast<float>(i + 1) * static_cast<float>(tensor.count));
    });

    std::mt19937 random(static_cast<unsigned>(comm.rank()));
    std::uniform_real_distribution<float> uniform(-1, 1);
    for (int step = 0; step <= 300; ++step) {
      float loss = 0;
      auto w = net.gather();      // all-gather
      auto g = gradient.lease();  // zeroed
      for (std::size_t n = 0; n < batch; ++n) {
        const std::array x = {uniform(random), uniform(random)};
        std::array<float, hidden> h{};
        float y = 0;
        for (std::size_t j = 0; j < hidden; ++j) {
          h[j] = std::tanh(w[w1][2 * j] * x[0] + w[w1][2 * j + 1] * x[1] + w[b1][j]);
          y += w[w2][j] * h[j];
        }
        const float error = y - std::sin(3 * x[0]) * x[1];
        loss += error * error / batch;
        for (std::size_t j = 0; j < hidden; ++j) {
          const float dy = 2 * error / batch, dh = dy * w[w2][j] * (1 - h[j] * h[j]);
          g[w2][j] += dy * h[j];
          g[w1][2 * j] += dh * x[0];
          g[w1][2 * j + 1] += dh * x[1];
          g[b1][j] += dh;
        }
      }
      w.release();
      std::move(g).reduce();  // reduce-scatter: the mean over ranks
      shardwise::clip_gradient_norm(context, 1.0);
      state.step(net, gradient);
      const double mean = context.mean(loss);
      if (comm.rank() == 0 && step % 50 == 0) fmt::print("step {:3}  loss {:.4f}\n", step, mean);
    }
    const auto ddp = plan_memory(context, shardwise::Strategy::ddp()).peak();
    if (comm.rank() == 0) fmt::print("{} bytes a rank, ddp {}\n", context.held().total(), ddp);
  });
}
