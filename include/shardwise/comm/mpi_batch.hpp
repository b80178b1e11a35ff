#pragma once

#include <mpi.h>

#include <algorithm>
#include <cstddef>
#include <string>
#include <vector>

#include "../core/error.hpp"
#include "../core/format.hpp"
#include "mpi_error.hpp"

namespace shardwise::inline v0_1::detail::mpi {

/// Messages that are on their way together. Whatever the element type, bytes travel. The caller
/// holds the runtime's lock. Does not allocate once it has held as many messages.
class Batch {
 public:
  Batch(MPI_Comm comm, std::size_t largest_message) noexcept
      : comm_(comm), largest_(largest_message) {}

  void send(const void* from, std::size_t bytes, std::size_t peer, int tag) {
    const auto* data = static_cast<const std::byte*>(from);
    for (std::size_t done = 0; done < bytes;) {
      const std::size_t size = std::min(bytes - done, largest_);
      MPI_Request& request = add(static_cast<int>(peer), -1);
      take(MPI_Isend(data + done, static_cast<int>(size), MPI_BYTE, static_cast<int>(peer), tag,
                     comm_, &request),
           "MPI_Isend");
      done += size;
    }
  }
  void receive(void* to, std::size_t bytes, std::size_t peer, int tag) {
    auto* data = static_cast<std::byte*>(to);
    for (std::size_t done = 0; done < bytes;) {
      const std::size_t size = std::min(bytes - done, largest_);
      MPI_Request& request = add(static_cast<int>(peer), static_cast<int>(size));
      take(MPI_Irecv(data + done, static_cast<int>(size), MPI_BYTE, static_cast<int>(peer), tag,
                     comm_, &request),
           "MPI_Irecv");
      done += size;
    }
  }
  /// start(MPI_Comm, MPI_Request*) begins a collective of MPI's own.
  template <class Start>
  void collective(const Start& start, const char* call) {
    take(start(comm_, &add(-1, -1)), call);
  }

  /// Makes MPI go on; true when all has arrived and gone. Then the batch is empty.
  [[nodiscard]] bool test() {
    for (; next_ < requests_.size(); ++next_) {
      MPI_Status status{};
      int done = 0;
      const int code = MPI_Test(&requests_[next_], &done, &status);
      if (code != MPI_SUCCESS) refuse(notes_[next_], text_of(code));
      if (done == 0) return false;
      check_size(notes_[next_], status);
    }
    clear();
    return true;
  }

  /// After a failure: takes back what has not come, so that it is not written later; what cannot be
  /// taken back stays with MPI.
  void cancel() noexcept {
    for (std::size_t i = 0; i < requests_.size(); ++i) {
      if (requests_[i] == MPI_REQUEST_NULL || notes_[i].bytes < 0) continue;
      if (MPI_Cancel(&requests_[i]) != MPI_SUCCESS) continue;
      int done = 0;
      MPI_Test(&requests_[i], &done, MPI_STATUS_IGNORE);
    }
    clear();
  }

 private:
  struct Note {
    int peer;   // -1: a collective of MPI's own
    int bytes;  // expected; -1: nothing is received
  };

  MPI_Request& add(int peer, int bytes) {
    notes_.push_back({peer, bytes});
    requests_.push_back(MPI_REQUEST_NULL);
    return requests_.back();
  }

  void clear() noexcept {
    requests_.clear();
    notes_.clear();
    next_ = 0;
  }

  static void take(int code, const char* call) {
    if (code == MPI_SUCCESS) return;
    raise<BackendError>("{} failed with code {} ({})", call, code, text_of(code));
  }

  static void check_size(const Note& note, const MPI_Status& status) {
    if (note.bytes < 0) return;
    int bytes = 0;
    take(MPI_Get_count(&status, MPI_BYTE, &bytes), "MPI_Get_count");
    if (bytes != note.bytes) refuse(note, detail::format("{} bytes came", bytes));
  }

  [[noreturn]] static void refuse(const Note& note, const std::string& found) {
    if (note.peer < 0) raise<BackendError>("a collective of MPI's own failed: {}", found);
    if (note.bytes < 0) raise<BackendError>("sending to rank {} failed: {}", note.peer, found);
    raise<BackendError>(
        "expected {} bytes from rank {}, but {}: ranks called different collectives? "
        "comm/checked.hpp names both sides",
        note.bytes, note.peer, found);
  }

  MPI_Comm comm_;
  std::size_t largest_;
  std::vector<MPI_Request> requests_;
  std::vector<Note> notes_;
  std::size_t next_ = 0;  // all before it are done
};

}  // namespace shardwise::inline v0_1::detail::mpi
