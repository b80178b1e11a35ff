#pragma once

#include <mpi.h>

#include <atomic>
#include <chrono>
#include <cstdlib>
#include <exception>
#include <memory>
#include <mutex>
#include <string_view>
#include <thread>

#include "../core/error.hpp"
#include "mpi_error.hpp"
#include "mpi_patience.hpp"

namespace shardwise::inline v0_1 {

namespace detail::mpi {

/// "MPI_THREAD_SERIALIZED", ...
[[nodiscard]] inline std::string_view thread_level_name(int level) noexcept {
  switch (level) {
    case MPI_THREAD_SINGLE:
      return "MPI_THREAD_SINGLE";
    case MPI_THREAD_FUNNELED:
      return "MPI_THREAD_FUNNELED";
    case MPI_THREAD_SERIALIZED:
      return "MPI_THREAD_SERIALIZED";
    case MPI_THREAD_MULTIPLE:
      return "MPI_THREAD_MULTIPLE";
    default:
      return "an unknown level";
  }
}

/// This process's MPI, as its communicators share it.
class Runtime {
 public:
  explicit Runtime(int level) noexcept : serialized_(level < MPI_THREAD_MULTIPLE) {}

  /// Held during every MPI call where MPI takes one call at a time.
  [[nodiscard]] std::unique_lock<std::mutex> lock() {
    return serialized_ ? std::unique_lock(mutex_) : std::unique_lock<std::mutex>();
  }

  /// A rank has failed: nothing that waits for peers may be called any more.
  void fail() noexcept { failed_.store(true); }
  [[nodiscard]] bool has_failed() const noexcept { return failed_.load(); }

  /// Whether communicators may still be freed.
  [[nodiscard]] static bool is_alive() noexcept {
    int ended = 0;
    return MPI_Finalized(&ended) == MPI_SUCCESS && ended == 0;
  }

 private:
  bool serialized_;
  std::mutex mutex_;
  std::atomic<bool> failed_{false};
};

/// MPI_Finalize waits for all ranks, so that it cannot follow a failure. The job is ended when this
/// process ends: what main() prints of the exception comes first, and peers have a second for
/// theirs.
inline void abort_at_exit() noexcept {
  const auto end = +[] {
    if (!Runtime::is_alive()) return;
    std::this_thread::sleep_for(std::chrono::seconds(1));
    MPI_Abort(MPI_COMM_WORLD, 1);
  };
  if (std::atexit(end) != 0) end();
}

}  // namespace detail::mpi

/// This process's use of MPI: initialises it where the host has not, and finalises what it has
/// initialised, when all ranks have come to that point. One at a time in a process; communicators
/// made with it go before it. Where it initialises MPI, errors on MPI_COMM_WORLD are returned
/// (MPI_ERRORS_RETURN). A host that initialises MPI itself should do so, too: MPICH ends the job
/// otherwise where ranks called different collectives, whose messages differ in size.
///
/// After a failure, or where an exception unwinds it, it does not finalise, which would wait for
/// ranks that never come: the job ends by MPI_Abort when the process ends. A host that has
/// initialised MPI itself does likewise.
class MpiSession {
 public:
  /// How long the destructor waits for ranks that are still at work.
  static constexpr std::chrono::minutes finalize_timeout{10};

  /// ConfigError where MPI has ended already, or serves one thread only: collectives on a stream
  /// with a worker are called by that worker.
  MpiSession() : exceptions_(std::uncaught_exceptions()) {
    int began = 0;
    detail::mpi::check(MPI_Initialized(&began), "MPI_Initialized", "MpiSession");
    if (!detail::mpi::Runtime::is_alive()) {
      raise<ConfigError>("MPI was finalised already: a process can use it once");
    }
    int level = MPI_THREAD_SINGLE;
    if (began == 0) {
      detail::mpi::check(MPI_Init_thread(nullptr, nullptr, MPI_THREAD_SERIALIZED, &level),
                         "MPI_Init_thread", "MpiSession");
      owns_ = true;
      // MPICH tells MPI_COMM_WORLD's handler of errors in requests, whatever their communicator.
      MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
      MPI_Comm_set_errhandler(MPI_COMM_SELF, MPI_ERRORS_RETURN);
    } else {
      detail::mpi::check(MPI_Query_thread(&level), "MPI_Query_thread", "MpiSession");
    }
    if (level < MPI_THREAD_SERIALIZED) {
      if (owns_) MPI_Finalize();
      raise<ConfigError>(
          "MPI provides {}, expected at least MPI_THREAD_SERIALIZED: initialise it by "
          "MPI_Init_thread(&argc, &argv, MPI_THREAD_SERIALIZED, &provided), or leave it to "
          "MpiSession",
          detail::mpi::thread_level_name(level));
    }
    runtime_ = std::make_shared<detail::mpi::Runtime>(level);
  }
  MpiSession(const MpiSession&) = delete;
  MpiSession& operator=(const MpiSession&) = delete;
  ~MpiSession() {
    if (!owns_ || !detail::mpi::Runtime::is_alive()) return;
    if (!runtime_->has_failed() && std::uncaught_exceptions() == exceptions_ && all_are_here()) {
      MPI_Finalize();
    } else {
      detail::mpi::abort_at_exit();
    }
  }

  /// Held by the host around its own MPI calls while another thread may be in a collective of ours
  /// (nothing is held where MPI provides MPI_THREAD_MULTIPLE). Not around calls that wait for
  /// peers which wait for us: then poll, and give it back between.
  [[nodiscard]] std::unique_lock<std::mutex> lock() { return runtime_->lock(); }

  /// Whether a rank has failed: the host must not finalise MPI then, but MPI_Abort.
  [[nodiscard]] bool has_failed() const noexcept { return runtime_->has_failed(); }

  [[nodiscard]] const std::shared_ptr<detail::mpi::Runtime>& runtime() const noexcept {
    return runtime_;
  }

 private:
  // MPI_Finalize would wait without an end, and Open MPI's mpirun hangs where others abort the job
  // meanwhile.
  [[nodiscard]] bool all_are_here() const noexcept {
    using detail::mpi::Patience;
    MPI_Request request = MPI_REQUEST_NULL;
    if (MPI_Ibarrier(MPI_COMM_WORLD, &request) != MPI_SUCCESS) return false;
    const auto done = [&] {
      int flag = 0;
      return MPI_Test(&request, &flag, MPI_STATUS_IGNORE) == MPI_SUCCESS && flag != 0;
    };
    const Patience patience(0);
    return patience.wait(finalize_timeout, done, [] { return false; }) == Patience::Outcome::done;
  }

  bool owns_ = false;
  int exceptions_;
  std::shared_ptr<detail::mpi::Runtime> runtime_;
};

}  // namespace shardwise::inline v0_1
