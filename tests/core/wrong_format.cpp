// A message with fewer fields than arguments is refused while compiling.

#include <shardwise/core/error.hpp>

int main() {
#ifdef POSITIVE_CONTROL
  shardwise::raise("{} and {}", 1, 2);
#else
  shardwise::raise("{} and", 1, 2);
#endif
}
