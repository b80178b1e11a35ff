#include <sys/wait.h>
#include <unistd.h>

#include <catch2/catch_test_macros.hpp>
#include <cerrno>
#include <csignal>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <shardwise/checkpoint.hpp>
#include <string>

#include "hooked_files.hpp"
#include "saving.hpp"
#include "temporary_folder.hpp"

// A process of 4 ranks that is killed by SIGKILL before, within and after every call of a save to
// the machine's own files.

namespace shardwise::test {
namespace {

enum class When { before, within, after };

struct End {
  bool killed = false;
  bool saved = false;
  std::size_t calls = 0;
};

// In a process of its own: this one has no other thread.
End save_in_child(const std::string& folder, std::uint64_t version, std::size_t call, When when) {
  int pipe[2];
  REQUIRE(::pipe(pipe) == 0);
  const pid_t child = ::fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    PosixFileSystem files;
    HookedFiles hooked(files, [&](const FileCall& found) -> Instead {
      if (found.index != call) return {};
      if (when == When::before) std::raise(SIGKILL);
      return {.partly = when == When::within, .kills = true};
    });
    int status = 1;
    try {
      save_version(4, version, {.keep = 1, .chunk_bytes = 1024, .files = &hooked}, folder);
      status = 0;
    } catch (const std::exception&) {
    }
    const std::size_t calls = hooked.calls();
    if (::write(pipe[1], &calls, sizeof calls) != sizeof calls) status = 2;
    ::_exit(status);
  }
  ::close(pipe[1]);
  End end;
  if (::read(pipe[0], &end.calls, sizeof end.calls) < 0) end.calls = 0;
  ::close(pipe[0]);
  int status = 0;
  while (::waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  end.killed = WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL;
  end.saved = WIFEXITED(status) && WEXITSTATUS(status) == 0;
  return end;
}

// Each `stride`-th point; returns how many there were.
std::size_t kill_everywhere(std::size_t stride) {
  SelfCommunicator self;
  SavedModel<float> model(self, Strategy::zero3(), small_layers());
  PosixFileSystem files;
  std::size_t points = 0;
  // A later save, of which the removal of two old ones is a part.
  std::size_t calls = 0;
  for (const When when : {When::before, When::within, When::after}) {
    for (std::size_t call = stride == 1 ? 0 : 1; calls == 0 || call < calls; call += stride) {
      const TemporaryFolder temporary;
      const std::string folder = temporary.name() + "/run";
      for (const std::uint64_t version : {1u, 2u}) {
        REQUIRE(save_in_child(folder, version, SIZE_MAX, When::after).saved);
      }
      // The first one went with the second; give it back two.
      save_version(4, 3, {}, folder);
      if (calls == 0) {
        const TemporaryFolder other;
        save_version(4, 2, {}, other.name());
        save_version(4, 3, {}, other.name());
        calls = save_in_child(other.name(), 4, SIZE_MAX, When::after).calls;
        REQUIRE(calls > 60);
      }
      const End end = save_in_child(folder, 4, call, when);
      INFO("call " << call << " of " << calls << ", " << static_cast<int>(when));
      // Ranks come in another order each time, and the last calls are one rank's.
      CHECK((end.killed || end.saved));
      points += end.killed ? 1 : 0;
      const Loaded loaded = load_alone(model, files, {}, folder);
      CHECK(loaded.error == "");
      REQUIRE(loaded.checkpoint);
      CHECK((loaded.checkpoint->step == 3 || loaded.checkpoint->step == 4));
      if (end.saved) CHECK(loaded.checkpoint->step == 4);
      CHECK(loaded.differences == 0);
      CHECK(loaded.checkpoint->passed_over.empty());
      // The next save finds its way.
      save_version(2, 5, {.keep = 1}, folder);
      CHECK(load_alone(model, files, {}, folder).checkpoint->step == 5);
    }
  }
  return points;
}

}  // namespace

TEST_CASE("a process that is killed at a call of a save leaves the old or the new one: a sample") {
  CHECK(kill_everywhere(17) > 8);
}

TEST_CASE("a process that is killed at a call of a save leaves the old or the new one", "[.long]") {
  CHECK(kill_everywhere(1) >= 200);
}

}  // namespace shardwise::test
