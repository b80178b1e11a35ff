#pragma once

#include <utility>

#include "context.hpp"

namespace shardwise::inline v0_1 {

/// A scope in which every parameter of a context is gathered; made by full_parameters().
/// Move-only. All ranks end it, at the same place in the program.
template <class Device = HostDevice>
class [[nodiscard]] FullParameters {
 public:
  explicit FullParameters(Context<Device>& context) : store_(&context.parameter_store()) {
    store_->open_all();
  }
  FullParameters(FullParameters&& other) noexcept : store_(std::exchange(other.store_, nullptr)) {}
  FullParameters& operator=(FullParameters&&) = delete;
  ~FullParameters() { release(); }

  /// Ends the scope now. Idempotent.
  void release() noexcept {
    if (auto* store = std::exchange(store_, nullptr)) store->close_all();
  }

 private:
  detail::ParameterStore<Device>* store_;
};

/// For sampling, evaluation or saving on one rank: gathers every parameter on all ranks and keeps
/// it gathered until the scope ends. Within it gather() and ensure_gathered() are free and may be
/// called by one rank alone, in any order; nothing may be written, and all ranks must end the scope
/// before they go on. Takes the memory of the whole model in the lease type on every rank (counted
/// as slots, beyond the plan) and gives it back. UsageError where a parameter lives in buffers of
/// the host, which only its own gather gives.
template <class Device>
[[nodiscard]] FullParameters<Device> full_parameters(Context<Device>& context) {
  return FullParameters<Device>(context);
}

}  // namespace shardwise::inline v0_1
