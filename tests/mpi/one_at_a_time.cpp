// Stands between the library and MPI (the profiling interface) to see whether two threads call MPI
// at once.
#include "one_at_a_time.hpp"

#include <mpi.h>

#include <atomic>
#include <chrono>
#include <cstdio>
#include <thread>

namespace {

std::atomic<int> inside{0};
std::atomic<int> clashes{0};
std::atomic<const char*> latest{""};
thread_local int depth = 0;  // MPI may call itself

class Call {
 public:
  explicit Call(const char* name, bool linger = false) {
    if (depth++ > 0) return;
    const char* const other = latest.exchange(name);
    if (inside.fetch_add(1) > 0 && clashes.fetch_add(1) == 0) {
      std::fprintf(stderr, "%s while another thread was in %s\n", name, other);
    }
    if (linger) std::this_thread::sleep_for(std::chrono::microseconds(200));
  }
  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;
  ~Call() {
    if (--depth == 0) inside.fetch_sub(1);
  }
};

}  // namespace

int shardwise::test::calls_at_once() noexcept { return clashes.load(); }

#define SHARDWISE_COUNTED(name, parameters, arguments) \
  int name parameters {                                \
    const Call call(#name);                            \
    return P##name arguments;                          \
  }
// Rare calls, long enough for another thread to come.
#define SHARDWISE_COUNTED_LONG(name, parameters, arguments) \
  int name parameters {                                     \
    const Call call(#name, true);                           \
    return P##name arguments;                               \
  }

extern "C" {

SHARDWISE_COUNTED(MPI_Isend,
                  (const void* from, int count, MPI_Datatype type, int to, int tag, MPI_Comm comm,
                   MPI_Request* request),
                  (from, count, type, to, tag, comm, request))
SHARDWISE_COUNTED(MPI_Irecv,
                  (void* to, int count, MPI_Datatype type, int from, int tag, MPI_Comm comm,
                   MPI_Request* request),
                  (to, count, type, from, tag, comm, request))
SHARDWISE_COUNTED(MPI_Test, (MPI_Request * request, int* done, MPI_Status* status),
                  (request, done, status))
SHARDWISE_COUNTED(MPI_Get_count, (const MPI_Status* status, MPI_Datatype type, int* count),
                  (status, type, count))
SHARDWISE_COUNTED(MPI_Ibarrier, (MPI_Comm comm, MPI_Request* request), (comm, request))
SHARDWISE_COUNTED(MPI_Ibcast,
                  (void* buffer, int count, MPI_Datatype type, int root, MPI_Comm comm,
                   MPI_Request* request),
                  (buffer, count, type, root, comm, request))
SHARDWISE_COUNTED(MPI_Iallreduce,
                  (const void* from, void* to, int count, MPI_Datatype type, MPI_Op op,
                   MPI_Comm comm, MPI_Request* request),
                  (from, to, count, type, op, comm, request))
SHARDWISE_COUNTED(MPI_Comm_idup, (MPI_Comm comm, MPI_Comm* made, MPI_Request* request),
                  (comm, made, request))
SHARDWISE_COUNTED(MPI_Comm_split, (MPI_Comm comm, int color, int key, MPI_Comm* made),
                  (comm, color, key, made))
SHARDWISE_COUNTED_LONG(MPI_Comm_free, (MPI_Comm * comm), (comm))
SHARDWISE_COUNTED_LONG(MPI_Comm_rank, (MPI_Comm comm, int* rank), (comm, rank))
SHARDWISE_COUNTED_LONG(MPI_Comm_size, (MPI_Comm comm, int* size), (comm, size))
SHARDWISE_COUNTED_LONG(MPI_Comm_test_inter, (MPI_Comm comm, int* flag), (comm, flag))
SHARDWISE_COUNTED_LONG(MPI_Comm_set_errhandler, (MPI_Comm comm, MPI_Errhandler handler),
                       (comm, handler))
SHARDWISE_COUNTED_LONG(MPI_Improbe,
                       (int from, int tag, MPI_Comm comm, int* there, MPI_Message* message,
                        MPI_Status* status),
                       (from, tag, comm, there, message, status))
SHARDWISE_COUNTED(MPI_Mrecv,
                  (void* to, int count, MPI_Datatype type, MPI_Message* message,
                   MPI_Status* status),
                  (to, count, type, message, status))
}

#undef SHARDWISE_COUNTED
#undef SHARDWISE_COUNTED_LONG
