// A communicator that lacks a function is refused where the host names it.

#include <shardwise/comm/communicator.hpp>
#include <shardwise/comm/self.hpp>

namespace {

#ifdef POSITIVE_CONTROL
using Mine = shardwise::SelfCommunicator;
#else
class Mine : public shardwise::Communicator {
 public:
  [[nodiscard]] int rank() const noexcept override { return 0; }
  [[nodiscard]] int size() const noexcept override { return 1; }
};
#endif

}  // namespace

int main() { return shardwise::make_communicator<Mine>()->rank(); }
