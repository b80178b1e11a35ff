#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <type_traits>

#include "../core/error.hpp"

namespace shardwise::inline v0_1::detail::failures {

enum class Kind : std::uint8_t {
  failed,  // {rank, provisional, left, died, text}
  left,    // {group, last, parent, call}: the origin destroyed a communicator after its call `last`
  goodbye,  // {}: the origin closes its channel and is well
  ask,      // {question, group}
  answer    // {asker, question, sequence, inside, text}
};

/// Numbers and texts as bytes, for processes of one architecture.
class Writer {
 public:
  template <class T>
  requires std::is_trivially_copyable_v<T> Writer& put(T value) {
    bytes_.append(reinterpret_cast<const char*>(&value), sizeof value);
    return *this;
  }
  Writer& put_text(std::string_view text) {
    text = text.substr(0, longest_text);
    put(static_cast<std::uint32_t>(text.size()));
    bytes_.append(text);
    return *this;
  }

  Writer& put_flag(bool value) { return put(static_cast<std::uint8_t>(value)); }
  Writer& append(std::string_view bytes) {
    bytes_.append(bytes);
    return *this;
  }
  Writer& append(const Writer& other) { return append(other.bytes_); }

  /// The bytes with their number before them.
  [[nodiscard]] std::string frame() const {
    Writer size;
    size.put(static_cast<std::uint32_t>(bytes_.size()));
    return size.bytes_ + bytes_;
  }

  static constexpr std::size_t longest_text = 8192;

 private:
  std::string bytes_;
};

/// Reads what Writer wrote; BackendError where it is something else.
class Reader {
 public:
  explicit Reader(std::string_view bytes) noexcept : bytes_(bytes) {}

  template <class T>
  requires std::is_trivially_copyable_v<T>
  [[nodiscard]] T get() {
    T value;
    std::memcpy(&value, take(sizeof value).data(), sizeof value);
    return value;
  }
  [[nodiscard]] bool get_flag() { return get<std::uint8_t>() != 0; }
  [[nodiscard]] std::string get_text() { return std::string(take(get<std::uint32_t>())); }

  /// Takes one frame from the front of `bytes`; empty where it is not whole yet.
  [[nodiscard]] static std::string_view frame_of(std::string_view bytes) {
    std::uint32_t size = 0;
    if (bytes.size() < sizeof size) return {};
    std::memcpy(&size, bytes.data(), sizeof size);
    if (size == 0 || size > longest_frame) refuse();
    if (bytes.size() - sizeof size < size) return {};
    return bytes.substr(sizeof size, size);
  }

  [[noreturn]] static void refuse() {
    raise<BackendError>(
        "a peer sent what no failure channel sends: do all processes run the same program?");
  }

 private:
  static constexpr std::uint32_t longest_frame = Writer::longest_text + 256;

  std::string_view take(std::size_t size) {
    if (size > bytes_.size()) refuse();
    const std::string_view taken = bytes_.substr(0, size);
    bytes_.remove_prefix(size);
    return taken;
  }

  std::string_view bytes_;
};

}  // namespace shardwise::inline v0_1::detail::failures
