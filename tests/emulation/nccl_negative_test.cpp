// Every injected bug of nccl_program.cpp is found, and its correct twin is not taken for one. A
// green run of anything else on the emulation is worth only as much as this.

#include <catch2/catch_test_macros.hpp>
#include <cstdio>
#include <string>
#include <vector>

#include "child_process.hpp"
#include "control.hpp"
#include "plain_cuda.hpp"

namespace {

enum class Instrument { plain, jitter, thread_sanitizer, address_sanitizer };
constexpr std::array instruments{Instrument::plain, Instrument::jitter,
                                 Instrument::thread_sanitizer, Instrument::address_sanitizer};

/// The program built for the instrument; empty: not in this build.
std::string program_of(Instrument instrument) {
  switch (instrument) {
    case Instrument::thread_sanitizer:
      return SHARDWISE_NCCL_PROGRAM_THREAD;
    case Instrument::address_sanitizer:
      return SHARDWISE_NCCL_PROGRAM_ADDRESS;
    default:
      return SHARDWISE_NCCL_PROGRAM;
  }
}

Finished run(Instrument instrument, const std::string& scenario, bool bug, int seed) {
  std::string environment = "env SHARDWISE_EMULATION_LEAKS=off SHARDWISE_EMULATION_WATCHDOG_MS=" +
                            std::string(bug ? "500" : "20000") +
                            " TSAN_OPTIONS=halt_on_error=1:atexit_sleep_ms=0:exitcode=67"
                            " ASAN_OPTIONS=detect_leaks=1 SHARDWISE_EMULATION_SEED=" +
                            std::to_string(seed);
  if (instrument == Instrument::jitter) environment += " SHARDWISE_EMULATION_JITTER_US=200";
  return Child(environment + " " + program_of(instrument) + " " + scenario +
               (bug ? " bug" : " correct"))
      .finish();
}

struct Bug {
  const char* scenario;
  const char* message;  // of what must find it
};

bool correct(const Finished& finished) {
  return finished.status == 0 && finished.says("complete") && !finished.says("[emulation] error") &&
         !finished.says("[emulation] fatal") && !finished.says("Sanitizer");
}

/// Runs the bug and its twin by every instrument that is built; `must` says whether all runs by an
/// instrument have to find the bug.
template <class Must>
void find(const std::vector<Bug>& bugs, int runs, int thread_sanitizer_runs, Must must) {
  if (plain::device_count() < 4 || !shardwise_emulation_present()) {
    SKIP("only the emulation finds these, with 4 devices");
  }
  std::printf("%-24s %8s %8s %8s %8s   (emulated; found in runs)\n", "injected bug", "plain",
              "jitter", "TSan", "ASan");
  for (const Bug& bug : bugs) {
    std::string row;
    for (const Instrument instrument : instruments) {
      if (program_of(instrument).empty()) {
        row += "        -";
        continue;
      }
      const int times = instrument == Instrument::thread_sanitizer    ? thread_sanitizer_runs
                        : instrument == Instrument::address_sanitizer ? 1
                                                                      : runs;
      int found = 0;
      for (int i = 0; i < times; ++i) {
        const Finished with_bug = run(instrument, bug.scenario, true, i + 1);
        const bool caught = with_bug.status != 0 && with_bug.says(bug.message);
        found += caught ? 1 : 0;
        INFO(bug.scenario << " with the bug: status " << with_bug.status << "\n"
                          << with_bug.output);
        CHECK((caught || !must(instrument)));
        const Finished twin = run(instrument, bug.scenario, false, i + 1);
        INFO(bug.scenario << ", correct: status " << twin.status << "\n" << twin.output);
        CHECK(correct(twin));
      }
      char cell[32];
      std::snprintf(cell, sizeof cell, " %4d/%-3d", found, times);
      row += cell;
    }
    std::printf("%-24s%s\n", bug.scenario, row.c_str());
    std::fflush(stdout);
  }
}

bool always(Instrument) { return true; }

}  // namespace

TEST_CASE("calls that do not fit together are named") {
  find({{"order", "calls [AllReduce count 512 type float32 operation sum]"},
        {"count", "rank 2 calls [AllGather count 511 type float32]"},
        {"reduction", "rank 1 calls [AllReduce count 512 type float32 operation max]"},
        {"skip", "missing ranks 2 (rank 2 destroyed it)"},
        {"two_communicators", "waits for an earlier launch on device"},
        {"ungrouped", "waits in Send count 512 type float32 peer"},
        {"message_count", "rank 0 calls [Recv count 513 type float32 peer 3]"}},
       2, 2, always);
}

TEST_CASE("wrong memory is named") {
  find({{"window_offset", "offsets in the symmetric window differ"},
        {"window_unregistered", "ranks disagree on window registration"},
        {"window_sizes", "rank 3 has 32768 bytes"},
        {"window_of_plain_memory", "was not given by ncclMemAlloc"},
        {"window_kept", "has 1 registrations: deregister before"},
        {"window_in_flight", "is used by 1 operations that have not ended"},
        {"registered_twice", "register each range once"},
        {"wrong_deregister", "a window is ended by ncclCommWindowDeregister"},
        {"range", "overrun an allocation of 8192 bytes"},
        {"overlap", "overlap, but not as AllGather in place needs them"},
        {"stream_device", "the stream is of device 2, the communicator of device 1"},
        {"pointer_device", "memory of device 0 on device 1"},
        {"host_pointer", "is not memory of a device"}},
       2, 2, always);
}

TEST_CASE("misuse of communicators is named") {
  find({{"same_device", "use the same device 0"},
        {"world_size", "expects"},
        {"rank_twice", "rank 2 has joined already"},
        {"excluded_ranks", "exclude different ranks"},
        {"too_early", "before its last operation was polled"},
        {"after_destroy", "was destroyed or aborted before"}},
       2, 2, always);
}

TEST_CASE("missing orders are found by ThreadSanitizer in every run") {
  const char* const race = "WARNING: ThreadSanitizer: data race";
  find({{"wait_before_gather", race},
        {"wait_after_gather", race},
        {"own_part", race},
        {"overwrite", race},
        {"wait_before_reduce", race},
        {"wait_after_receive", race},
        {"broadcast_as_barrier", race},
        {"two_threads", race}},
       3, 10, [](Instrument instrument) { return instrument == Instrument::thread_sanitizer; });
}

TEST_CASE("leaked communicators are found by LeakSanitizer") {
  find({{"leak", "LeakSanitizer: detected memory leaks"}}, 1, 1,
       [](Instrument instrument) { return instrument == Instrument::address_sanitizer; });
}
