// A consumer's program: what a run's ranks did, in one report.
#include <cstdio>
#include <shardwise/comm/thread.hpp>
#include <shardwise/monitor/report.hpp>
#include <shardwise/shardwise.hpp>

int main() {
  shardwise::run_ranks(2, [](shardwise::Communicator& comm) {
    shardwise::Monitor monitor;
    shardwise::Context context(comm, shardwise::Strategy::zero3(), {.observer = &monitor});
    shardwise::ShardedParameter<float> parameter(context, {{"weight", {3, 5}}});
    parameter.initialize([](const auto&, std::size_t element) { return float(element); });
    float sum = 0;
    {
      const auto lease = parameter.gather();
      for (const float value : lease["weight"]) sum += value;
    }
    context.end_step({.loss = sum});
    const auto report = shardwise::MonitorReport::collect(comm, monitor);
    if (report) std::printf("sum %g\n%s", report->summary().loss, report->table().c_str());
  });
}
