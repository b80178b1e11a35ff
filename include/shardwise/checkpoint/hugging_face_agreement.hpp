#pragma once

#include <algorithm>
#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <new>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "../comm/collectives.hpp"
#include "../comm/communicator.hpp"
#include "../core/error.hpp"

namespace shardwise::inline v0_1::detail {

/// What ranks do with files, each for itself, and how all of them learn what went wrong on one. All
/// functions are collective.
class FilesTogether {
 public:
  FilesTogether(Communicator& comm, std::chrono::nanoseconds timeout, std::string_view name)
      : comm_(comm), info_{name, timeout} {}

  [[nodiscard]] int rank() const noexcept { return comm_.rank(); }

  /// f() on each rank; where it threw FileError, or found no memory, on any of them, all throw the
  /// first one's FileError, followed by `consequence`.
  template <class F>
  void run(F&& f, std::string_view consequence = "") {
    std::string failure;
    try {
      f();
    } catch (const FileError& error) {
      failure = error.what();
    } catch (const std::bad_alloc&) {
      failure = "no memory is left";
    }
    agree(failure, consequence);
  }
  /// Where `failure` is empty on all ranks they return.
  void agree(std::string_view failure, std::string_view consequence = "") {
    const std::vector<std::int64_t> sizes = gather(static_cast<std::int64_t>(failure.size()));
    const auto first = std::find_if(sizes.begin(), sizes.end(), [](auto size) { return size > 0; });
    if (first == sizes.end()) return;
    const int failed = static_cast<int>(first - sizes.begin());
    std::vector<std::uint8_t> text(static_cast<std::size_t>(*first));
    if (rank() == failed) std::copy(failure.begin(), failure.end(), text.begin());
    broadcast(comm_, text, failed, info_);
    raise<FileError>("rank {}: {}{}", failed, std::string(text.begin(), text.end()), consequence);
  }

  /// Rank 0's number.
  [[nodiscard]] std::uint64_t from_first(std::uint64_t number) {
    std::array<std::int64_t, 1> value{static_cast<std::int64_t>(number)};
    broadcast(comm_, value, 0, info_);
    return static_cast<std::uint64_t>(value[0]);
  }
  /// The first rank whose number is not rank 0's; 0 where they are all equal.
  [[nodiscard]] int first_that_differs(std::uint64_t number) {
    const std::vector<std::int64_t> all = gather(static_cast<std::int64_t>(number));
    const auto other = std::find_if(all.begin(), all.end(), [&](auto n) { return n != all[0]; });
    return other == all.end() ? 0 : static_cast<int>(other - all.begin());
  }

 private:
  [[nodiscard]] std::vector<std::int64_t> gather(std::int64_t mine) {
    std::vector<std::int64_t> all(ranks_of(comm_));
    all_gather(comm_, std::span<const std::int64_t>(&mine, 1), all, info_);
    return all;
  }

  Communicator& comm_;
  CallInfo info_;
};

}  // namespace shardwise::inline v0_1::detail
