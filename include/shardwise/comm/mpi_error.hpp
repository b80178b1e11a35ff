#pragma once

#include <mpi.h>

#include <array>
#include <cstddef>
#include <string>
#include <string_view>

#include "../core/error.hpp"

namespace shardwise::inline v0_1::detail::mpi {

/// What MPI says of an error code.
[[nodiscard]] inline std::string text_of(int code) {
  std::array<char, MPI_MAX_ERROR_STRING> text{};
  int length = 0;
  if (MPI_Error_string(code, text.data(), &length) != MPI_SUCCESS) return "unknown error";
  return {text.data(), static_cast<std::size_t>(length)};
}

/// BackendError where MPI refused: the call, its cause, and in which collective.
inline void check(int code, std::string_view call, std::string_view during) {
  if (code == MPI_SUCCESS) return;
  raise<BackendError>("{} failed with code {} ({}) in {}", call, code, text_of(code), during);
}

}  // namespace shardwise::inline v0_1::detail::mpi
