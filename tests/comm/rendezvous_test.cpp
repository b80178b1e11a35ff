#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <optional>
#include <shardwise/comm/file_rendezvous.hpp>
#include <shardwise/comm/rendezvous.hpp>
#include <string>
#include <thread>
#include <vector>

#include "../support/sanitized.hpp"

namespace shardwise::test {
namespace {

using Catch::Matchers::ContainsSubstring;
using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;
using std::chrono::seconds;
using Rank = std::shared_ptr<Rendezvous>;

/// A directory that does not exist yet, in one that goes with the test.
class Scratch {
 public:
  Scratch() {
    char name[] = "/tmp/rendezvous-test-XXXXXX";
    REQUIRE(mkdtemp(name) != nullptr);
    base_ = name;
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  ~Scratch() { static_cast<void>(std::system(("rm -rf " + base_).c_str())); }

  [[nodiscard]] std::string path() const { return base_ + "/meet"; }
  [[nodiscard]] bool is_clean() const { return access(path().c_str(), F_OK) != 0; }

 private:
  std::string base_;
};

/// What a thread's or process's rank says about how it ended.
std::string end_of(const std::function<std::string()>& body) {
  try {
    return body();
  } catch (const PeerFailed& error) {
    return "peer " + std::to_string(error.rank()) + ": " + error.peer_message();
  } catch (const TimedOut& error) {
    return std::string("timed out: ") + error.what();
  } catch (const UsageError& error) {
    return std::string("usage: ") + error.what();
  } catch (const std::exception& error) {
    return std::string("error: ") + error.what();
  }
}

template <class F>
std::vector<std::string> on_threads(std::vector<Rank> ranks, const F& f) {
  std::vector<std::string> ends(ranks.size());
  std::vector<std::thread> threads;
  for (std::size_t r = 0; r < ranks.size(); ++r) {
    threads.emplace_back([&, r] { ends[r] = end_of([&] { return f(*ranks[r]); }); });
  }
  for (std::thread& thread : threads) thread.join();
  return ends;
}

/// Runs f(rank) in a process each and collects what it returned; a killed one gives "signal".
template <class F>
std::vector<std::string> on_processes(int size, const F& f) {
  struct Child {
    pid_t process;
    int pipe;
  };
  std::vector<Child> children;
  for (int r = 0; r < size; ++r) {
    int ends[2];
    REQUIRE(pipe2(ends, O_CLOEXEC) == 0);
    const pid_t process = fork();
    if (process == 0) {
      const std::string text = end_of([&] { return f(r); });
      const ssize_t put = write(ends[1], text.data(), text.size());
      _exit(put == static_cast<ssize_t>(text.size()) ? 0 : 1);
    }
    close(ends[1]);
    children.push_back({process, ends[0]});
  }
  std::vector<std::string> results;
  for (const Child& child : children) {
    std::string text;
    char block[4096];
    for (ssize_t got = 0; (got = read(child.pipe, block, sizeof block)) > 0;) {
      text.append(block, static_cast<std::size_t>(got));
    }
    close(child.pipe);
    int status = 0;
    waitpid(child.process, &status, 0);
    results.push_back(WIFSIGNALED(status) ? "signal" : text);
  }
  return results;
}

std::string joined(const std::vector<std::string>& texts) {
  std::string all;
  for (const std::string& text : texts) all += text + ";";
  return all;
}

std::string hello(int rank) { return "hello\n" + std::to_string(rank) + std::string(3000, 'x'); }

// Every rank sees what every other put.
std::string talk(Rendezvous& rendezvous) {
  const int size = rendezvous.size();
  rendezvous.put("from-" + std::to_string(rendezvous.rank()), hello(rendezvous.rank()));
  for (int r = 0; r < size; ++r) {
    if (rendezvous.get("from-" + std::to_string(r), seconds(5)) != hello(r)) return "wrong";
  }
  std::string all;
  for (int round = 0; round < 5; ++round) {
    const auto values = rendezvous.exchange("round-" + std::to_string(round),
                                            std::to_string(rendezvous.rank() * 7), seconds(5));
    all = joined(values);
  }
  if (rendezvous.try_get("nobody")) return "found what nobody put";
  if (rendezvous.failure()) return "failed";
  return all;
}

std::string expected_talk(int size) {
  std::string all;
  for (int r = 0; r < size; ++r) all += std::to_string(r * 7) + ";";
  return all;
}

TEST_CASE("threads and processes see each other's values") {
  for (const int size : {1, 2, 5, 8}) {
    const std::vector<std::string> expected(static_cast<std::size_t>(size), expected_talk(size));
    CHECK(on_threads(LocalRendezvous::make(size), talk) == expected);
    const Scratch scratch;
    const auto over_files = [&](int rank) {
      FileRendezvous rendezvous(scratch.path(), rank, size, seconds(5));
      return talk(rendezvous);
    };
    CHECK(on_processes(size, over_files) == expected);
    CHECK(scratch.is_clean());
    CHECK(on_processes(size, over_files) == expected);  // the path can be used again
    CHECK(scratch.is_clean());
  }
}

TEST_CASE("a key is set once and has plain characters") {
  const Scratch scratch;
  for (const bool files : {false, true}) {
    const Rank rank = files ? std::make_shared<FileRendezvous>(scratch.path(), 0, 1)
                            : LocalRendezvous::make(1).front();
    rank->put("key", "value");
    CHECK_THROWS_AS(rank->put("key", "other"), UsageError);
    CHECK(rank->get("key", seconds(0)) == "value");
    for (const char* key : {"", "a/b", ".hidden", "a b", "../x"}) {
      CHECK_THROWS_AS(rank->put(key, ""), UsageError);
      CHECK_THROWS_AS(rank->try_get(key), UsageError);
    }
    CHECK_THROWS_AS(rank->get("late", milliseconds(5)), TimedOut);
  }
  CHECK_THROWS_AS(LocalRendezvous::make(0), UsageError);
  CHECK_THROWS_AS(FileRendezvous(scratch.path(), 2, 2), UsageError);
}

TEST_CASE("a time-out names who is missing") {
  const auto body = [](Rendezvous& rank) {
    if (rank.rank() == 1 || rank.rank() == 3) return std::string("absent");
    rank.put(detail::format("here.{}", rank.rank()), "");
    static_cast<void>(rank.get(detail::format("here.{}", 2 - rank.rank()), seconds(5)));
    static_cast<void>(rank.exchange("start", "", patience(100)));
    return std::string("came through");
  };
  const Scratch scratch;
  const auto over_files = [&](int rank) {
    FileRendezvous rendezvous(scratch.path(), rank, 4, seconds(5));
    std::string text = body(rendezvous);
    std::this_thread::sleep_for(patience(400));  // absent, but alive
    return text;
  };
  for (const auto& ends :
       {on_threads(LocalRendezvous::make(4), body), on_processes(4, over_files)}) {
    for (const int rank : {0, 2}) {
      CHECK_THAT(ends[static_cast<std::size_t>(rank)],
                 ContainsSubstring("\"start\"") && ContainsSubstring("missing ranks: 1, 3"));
    }
    CHECK_THAT(joined(ends), ContainsSubstring("timed out"));
  }
}

TEST_CASE("a failure ends waits, the first stays, and a final message replaces a provisional one") {
  const auto body = [](Rendezvous& rank) -> std::string {
    if (rank.rank() == 2) {
      rank.fail({2, "at first", true});
      std::this_thread::sleep_for(milliseconds(10));
      rank.fail({2, "in the end\nwith a second line", false});
      rank.fail({2, "too late", false});
      rank.fail({0, "of another", false});
      return rank.failure()->message;
    }
    const auto begin = Clock::now();
    const std::string end = end_of([&] { return rank.get("never", seconds(5)); });
    return Clock::now() - begin < seconds(4) ? end : "slow";
  };
  const auto over_files = [&](int rank, const Scratch& scratch) {
    FileRendezvous rendezvous(scratch.path(), rank, 3, seconds(5));
    return body(rendezvous);
  };
  const std::string message = "in the end\nwith a second line";
  const std::vector<std::string> expected{"peer 2: " + message, "peer 2: " + message, message};
  // Waits give the final message a moment: less than a busy machine may hold its rank up.
  const auto heard_early = [](const std::string& end) { return end == "peer 2: at first"; };
  for (const bool processes : {false, true}) {
    constexpr int attempts = 5;
    for (int attempt = 1; attempt <= attempts; ++attempt) {
      const Scratch scratch;
      const auto ends = processes
                            ? on_processes(3, [&](int rank) { return over_files(rank, scratch); })
                            : on_threads(LocalRendezvous::make(3), body);
      if (attempt < attempts && std::ranges::any_of(ends, heard_early)) continue;
      CHECK(ends == expected);
      break;
    }
  }
}

TEST_CASE("processes that are killed are found by their locks, wherever they are") {
  for (const int victim : {0, 1, 3}) {
    const Scratch scratch;
    const auto ends = on_processes(4, [&](int rank) -> std::string {
      FileRendezvous rendezvous(scratch.path(), rank, 4, seconds(5));
      static_cast<void>(rendezvous.exchange("start", "", seconds(5)));
      if (rank == victim) kill(getpid(), SIGKILL);
      if (rank == 2) return "left in peace";  // is no failure, and hides none
      const auto begin = Clock::now();
      const std::string end = end_of([&] { return rendezvous.get("never", seconds(5)); });
      return Clock::now() - begin < seconds(2) ? end : "slow";
    });
    for (int r = 0; r < 4; ++r) {
      const std::string& end = ends[static_cast<std::size_t>(r)];
      if (r == victim) {
        CHECK(end == "signal");
      } else if (r == 2) {
        CHECK(end == "left in peace");
      } else {
        CHECK(end == "peer " + std::to_string(victim) +
                         ": its process has ended without leaving the group");
      }
    }
  }
}

TEST_CASE("what a rank gave before it ended is received") {
  // The peer puts its value and ends between a look at the key and one at the processes.
  struct LateSight final : Rendezvous {
    [[nodiscard]] int rank() const noexcept override { return 0; }
    [[nodiscard]] int size() const noexcept override { return 2; }
    void put(std::string_view, std::string_view) override {}
    [[nodiscard]] std::optional<std::string> try_get(std::string_view key) override {
      if (key.ends_with(".0")) return "own";
      return ended ? std::optional<std::string>("given") : std::nullopt;
    }
    void fail(const RankFailure&) noexcept override {}
    [[nodiscard]] std::optional<RankFailure> failure() noexcept override {
      ended = true;
      return RankFailure{1, "its process has ended", false};
    }
    bool ended = false;
  };
  LateSight late;
  CHECK(joined(late.exchange("end", "own", seconds(5))) == "own;given;");
}

TEST_CASE("what an earlier run left is never read, and is removed") {
  const Scratch scratch;
  for (int run = 0; run < 3; ++run) {  // runs that end by a signal, after they have talked
    const auto ends = on_processes(2, [&](int rank) -> std::string {
      auto* const rendezvous = new FileRendezvous(scratch.path(), rank, 2, seconds(5));
      static_cast<void>(rendezvous->exchange("start", "old" + std::to_string(run), seconds(5)));
      static_cast<void>(rendezvous->exchange("end", "", seconds(5)));
      kill(getpid(), SIGKILL);
      return "alive";
    });
    CHECK(ends == std::vector<std::string>(2, "signal"));
    CHECK_FALSE(scratch.is_clean());
  }
  const auto ends = on_processes(3, [&](int rank) {
    if (rank == 0)
      std::this_thread::sleep_for(milliseconds(100));  // the others find the old session
    FileRendezvous rendezvous(scratch.path(), rank, 3, seconds(5));
    return joined(rendezvous.exchange("start", "new", seconds(5)));
  });
  CHECK(ends == std::vector<std::string>(3, "new;new;new;"));
  CHECK(scratch.is_clean());
}

TEST_CASE("two runs in one directory, two equal ranks and different sizes are refused") {
  const Scratch scratch;
  const FileRendezvous first(scratch.path(), 0, 3);
  CHECK_THROWS_WITH(FileRendezvous(scratch.path(), 0, 3, milliseconds(30)),
                    ContainsSubstring("another run") && ContainsSubstring(scratch.path()));
  const FileRendezvous second(scratch.path(), 1, 3);
  CHECK_THROWS_WITH(FileRendezvous(scratch.path(), 1, 3, milliseconds(30)),
                    ContainsSubstring("two processes that are rank 1"));
  CHECK_THROWS_WITH(FileRendezvous(scratch.path(), 2, 4, milliseconds(30)),
                    ContainsSubstring("expects 4 ranks") && ContainsSubstring("has 3"));
  const Scratch empty;
  CHECK_THROWS_AS(FileRendezvous(empty.path(), 1, 2, milliseconds(30)), TimedOut);
  CHECK(empty.is_clean());
}

TEST_CASE("a directory that others may enter is refused") {
  const Scratch scratch;
  REQUIRE(mkdir(scratch.path().c_str(), 0755) == 0);
  CHECK_THROWS_WITH(FileRendezvous(scratch.path(), 0, 1),
                    ContainsSubstring("755") && ContainsSubstring("chmod 700"));
  REQUIRE(chmod(scratch.path().c_str(), 0700) == 0);
  CHECK_NOTHROW(FileRendezvous(scratch.path(), 0, 1));
  const std::string link = scratch.path() + "-link";
  REQUIRE(mkdir(scratch.path().c_str(), 0700) == 0);
  REQUIRE(symlink(scratch.path().c_str(), link.c_str()) == 0);
  CHECK_THROWS_AS(FileRendezvous(link, 0, 1), FileError);
  CHECK_THROWS_AS(FileRendezvous("/proc/nowhere/at-all", 0, 1), FileError);
}

TEST_CASE("runs that follow each other at once do not disturb each other") {
  const Scratch scratch;
  for (int round = 0; round < 20; ++round) {
    const auto ends = on_processes(3, [&](int rank) {
      std::string all;
      for (int run = 0; run < 5; ++run) {
        FileRendezvous rendezvous(scratch.path(), rank, 3, seconds(5));
        all += joined(rendezvous.exchange("run", std::to_string(run), seconds(5)));
        static_cast<void>(rendezvous.exchange("end", "", seconds(5)));
      }
      return all;
    });
    CHECK(ends == std::vector<std::string>(3, "0;0;0;1;1;1;2;2;2;3;3;3;4;4;4;"));
  }
  CHECK(scratch.is_clean());
}

TEST_CASE("the local place is found by the machines' names") {
  const auto ends = on_threads(LocalRendezvous::make(3), [](Rendezvous& rank) {
    Launch launch{.rank = rank.rank(), .size = 3};
    find_local_place(launch, rank);
    return std::to_string(launch.local_rank) + " of " + std::to_string(launch.local_size);
  });
  CHECK(ends == std::vector<std::string>{"0 of 3", "1 of 3", "2 of 3"});
}

TEST_CASE("the default directory is named after the job or the parent") {
  Launch launch{.rank = 1, .size = 2, .job = "a/b:c-7"};
  CHECK_THAT(FileRendezvous::default_path(launch), ContainsSubstring("a_b_c-7"));
  launch.job.clear();
  CHECK_THAT(FileRendezvous::default_path(launch), ContainsSubstring(std::to_string(getppid())));
  CHECK(make_rendezvous({})->size() == 1);
}

}  // namespace
}  // namespace shardwise::test
