#include "calibration.hpp"

#include <fmt/core.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <functional>
#include <shardwise/comm/self.hpp>
#include <shardwise/comm/thread.hpp>
#include <shardwise/device/simulated.hpp>
#include <shardwise/shardwise.hpp>
#include <utility>
#include <vector>

#include "../train_gpt/matrix.hpp"
#include "../train_gpt/model.hpp"
#include "options.hpp"

namespace plan {
namespace {

using shardwise::Communicator;
using shardwise::HostDevice;
using shardwise::HostStream;
using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

double median(std::vector<double> values) {
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

/// What one rank measures; all ranks call the same in the same order.
class Bench {
 public:
  Bench(Communicator& comm, double effort) : comm_(comm), effort_(effort) {}

  /// Seconds of one call of `work`, which needs no other rank: the mean over ranks of each sample,
  /// the median over samples. The ranks work at the same time.
  double time(const std::function<void()>& work) {
    work();  // touches memory
    auto begin = Clock::now();
    work();
    const double once = agreed(seconds_since(begin));
    const auto calls =
        static_cast<std::size_t>(std::clamp(effort_ / samples / std::max(once, 1e-9), 1.0, 1e6));
    std::vector<double> taken;
    for (int sample = 0; sample < samples; ++sample) {
      comm_.barrier({"calibrate"}, {});
      begin = Clock::now();
      for (std::size_t i = 0; i < calls; ++i) work();
      taken.push_back(agreed(seconds_since(begin)) / static_cast<double>(calls));
    }
    return median(std::move(taken));
  }

  /// The same for one call that finds the memory as `prepare`, which is not timed, has left it.
  double time_after(const std::function<void()>& prepare, const std::function<void()>& work) {
    std::vector<double> taken;
    for (int sample = 0; sample < samples; ++sample) {
      prepare();
      comm_.barrier({"calibrate"}, {});
      const auto begin = Clock::now();
      work();
      taken.push_back(agreed(seconds_since(begin)));
    }
    return median(std::move(taken));
  }

  /// The mean over ranks.
  double agreed(double value) { return shardwise::mean(comm_, value, {"calibrate"}); }

  Communicator& comm() { return comm_; }

 private:
  static constexpr int samples = 9;
  Communicator& comm_;
  double effort_;
};

std::vector<float> filled(std::size_t count) {
  std::vector<float> values(count);
  for (std::size_t i = 0; i < count; ++i) values[i] = 0.01f * static_cast<float>(i % 101) - 0.5f;
  return values;
}

// What a compiler must not see through.
template <class T>
void keep(const T& value) {
  asm volatile("" : : "r,m"(value) : "memory");
}

/// Products of the model's linear layers: a pass forwards over all blocks and one backwards, as in
/// a step. Every block has weights of its own, so that they are in caches only where the model's
/// are.
double product_rate(Bench& bench, std::size_t tokens, std::size_t width, std::size_t blocks) {
  const auto x = filled(tokens * 4 * width);
  const auto weights = filled(blocks * 12 * width * width);
  std::vector<float> y(tokens * 4 * width);
  std::vector<float> gradient(4 * width * width);
  struct Layer {
    std::size_t in;
    std::size_t out;
    const float* weight;
  };
  std::vector<Layer> layers;
  const float* weight = weights.data();
  double flops = 0;
  for (std::size_t block = 0; block < blocks; ++block) {
    for (const auto& [in, out] : {std::pair{width, 3 * width}, std::pair{width, width},
                                  std::pair{width, 4 * width}, std::pair{4 * width, width}}) {
      layers.push_back({in, out, weight});
      weight += in * out;
      flops += 6 * static_cast<double>(tokens * in * out);
    }
  }
  const double taken = bench.time([&] {
    for (const Layer& layer : layers) {
      train_gpt::multiply_by_transpose({x.data(), tokens, layer.in},
                                       {layer.weight, layer.out, layer.in},
                                       {y.data(), tokens, layer.out});
    }
    for (auto layer = layers.rbegin(); layer != layers.rend(); ++layer) {
      train_gpt::multiply({x.data(), tokens, layer->out}, {layer->weight, layer->out, layer->in},
                          {y.data(), tokens, layer->in});
      train_gpt::multiply_transpose_by({x.data(), tokens, layer->out},
                                       {y.data(), tokens, layer->in},
                                       {gradient.data(), layer->out, layer->in});
    }
  });
  return flops / taken;
}

/// Products of one head's attention: strided as the model's are.
double attention_rate(Bench& bench, std::size_t sequence, std::size_t width, std::size_t heads) {
  const std::size_t columns = width / heads;
  const auto qkv = filled(sequence * 3 * width);
  auto scores = filled(sequence * sequence);
  std::vector<float> mixed(sequence * width);
  const auto part = [&](std::size_t which) {
    return train_gpt::Matrix<const float>{qkv.data() + which * width, sequence, columns, 3 * width};
  };
  const train_gpt::Matrix<float> p{scores.data(), sequence, sequence};
  const train_gpt::Matrix<const float> read{scores.data(), sequence, sequence};
  const train_gpt::Matrix<float> out{mixed.data(), sequence, columns, width};
  const double taken = bench.time([&] {
    train_gpt::multiply_by_transpose(part(0), part(1), p);
    train_gpt::multiply(read, part(2), out);
    train_gpt::multiply_transpose_by(read, part(1), out);
  });
  return 6 * static_cast<double>(sequence * sequence * columns) / taken;
}

double exponential_rate(Bench& bench, std::size_t count) {
  const auto x = filled(count);
  std::vector<float> y(count);
  const double taken = bench.time([&] {
    for (std::size_t i = 0; i < count; ++i) {
      const float u = x[i] * (1.6f + 0.07f * x[i] * x[i]);
      y[i] = x[i] / (1 + std::exp(-u));
    }
    keep(y.data());
  });
  return static_cast<double>(count) / taken;
}

/// Loops over rows as a norm's: a sum, which is a chain of additions, and a pass that writes.
double element_rate(Bench& bench, std::size_t rows, std::size_t width) {
  const auto x = filled(rows * width);
  std::vector<float> y(rows * width);
  const double taken = bench.time([&] {
    for (std::size_t row = 0; row < rows; ++row) {
      const float* in = x.data() + row * width;
      float* out = y.data() + row * width;
      float sum = 0;
      for (std::size_t i = 0; i < width; ++i) sum += in[i];
      for (std::size_t i = 0; i < width; ++i) out[i] += in[i] - sum;
    }
    keep(y.data());
  });
  return static_cast<double>(rows * width) * 4 * sizeof(float) / taken;
}

/// The library's own loops, over as many elements as the model has: a step meets none of them in a
/// cache. Updates and norms run over a rank's shards, the rest over the whole.
void measure_library(Bench& bench, std::size_t total, std::size_t ranks,
                     shardwise::Processor& processor) {
  using Update = shardwise::UpdateOf<shardwise::AdamW, float, float>;
  const std::size_t count = total / ranks + 64;
  const auto elements = static_cast<double>(count);
  const auto all = static_cast<double>(total);
  std::vector<float> parameter = filled(total + 64);
  const std::vector<float> gradient = filled(count);
  std::vector<float> first(count);
  std::vector<float> second(count);
  std::vector<float> sum(total);
  std::vector<shardwise::bf16> narrow(total);
  const shardwise::AdamW adamw;
  HostStream stream;
  const double update = bench.time([&] {
    const Update step{parameter.data(),
                      gradient.data(),
                      {first.data(), second.data()},
                      1,
                      adamw.constants<float>(3, {})};
    HostDevice::launch(stream, count, step);
  });
  processor.update_bandwidth =
      elements * static_cast<double>(shardwise::detail::touched_bytes<Update>) / update;
  const double norm = bench.time(
      [&] { keep(shardwise::sum_of_squares(gradient.data(), shardwise::DType::f32, count)); });
  processor.norm_bandwidth = elements * 4 / norm;
  const double cast = bench.time([&] {
    HostDevice::convert(stream, narrow.data(), shardwise::DType::bf16, parameter.data(),
                        shardwise::DType::f32, total);
    keep(narrow.data());
  });
  processor.cast_bandwidth = all * 6 / cast;
  // A gradient: zeroed, then added to.
  const double memory = bench.time([&] {
    HostDevice::zero(stream, sum.data(), total * sizeof(float));
    for (std::size_t i = 0; i < total; ++i) sum[i] += parameter[i];
    keep(sum.data());
  });
  processor.memory_bandwidth = all * 16 / memory;
}

/// The line through the times of several sizes, by least squares of relative errors.
shardwise::Link fit(const std::vector<std::pair<double, double>>& samples) {
  double weights = 0, x = 0, y = 0, xx = 0, xy = 0;
  for (const auto& [bytes, seconds] : samples) {
    const double weight = 1 / (seconds * seconds);
    weights += weight;
    x += weight * bytes;
    y += weight * seconds;
    xx += weight * bytes * bytes;
    xy += weight * bytes * seconds;
  }
  const double determinant = weights * xx - x * x;
  const double slope = determinant > 0 ? (weights * xy - x * y) / determinant : 0;
  const double latency = std::max(0.0, (y - std::max(0.0, slope) * x) / weights);
  return {latency, slope > 0 ? 1 / slope : 1e12};
}

/// The memory that collectives run in, as a step leaves it behind: what is sent was written since
/// the last call, as shards by an update and gradients by a backward pass, what is received was
/// read, as weights are, and in between all of the model's memory has gone through the caches.
class TouchedMemory {
 public:
  TouchedMemory(std::size_t total, std::size_t largest)
      : send_(filled(std::max(total, 2 * largest))), recv_(send_.size()) {}

  /// Touches everything; then another place for `count` elements.
  void touch(std::size_t count) {
    float sum = 0;
    for (std::size_t i = 0; i < send_.size(); ++i) {
      send_[i] = 0.5f * send_[i] + 0.01f;
      sum += recv_[i];
    }
    keep(sum);
    at_ = at_ + 2 * count <= send_.size() ? at_ + count : 0;
  }
  [[nodiscard]] float* send() { return &send_[at_]; }
  [[nodiscard]] float* recv() { return &recv_[at_]; }

 private:
  std::vector<float> send_;
  std::vector<float> recv_;
  std::size_t at_ = 0;
};

/// From the call of a collective, in the caller or, from `overlap_from` bytes on, on a stream with
/// a thread of its own, until the host has its result.
shardwise::MeasuredCollectives measure_collectives(Bench& bench, std::size_t largest,
                                                   std::size_t total, std::size_t overlap_from) {
  Communicator& comm = bench.comm();
  const auto world = static_cast<std::size_t>(comm.size());
  const auto ring = static_cast<double>(world - 1) / static_cast<double>(world);
  shardwise::MeasuredCollectives measured;
  HostStream beside(HostStream::Mode::worker);
  HostStream in_caller;
  std::vector<std::pair<double, double>> gather, scatter, reduce;
  const std::size_t top = (std::max<std::size_t>(largest, 4096) + world - 1) / world * world;
  TouchedMemory memory(total, top);
  for (const std::size_t divisor : {64u, 16u, 4u, 1u}) {
    const std::size_t part = std::max<std::size_t>(top / divisor / world, 16);
    const std::size_t whole = part * world;
    const double bytes = static_cast<double>(whole * sizeof(float)) * ring;
    HostStream& stream = whole * sizeof(float) < overlap_from ? in_caller : beside;
    const auto time = [&](const auto& issue) {
      return bench.time_after([&] { memory.touch(whole); },
                              [&] {
                                issue(stream.ref());
                                stream.synchronize();
                              });
    };
    const auto sum_of = [&](std::size_t count) {
      shardwise::ReduceItem sum{memory.send(), memory.recv(), count, shardwise::DType::f32, {}};
      sum.spec.scale = 1.0 / static_cast<double>(world);
      return sum;
    };
    gather.emplace_back(bytes, time([&](shardwise::StreamRef ref) {
                          const shardwise::GatherItem item{memory.send(), memory.recv(), part,
                                                           shardwise::DType::f32};
                          comm.all_gather({&item, 1}, {"calibrate"}, ref);
                        }));
    scatter.emplace_back(bytes, time([&](shardwise::StreamRef ref) {
                           const shardwise::ReduceItem item = sum_of(part);
                           comm.reduce_scatter({&item, 1}, {"calibrate"}, ref);
                         }));
    reduce.emplace_back(2 * bytes, time([&](shardwise::StreamRef ref) {
                          const shardwise::ReduceItem item = sum_of(whole);
                          comm.all_reduce({&item, 1}, {"calibrate"}, ref);
                        }));
  }
  measured.all_gather = fit(gather);
  measured.reduce_scatter = fit(scatter);
  measured.all_reduce = fit(reduce);
  measured.scalar =
      bench.time([&] { static_cast<void>(shardwise::sum(comm, 1.0, {"calibrate"})); });
  return measured;
}

/// How much slower products are while collectives run beside them: 1 where every collective holds
/// the products up for as long as it takes.
double measure_share(Bench& bench, std::size_t tokens, std::size_t width, std::size_t elements) {
  Communicator& comm = bench.comm();
  const auto world = static_cast<std::size_t>(comm.size());
  if (world == 1) return 0;
  const auto x = filled(tokens * width);
  const auto weight = filled(width * width);
  std::vector<float> y(tokens * width);
  const auto compute = [&] {
    for (int i = 0; i < 8; ++i) {
      train_gpt::multiply_by_transpose({x.data(), tokens, width}, {weight.data(), width, width},
                                       {y.data(), tokens, width});
    }
  };
  const std::size_t part = std::max<std::size_t>(elements / world, 16);
  auto send = filled(part * world);
  std::vector<float> recv(part * world);
  const shardwise::GatherItem item{send.data(), recv.data(), part, shardwise::DType::f32};
  HostStream stream(HostStream::Mode::worker);
  const auto gather = [&] { comm.all_gather({&item, 1}, {"calibrate"}, stream.ref()); };
  const double alone = bench.time(compute);
  const double communication = bench.time([&] {
    gather();
    stream.synchronize();
  });
  const double both = bench.time([&] {
    gather();
    compute();
    stream.synchronize();
  });
  const double hidden = std::min(alone, communication);
  return hidden > 0 ? std::clamp((both - std::max(alone, communication)) / hidden, 0.0, 1.0) : 0;
}

}  // namespace

shardwise::Hardware calibrate(const train_gpt::Options& options, double effort) {
  const train_gpt::Share share(options, 0, static_cast<int>(options.ranks));
  const std::size_t tokens = share.at_once * options.sequence;
  std::size_t largest = 0;  // elements of a unit
  std::size_t total = 0;
  for (const auto& unit :
       train_gpt::GptShape{options.layers, options.width, options.heads, options.sequence}
           .units()) {
    std::size_t elements = 0;
    for (const auto& tensor : unit) elements += tensor.size();
    largest = std::max(largest, elements);
    total += elements;
  }
  shardwise::Hardware hardware;
  const bool in_processes = options.communicator != nullptr;
  hardware.name =
      fmt::format("this machine, {} {}", options.ranks, in_processes ? "processes" : "threads");
  hardware.memory = static_cast<std::size_t>(sysconf(_SC_PHYS_PAGES)) *
                    static_cast<std::size_t>(sysconf(_SC_PAGESIZE)) / options.ranks;
  hardware.processor.inline_compute = true;
  hardware.processor.overlap_from =
      options.overlap_from.value_or(in_processes ? 0 : HostDevice::overlap_from(options.ranks));
  hardware.topology.devices_per_node = static_cast<int>(options.ranks);
  const auto on_rank = [&](Communicator& comm) {
    Bench bench(comm, effort);
    shardwise::Hardware mine = hardware;
    mine.flops = product_rate(bench, tokens, options.width, options.layers);
    mine.attention_flops = attention_rate(bench, options.sequence, options.width, options.heads);
    mine.exponentials = exponential_rate(bench, 4 * tokens * options.width);
    mine.element_bandwidth = element_rate(bench, tokens, options.width);
    measure_library(bench, total, options.ranks, mine.processor);
    if (options.ranks > 1) {
      mine.topology.measured =
          measure_collectives(bench, largest, total, mine.processor.overlap_from);
      mine.processor.communication_share = measure_share(bench, tokens, options.width, largest);
      mine.topology.node = mine.topology.measured->all_gather;
    }
    // Times are agreed on, so that all ranks have measured the same.
    if (comm.rank() == 0 || in_processes) hardware = mine;
  };
  if (in_processes) {
    on_rank(*options.communicator);
  } else if (options.ranks == 1) {
    shardwise::SelfCommunicator self;
    on_rank(self);
  } else {
    shardwise::run_ranks(static_cast<int>(options.ranks), on_rank);
  }
  return hardware;
}

}  // namespace plan
