#pragma once

// nvcc's front end takes fmt 9 only so.
#if defined(__CUDACC__) && !defined(FMT_USE_CONSTEXPR)
#define FMT_USE_CONSTEXPR 1
#endif
#include <fmt/core.h>

#include <cstddef>
#include <string>
#include <type_traits>

namespace shardwise::inline v0_1::detail {

/// A format for `Count` arguments, which is checked while compiling; a field has one argument, in
/// order, and nothing nested. fmt's own check, of every type as well, would cost each unit that
/// includes the library a tenth of its time.
template <std::size_t Count>
struct Format {
  template <std::size_t Size>
  consteval Format(const char (&format)[Size]) : text(format, Size - 1) {
    std::size_t fields = 0;
    for (std::size_t i = 0; i + 1 < Size; ++i) {
      if (format[i] != '{' && format[i] != '}') continue;
      if (format[i + 1] == format[i]) {
        ++i;  // a brace as such
        continue;
      }
      if (format[i] == '}') throw "a brace of the format closes nothing";
      while (format[i] != '}') {
        if (++i + 1 >= Size) throw "a field of the format does not end";
      }
      ++fields;
    }
    if (fields != Count) throw "the format has more or fewer fields than there are arguments";
  }

  fmt::string_view text;
};

/// Not deduced from: nvcc would try to.
template <class... Args>
using FormatFor = std::type_identity_t<Format<sizeof...(Args)>>;

/// The text of a message.
template <class... Args>
[[nodiscard]] std::string format(FormatFor<Args...> format, const Args&... args) {
  return fmt::vformat(format.text, fmt::make_format_args(args...));
}

}  // namespace shardwise::inline v0_1::detail
