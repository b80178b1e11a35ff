#pragma once

#include <string>
#include <type_traits>
#include <version>

/// @file
/// std::format for compilers whose library has none yet: where a function named format is looked up
/// by the types of its arguments, it is a candidate.
#ifdef __cpp_lib_format
#include <format>
#else
namespace std {

template <class... Args>
struct stand_in_format_string {
  template <class Text>
  consteval stand_in_format_string(const Text&) {}
};

template <class... Args>
string format(stand_in_format_string<type_identity_t<Args>...>, Args&&...) {
  return {};
}

}  // namespace std
#endif
