#include <bit>
#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "support/device.hpp"
#include "support/ranks.hpp"
#include "support/sanitized.hpp"
#include "support/toy.hpp"

using namespace shardwise;
using Catch::Matchers::ContainsSubstring;
using namespace shardwise::test;

namespace {

/// A layer as a framework has it: memory of its own for as long as it computes, and its sharded
/// parameter made when the layer first sees data.
struct Layer {
  std::vector<TensorSpec> specs;
  std::unique_ptr<Parameter<float>> parameter;
  std::unique_ptr<Gradient<float>> gradient;
  std::unique_ptr<State<AdamW>> state;

  [[nodiscard]] std::vector<DeviceArray<float>> buffers(Context<Device>& context) const {
    std::vector<DeviceArray<float>> result;
    for (const auto& tensor : parameter->layout().tensors()) {
      result.emplace_back(tensor.count);
      fill(context, result.back().span(), [](std::size_t) { return -7; });  // whatever was there
    }
    return result;
  }
};

std::vector<float*> places(const std::vector<DeviceArray<float>>& buffers) {
  std::vector<float*> result;
  for (const auto& buffer : buffers) result.push_back(buffer.data());
  return result;
}

struct Run {
  Strategy strategy;
  Residency residency = Residency::slots;
  bool late = false;
  bool weighted = false;
};

struct Result {
  std::uint64_t hash = 0xcbf29ce484222325ull;
  Bytes held;
  Bytes planned;
  std::size_t landing = 0;
};

Result train(Communicator& communicator, const Run& run) {
  Context<Device> context(communicator, run.strategy, {.timeout = std::chrono::seconds(60)});
  std::vector<Layer> layers;
  for (auto& specs : toy_layers()) layers.push_back({specs, {}, {}, {}});
  const auto make = [&](std::size_t i) {
    Layer& layer = layers[i];
    if (layer.parameter) return;
    layer.parameter = std::make_unique<Parameter<float>>(
        context, layer.specs, ParameterOptions{.residency = run.residency});
    layer.gradient = std::make_unique<Gradient<float>>(*layer.parameter, run.residency);
    layer.state = std::make_unique<State<AdamW>>(*layer.parameter);
    layer.parameter->broadcast(0, [&](const auto& tensor, std::size_t first, auto elements) {
      for (std::size_t k = 0; k < elements.size(); ++k) {
        elements[k] = noise(i, tensor.count, first + k);
      }
    });
  };
  if (!run.late) {
    for (std::size_t i = 0; i < layers.size(); ++i) make(i);
  }
  const bool own = run.residency == Residency::host_buffer;
  const auto rank = static_cast<std::uint64_t>(context.rank());
  for (std::uint64_t step = 0; step < 3; ++step) {
    float x = noise(step, rank);
    for (std::size_t i = 0; i < layers.size(); ++i) {
      make(i);
      const auto buffers = layers[i].buffers(context);
      if (own) {
        layers[i].parameter->ensure_gathered_into<float>(places(buffers));
        layers[i].parameter->ensure_gathered_into<float>(places(buffers));
      } else {
        const auto view = layers[i].parameter->ensure_gathered();
        for (std::size_t t = 0; t < buffers.size(); ++t) {
          Device::copy(context.stream(), buffers[t].data(), view[t].data(), view[t].size_bytes());
        }
      }
      for (const auto& buffer : buffers) {
        for (const float value : to_host(context, buffer.span())) x += 0.125f * value;
      }
      layers[i].parameter->release();
      context.stream().synchronize();  // the buffers go
    }
    for (int half = 0; half < 2; ++half) {
      const auto weight =
          run.weighted ? std::optional(context.weigh(1 + static_cast<double>(rank))) : std::nullopt;
      for (std::size_t i = layers.size(); i-- > 0;) {
        const auto made = layers[i].buffers(context);
        for (std::size_t t = 0; t < made.size(); ++t) {
          fill(context, made[t].span(),
               [&](std::size_t k) { return 0.5f * (x * noise(t, k) + noise(step, rank, k)); });
        }
        if (own) {
          layers[i].gradient->reduce_from<float>(places(made), weight);
        } else {
          const auto view = layers[i].gradient->ensure_open();
          for (std::size_t t = 0; t < made.size(); ++t) {
            Device::copy(context.stream(), view[t].data(), made[t].data(), view[t].size_bytes());
          }
          if (weight) {
            layers[i].gradient->reduce(*weight);
          } else {
            layers[i].gradient->reduce();
          }
        }
        context.stream().synchronize();
      }
    }
    clip_gradient_norm(context, 0.5);
    for (Layer& layer : layers) layer.state->step(*layer.parameter, *layer.gradient);
  }
  Result result;
  for (Layer& layer : layers) {
    layer.parameter->read([&](const auto&, std::size_t, std::span<const float> values) {
      for (const float value : values) {
        result.hash = (result.hash ^ std::bit_cast<std::uint32_t>(value)) * 0x100000001b3ull;
      }
    });
  }
  result.held = context.held();
  result.planned = context.plan().bytes;
  result.landing = context.plan().landing;
  return result;
}

std::vector<std::string> errors_of(
    int world, const std::function<void(Communicator&, std::vector<std::string>&)>& f) {
  const auto all = on_ranks(world, [&](Communicator& communicator) {
    std::vector<std::string> texts;
    f(communicator, texts);
    return texts;
  });
  for (const auto& texts : all) CHECK(texts == all[0]);
  return all[0];
}

template <class F>
std::string error_of(F&& f) {
  try {
    f();
  } catch (const UsageError& error) {
    return error.what();
  }
  return {};
}

}  // namespace

TEST_CASE("host buffers give the bits of slots, late registration those of an early one") {
  Strategy no_overlap = Strategy::zero3();
  no_overlap.overlap = false;
  for (const int world : worlds) {
    if (sanitized && !on_host && world > 3) continue;
    for (const Strategy& strategy : {Strategy::ddp(), Strategy::zero1(), Strategy::zero2(),
                                     Strategy::zero3(), Strategy::zero3_no_reshard(), no_overlap}) {
      for (const bool weighted : {false, true}) {
        if ((sanitized || !on_host) && weighted != (world % 2 == 0)) continue;
        const auto run = [&](Residency residency, bool late) {
          return on_ranks(world, [&](Communicator& communicator) {
            return train(communicator, {strategy, residency, late, weighted});
          });
        };
        INFO(strategy.name() << " world " << world << " weighted " << weighted);
        const auto expected = run(Residency::slots, false)[0].hash;
        for (const Residency residency : {Residency::slots, Residency::host_buffer}) {
          for (const bool late : {false, true}) {
            INFO(name_of(residency) << " late " << late);
            for (const Result& result : run(residency, late)) {
              CHECK(result.hash == expected);
              CHECK(result.held == result.planned);
              if (residency == Residency::host_buffer) {
                // No slots: scalars (5 gradients' norms of all ranks) and where sums land.
                const std::size_t scalars = 5 * (static_cast<std::size_t>(world) + 1) * 8;
                CHECK(result.held.slots == scalars + result.landing);
                if (on_host) CHECK(result.landing == 0);
              }
            }
          }
        }
      }
    }
  }
}

TEST_CASE("a late parameter that is larger than all others makes the slots grow") {
  for (const int world : {1, 3}) {
    const auto all = on_ranks(world, [&](Communicator& communicator) {
      std::vector<std::string> wrong;
      Context<Device> context(communicator, Strategy::zero3(), {.open_parameters = 2});
      const auto make = [&](const char* name, std::size_t count) {
        auto parameter =
            std::make_unique<Parameter<float>>(context, std::vector<TensorSpec>{{name, {count}}});
        parameter->initialize(
            [&](const auto&, std::size_t i) { return static_cast<float>(count + i); });
        return parameter;
      };
      std::vector<std::unique_ptr<Parameter<float>>> parameters;
      parameters.push_back(make("small", 100));
      parameters.push_back(make("second", 90));
      const auto check = [&](Parameter<float>& parameter, auto&& lease) {
        const std::size_t count = parameter.layout().size();
        const auto values = to_host(context, lease[0]);
        for (std::size_t i = 0; i < count; ++i) {
          if (values[i] != static_cast<float>(count + i)) {
            wrong.push_back(parameter.name());
            return;
          }
        }
      };
      {
        auto held = parameters[0]->gather();  // its slot stays small while it is lent
        parameters.push_back(make("large", 5000));
        auto large = parameters[2]->gather();
        check(*parameters[2], large);
        check(*parameters[0], held);
      }
      parameters.push_back(make("larger", 70000));
      for (int round = 0; round < 3; ++round) {
        for (auto& parameter : parameters) {
          auto lease = parameter->gather();
          check(*parameter, lease);
        }
      }
      // Three slots: two open, one ahead; all as large as the largest, once each was used.
      if (context.held() != context.plan().bytes) wrong.emplace_back("held");
      return wrong;
    });
    for (const auto& wrong : all) CHECK(wrong == std::vector<std::string>());
  }
}

TEST_CASE("host buffers: what is wrong is refused by name, on all ranks") {
  const auto texts = errors_of(3, [](Communicator& communicator, std::vector<std::string>& errors) {
    Context<Device> context(communicator, Strategy::zero3());
    Parameter<float> own(context, {{"w", {7}}, {"b", {3}}},
                         {.name = "own", .residency = Residency::host_buffer});
    Parameter<float> usual(context, {{"u", {5}}}, {.name = "usual"});
    ShardedGradient own_gradient(own, Residency::host_buffer);
    ShardedGradient usual_gradient(usual);
    const DeviceArray<float> w(7), b(3), other(7);
    float* good[] = {w.data(), b.data()};
    float* null[] = {w.data(), nullptr};
    float* moved[] = {other.data(), b.data()};
    const auto add = [&](auto&& f) { errors.push_back(error_of(f)); };
    add([&] { (void)own.gather(); });
    add([&] { own.prefetch(); });
    add([&] { (void)own.gather_into<float>(std::span<float* const>(good, 1)); });
    add([&] { (void)own.gather_into<float>(null); });
    add([&] { (void)usual.gather_into(w.data()); });
    add([&] { (void)own_gradient.lease(); });
    add([&] { usual_gradient.reduce_from(w.data()); });
    add([&] { own_gradient.reduce_from<float>(null); });
    add([&] {
      auto lease = own.gather_into<float>(good);
      auto again = own.gather_into<float>(good);  // tied: the same buffer
      (void)own.gather_into<float>(moved);
    });
    add([&] {
      own.ensure_gathered_into<float>(good);
      own.ensure_gathered_into<float>(moved);
    });
    own.release();
    add([&] { (void)full_parameters(context); });
    add([&] {
      Parameter<float> nowhere(context, {{"n", {5}}}, {.residency = Residency::in_place});
    });
    add([&] {
      auto lease = own.gather_into<float>(good);
      own.initialize([](const auto&, std::size_t) { return 1.0f; });
    });
    for (int round = 0; round < 2; ++round) {  // all is well afterwards
      auto lease = own.gather_into<float>(good);
      if (lease["w"].data() != w.data() || lease["b"].size() != 3) errors.emplace_back("lost");
    }
  });
  REQUIRE(texts.size() == 13);
  const char* const parts[] = {"gather_into(buffer)",
                               "cannot be prefetched",
                               "has 2 tensors, but 1",
                               "tensor 'b' (3 elements) is null",
                               "'usual' is slots",
                               "reduce_from(buffer)",
                               "Residency::host_buffer)",
                               "the buffer for tensor 'b'",
                               "another buffer already",
                               "another buffer already",
                               "'own' lives in buffers of the host",
                               "HostTensors within an Arena",
                               "lease(s) of it are open"};
  for (std::size_t i = 0; i < texts.size(); ++i) {
    INFO("case " << i);
    CHECK_THAT(texts[i], ContainsSubstring(parts[i]));
  }
}

TEST_CASE("gradients by tensor: the last one that is ready reduces") {
  for (const int world : worlds) {
    const auto all = on_ranks(world, [&](Communicator& communicator) {
      std::vector<std::string> texts;
      Context<Device> context(communicator, Strategy::zero3());
      Parameter<float> layer(context, {{"w", {40}}, {"none", {0}}, {"b", {3}}});
      ShardedGradient gradient(layer);
      GradientCountdown countdown(gradient, {2, 0, 1});  // w is used twice
      const auto rank = static_cast<float>(context.rank());
      for (int step = 0; step < 2; ++step) {
        const auto view = gradient.ensure_open();
        add(context, view["w"], 1 + rank);
        bool reduced = countdown.ready(0);
        // Ranks differ in the order of their hooks.
        reduced = countdown.ready(context.rank() % 2 == 0 ? 2 : 0) || reduced;
        add(context, view["b"], 2);
        if (reduced || countdown.waiting() != 1) texts.emplace_back("too early");
        if (!countdown.ready(context.rank() % 2 == 0 ? 0 : 2)) texts.emplace_back("not reduced");
        const float mean = 1 + 0.5f * static_cast<float>(world - 1);
        for (const auto& segment : gradient.segments()) {
          const float expected = segment.tensor->name == "w" ? mean : 2.0f;
          if (!all_are(context, segment.elements, expected)) texts.emplace_back("wrong value");
        }
        gradient.consume();
      }
      texts.push_back(error_of([&] { countdown.ready(2); }));
      (void)gradient.ensure_open();
      countdown.ready(2);
      texts.push_back(error_of([&] { countdown.ready(2); }));
      texts.push_back(error_of([&] { countdown.ready(9); }));
      texts.push_back(error_of([&] { GradientCountdown wrong(gradient, {1}); }));
      countdown.reset();
      if (countdown.waiting() != 3) texts.emplace_back("not reset");
      gradient.discard();
      return texts;
    });
    for (const auto& texts : all) {
      REQUIRE(texts.size() == 4);
      CHECK_THAT(texts[0], ContainsSubstring("but the gradient is not open: call ensure_open()"));
      CHECK_THAT(texts[1],
                 ContainsSubstring("'b' is ready more often than it is used (1 time(s))"));
      CHECK_THAT(texts[2], ContainsSubstring("no tensor 9, there are 3"));
      CHECK_THAT(texts[3], ContainsSubstring("uses of 1 tensors, but there are 3"));
    }
  }
}

#ifndef SHARDWISE_TEST_CUDA  // no device takes part

TEST_CASE("tied tensors are told by their address") {
  std::vector<float> memory(100);
  float* const p = memory.data();
  const UniqueTensors unique = deduplicate({{"wte", p, {4, 5}},
                                            {"none", p, {0}},
                                            {"w", p + 20, {30}},
                                            {"head", p, {4, 5}},
                                            {"w.again", p + 20, {30}}});
  CHECK(unique.index == std::vector<std::size_t>{0, 1, 2, 0, 2});
  REQUIRE(unique.tensors.size() == 3);
  CHECK(unique.tensors[2].spec.name == "w");
  CHECK_THAT(error_of([&] {
               (void)deduplicate({{"a", p, {20}}, {"b", p, {4, 5}}});
             }),
             ContainsSubstring("'a' and 'b' begin at one address"));
  CHECK_THAT(error_of([&] {
               (void)deduplicate({{"a", p, {20}}, {"b", p + 19, {4}}});
             }),
             ContainsSubstring("'a' and 'b' overlap"));
}

#endif

TEST_CASE("everything is gathered in a scope, and one rank may read alone") {
  for (const int world : worlds) {
    for (const bool debug : {false, true}) {
      const auto all = on_ranks(world, [&](Communicator& communicator) {
        std::vector<std::string> wrong;
        Context<Device> context(communicator, Strategy::zero3(), {.debug = debug});
        std::vector<Parameter<float>> parameters;
        for (std::size_t i = 0; i < 5; ++i) {
          parameters.emplace_back(context,
                                  std::vector<TensorSpec>{{fmt::format("p{}", i), {50 + 30 * i}}});
          parameters.back().initialize(
              [&](const auto&, std::size_t k) { return static_cast<float>(100 * i + k); });
        }
        (void)parameters[3].gather();
        const Bytes before = context.held();
        const auto sum = [&] {
          double total = 0;
          for (std::size_t i = parameters.size(); i-- > 0;) {
            const auto lease = parameters[i].gather();
            for (const float value : to_host(context, lease[std::size_t{0}])) total += value;
          }
          return total;
        };
        double alone = 0;
        {
          const auto full = full_parameters(context);
          if (context.rank() == world - 1) alone = sum();
          if (error_of([&] {
                parameters[1].initialize([](const auto&, std::size_t) { return 0.0f; });
              }).find("lease(s) of it are open") == std::string::npos) {
            wrong.emplace_back("written inside");
          }
          if (context.held().slots <= before.slots) wrong.emplace_back("no memory is counted");
        }
        if (context.held() != before) wrong.emplace_back("memory is kept");
        const double together = sum();
        if (context.rank() == world - 1 && alone != together) wrong.emplace_back("wrong values");
        return wrong;
      });
      for (const auto& wrong : all) CHECK(wrong == std::vector<std::string>());
    }
  }
}
