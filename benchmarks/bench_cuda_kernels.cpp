// Times what the library launches on a device beside a copy of as many bytes, in one run: optimizer
// steps through the public types, casts, norms, canonical sums, quantisation. Bytes are those that
// the operation must move at least, read plus written; `of copy` is its rate over the rate of
// cudaMemcpyAsync from device to device. Exits with 77 where there is no device; on the emulation
// the numbers are of its model of time.

#include <CLI/CLI.hpp>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <shardwise/comm/nccl.hpp>
#include <shardwise/device/cuda.hpp>
#include <shardwise/shardwise.hpp>
#include <utility>
#include <vector>

#include "cuda_timing.hpp"

namespace {

using bench::Memory;
using shardwise::bf16;
using shardwise::Communicator;
using shardwise::CudaDevice;
using shardwise::CudaStream;
using shardwise::DType;
using shardwise::Strategy;
namespace kernels = shardwise::detail::cuda;

struct Options {
  std::size_t elements = std::size_t{1} << 28;
  int calls = 5;
  int samples = 7;
};

class Table {
 public:
  Table(const Options& options, CudaStream& stream) : options_(options), stream_(stream) {
    std::printf("%-44s %10s %10s %10s\n", "operation", "us", "GB/s", "of copy");
  }

  /// The first is what all are compared with.
  template <class Call>
  void add(const char* name, double bytes_per_element, const Call& call) {
    call();
    const auto nothing = [] {};
    const double time =
        bench::median_time(options_.samples, options_.calls, stream_, call, nothing, nothing);
    const double rate = bytes_per_element * static_cast<double>(options_.elements) / time / 1e3;
    if (copy_ == 0) copy_ = rate;
    std::printf("%-44s %10.1f %10.1f %10.3f\n", name, time, rate, rate / copy_);
  }

 private:
  const Options& options_;
  CudaStream& stream_;
  double copy_ = 0;
};

float value_of(std::size_t element) {
  return static_cast<float>(static_cast<int>((element * 2654435761u) >> 8 & 0xffff) - 0x8000) /
         0x8000;
}

/// A step of an optimizer over one parameter, as a trainer calls it.
template <class G>
void add_step(Table& table, const Options& options, Communicator& comm, CudaStream& stream,
              const char* name, double bytes_per_element, Strategy strategy) {
  shardwise::Context<CudaDevice> context(comm, strategy, {.stream = stream.ref()});
  shardwise::ShardedParameter<float, CudaDevice> block(context,
                                                       {{"block.weight", {options.elements}}});
  shardwise::ShardedGradient<G, CudaDevice> gradient(block);
  shardwise::ShardedOptimizerState<shardwise::AdamW, CudaDevice> state(block,
                                                                       {.learning_rate = 1e-3f});
  block.initialize([](const auto&, std::size_t element) { return value_of(element); });
  {
    std::vector<G> values(options.elements);
    for (std::size_t i = 0; i < values.size(); ++i) {
      values[i] = shardwise::cast_element<G>(1e-2f * value_of(i + 1));
    }
    auto lease = gradient.template lease<G>();
    CudaDevice::upload(stream, lease[0].data(), values.data(), values.size() * sizeof(G));
    std::move(lease).reduce();
  }
  table.add(name, bytes_per_element, [&] { state.step(block, gradient); });
}

void run(const Options& options, Communicator& comm) {
  CudaStream stream;
  const std::size_t count = options.elements;
  Table table(options, stream);
  {
    const Memory from(4 * count);
    const Memory to(4 * count);
    std::vector<float> values(count);
    for (std::size_t i = 0; i < count; ++i) values[i] = value_of(i);
    CudaDevice::upload(stream, from.data, values.data(), 4 * count);
    CudaDevice::zero(stream, to.data, to.size);
    table.add("copy, cudaMemcpyAsync", 8, [&] {
      shardwise::cuda_check(
          cudaMemcpyAsync(to.data, from.data, 4 * count, cudaMemcpyDeviceToDevice, stream.native()),
          "cudaMemcpyAsync");
    });
    table.add("cast f32 to bf16", 6, [&] {
      kernels::convert(stream.native(), to.data, DType::bf16, from.data, DType::f32, count);
    });
    table.add("cast bf16 to f32", 6, [&] {
      kernels::convert(stream.native(), to.data, DType::f32, from.data, DType::bf16, count);
    });
    const shardwise::NormRange range{from.data, DType::f32, count};
    const Memory partials(8 * (kernels::square_sums_partials({&range, 1}) + 1));
    const Memory results(8);
    table.add("sum of squares f32", 4, [&] {
      kernels::square_sums(stream.native(), {&range, 1}, partials.as<double>(),
                           results.as<double>());
    });
    const Memory found(4);
    CudaDevice::zero(stream, found.data, 4);
    table.add("not finite f32", 4, [&] {
      kernels::find_special(stream.native(), from.data, DType::f32, count,
                            found.as<std::uint32_t>());
    });
    kernels::Reduction reduction;
    reduction.inputs = from.data;
    reduction.dtype = DType::bf16;
    reduction.ranks = 8;
    reduction.stride = count / 8;
    reduction.count = count / 8;
    reduction.out = to.data;
    reduction.scale = 0.125;
    // Of `count` elements that are read, an eighth is written.
    table.add("canonical sum of 8 ranks, bf16 to f32", 20.0 / 8,
              [&] { kernels::canonical_reduce(stream.native(), reduction); });
    const Memory factors(4 * shardwise::quantized_factors(count));
    using shardwise::Quantized;
    const auto quantise = [&](const char* name, Quantized type) {
      table.add(name, type == Quantized::int4 ? 4 : 5, [&] {
        kernels::quantize(stream.native(), from.data, DType::f32, count, type, to.data,
                          factors.as<float>());
      });
    };
    quantise("quantise f32 to int8", Quantized::int8);
    quantise("quantise f32 to e4m3", Quantized::e4m3);
    table.add("dequantise e4m3 to f32", 5, [&] {
      kernels::dequantize(stream.native(), to.data, Quantized::e4m3, factors.as<float>(), count,
                          from.data, DType::f32);
    });
  }
  Strategy mixed = Strategy::ddp();
  mixed.lease = DType::bf16;
  mixed.gradient_lease = DType::f32;
  add_step<float>(table, options, comm, stream, "AdamW, all f32", 28, Strategy::zero3());
  add_step<float>(table, options, comm, stream, "AdamW, f32 and a copy in bf16", 30, mixed);
  mixed.gradient_lease = DType::bf16;
  add_step<bf16>(table, options, comm, stream, "AdamW, gradient bf16, copy in bf16", 28, mixed);
}

}  // namespace

int main(int argc, char** argv) {
  Options options;
  CLI::App app("What the library launches on a CUDA device, beside a copy");
  app.add_option("--elements", options.elements, "elements of each buffer");
  app.add_option("--calls", options.calls, "calls in one sample")->check(CLI::PositiveNumber);
  app.add_option("--samples", options.samples, "samples; the median counts")
      ->check(CLI::PositiveNumber);
  CLI11_PARSE(app, argc, argv);
  if (bench::devices_or_skip() == 0) return bench::skipped;
  try {
    std::printf("%zu elements%s; median of %d samples of %d calls\n", options.elements,
                bench::emulated() ? bench::emulated_note : "", options.samples, options.calls);
    shardwise::run_cuda_ranks(1, [&](Communicator& comm) { run(options, comm); });
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
