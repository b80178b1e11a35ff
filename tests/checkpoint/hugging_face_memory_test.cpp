#include <malloc.h>

#include <atomic>
#include <catch2/catch_test_macros.hpp>
#include <cstddef>
#include <cstdlib>
#include <new>
#include <shardwise/checkpoint/hugging_face.hpp>
#include <shardwise/shardwise.hpp>
#include <string>

#include "support/ranks.hpp"
#include "temporary_folder.hpp"

namespace {
std::atomic<std::size_t> held{0};
std::atomic<std::size_t> peak{0};

void* take(std::size_t bytes, std::size_t alignment) {
  void* const memory =
      alignment == 0
          ? std::malloc(bytes == 0 ? 1 : bytes)
          : std::aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment);
  if (memory == nullptr) throw std::bad_alloc();
  const std::size_t now = held += malloc_usable_size(memory);
  std::size_t before = peak;
  while (now > before && !peak.compare_exchange_weak(before, now)) {
  }
  return memory;
}
void give(void* memory) noexcept {
  if (memory != nullptr) held -= malloc_usable_size(memory);
  std::free(memory);
}
}  // namespace

void* operator new(std::size_t bytes) { return take(bytes, 0); }
void* operator new[](std::size_t bytes) { return take(bytes, 0); }
void* operator new(std::size_t bytes, std::align_val_t alignment) {
  return take(bytes, static_cast<std::size_t>(alignment));
}
void* operator new[](std::size_t bytes, std::align_val_t alignment) {
  return take(bytes, static_cast<std::size_t>(alignment));
}
void operator delete(void* memory) noexcept { give(memory); }
void operator delete[](void* memory) noexcept { give(memory); }
void operator delete(void* memory, std::size_t) noexcept { give(memory); }
void operator delete[](void* memory, std::size_t) noexcept { give(memory); }
void operator delete(void* memory, std::align_val_t) noexcept { give(memory); }
void operator delete[](void* memory, std::align_val_t) noexcept { give(memory); }
void operator delete(void* memory, std::size_t, std::align_val_t) noexcept { give(memory); }
void operator delete[](void* memory, std::size_t, std::align_val_t) noexcept { give(memory); }

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
    std::size_t at_rest = 0;
    const auto wrong = test::on_threads(world, [&](Communicator& comm) {
      Context context(comm, strategy);
      ShardedParameter<float> large(context, {{"large", {count}}, {"small", {3}}});
      ModelTensors model(context);
      model.add(large);
      large.initialize(value);
      context.barrier();
      if (context.rank() == 0) {
        at_rest = held;
        peak = at_rest;
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
    CHECK(peak - at_rest > mebibyte);  // the buffers are seen
    CHECK(peak - at_rest < world * 6 * mebibyte);
  }
}

}  // namespace
