#include <cuda_runtime_api.h>

#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <chrono>
#include <cstddef>
#include <shardwise/device/cuda.hpp>
#include <shardwise/shardwise.hpp>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "../emulation/control.hpp"
#include "../support/device.hpp"
#include "../support/ranks.hpp"
#include "../support/sanitized.hpp"

// A host that has a stream of its own and works on it by CUDA's calls.

using namespace shardwise;
using namespace shardwise::test;
using Catch::Matchers::ContainsSubstring;

namespace {

/// A host's stream.
struct OwnStream {
  cudaStream_t native = nullptr;

  OwnStream() { cuda_check(cudaStreamCreateWithFlags(&native, cudaStreamNonBlocking), "create"); }
  OwnStream(const OwnStream&) = delete;
  OwnStream& operator=(const OwnStream&) = delete;
  ~OwnStream() { cudaStreamDestroy(native); }
};

/// Three steps in which each parameter's gradient is the parameter: at a learning rate of 1/2 a
/// value halves. The host copies on its own stream and never waits. What is wrong, in words.
std::string halve(Communicator& communicator, Strategy strategy, bool overlap) {
  constexpr std::size_t layers = 4, count = 5000;
  strategy.overlap = overlap;
  const OwnStream stream;
  std::vector<float> values(count);
  {
    Context<CudaDevice> context(communicator, strategy,
                                {.stream = {MemoryKind::cuda, stream.native}});
    if (context.stream().native() != stream.native) return "another stream";
    std::vector<Parameter<float>> parameters;
    std::vector<Gradient<float>> gradients;
    std::vector<State<Sgd>> states;
    for (std::size_t i = 0; i < layers; ++i) {
      parameters.emplace_back(context, std::vector<TensorSpec>{{fmt::format("p{}", i), {count}}});
      parameters.back().initialize([](const auto&, std::size_t k) { return 8 * (k % 999); });
    }
    for (auto& parameter : parameters) gradients.emplace_back(parameter);
    for (auto& parameter : parameters) states.emplace_back(parameter, Sgd{.learning_rate = 0.5});
    for (int step = 0; step < 3; ++step) {
      for (std::size_t i = 0; i < layers; ++i) {
        if (i + 1 < layers) parameters[i + 1].prefetch();
        const auto weights = parameters[i].gather();
        auto gradient = gradients[i].lease();
        cuda_check(cudaMemcpyAsync(gradient[0].data(), weights[0].data(), count * sizeof(float),
                                   cudaMemcpyDeviceToDevice, stream.native),
                   "cudaMemcpyAsync");
        std::move(gradient).reduce();
      }
      for (std::size_t i = 0; i < layers; ++i) states[i].step(parameters[i], gradients[i]);
    }
    for (auto& parameter : parameters) {
      const auto weights = parameter.gather();
      cuda_check(cudaMemcpyAsync(values.data(), weights[0].data(), count * sizeof(float),
                                 cudaMemcpyDeviceToHost, stream.native),
                 "cudaMemcpyAsync");
      cuda_check(cudaStreamSynchronize(stream.native), "cudaStreamSynchronize");
      for (std::size_t k = 0; k < count; ++k) {
        if (values[k] != static_cast<float>(k % 999)) return "wrong values";
      }
    }
  }
  // The stream is the host's still.
  return cudaStreamSynchronize(stream.native) == cudaSuccess ? "" : "the stream is gone";
}

}  // namespace

TEST_CASE("a host's own stream is the compute stream, and outlives the context") {
  for (const int world : worlds) {
    for (const Strategy& strategy : {Strategy::ddp(), Strategy::zero1(), Strategy::zero3()}) {
      for (const bool overlap : {false, true}) {
        INFO(strategy.name() << " world " << world << " overlap " << overlap);
        const auto wrong = on_ranks(world, [&](Communicator& communicator) {
          return halve(communicator, strategy, overlap);
        });
        for (const std::string& what : wrong) CHECK(what == "");
      }
    }
  }
}

TEST_CASE("a stream of the CPU is refused") {
  const auto wrong = on_ranks(1, [](Communicator& communicator) {
    HostStream stream;
    try {
      Context<CudaDevice> context(communicator, Strategy::zero3(), {.stream = stream.ref()});
    } catch (const UsageError& error) {
      return std::string(error.what());
    }
    return std::string();
  });
  CHECK_THAT(wrong[0], ContainsSubstring("ContextOptions::stream"));
}

TEST_CASE("a rank that throws ends its peers' waits for the device, and the devices work again") {
  for (const int world : {2, 3, 4, largest_world}) {
    for (const bool overlap : {false, true}) {
      need_devices(world);
      INFO("world " << world << " overlap " << overlap);
      std::vector<std::string> ends(static_cast<std::size_t>(world));
      const auto begin = std::chrono::steady_clock::now();
      const auto run = [&] {
        run_on_ranks(world, [&](Communicator& communicator) {
          Strategy strategy = Strategy::zero3();
          strategy.overlap = overlap;
          try {
            Context<CudaDevice> context(communicator, strategy);
            Parameter<float> parameter(context, {{"w", {3000}}});
            parameter.initialize([](const auto&, std::size_t) { return 1.0f; });
            if (communicator.rank() == 0) throw std::runtime_error("the host's data is bad");
            const auto weights = parameter.gather();
            (void)at(context, weights[0], 0);  // waits for a peer that does not come
            context.barrier();
          } catch (const PeerFailed& error) {
            ends[static_cast<std::size_t>(communicator.rank())] =
                fmt::format("{}: {}", error.rank(), error.what());
            throw;
          }
        });
      };
      CHECK_THROWS_WITH(run(), "the host's data is bad");
      CHECK(std::chrono::steady_clock::now() - begin < std::chrono::seconds(5));
      for (std::size_t rank = 1; rank < ends.size(); ++rank) {
        CHECK_THAT(ends[rank], ContainsSubstring("0: rank 0 failed: "));
        if (heard_early(ends[rank])) continue;
        CHECK_THAT(ends[rank], ContainsSubstring("the host's data is bad"));
      }
      const auto wrong = on_ranks(world, [&](Communicator& communicator) {
        return halve(communicator, Strategy::zero3(), overlap);
      });
      for (const std::string& what : wrong) CHECK(what == "");
    }
  }
}

TEST_CASE("leases end where the device has failed, and its error is what the host sees") {
  if (!shardwise_emulation_present()) SKIP("devices fail when they like");
  emulation_control::set_option("leaks", "note");  // a device that has failed takes nothing back
  for (const bool debug : {false, true}) {
    INFO("debug " << debug);
    const auto texts = on_ranks(1, [&](Communicator& communicator) {
      try {
        Context<CudaDevice> context(communicator, Strategy::zero3(), {.debug = debug});
        Parameter<float> parameter(context, {{"w", {3000}}});
        Gradient<float> gradient(parameter);
        parameter.initialize([](const auto&, std::size_t) { return 1.0f; });
        const auto weights = parameter.gather();
        auto lease = gradient.lease();
        context.stream().synchronize();
        emulation_control::set_option("fail_task", "fill:1:700");  // cudaErrorIllegalAddress
        Device::zero(context.stream(), lease[0].data(), 4);
        context.stream().synchronize();
      } catch (const BackendError& error) {
        return std::string(error.what());
      }
      return std::string("no error");
    });
    emulation_control::set_option("fail_task", nullptr);
    emulation_control::reset();
    CHECK_THAT(texts[0], ContainsSubstring("cudaErrorIllegalAddress"));
  }
}

TEST_CASE("nobody reads what a reduction that was aborted has left") {
  need_devices(2);
  for (const Strategy& strategy : {Strategy::ddp(), Strategy::zero1(), Strategy::zero3()}) {
    INFO(strategy.name());
    std::string what = "no error";
    std::size_t seen = 0;
    std::atomic<bool> waits{false};
    const auto run = [&] {
      run_on_ranks(2, [&](Communicator& communicator) {
        Context<CudaDevice> context(communicator, strategy);
        Parameter<float> parameter(context, {{"w", {3000}}});
        Gradient<float> gradient(parameter);
        State<Sgd> state(parameter, Sgd{});
        parameter.initialize([](const auto&, std::size_t) { return 1.0f; });
        auto lease = gradient.lease();
        if (communicator.rank() == 1) {
          context.stream().synchronize();
          for (int i = 0; i < 20000 && !waits; ++i) {
            std::this_thread::sleep_for(std::chrono::milliseconds(1));
          }
          std::this_thread::sleep_for(std::chrono::milliseconds(100));
          throw std::runtime_error("the host's data is bad");
        }
        std::move(lease).reduce();
        waits = true;
        try {
          state.step(parameter, gradient);
          parameter.read([&](const auto&, std::size_t, auto elements) { seen += elements.size(); });
        } catch (const PeerFailed& error) {
          what = error.what();
          throw;
        }
      });
    };
    CHECK_THROWS_WITH(run(), "the host's data is bad");
    CHECK_THAT(what, ContainsSubstring("rank 1 failed"));
    CHECK(seen == 0);
  }
}

TEST_CASE("a step writes its part of a copy in bf16 by itself, and a load does not") {
  for (Strategy strategy : {Strategy::ddp(), Strategy::zero1(), Strategy::zero2()}) {
    strategy.lease = DType::bf16;
    strategy.gradient_lease = DType::f32;
    const auto texts = on_ranks(3, [&](Communicator& communicator) {
      Context<CudaDevice> context(communicator, strategy);
      Parameter<float> parameter(context, {{"weight", {700, 3}}, {"bias", {31}}});
      Gradient<float> gradient(parameter);
      State<AdamW> state(parameter);
      parameter.initialize(
          [](const auto&, std::size_t k) { return 1.0f + static_cast<float>(k) / 977; });
      auto& flat = parameter.flat();
      const auto copy_is_current = [&] {
        const std::span<const float> own = parameter.shard();
        const auto* const begin = reinterpret_cast<const bf16*>(flat.beside->buffer.data());
        const auto wanted = to_host(context, own);
        const auto found =
            to_host(context, std::span<const bf16>(begin + flat.owned_begin(), own.size()));
        for (std::size_t i = 0; i < own.size(); ++i) {
          if (found[i].bits != bf16(wanted[i]).bits) return false;
        }
        return true;
      };
      if (copy_is_current()) return std::string("initialize() wrote the copy");
      static_cast<void>(parameter.gather<bf16>());
      auto lease = gradient.lease();
      fill(context, lease[0], [](std::size_t k) { return static_cast<float>(k % 7) - 3; });
      std::move(lease).reduce();
      state.step(parameter, gradient);
      if (!copy_is_current()) return std::string("the step did not write the copy");
      parameter.initialize([](const auto&, std::size_t) { return 5.0f; });
      if (copy_is_current()) return std::string("a load wrote the copy");
      const auto weights = parameter.gather<bf16>();
      return all_are(context, weights[0], 5) ? std::string() : std::string("an old copy is lent");
    });
    for (const std::string& text : texts) CHECK(text == "");
  }
}
