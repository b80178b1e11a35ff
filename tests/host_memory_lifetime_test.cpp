#include <signal.h>  // NOLINT(modernize-deprecated-headers): sigaction is of POSIX

#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <chrono>
#include <cstddef>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "support/toy.hpp"

using namespace shardwise;
using Catch::Matchers::ContainsSubstring;
using shardwise::test::on_ranks;

namespace {

constexpr std::size_t size = 65536;  // elements of a tensor: 64 pages

/// Two parameters of one bucket, 'a' and 'b', in place; ranks are slow where a gather is issued.
class Pair {
 public:
  explicit Pair(Communicator& communicator, ContextOptions options = {},
                Strategy strategy = bucket(), ArenaRelease release = ArenaRelease::lazy)
      : context(communicator, strategy, options),
        weights(context, 2 * size * sizeof(float), "weights", {.release = release}),
        gradients(context, 2 * size * sizeof(float), "gradients") {
    for (const std::size_t i : {std::size_t{0}, std::size_t{1}}) {
      make(i, static_cast<float>(i + 1));
      gradient[i].emplace(*parameter[i], gradients);
    }
  }
  static Strategy bucket() {
    Strategy strategy = Strategy::zero3();
    strategy.bucket_bytes = std::size_t{1} << 22;
    strategy.prefetch = 0;
    return strategy;
  }
  void make(std::size_t i, float value) {
    parameter[i].emplace(
        context,
        std::vector<HostTensor>{{i == 0 ? "a" : "b", weights.as<float>() + i * size, {size}}});
    fill(i, value);
  }
  void fill(std::size_t i, float value) {
    parameter[i]->initialize([&](const auto&, std::size_t) { return value; });
  }
  [[nodiscard]] bool gathered(std::size_t i, float value) {
    const auto lease = parameter[i]->gather();
    return all(lease[std::size_t{0}], value);
  }
  template <class Values>
  [[nodiscard]] static bool all(const Values& values, float value) {
    for (const float element : values) {
      if (element != value) return false;
    }
    return true;
  }

  Context<> context;
  Arena weights;
  Arena gradients;
  std::optional<ShardedParameter<float>> parameter[2];
  std::optional<ShardedGradient<float>> gradient[2];
};

/// Every rank's f returns what went wrong.
void check_ranks(const std::function<std::string(Communicator&)>& f) {
  const ThreadOptions slow{.at_point = [](void*, int rank, ThreadPoint point) noexcept {
    if (rank == 1 && point == ThreadPoint::committed) {
      std::this_thread::sleep_for(std::chrono::milliseconds(2));
    }
  }};
  for (const int world : {1, 2, 3}) {
    INFO("world " << world);
    for (const auto& text : on_ranks(world, f, slow)) CHECK(text == "");
  }
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

TEST_CASE("a release waits for the gather of the whole bucket") {
  for (const ArenaRelease release : {ArenaRelease::eager, ArenaRelease::lazy}) {
    check_ranks([&](Communicator& communicator) -> std::string {
      Pair pair(communicator, {}, Pair::bucket(), release);
      float value = 10;
      for (int round = 0; round < 5; ++round) {
        if (!pair.gathered(0, 1)) return "a";
        pair.fill(1, ++value);
        { const auto lease = pair.parameter[0]->gather(); }  // b alone is on its way
        if (release == ArenaRelease::lazy) pair.fill(0, 1);  // takes released pages back
        if (!pair.gathered(1, value)) return "b was cut off";
        auto lease = pair.parameter[0]->gather();
        pair.fill(1, ++value);
        pair.parameter[1]->prefetch();
        lease.release();
        if (!pair.gathered(1, value)) return "b was cut off while a was released";
      }
      return {};
    });
  }
}

TEST_CASE("a parameter that goes and comes again while its bucket is lent has its own memory") {
  check_ranks([](Communicator& communicator) -> std::string {
    Pair pair(communicator, {.open_parameters = 2});
    auto other = pair.parameter[1]->gather();
    pair.gradient[0].reset();
    pair.parameter[0].reset();
    pair.make(0, 3);
    const auto again = pair.parameter[0]->gather();
    if (!Pair::all(again[std::size_t{0}], 3)) return "wrong before";
    other.release();
    if (!Pair::all(again[std::size_t{0}], 3)) return "the bucket's release took its pages";
    return {};
  });
  check_ranks([](Communicator& communicator) -> std::string {
    Pair pair(communicator);
    auto other = pair.gradient[1]->lease();
    pair.gradient[0].reset();
    pair.gradient[0].emplace(*pair.parameter[0], pair.gradients);
    auto again = pair.gradient[0]->lease();
    for (float& g : again[std::size_t{0}]) g = 5;
    other.discard();
    std::move(again).reduce();
    for (const auto& segment : pair.gradient[0]->segments()) {
      if (!Pair::all(segment.elements, 5)) return "the gradient is lost";
    }
    return {};
  });
}

TEST_CASE("a refused second reduction leaves the one that is under way whole") {
  check_ranks([](Communicator& communicator) -> std::string {
    Strategy strategy = Pair::bucket();
    strategy.accumulation = Accumulation::hold;
    Pair pair(communicator, {.open_gradients = 2}, strategy);
    auto a = pair.gradient[0]->lease();
    auto b = pair.gradient[1]->lease();
    for (float& g : a[std::size_t{0}]) g = 5;
    std::move(a).reduce();
    if (error_of([&] { (void)pair.gradient[0]->lease(); }).find("reduced already") ==
        std::string::npos) {
      return "not refused";
    }
    b.discard();
    for (const auto& segment : pair.gradient[0]->segments()) {
      if (!Pair::all(segment.elements, 5)) return "the gradient is lost";
    }
    return {};
  });
}

TEST_CASE("what comes and goes leaves the bytes that are planned") {
  check_ranks([](Communicator& communicator) -> std::string {
    Pair pair(communicator, {}, Strategy::zero3_no_reshard());
    for (int round = 0; round < 3; ++round) {
      pair.gradient[0].reset();
      pair.parameter[0].reset();
      pair.make(0, static_cast<float>(round));
      pair.gradient[0].emplace(*pair.parameter[0], pair.gradients);
      if (!pair.gathered(0, static_cast<float>(round)) || !pair.gathered(1, 2))
        return "wrong values";
      for (auto& gradient : pair.gradient) gradient->lease().discard();
      pair.context.barrier();
      if (pair.context.held() != pair.context.plan().bytes) return "held is not what is planned";
    }
    return {};
  });
}

TEST_CASE("scopes of full_parameters nest, and leases outlive them") {
  for (const bool in_slots : {false, true}) {
    check_ranks([&](Communicator& communicator) -> std::string {
      Context<> context(communicator);
      Arena arena(context, 3 * size * sizeof(float));
      std::vector<std::unique_ptr<ShardedParameter<float>>> all;
      const auto make = [&](const char* name) {
        if (in_slots) {
          all.push_back(std::make_unique<ShardedParameter<float>>(
              context, std::vector<TensorSpec>{{name, {size}}}));
        } else {
          all.push_back(std::make_unique<ShardedParameter<float>>(
              context,
              std::vector<HostTensor>{{name, arena.as<float>() + all.size() * size, {size}}}));
        }
        const auto value = static_cast<float>(all.size());
        all.back()->initialize([&](const auto&, std::size_t) { return value; });
      };
      const auto holds = [&](std::size_t i) {
        const auto lease = all[i]->gather();
        return Pair::all(lease[std::size_t{0}], static_cast<float>(i + 1));
      };
      make("a");
      make("b");
      if (!holds(0) || !holds(1)) return "before";
      const Bytes before = context.held();
      {
        auto outer = full_parameters(context);
        make("late");
        if (!holds(2)) return "late within the scope";
        auto inner = full_parameters(context);
        outer.release();
        if (!holds(0) || !holds(2)) return "the inner scope lost something";
        auto kept = all[1]->gather();
        inner.release();
        if (!Pair::all(kept[std::size_t{0}], 2)) return "a lease lost its memory";
      }
      {
        const auto scope = full_parameters(context);
        const auto view = all[0]->ensure_gathered();
        all.pop_back();  // within the scope
        if (!Pair::all(view[std::size_t{0}], 1)) return "a view lost its memory";
      }
      if (!Pair::all(all[0]->ensure_gathered()[std::size_t{0}], 1)) return "the plain form";
      all[0]->release();
      {
        ShardedParameter<float> own(context, {{"own", {7}}}, {.residency = Residency::host_buffer});
        const std::string text = error_of([&] { (void)full_parameters(context); });
        if (text.find("full_parameters() cannot") == std::string::npos)
          return "not refused: " + text;
        if (!holds(0) || !holds(1)) return "after the refusal";
      }
      return context.held().total() <= before.total() ? "" : "memory is kept";
    });
  }
}

TEST_CASE("debug mode: no false alarm where slots grow, are taken, or lose a member") {
  for (const bool in_place : {false, true}) {
    check_ranks([&](Communicator& communicator) -> std::string {
      Strategy strategy = Strategy::zero3();
      Context<> context(communicator, strategy, {.debug = true});
      Arena arena(context, 4 * size * sizeof(float));
      std::vector<std::unique_ptr<ShardedParameter<float>>> all;
      const auto make = [&](const char* name, std::size_t count) {
        if (in_place) {
          all.push_back(std::make_unique<ShardedParameter<float>>(
              context, std::vector<HostTensor>{
                           {name, arena.as<float>() + 3 + all.size() * (size + 1), {count}}}));
        } else {
          all.push_back(std::make_unique<ShardedParameter<float>>(
              context, std::vector<TensorSpec>{{name, {count}}}));
        }
        all.back()->initialize([](const auto&, std::size_t) { return 1.0f; });
      };
      make("a", size - 100);
      make("b", size - 200);
      for (auto& parameter : all) (void)parameter->gather();
      make("late and large", size);
      for (int round = 0; round < 3; ++round) {
        for (std::size_t i = 0; i < all.size(); ++i) {
          const auto lease = all[i]->gather();
          all[(i + 1) % all.size()]->prefetch();      // may be taken by ...
          (void)all[(i + 2) % all.size()]->gather();  // ... this one
        }
      }
      all.erase(all.begin());
      for (auto& parameter : all) (void)parameter->gather();
      return {};
    });
  }
  check_ranks([](Communicator& communicator) -> std::string {
    Pair pair(communicator, {.open_gradients = 2, .debug = true});
    for (int round = 0; round < 2; ++round) {
      if (!pair.gathered(0, 1) || !pair.gathered(1, 2)) return "wrong values";
      auto other = pair.gradient[1]->lease();
      pair.gradient[0].reset();
      pair.gradient[0].emplace(*pair.parameter[0], pair.gradients);
      std::move(other).reduce();
      (void)pair.gradient[1]->shard();
      pair.gradient[1]->consume();
      pair.gradient[0]->lease().discard();
    }
    pair.context.barrier();
    return {};
  });
}

TEST_CASE("buckets that lost a member find as many slots as were asked for") {
  check_ranks([](Communicator& communicator) -> std::string {
    Strategy strategy = Pair::bucket();
    strategy.bucket_bytes = 2 * 4300;
    strategy.overlap = false;
    Context<> context(communicator, strategy, {.open_parameters = 3, .open_gradients = 3});
    std::vector<std::unique_ptr<ShardedParameter<float>>> parameters;
    std::vector<std::unique_ptr<ShardedGradient<float>>> gradients;
    const auto make = [&](const char* name) {
      parameters.push_back(std::make_unique<ShardedParameter<float>>(
          context, std::vector<TensorSpec>{{name, {1000}}}));
      gradients.push_back(std::make_unique<ShardedGradient<float>>(*parameters.back()));
    };
    for (const char* name : {"a", "b", "c", "d"}) make(name);  // in two buckets of two
    (void)parameters[0]->gather();
    gradients[0]->lease().discard();
    for (const std::ptrdiff_t gone : {3, 1}) {
      gradients.erase(gradients.begin() + gone);
      parameters.erase(parameters.begin() + gone);
    }
    make("e");
    const auto first = parameters[0]->gather();
    const auto second = parameters[1]->gather();
    const auto third = parameters[2]->gather();
    auto one = gradients[0]->lease();
    auto two = gradients[1]->lease();
    auto three = gradients[2]->lease();
    for (auto* lease : {&one, &two, &three}) lease->discard();
    return {};
  });
}

TEST_CASE("what is kept is the same on all ranks, and covers who comes after a member went") {
  const auto keep = [](std::size_t bytes) {
    Strategy strategy = Pair::bucket();
    strategy.keep_resident_bytes = bytes;
    return strategy;
  };
  check_ranks([&](Communicator& communicator) -> std::string {
    // The budget is the two of the bucket; one of them goes and comes again.
    Pair pair(communicator, {.open_parameters = 2}, keep(2 * size * sizeof(float)));
    if (!pair.gathered(0, 1) || !pair.gathered(1, 2)) return "before";
    pair.gradient[0].reset();
    pair.parameter[0].reset();
    pair.make(0, 3);
    for (int round = 0; round < 2; ++round) {
      const auto other = pair.parameter[1]->gather();
      if (!pair.gathered(0, 3) || !Pair::all(other[std::size_t{0}], 2)) return "after";
    }
    return {};
  });
  check_ranks([&](Communicator& communicator) -> std::string {
    // Ranks lay their tensors out differently: the pages are not those of other ranks.
    Context<> context(communicator, keep(2 * size * sizeof(float)));
    Arena arena(context, 8 * size * sizeof(float));
    const std::size_t gap = context.rank() == 1 ? 5000 : 0;
    std::vector<ShardedParameter<float>> parameters;
    for (std::size_t i = 0; i < 4; ++i) {
      float* const at = arena.as<float>() + 2 * i * size;
      parameters.emplace_back(
          context,
          std::vector<HostTensor>{{"w", at, {size / 2}}, {"b", at + size / 2 + gap, {100}}},
          ParameterOptions{.name = fmt::format("p{}", i)});
      parameters.back().initialize([&](const auto&, std::size_t) { return static_cast<float>(i); });
    }
    for (int round = 0; round < 3; ++round) {
      for (std::size_t i = 0; i < parameters.size(); ++i) {
        const auto lease = parameters[i].gather();
        if (!Pair::all(lease["w"], static_cast<float>(i))) return "wrong values";
      }
    }
    return {};
  });
}

TEST_CASE("a gather that failed leaves nothing that a later one would carry along") {
  check_ranks([](Communicator& communicator) -> std::string {
    Pair pair(communicator, {.open_parameters = 2, .debug = true}, [] {
      Strategy strategy = Strategy::zero3();
      strategy.prefetch = 0;
      return strategy;
    }());
    (void)gather(*pair.parameter[0], *pair.parameter[1]);
    auto* const crumb = pair.weights.as<float>() + 2 * size - 1;  // of b, on every rank alike
    *crumb = 7;
    const std::string text =
        error_of([&] { (void)gather(*pair.parameter[0], *pair.parameter[1]); });
    if (text.find("of tensor 'b' of parameter 'b'") == std::string::npos)
      return "not found: " + text;
    pair.fill(0, 4);  // no lease of it is left
    return pair.gathered(0, 4) ? "" : "wrong values";
  });
}

TEST_CASE("a host's own handler of faults stays when an arena that is watched goes") {
  const auto done = on_ranks(1, [](Communicator& communicator) {
    static volatile sig_atomic_t calls = 0;
    struct sigaction own = {}, found = {}, usual = {};
    own.sa_handler = [](int) { calls = calls + 1; };
    {
      Context<> context(communicator, Strategy::zero3(), {.debug = true});
      Arena arena(context, 4096);
      sigaction(SIGSEGV, &own, &usual);
    }
    sigaction(SIGSEGV, nullptr, &found);
    const bool kept = found.sa_handler == own.sa_handler;
    sigaction(SIGSEGV, &usual, nullptr);
    return kept;
  });
  CHECK(done[0]);
}

TEST_CASE("an arena of another context, or one that is too small, is refused by name") {
  const auto texts = on_ranks(1, [](Communicator& communicator) {
    Context<> context(communicator);
    Context<> other(communicator);
    Arena weights(context, 2 * size * sizeof(float), "weights");
    Arena small(context, size * sizeof(float), "small");
    Arena foreign(other, 2 * size * sizeof(float), "foreign");
    ShardedParameter<float> b(context,
                              std::vector<HostTensor>{{"b", weights.as<float>() + size, {size}}},
                              {.name = "second"});
    return std::vector<std::string>{error_of([&] { ShardedGradient<float> gradient(b, small); }),
                                    error_of([&] { ShardedGradient<float> gradient(b, foreign); })};
  });
  CHECK_THAT(texts[0][0],
             ContainsSubstring("'b' of parameter 'second' is not within arena 'small'"));
  CHECK_THAT(texts[0][1], ContainsSubstring("arena 'foreign' was made for another context"));
}
