// The emulation finds bugs: each program of cudart_cases.cpp is right or has one bug. A green run
// of other tests on the emulation counts only while these pass.

#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <catch2/generators/catch_generators_range.hpp>
#include <csignal>
#include <string>

#include "child_process.hpp"
#include "control.hpp"
#include "plain_cuda.hpp"

#if defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define UNDER_TSAN 1
#elif __has_feature(address_sanitizer)
#define UNDER_ASAN 1
#endif
#elif defined(__SANITIZE_THREAD__)
#define UNDER_TSAN 1
#elif defined(__SANITIZE_ADDRESS__)
#define UNDER_ASAN 1
#endif

namespace {

enum class Sanitizer { none, thread, address };
#if defined(UNDER_TSAN)
constexpr Sanitizer sanitizer = Sanitizer::thread;
#elif defined(UNDER_ASAN)
constexpr Sanitizer sanitizer = Sanitizer::address;
#else
constexpr Sanitizer sanitizer = Sanitizer::none;
#endif

constexpr int wrong_result = 5;
constexpr int faulted = 128 + SIGSEGV;
constexpr int stopped = 66;  ///< by the emulation; ThreadSanitizer's own status, too

struct Expectation {
  const char* name;
  /// What a program without sanitizers prints, and its status.
  const char* text;
  int status;
  /// ThreadSanitizer names it in every run.
  bool is_race = false;
  /// AddressSanitizer is there first.
  bool is_bad_address = false;
  const char* option = nullptr;
  const char* value = nullptr;
};

const Expectation expectations[] = {
    {"missing_wait", "instead of 3", wrong_result, true},
    {"overwritten_while_read", "instead of 3", wrong_result, true},
    {"copy_without_wait", "instead of 2", wrong_result, true},
    {"host_reads_early", "instead of 2", wrong_result, true},
    {"host_overwrites_source", "instead of 2", wrong_result, true},
    {"used_before_allocated", "instead of 2", wrong_result, true},
    {"free_on_wrong_stream", "fault: 'kernel add' on stream 2 of device 0 touched byte", faulted,
     true, true},
    {"pool_memory_freed_at_once", "which was freed before by cudaFree\n", faulted, true, true},
    {"pinned_memory_freed_early", "which was freed before by cudaFreeHost", faulted, true, true},
    {"never_written", "", wrong_result},
    {"kernel_gets_freed_memory", "kernel fill: argument 0, byte 0: ", stopped},
    {"kernel_gets_host_memory", "is pageable host memory", stopped},
    {"kernel_gets_memory_of_another_device",
     "kernel fill on device 0: argument 0, byte 0: memory of device 1", stopped},
    {"copy_of_freed_memory", "was freed before, by cudaFree", stopped},
    {"copy_overruns", "4004 bytes at offset 0 overrun an allocation of 4000 bytes", stopped},
    {"copy_of_the_wrong_kind", "cudaMemcpyAsync: the destination is memory of a device", stopped},
    {"kernel_overruns", "was overrun: byte 4000 was written", stopped, false, true},
    {"kernel_overruns_far", "touched byte 4096 of an allocation of 4000 bytes of device 0, outside",
     faulted, false, true},
    {"host_touches_device_memory", "fault: the host touched byte 12 of an allocation of 4000 bytes",
     faulted, false, false, "HOST_ACCESS", "fault"},
    {"deadlock", "deadlock: no task ended for 1000 ms", stopped, false, false, "WATCHDOG_MS",
     "1000"},
    {"freed_twice", "was freed before, by cudaFree", stopped},
    {"stream_used_after_destroyed", "is no stream that lives", stopped},
    {"wait_for_unrecorded_event", "the event was never recorded", stopped, false, false,
     "UNRECORDED_WAIT", "error"},
    {"default_stream", "cudaMemsetAsync uses the legacy default stream", stopped, false, false,
     "LEGACY_STREAM", "error"},
    {"pageable_copy", "is pageable host memory; the host may wait", stopped, false, false,
     "PAGEABLE", "error"},
    {"leak", "1 allocations (the first of 4000 bytes) are not given back", stopped},
    {"unmapped_early", "' on stream 1 of device 0 uses them and has not run", stopped},
    {"used_after_unmapped", "which was freed before by cuMemUnmap", faulted, false, true},
    {"copy_leaves_the_mapping", "cudaMemsetAsync: no memory is mapped at", stopped},
    {"kernel_gets_mapped_memory_of_another_device",
     "kernel fill on device 0: argument 0, byte 0: memory of device 1", stopped},
    {"mapped_memory_leaks", "1 reserved address ranges and pieces of memory for them are not given",
     stopped},
    {"handle_released_twice", "is no handle that lives", stopped},
    {"addresses_freed_below_memory", "unmap it before", stopped},
};

Finished run(const Expectation& expected, const char* variant, int seed) {
  std::string command = "env SHARDWISE_EMULATION_LEAKS=error SHARDWISE_EMULATION_JITTER_US=";
  command += seed % 2 == 0 ? "0" : "100";
  command += " SHARDWISE_EMULATION_SEED=" + std::to_string(seed + 1);
  command += " TSAN_OPTIONS='halt_on_error=1 atexit_sleep_ms=0'";
  if (expected.option != nullptr) {
    command += std::string(" SHARDWISE_EMULATION_") + expected.option + "=" + expected.value;
  }
  return Child(command + " '" SHARDWISE_CUDART_CASES "' " + expected.name + " " + variant).finish();
}

/// Whether a run may end well: a race's effects depend on when threads run, which a busy machine
/// delays as it likes.
bool is_by_chance(const Expectation& expected) {
  return expected.is_race && sanitizer != Sanitizer::thread;
}

/// How often: what is found by chance alone would be missed once.
int runs(const Expectation& expected) {
  return !expected.is_race ? 2 : sanitizer == Sanitizer::thread ? 10 : 3;
}

}  // namespace

TEST_CASE("each bug is found, and the right program is not blamed") {
  if (plain::device_count() < 2 || !shardwise_emulation_present()) {
    SKIP("the bugs are found by the emulation alone");
  }
  const Expectation& expected =
      GENERATE(from_range(std::begin(expectations), std::end(expectations)));
  DYNAMIC_SECTION(expected.name) {
    for (int seed = 0; seed < 3; ++seed) {
      const Finished right = run(expected, "right", seed);
      INFO(right.output);
      CHECK(right.status == 0);
      CHECK(right.output.empty());
    }
#if !__has_builtin(__builtin_clear_padding)
    // padding that nobody cleared may look like an address
    if (std::string(expected.name) == "kernel_gets_host_memory") return;
#endif
    int found = 0;
    for (int seed = 0; seed < runs(expected); ++seed) {
      const Finished wrong = run(expected, "wrong", seed);
      INFO(wrong.output);
      if (is_by_chance(expected) && wrong.status == 0) continue;
      ++found;
      if (sanitizer == Sanitizer::thread && expected.is_race) {
        CHECK(wrong.says("ThreadSanitizer: data race"));
        CHECK(wrong.status == stopped);
      } else if (sanitizer == Sanitizer::address && expected.is_bad_address) {
        CHECK(wrong.says("AddressSanitizer: use-after-poison"));
      } else {
        CHECK(wrong.says(expected.text));
        // a sanitizer turns a signal into a status of its own
        const bool is_exact = expected.status < 128 || sanitizer == Sanitizer::none;
        CHECK((is_exact ? wrong.status == expected.status : wrong.status != 0));
      }
    }
    CHECK(found > 0);
  }
}

TEST_CASE("memory that is unmapped after work that ended by chance is a race") {
  if (sanitizer != Sanitizer::thread || !shardwise_emulation_present()) {
    SKIP("only ThreadSanitizer knows what the host was told");
  }
  const Expectation expected = {"unmapped_by_the_clock", "ThreadSanitizer: data race", stopped};
  for (int seed = 0; seed < 5; ++seed) {
    const Finished right = run(expected, "right", seed);
    INFO(right.output);
    CHECK(right.status == 0);
    const Finished wrong = run(expected, "wrong", seed);
    INFO(wrong.output);
    CHECK(wrong.says(expected.text));
    CHECK(wrong.status == expected.status);
  }
}

TEST_CASE("a machine without devices is told apart from a broken one") {
  if (plain::device_count() < 2 || !shardwise_emulation_present()) SKIP("this machine has one");
  const Finished finished =
      Child("env SHARDWISE_EMULATION_DEVICES=0 '" SHARDWISE_CUDART_CASES "' no_device right")
          .finish();
  INFO(finished.output);
  CHECK(finished.status == 0);
}
