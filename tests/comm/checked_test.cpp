#include <atomic>
#include <barrier>
#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <chrono>
#include <cstring>
#include <functional>
#include <memory>
#include <shardwise/comm/checked.hpp>
#include <shardwise/comm/self.hpp>
#include <shardwise/comm/thread.hpp>
#include <shardwise/device/host_stream.hpp>
#include <string>
#include <thread>
#include <vector>

#include "../support/endings.hpp"
#include "../support/sanitized.hpp"
#include "cases.hpp"

namespace shardwise::test {
namespace {

using Catch::Matchers::ContainsSubstring;
using namespace std::chrono_literals;

const int worlds[] = {1, 2, 3, 4, 7};

/// Ranks that meet and compare nothing: what they call is counted, and only all_gather moves bytes.
class PlainRank final : public Communicator {
 public:
  struct Group {
    explicit Group(int size) : meeting(size), items(static_cast<std::size_t>(size)) {}
    std::barrier<> meeting;
    std::vector<const GatherItem*> items;
    std::shared_ptr<Group> part;
    std::atomic<int> moved{0};
  };

  PlainRank(std::shared_ptr<Group> group, int rank) : group_(std::move(group)), rank_(rank) {}

  [[nodiscard]] int rank() const noexcept override { return rank_; }
  [[nodiscard]] int size() const noexcept override {
    return static_cast<int>(group_->items.size());
  }
  [[nodiscard]] std::string_view backend() const noexcept override { return "plain"; }
  [[nodiscard]] bool accepts(MemoryKind) const noexcept override { return true; }
  [[nodiscard]] std::size_t landing_bytes(const ReduceItem& item, bool) const noexcept override {
    return item.count;
  }
  void all_gather(std::span<const GatherItem> items, const CallInfo&, StreamRef) override {
    group_->items[static_cast<std::size_t>(rank_)] = items.data();
    group_->meeting.arrive_and_wait();
    for (std::size_t r = 0; r < group_->items.size(); ++r) {
      const GatherItem& from = *group_->items[r];
      const std::size_t bytes = from.count * size_of(from.dtype);
      std::memcpy(static_cast<std::byte*>(items.front().recv) + r * bytes, from.send, bytes);
    }
    move();
  }
  void reduce_scatter(std::span<const ReduceItem>, const CallInfo&, StreamRef) override { move(); }
  void all_reduce(std::span<const ReduceItem>, const CallInfo&, StreamRef) override { move(); }
  void broadcast(std::span<const BroadcastItem>, int, const CallInfo&, StreamRef) override {
    move();
  }
  void all_to_all(std::span<const ExchangeItem>, const CallInfo&, StreamRef) override { move(); }
  void barrier(const CallInfo&, StreamRef) override { group_->meeting.arrive_and_wait(); }
  [[nodiscard]] std::unique_ptr<Communicator> split(int, int, const CallInfo&) override {
    if (rank_ == 0) group_->part = std::make_shared<Group>(size());
    group_->meeting.arrive_and_wait();
    auto result = std::make_unique<PlainRank>(group_->part, rank_);
    group_->meeting.arrive_and_wait();
    return result;
  }
  void abort(std::string_view, bool) noexcept override { ++aborted; }
  void check() override { ++checks; }

  int aborted = 0;
  int checks = 0;

 private:
  void move() {
    group_->moved += 1;
    group_->meeting.arrive_and_wait();
  }

  std::shared_ptr<Group> group_;
  int rank_;
};

/// Runs body(checked communicator) on ranks that compare nothing themselves; what each threw.
/// `moved` counts the ranks that went into a collective.
struct PlainRun {
  int moved = 0;
  std::vector<std::string> mismatches;  // empty: none
};

PlainRun run_plain(int world, const CheckedOptions& options,
                   const std::function<void(Communicator&)>& body) {
  const auto group = std::make_shared<PlainRank::Group>(world);
  PlainRun result;
  result.mismatches.resize(static_cast<std::size_t>(world));
  std::vector<std::thread> threads;
  for (int r = 0; r < world; ++r) {
    threads.emplace_back([&, r] {
      CheckedCommunicator checked(std::make_unique<PlainRank>(group, r), options);
      try {
        body(checked);
      } catch (const CollectiveMismatch& error) {
        result.mismatches[static_cast<std::size_t>(r)] = error.what();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  result.moved = group->moved.load();
  return result;
}

/// One call of each kind, with what it reads and writes.
class Call {
 public:
  explicit Call(Communicator& comm) : comm_(comm), buffer_(4096) {}

  void gather(std::size_t count, const char* name = "w", DType dtype = DType::f32,
              std::uint64_t detail = 0) {
    const GatherItem item{buffer_.data(), buffer_.data() + 64, count, dtype};
    comm_.all_gather({&item, 1}, {.name = name, .detail = detail}, {});
  }
  void gather_two(std::size_t second) {
    const GatherItem items[] = {{buffer_.data(), buffer_.data() + 64, 2, DType::f32},
                                {buffer_.data(), buffer_.data() + 64, second, DType::f32}};
    comm_.all_gather(items, {.name = "pair"}, {});
  }
  void reduce(double scale, bool accumulate = false, bool scatter = true) {
    const ReduceItem item{buffer_.data(),
                          buffer_.data() + 64,
                          2,
                          DType::f32,
                          {DType::f32, scale, 1, accumulate, false}};
    if (scatter) return comm_.reduce_scatter({&item, 1}, {.name = "g"}, {});
    comm_.all_reduce({&item, 1}, {.name = "g"}, {});
  }
  void broadcast(int root) {
    const BroadcastItem item{buffer_.data(), 3, DType::f32};
    comm_.broadcast({&item, 1}, root, {.name = "start"}, {});
  }
  void exchange(std::size_t count) {
    const ExchangeItem item{buffer_.data(), buffer_.data() + 64, count, DType::f32};
    comm_.all_to_all({&item, 1}, {.name = "x"}, {});
  }
  void barrier(const char* name) { comm_.barrier({.name = name}, {}); }

 private:
  Communicator& comm_;
  std::vector<float> buffer_;
};

TEST_CASE("calls that differ in anything are refused on all ranks before a byte moves") {
  struct Case {
    std::function<void(Call&)> most;
    std::function<void(Call&)> other;
    const char* most_text;
    const char* other_text;
  };
  const Case cases[] = {
      {[](Call& c) { c.gather(2); }, [](Call& c) { c.reduce(1); }, "all_gather #2 \"w\" (f32 x 2)",
       "reduce_scatter #2 \"g\" (f32 x 2)"},
      {[](Call& c) { c.gather(2); }, [](Call& c) { c.gather(3); }, "(f32 x 2)", "(f32 x 3)"},
      {[](Call& c) { c.gather(2); }, [](Call& c) { c.gather(2, "w", DType::bf16); }, "(f32 x 2)",
       "(bf16 x 2)"},
      {[](Call& c) { c.gather(2, "a"); }, [](Call& c) { c.gather(2, "b"); }, "\"a\"", "\"b\""},
      {[](Call& c) { c.gather(2, "w", DType::f32, 1); },
       [](Call& c) { c.gather(2, "w", DType::f32, 2); }, "detail 0000000000000001",
       "detail 0000000000000002"},
      {[](Call& c) { c.gather_two(4); }, [](Call& c) { c.gather_two(5); }, "item 1: f32 x 4",
       "item 1: f32 x 5"},
      {[](Call& c) { c.gather_two(4); }, [](Call& c) { c.gather(4); }, "2 items", "(f32 x 4)"},
      {[](Call& c) { c.reduce(1); }, [](Call& c) { c.reduce(0.5); }, "(f32 x 2)", "scale 0.5"},
      {[](Call& c) { c.reduce(1); }, [](Call& c) { c.reduce(1, true); }, "(f32 x 2)",
       "accumulating"},
      {[](Call& c) { c.reduce(1); }, [](Call& c) { c.reduce(1, false, false); },
       "reduce_scatter #2", "all_reduce #2"},
      {[](Call& c) { c.broadcast(0); }, [](Call& c) { c.broadcast(1); }, "from root 0",
       "from root 1"},
      {[](Call& c) { c.exchange(1); }, [](Call& c) { c.exchange(2); }, "all_to_all #2 \"x\"",
       "(f32 x 2)"},
      {[](Call& c) { c.barrier("end"); }, [](Call& c) { c.exchange(2); }, "barrier #2 \"end\"",
       "all_to_all #2"}};
  for (const int world : worlds) {
    for (const Case& each : cases) {
      const int different = world - 1;
      const PlainRun run = run_plain(world, {}, [&](Communicator& comm) {
        Call call(comm);
        call.barrier("start");
        (comm.rank() == different && world > 1 ? each.other : each.most)(call);
      });
      CHECK(run.moved == (world == 1 && each.most_text[0] != 'b' ? 1 : 0));
      if (world == 1) continue;
      for (const std::string& text : run.mismatches) {
        CHECK(text == run.mismatches.front());
        CHECK_THAT(
            text, ContainsSubstring("different collectives") && ContainsSubstring(each.most_text) &&
                      ContainsSubstring(each.other_text) && ContainsSubstring("\n  rank 0") &&
                      ContainsSubstring("no byte was moved"));
        CHECK_THAT(text, ContainsSubstring(detail::format("\n  rank {}: ", different)));
      }
    }
  }
}

TEST_CASE("a mismatch is final") {
  const PlainRun run = run_plain(3, {}, [&](Communicator& comm) {
    Call call(comm);
    try {
      call.barrier(comm.rank() == 1 ? "a" : "b");
    } catch (const CollectiveMismatch&) {
      call.barrier("equal");  // refused without a word between the ranks
    }
  });
  for (const std::string& text : run.mismatches) CHECK_THAT(text, ContainsSubstring("barrier #1"));
  CHECK(run.moved == 0);
}

TEST_CASE("with every k-th call compared, a difference between is known at the next comparison") {
  for (const std::uint64_t every : {2u, 3u, 5u}) {
    const PlainRun run = run_plain(4, {.every = every}, [&](Communicator& comm) {
      Call call(comm);
      for (int i = 0; i < 3; ++i) call.reduce(1);  // the calls that differ are no meeting
      call.reduce(comm.rank() == 2 ? 0.5 : 1);
      for (int i = 0; i < 5; ++i) call.reduce(1);
    });
    // Call 4 is the one that differs; it is compared itself for every = 3.
    const bool itself = every == 3;
    const std::uint64_t seen_at = itself ? 4 : (3 / every + 1) * every + 1;
    CHECK(run.moved == static_cast<int>(4 * (seen_at - 1)));
    for (const std::string& text : run.mismatches) {
      if (itself) {
        CHECK_THAT(text, ContainsSubstring("reduce_scatter #4") && ContainsSubstring("scale 0.5"));
      } else {
        CHECK_THAT(text, ContainsSubstring("before") && ContainsSubstring("every = 1") &&
                             ContainsSubstring(detail::format("#{}", seen_at)));
      }
    }
  }
}

TEST_CASE("parts of a split are checked, and calls go through to the communicator") {
  const PlainRun run = run_plain(3, {}, [&](Communicator& comm) {
    const auto part = comm.split(0, 0, {.name = "parts"});
    Call call(*part);
    call.barrier("equal");
    call.barrier(comm.rank() == 0 ? "a" : "b");
  });
  for (const std::string& text : run.mismatches) CHECK_THAT(text, ContainsSubstring("barrier #2"));

  const PlainRun split = run_plain(3, {}, [&](Communicator& comm) {
    if (comm.rank() == 0) return static_cast<void>(comm.split(0, 0, {.name = "parts"}));
    comm.barrier({.name = "end"}, {});
  });
  for (const std::string& text : split.mismatches) {
    CHECK_THAT(text, ContainsSubstring("split #1 \"parts\"") && ContainsSubstring("barrier #1"));
  }

  auto plain = std::make_unique<PlainRank>(std::make_shared<PlainRank::Group>(1), 0);
  PlainRank& inner = *plain;
  CheckedCommunicator checked(std::move(plain));
  CHECK(checked.backend() == "plain");
  CHECK(checked.accepts(MemoryKind::cuda));
  CHECK(checked.landing_bytes({nullptr, nullptr, 5, DType::f32, {}}, true) == 5);
  checked.check();
  CHECK(inner.checks == 1);
  checked.abort("enough");
  CHECK(inner.aborted == 1);
}

TEST_CASE("what a checked communicator cannot be made from is refused") {
  CHECK_THROWS_AS(CheckedCommunicator(std::unique_ptr<Communicator>()), UsageError);
  CHECK_THROWS_AS(
      CheckedCommunicator(std::make_unique<SelfCommunicator>(), CheckedOptions{.every = 0}),
      UsageError);
  auto two = make_thread_group(2);
  CHECK_THROWS_AS(CheckedCommunicator(std::make_unique<SelfCommunicator>(), std::move(two[0])),
                  UsageError);
}

TEST_CASE("results are those of the communicator, on the null stream and on a worker") {
  for (const int world : worlds) {
    for (const bool worker : {false, true}) {
      std::atomic<int> wrong{0};
      run_ranks(world, [&](Communicator& threads) {
        CheckedCommunicator comm(threads);
        HostStream stream(worker ? HostStream::Mode::worker : HostStream::Mode::inline_calls);
        for (const Operation operation :
             {Operation::all_gather, Operation::reduce_scatter, Operation::all_reduce,
              Operation::broadcast, Operation::all_to_all, Operation::barrier}) {
          CollectiveCase one{operation, {{.count = 5}, {.count = 3}}};
          if (operation == Operation::barrier) one.items.clear();
          RankCall call(one, comm.rank(), world);
          call.issue(comm, {MemoryKind::host, &stream});
          stream.synchronize();
          if (call.results() != RankCall::expected(one, comm.rank(), world)) ++wrong;
        }
      });
      CHECK(wrong == 0);
    }
  }
}

TEST_CASE("a comparison waits for no earlier collective in a stream") {
  // Rank 1's stream is stuck before the first collective; the second one's comparison ends.
  std::atomic<bool> go{false};
  std::atomic<int> compared{0};
  run_ranks(2, [&](Communicator& threads) {
    CheckedCommunicator comm(threads);
    HostStream stream(HostStream::Mode::worker);
    if (comm.rank() == 1) {
      stream.enqueue([&] {
        while (!go) std::this_thread::sleep_for(1ms);
      });
    }
    const CollectiveCase one{Operation::all_gather, {{}}};
    RankCall first(one, comm.rank(), 2);
    RankCall second(one, comm.rank(), 2);
    first.issue(comm, {MemoryKind::host, &stream}, {.name = "first", .timeout = 10s});
    second.issue(comm, {MemoryKind::host, &stream}, {.name = "second", .timeout = 10s});
    if (++compared == 2) go = true;
    stream.synchronize();
  });
  CHECK(compared == 2);
}

TEST_CASE("a rank that never makes the call is named, with the call of the others") {
  std::barrier others(2);
  std::atomic<int> ended{0};
  try {
    run_ranks(3, [&](Communicator& threads) {
      CheckedCommunicator comm(threads);
      if (comm.rank() == 2) {
        while (ended < 2) std::this_thread::sleep_for(1ms);
        return;
      }
      others.arrive_and_wait();
      const CountsEnd end{ended};
      comm.barrier({.name = "epoch", .timeout = patience(100)}, {});
    });
    FAIL("nobody waited in vain");
  } catch (const TimedOut& error) {
    CHECK_THAT(error.what(), ContainsSubstring("missing ranks: 2") &&
                                 ContainsSubstring("about to call barrier #1 \"epoch\""));
  }
}

}  // namespace
}  // namespace shardwise::test
