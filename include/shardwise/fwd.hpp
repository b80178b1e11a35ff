#pragma once

/// @file
/// Declarations of the types that hosts name in their own headers.

namespace shardwise::inline v0_1 {

class Communicator;
struct HostDevice;
struct Strategy;
class Layout;
class LossScaler;

template <class Device = HostDevice>
class Context;

}  // namespace shardwise::inline v0_1
