#pragma once

#include <concepts>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>

#include "format.hpp"

namespace shardwise::inline v0_1 {

/// Base of every exception that the library throws. Messages say what was expected, what was found,
/// where (parameter, rank, operation) and what to do.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// The caller broke a rule that every rank can see (names, shapes, order of calls), so either all
/// ranks throw it or none does.
class UsageError : public Error {
 public:
  using Error::Error;
};

/// Ranks called different collectives. Thrown on every rank, before any byte moved, with one line
/// for each side.
class CollectiveMismatch : public UsageError {
 public:
  using UsageError::UsageError;
};

/// Another rank failed first. Thrown on every rank that waits for it, or that calls the library
/// afterwards.
class PeerFailed : public Error {
 public:
  PeerFailed(const std::string& what, int rank, std::string peer_message)
      : Error(what), rank_(rank), peer_message_(std::move(peer_message)) {}

  /// The first rank that failed.
  [[nodiscard]] int rank() const noexcept { return rank_; }
  /// What that rank said.
  [[nodiscard]] const std::string& peer_message() const noexcept { return peer_message_; }

 private:
  int rank_;
  std::string peer_message_;
};

/// Ranks that never arrived at a collective. Thrown on the rank whose wait ended first; its peers
/// get PeerFailed with the same text.
class TimedOut : public Error {
 public:
  using Error::Error;
};

/// A file could not be read or written, or its content is not what it should be.
class FileError : public Error {
 public:
  using Error::Error;
};

/// A configuration (file, option, strategy name) that cannot be carried out.
class ConfigError : public Error {
 public:
  using Error::Error;
};

/// MPI, CUDA, NCCL or the operating system refused.
class BackendError : public Error {
 public:
  using Error::Error;
};

/// Throws E with a formatted message.
template <std::derived_from<Error> E = UsageError, class... Args>
[[noreturn]] void raise(detail::FormatFor<Args...> format, const Args&... args) {
  throw E(detail::format(format, args...));
}

}  // namespace shardwise::inline v0_1
