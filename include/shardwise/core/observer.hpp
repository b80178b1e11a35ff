#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <string_view>

namespace shardwise::inline v0_1 {

/// What a Context reports while it works.
enum class Activity : std::uint8_t {
  gather,  ///< an all-gather of parameters was issued
  reduce,  ///< a reduction of gradients was issued
  update,  ///< an optimizer step ran over one parameter
  scalar,  ///< a group scalar, norm or flag was agreed
  wait     ///< the host waited for communication
};

/// One report. `name` (the parameter's, or the call's) is valid during the call alone.
struct ActivityRecord {
  Activity activity;
  std::string_view name;
  std::size_t bytes;  ///< of the whole buffer, in the type on the wire; 0 where nothing travels
  std::chrono::steady_clock::time_point begin;  ///< when the host entered the call
  std::chrono::steady_clock::time_point end;    ///< when the host left it
};

/// A monitor implements this. A Context calls it on the thread that did what is reported: the
/// host's, in program order, for everything above. It must not call back into the Context.
class Observer {
 public:
  virtual ~Observer() = default;
  virtual void record(const ActivityRecord& record) noexcept = 0;
};

}  // namespace shardwise::inline v0_1
