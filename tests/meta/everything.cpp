// Uses much of the library: one of two units that include all of it and link into one program, and
// what check_statics.py looks into. Built twice, -DUNIT=first and -DUNIT=second.
#include <shardwise/everything.hpp>

#define SHARDWISE_NAME(unit) train_in_##unit##_unit
#define SHARDWISE_EXPAND(unit) SHARDWISE_NAME(unit)

namespace {

using namespace shardwise;

template <class Optimizer, FloatingElement L>
double train(Communicator& communicator, Strategy strategy) {
  strategy.lease = dtype_of<L>;
  Context context(communicator, strategy);
  ShardedParameter<float> first(context, {{"a", {7, 3}}, {"b", {5}, {.weight_decay = 0}}});
  ShardedParameter<float> second(context, {{"c", {11}}}, {.name = "second"});
  ShardedGradient first_gradient(first);
  ShardedGradient second_gradient(second);
  ShardedOptimizerState<Optimizer> first_state(first);
  ShardedOptimizerState<Optimizer> second_state(second);
  first.initialize([](const Layout::Tensor&, std::size_t) { return 0.5f; });
  second.initialize([](const Layout::Tensor&, std::size_t) { return 0.25f; });
  ShardedSequence<float, L> sequence;
  sequence.add(first, first_gradient);
  sequence.add(second, second_gradient);
  LossScaler scaler;
  double norm = 0;
  for (int step = 0; step < 2; ++step) {
    for (std::size_t i = 0; i < sequence.size(); ++i) sequence.forward(i).finish();
    for (std::size_t i = sequence.size(); i-- > 0;) {
      auto visit = sequence.backward(i);
      for (L& value : visit.gradient[std::size_t{0}]) value = static_cast<L>(1.0f);
      visit.finish();
    }
    if (!scaler.unscale(context)) continue;
    norm = clip_gradient_norm(context, 1.0);
    first_state.step(first, first_gradient);
    second_state.step(second, second_gradient);
  }
  return norm + context.mean(1) + static_cast<double>(context.plan().bytes.total());
}

}  // namespace

double SHARDWISE_EXPAND(UNIT)() {
  double sum = 0;
  run_ranks(2, [&](Communicator& communicator) {
    double mine = train<AdamW, float>(communicator, Strategy::ddp());
    mine += train<Adam, float>(communicator, Strategy::zero1());
    mine += train<Sgd, bf16>(communicator, Strategy::zero2());
    mine += train<Lion, f16>(communicator, Strategy::zero3());
    if (communicator.rank() == 0) sum = mine;
  });
  SelfCommunicator alone;
  return sum + train<AdamW, bf16>(alone, Strategy::zero3_no_reshard());
}
