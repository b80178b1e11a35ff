#pragma once

namespace shardwise::test {

/// How often this process was in two MPI calls at once, which MPI_THREAD_SERIALIZED forbids. Of the
/// calls that the library makes; the first is written to stderr.
[[nodiscard]] int calls_at_once() noexcept;

}  // namespace shardwise::test
