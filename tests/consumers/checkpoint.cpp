// A consumer's program: a parameter that two ranks save and three load.
#include <cstdint>
#include <cstdio>
#include <shardwise/checkpoint.hpp>
#include <shardwise/comm/thread.hpp>
#include <shardwise/shardwise.hpp>

void run(int ranks, bool saves) {
  shardwise::run_ranks(ranks, [&](shardwise::Communicator& comm) {
    shardwise::Context context(comm);
    shardwise::ShardedParameter<float> table(context, {{"table", {14}}});
    shardwise::TrainingState training(context);
    training.add(table);
    shardwise::CheckpointFolder folder("saves");
    if (saves) {
      table.initialize([](const auto&, std::size_t element) { return 1.0f + float(element); });
      folder.save(training, 7, {{"seed", 3}});
      return;
    }
    const auto loaded = folder.load(training);
    float sum = 0;
    table.read([&](const auto&, std::size_t, auto values) {
      for (const float value : values) sum += value;
    });
    if (comm.rank() != 0) return;
    std::printf("step %d, seed %d, sum %g\n", static_cast<int>(loaded->step),
                static_cast<int>(loaded->values.at("seed").as<std::int64_t>()), sum);
  });
}

int main() {
  run(2, true);
  run(3, false);
}
