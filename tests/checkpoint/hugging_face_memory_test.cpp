#include <catch2/catch_test_macros.hpp>
#include <cstddef>
#include <cstdint>
#include <shardwise/checkpoint/hugging_face.hpp>
#include <shardwise/shardwise.hpp>
#include <string>

#include "support/heap.hpp"
#include "support/ranks.hpp"
#include "temporary_folder.hpp"

namespace {

using namespace shardwise;

TEST_CASE("import and export take a few MiB a rank, however large the model is") {
  constexpr int world = 3;
  constexpr std::size_t mebibyte = std::size_t{1} << 20;
  constexpr std::size_t count = 16 * mebibyte + 7;  // 64 MiB
  const test::TemporaryFolder folder;
  const auto value = [](const Layout::Tensor&, std::size_t element) {
    return static_cast<float>(element % 127);
  };
  for (const Strategy& strategy : {Strategy::zero3(), Strategy::ddp()}) {
    const std::string directory = folder.name() + '/' + strategy.name();
    std::int64_t at_rest = 0;
    const auto wrong = test::on_threads(world, [&](Communicator& comm) {
      Context context(comm, strategy);
      ShardedParameter<float> large(context, {{"large", {count}}, {"small", {3}}});
      ModelTensors model(context);
      model.add(large);
      large.initialize(value);
      context.barrier();
      if (context.rank() == 0) {
        at_rest = test::heap.live;
        test::heap.peak = at_rest;
      }
      context.barrier();
      (void)export_hugging_face(model, directory, {.dtype = DType::bf16});
      (void)export_hugging_face(model, directory + "/one",
                                {.dtype = DType::bf16, .writers = Writers::one_rank});
      (void)import_hugging_face(model, directory, {.conversion = Conversion::exact});
      (void)import_hugging_face(model, directory + "/one", {.conversion = Conversion::exact});
      context.barrier();
      std::size_t differ = 0;
      large.update_segments([&](auto segments) {
        for (const auto& segment : segments) {
          for (std::size_t i = 0; i < segment.elements.size(); ++i) {
            if (segment.elements[i] != value(*segment.tensor, segment.first + i)) ++differ;
          }
        }
      });
      return differ;
    });
    for (const std::size_t differ : wrong) CHECK(differ == 0);
    const auto more = static_cast<std::size_t>(test::heap.peak - at_rest);
    CHECK(more > mebibyte);  // the buffers are seen
    CHECK(more < world * 6 * mebibyte);
  }
}

}  // namespace
