// libFuzzer: any bytes as a file of configuration. What loads must print as what loads as an equal
// one; anything else is ConfigErrors, with a line for each problem.
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <shardwise/config.hpp>
#include <string>
#include <string_view>

namespace {

[[noreturn]] void fail(const char* what) {
  std::fprintf(stderr, "%s\n", what);
  std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace shardwise;
  // The first byte chooses the hints and what is allowed.
  if (size == 0) return 0;
  const unsigned choice = data[0];
  const std::string_view text(reinterpret_cast<const char*>(data + 1), size - 1);
  Hints hints;
  if (choice & 1u) hints = {.world = 4, .micro_batch = 2, .micro_batches = 3, .clip = 1.0};
  if (choice & 2u) {
    hints.lease = DType::f16;
    hints.hidden_size = 4096;
  }
  if (choice & 4u) hints.largest_parameter = 1000;
  const ConfigOptions options{.allow_unsupported = (choice & 8u) != 0};
  try {
    const LoadedConfiguration loaded = parse_config(text, "fuzz", hints, options);
    loaded.strategy().validate();
    const LoadedConfiguration again = parse_config(loaded.print(), "printed");
    if (!(again.values() == loaded.values())) fail("another configuration is read back");
    if (again.print().empty()) fail("nothing is printed");
  } catch (const ConfigErrors& errors) {
    if (errors.problems().empty()) fail("an error without a problem");
    for (const ConfigProblem& problem : errors.problems()) {
      if (problem.file == "printed") fail("what was printed does not load");
      if (problem.message.empty()) fail("a problem without a message");
    }
  }
  return 0;
}
