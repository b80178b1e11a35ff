#pragma once

// nvcc's front end takes fmt 9 only so.
#if defined(__CUDACC__) && !defined(FMT_USE_CONSTEXPR)
#define FMT_USE_CONSTEXPR 1
#endif
#include <fmt/core.h>
#if FMT_VERSION >= 110000  // its core.h has no vformat, or is to lose it
#include <fmt/format.h>
#endif

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
  consteval Format(const char (&characters)[Size]) : text(characters, Size - 1) {
    std::size_t fields = 0;
    for (std::size_t i = 0; i + 1 < Size; ++i) {
      if (characters[i] != '{' && characters[i] != '}') continue;
      if (characters[i + 1] == characters[i]) {
        ++i;  // a brace as such
        continue;
      }
      if (characters[i] == '}') throw "a brace of the format closes nothing";
      while (characters[i] != '}') {
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

/// The text of a message: format("{} of {}", a, b). An object, as for a function those of std are
/// looked up, too, where an argument is a std::string, and std::format fits as well.
struct Formatting {
  template <class... Args>
  [[nodiscard]] std::string operator()(FormatFor<Args...> text, const Args&... args) const {
    return fmt::vformat(text.text, fmt::make_format_args(args...));
  }
};
inline constexpr Formatting format{};

}  // namespace shardwise::inline v0_1::detail
