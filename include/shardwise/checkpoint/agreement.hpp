#pragma once

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "../comm/collectives.hpp"
#include "../comm/communicator.hpp"
#include "../core/error.hpp"

namespace shardwise::inline v0_1::detail {

/// The ranks that save or load together. Its functions are collective.
struct CheckpointGroup {
  Communicator& comm;
  std::chrono::nanoseconds timeout;  ///< files of the slowest rank included

  [[nodiscard]] int rank() const noexcept { return comm.rank(); }
  [[nodiscard]] std::size_t size() const noexcept { return ranks_of(comm); }
  [[nodiscard]] CallInfo info(std::string_view name) const noexcept { return {name, timeout}; }

  /// What each rank gave.
  [[nodiscard]] std::vector<std::int64_t> gather(std::int64_t mine, std::string_view name) const {
    std::vector<std::int64_t> all(size());
    all_gather(comm, std::span<const std::int64_t>(&mine, 1), all, info(name));
    return all;
  }

  /// The first rank whose number is not rank 0's; 0 where all are equal.
  [[nodiscard]] int first_that_differs(std::uint64_t number, std::string_view name) const {
    const auto all = gather(static_cast<std::int64_t>(number), name);
    const auto other = std::find_if(all.begin(), all.end(), [&](auto n) { return n != all[0]; });
    return other == all.end() ? 0 : static_cast<int>(other - all.begin());
  }

  /// Everybody's `bytes` become the root's; they are of one size on all ranks.
  void share(std::span<char> bytes, int root, std::string_view name) const {
    // Backends of devices bring host memory through buffers as large as what comes at once.
    constexpr std::size_t most = std::size_t{1} << 16;
    while (!bytes.empty()) {
      const auto part = bytes.first(std::min(most, bytes.size()));
      const std::span whole(reinterpret_cast<std::uint8_t*>(part.data()), part.size());
      broadcast(comm, whole, root, info(name));
      bytes = bytes.subspan(part.size());
    }
  }
  /// Everybody's `text` becomes the root's.
  void share(std::string& text, int root, std::string_view name) const {
    std::int64_t bytes[] = {static_cast<std::int64_t>(text.size())};
    broadcast(comm, bytes, root, info(name));
    text.resize(static_cast<std::size_t>(bytes[0]));
    share(std::span(text), root, name);
  }
  /// take(rank, text) on rank 0 with each rank's text, in order; one of them at a time is held
  /// beside one's own.
  template <class Take>
  void collect(std::string_view mine, std::string_view name, const Take& take) const {
    const auto sizes = gather(static_cast<std::int64_t>(mine.size()), name);
    std::string text;
    for (std::size_t r = 0; r < sizes.size(); ++r) {
      const bool is_mine = static_cast<int>(r) == rank();
      if (is_mine) {
        text = mine;
      } else {
        text.resize(static_cast<std::size_t>(sizes[r]));
      }
      share(std::span(text), static_cast<int>(r), name);
      if (rank() == 0) take(r, std::string_view(text));
    }
  }
};

/// What went wrong on this rank alone, until all ranks know of it.
class Outcome {
 public:
  /// Runs f(), unless something has failed before.
  template <class F>
  void run(F&& f) {
    if (kind_ != none) return;
    try {
      f();
    } catch (const UsageError& error) {
      fail(wrong_use, error.what());
    } catch (const std::exception& error) {
      fail(broken, error.what());
    }
  }

  [[nodiscard]] bool good() const noexcept { return kind_ == none; }
  [[nodiscard]] const std::string& message() const noexcept { return message_; }

  /// All ranks return where run() was good on all of them; else all throw what the first one that
  /// failed has seen: FileError, or UsageError where that is what it was. The message ends with
  /// `consequence`.
  void agree(const CheckpointGroup& group, std::string_view name,
             std::string_view consequence) const {
    const auto kinds = group.gather(kind_, name);
    const auto first = std::find_if(kinds.begin(), kinds.end(), [](auto k) { return k != none; });
    if (first == kinds.end()) return;
    const int rank = static_cast<int>(first - kinds.begin());
    std::string text = message_;
    group.share(text, rank, name);
    if (*first == wrong_use) raise("rank {}: {}{}", rank, text, consequence);
    raise<FileError>("rank {}: {}{}", rank, text, consequence);
  }

 private:
  enum Kind : std::int64_t { none, wrong_use, broken };

  void fail(Kind kind, std::string_view message) {
    constexpr std::size_t longest = 4096;
    kind_ = kind;
    message_ = message.substr(0, longest);
    if (message_.empty()) message_ = "an exception without a message";
  }

  Kind kind_ = none;
  std::string message_;
};

}  // namespace shardwise::inline v0_1::detail
