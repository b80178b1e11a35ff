#pragma once

#include <mpi.h>

#include <chrono>
#include <memory>
#include <utility>

#include "../core/error.hpp"
#include "mpi_error.hpp"
#include "mpi_patience.hpp"
#include "mpi_session.hpp"

namespace shardwise::inline v0_1::detail::mpi {

/// An MPI communicator, freed where it is our own.
class Handle {
 public:
  /// The host's, as it is.
  Handle(std::shared_ptr<Runtime> runtime, MPI_Comm comm)
      : runtime_(std::move(runtime)), comm_(comm), owns_(false) {
    const auto lock = runtime_->lock();
    refuse_others_than_groups(comm);
    look();
  }
  /// A duplicate of the host's; all its ranks call this.
  Handle(std::shared_ptr<Runtime> runtime, MPI_Comm comm, std::chrono::nanoseconds timeout)
      : runtime_(std::move(runtime)) {
    MPI_Request request = MPI_REQUEST_NULL;
    {
      const auto lock = runtime_->lock();
      refuse_others_than_groups(comm);
      check(MPI_Comm_idup(comm, &comm_, &request), "MPI_Comm_idup", "MpiCommunicator");
    }
    const auto done = [&] {
      const auto lock = runtime_->lock();
      int flag = 0;
      check(MPI_Test(&request, &flag, MPI_STATUS_IGNORE), "MPI_Test", "MpiCommunicator");
      return flag != 0;
    };
    if (Patience(0).wait(timeout, done, [] { return false; }) != Patience::Outcome::done) {
      runtime_->fail();
      const auto lock = runtime_->lock();
      comm_ = comm;
      look();
      raise<TimedOut>(
          "MpiCommunicator: rank {} of {} waited {} ms in vain for all ranks of the host's "
          "communicator to make theirs, in MPI_Comm_idup",
          rank_, size_, std::chrono::duration_cast<std::chrono::milliseconds>(timeout).count());
    }
    const auto lock = runtime_->lock();
    own();
  }
  /// This rank's part of `whole`; all its ranks call this at about the same time.
  Handle(const Handle& whole, int color, int key) : runtime_(whole.runtime_) {
    const auto lock = runtime_->lock();
    check(MPI_Comm_split(whole.comm_, color, key, &comm_), "MPI_Comm_split", "split");
    own();
  }
  Handle(const Handle&) = delete;
  Handle& operator=(const Handle&) = delete;
  /// Waits for nobody; after a failure it leaves the communicator to the process's end.
  ~Handle() {
    if (!owns_ || !is_usable()) return;
    const auto lock = runtime_->lock();
    MPI_Comm_free(&comm_);
  }

  [[nodiscard]] MPI_Comm get() const noexcept { return comm_; }
  [[nodiscard]] int rank() const noexcept { return rank_; }
  [[nodiscard]] int size() const noexcept { return size_; }
  /// MPI has not ended, and no rank has failed.
  [[nodiscard]] bool is_usable() const noexcept {
    return !runtime_->has_failed() && Runtime::is_alive();
  }
  /// Held during every MPI call; see Runtime.
  [[nodiscard]] auto lock() const { return runtime_->lock(); }

 private:
  // What follows needs the lock.

  // A rank outside of what MPI_Comm_split made has MPI_COMM_NULL; messages of an intercommunicator
  // go to the ranks of another group.
  static void refuse_others_than_groups(MPI_Comm comm) {
    if (comm == MPI_COMM_NULL) {
      raise(
          "MpiCommunicator: the host's communicator is MPI_COMM_NULL: a rank that MPI_Comm_split "
          "left out makes none");
    }
    int joins_two = 0;
    check(MPI_Comm_test_inter(comm, &joins_two), "MPI_Comm_test_inter", "MpiCommunicator");
    if (joins_two != 0) {
      raise(
          "MpiCommunicator: the host's communicator is an intercommunicator; expected one group of "
          "ranks (MPI_Intercomm_merge makes it)");
    }
  }

  void own() {
    owns_ = true;
    check(MPI_Comm_set_errhandler(comm_, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler",
          "MpiCommunicator");
    look();
  }
  void look() {
    check(MPI_Comm_rank(comm_, &rank_), "MPI_Comm_rank", "MpiCommunicator");
    check(MPI_Comm_size(comm_, &size_), "MPI_Comm_size", "MpiCommunicator");
  }

  std::shared_ptr<Runtime> runtime_;
  MPI_Comm comm_ = MPI_COMM_NULL;
  bool owns_ = true;
  int rank_ = 0;
  int size_ = 1;
};

}  // namespace shardwise::inline v0_1::detail::mpi
