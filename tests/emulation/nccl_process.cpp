// One process of several: nccl_process SCENARIO RANK RANKS ID_FILE. Rank 0 makes the unique id and
// leaves it in the file. A plain program: real devices can run what does not inject a failure.

#include <unistd.h>

#include <cstring>
#include <fstream>
#include <map>
#include <string>

#include "plain_nccl.hpp"

using plain::Communicator;
using plain::DeviceArray;
using plain::Rank;

namespace {

struct Place {
  int rank;
  int ranks;
  std::string file;
};

void require(bool right, const char* what) {
  if (right) return;
  std::fprintf(stderr, "wrong: %s\n", what);
  std::exit(1);
}

ncclUniqueId exchange(const Place& place) {
  ncclUniqueId id;
  if (std::getenv("NCCL_COMM_ID") != nullptr) return plain::unique_id();
  if (place.rank == 0) {
    id = plain::unique_id();
    const std::string hidden = place.file + ".new";
    std::ofstream(hidden, std::ios::binary).write(id.internal, sizeof id.internal);
    require(std::rename(hidden.c_str(), place.file.c_str()) == 0, "rename");
    return id;
  }
  for (int tries = 0; tries < 2000; ++tries) {
    std::ifstream in(place.file, std::ios::binary);
    if (in.read(id.internal, sizeof id.internal)) return id;
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  require(false, "the file with the id did not come");
  return id;
}

std::vector<int> counting(int from, std::size_t count) {
  std::vector<int> values(count);
  for (std::size_t i = 0; i < count; ++i) values[i] = from + static_cast<int>(i);
  return values;
}

void check_collectives(Rank& own) {
  const auto n = static_cast<std::size_t>(own.ranks);
  const auto r = static_cast<std::size_t>(own.rank);
  constexpr std::size_t part = 1000;
  const DeviceArray<int> whole(part * n);
  const DeviceArray<int> one(part);
  int* const mine = whole.data + r * part;

  own.upload(one, counting(own.rank * 1000, part));
  PLAIN_NCCL(ncclAllGather(one.data, whole.data, part, ncclInt32, own.world, own.stream));
  require(own.download(whole) == counting(0, part * n), "all-gather");
  PLAIN_NCCL(ncclAllGather(mine, whole.data, part, ncclInt32, own.world, own.stream));
  require(own.download(whole) == counting(0, part * n), "all-gather in place");
  PLAIN_NCCL(ncclReduceScatter(whole.data, mine, part, ncclInt32, ncclSum, own.world, own.stream));
  require(own.download(mine, part)[1] == own.ranks * (own.rank * 1000 + 1), "reduce-scatter");

  own.upload(one, counting(own.rank, part));
  PLAIN_NCCL(ncclAllReduce(one.data, one.data, part, ncclInt32, ncclMax, own.world, own.stream));
  require(own.download(one) == counting(own.ranks - 1, part), "all-reduce");
  PLAIN_NCCL(ncclBroadcast(one.data, one.data, part, ncclInt32, 0, own.world, own.stream));
  require(own.download(one) == counting(own.ranks - 1, part), "broadcast");

  own.upload(whole, counting(own.rank * 100000, part * n));
  const DeviceArray<int> other(part * n);
  PLAIN_NCCL(ncclAlltoAll(whole.data, other.data, part, ncclInt32, own.world, own.stream));
  require(own.download(other)[part * (n - 1)] == (own.ranks - 1) * 100000 + own.rank * 1000,
          "all-to-all");

  own.upload(one, counting(own.rank, part));
  PLAIN_NCCL(ncclGroupStart());
  PLAIN_NCCL(
      ncclSend(one.data, part, ncclInt32, (own.rank + 1) % own.ranks, own.world, own.stream));
  PLAIN_NCCL(ncclRecv(other.data, part, ncclInt32, (own.rank + own.ranks - 1) % own.ranks,
                      own.world, own.stream));
  PLAIN_NCCL(ncclGroupEnd());
  require(own.download(other.data, part) == counting((own.rank + own.ranks - 1) % own.ranks, part),
          "ring");
}

void check_split(Rank& own) {
  Communicator parity;
  PLAIN_NCCL(ncclCommSplit(own.world, own.rank % 2, own.rank, &parity.handle, nullptr));
  int size = 0;
  PLAIN_NCCL(ncclCommCount(parity, &size));
  require(size == (own.ranks + 1 - own.rank % 2) / 2, "size of a split");
  const DeviceArray<int> one(1);
  own.upload(one, {own.rank});
  PLAIN_NCCL(ncclAllReduce(one.data, one.data, 1, ncclInt32, ncclMin, parity, own.stream));
  require(own.download(one).front() == own.rank % 2, "all-reduce of a split");
  Communicator none;
  PLAIN_NCCL(
      ncclCommSplit(own.world, own.rank == 0 ? 0 : NCCL_SPLIT_NOCOLOR, 0, &none.handle, nullptr));
  require((none.handle != nullptr) == (own.rank == 0), "a split for rank 0 alone");
}

void collectives(const Place& place) {
  Rank own(place.rank, place.ranks, exchange(place));
  check_collectives(own);
  check_split(own);
  ncclResult_t error = ncclSystemError;
  PLAIN_NCCL(ncclCommGetAsyncError(own.world, &error));
  require(error == ncclSuccess, "an error after the splits have gone");
  check_collectives(own);

  void* arena = nullptr;
  PLAIN_NCCL(ncclMemAlloc(&arena, 1 << 16));
  ncclWindow_t window = nullptr;
  PLAIN_NCCL(ncclCommWindowRegister(own.world, arena, 1 << 16, &window, NCCL_WIN_COLL_SYMMETRIC));
  PLAIN_CUDA(cudaMemsetAsync(arena, 0, 1 << 16, own.stream));
  PLAIN_NCCL(ncclAllGather(static_cast<char*>(arena) + own.rank * 4096, arena, 4096, ncclInt8,
                           own.world, own.stream));
  own.stream.synchronize();
  if (window != nullptr) PLAIN_NCCL(ncclCommWindowDeregister(own.world, window));
  PLAIN_NCCL(ncclMemFree(arena));
}

/// Two ranks in each process.
void threads(const Place& place) {
  const ncclUniqueId id = exchange(place);
  std::vector<std::thread> both;
  for (const int rank : {2 * place.rank, 2 * place.rank + 1}) {
    both.emplace_back([=] {
      PLAIN_CUDA(cudaSetDevice(rank));
      Rank own(rank, 2 * place.ranks, id);
      check_collectives(own);
      own.stream.synchronize();
    });
  }
  for (std::thread& thread : both) thread.join();
}

void polled(const Place& place) {
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  config.blocking = 0;
  ncclComm_t world = nullptr;
  const ncclResult_t made =
      ncclCommInitRankConfig(&world, place.ranks, exchange(place), place.rank, &config);
  PLAIN_NCCL(plain::poll(world, made));
  const plain::Stream stream;
  const DeviceArray<float> data(8);
  PLAIN_CUDA(cudaMemsetAsync(data.data, 0, data.bytes(), stream));
  PLAIN_NCCL(plain::poll(
      world, ncclAllReduce(data.data, data.data, 8, ncclFloat32, ncclSum, world, stream)));
  stream.synchronize();
  PLAIN_NCCL(plain::poll(world, ncclCommFinalize(world)));
  PLAIN_NCCL(ncclCommDestroy(world));
}

/// The error that the communicator shows while its operation does not end.
ncclResult_t wait_for_error(ncclComm_t world) {
  ncclResult_t error = ncclSuccess;
  for (int tries = 0; tries < 1000 && error == ncclSuccess; ++tries) {
    PLAIN_NCCL(ncclCommGetAsyncError(world, &error));
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  return error;
}

/// One process ends without a word; its peers see an error and abort.
void death(const Place& place, int victim) {
  ncclComm_t world = nullptr;
  PLAIN_NCCL(ncclCommInitRank(&world, place.ranks, exchange(place), place.rank));
  const plain::Stream stream;
  const DeviceArray<float> data(8);
  PLAIN_CUDA(cudaMemsetAsync(data.data, 0, data.bytes(), stream));
  PLAIN_NCCL(ncclAllReduce(data.data, data.data, 8, ncclFloat32, ncclSum, world, stream));
  stream.synchronize();
  if (place.rank == victim) {
    // The first operation has ended here, not yet with all others.
    std::this_thread::sleep_for(std::chrono::milliseconds(300));
    _exit(7);
  }
  PLAIN_NCCL(ncclAllReduce(data.data, data.data, 8, ncclFloat32, ncclSum, world, stream));
  require(wait_for_error(world) == ncclRemoteError, "no remote error");
  require(cudaStreamQuery(stream) == cudaErrorNotReady, "the operation ended without an abort");
  require(ncclAllReduce(data.data, data.data, 8, ncclFloat32, ncclSum, world, stream) ==
              ncclRemoteError,
          "a broken communicator took an operation");
  PLAIN_NCCL(ncclCommAbort(world));
  stream.synchronize();
}

void peer_dies(const Place& place) { death(place, 1); }
void first_dies(const Place& place) { death(place, 0); }

void survivors(const Place& place) {
  ncclComm_t world = nullptr;
  PLAIN_NCCL(ncclCommInitRank(&world, place.ranks, exchange(place), place.rank));
  const plain::Stream stream;
  const DeviceArray<int> data(1);
  PLAIN_CUDA(cudaMemsetAsync(data.data, 0, data.bytes(), stream));
  stream.synchronize();
  if (place.rank == 1) _exit(7);
  PLAIN_NCCL(ncclAllReduce(data.data, data.data, 1, ncclInt32, ncclSum, world, stream));
  require(wait_for_error(world) == ncclRemoteError, "no remote error");
  int excluded = 1;
  ncclComm_t rest = nullptr;
  PLAIN_NCCL(ncclCommShrink(world, &excluded, 1, &rest, nullptr, NCCL_SHRINK_ABORT));
  PLAIN_NCCL(ncclAllReduce(data.data, data.data, 1, ncclInt32, ncclSum, rest, stream));
  stream.synchronize();
  int size = 0;
  PLAIN_NCCL(ncclCommCount(rest, &size));
  require(size == place.ranks - 1, "size of the rest");
  PLAIN_NCCL(ncclCommDestroy(rest));
  PLAIN_NCCL(ncclCommAbort(world));
}

void mismatch(const Place& place) {
  Rank own(place.rank, place.ranks, exchange(place));
  const DeviceArray<float> data(8);
  PLAIN_CUDA(cudaMemsetAsync(data.data, 0, data.bytes(), own.stream));
  PLAIN_NCCL(ncclAllReduce(data.data, data.data, place.rank == 1 ? 7 : 8, ncclFloat32, ncclSum,
                           own.world, own.stream));
  own.stream.synchronize();
}

void skip(const Place& place) {
  Rank own(place.rank, place.ranks, exchange(place));
  const DeviceArray<float> data(8);
  PLAIN_CUDA(cudaMemsetAsync(data.data, 0, data.bytes(), own.stream));
  if (place.rank == 2) {
    std::this_thread::sleep_for(std::chrono::seconds(6));
  } else {
    PLAIN_NCCL(ncclAllReduce(data.data, data.data, 8, ncclFloat32, ncclSum, own.world, own.stream));
  }
  own.stream.synchronize();
}

using Scenario = void (*)(const Place&);
const std::map<std::string, Scenario> scenarios{
    {"collectives", collectives}, {"threads", threads},
    {"polled", polled},           {"peer_dies", peer_dies},
    {"first_dies", first_dies},   {"survivors", survivors},
    {"mismatch", mismatch},       {"skip", skip}};

}  // namespace

int main(int argc, char** argv) {
  const auto scenario = argc == 5 ? scenarios.find(argv[1]) : scenarios.end();
  if (scenario == scenarios.end()) {
    std::fprintf(stderr, "usage: nccl_process SCENARIO RANK RANKS ID_FILE\n");
    return 2;
  }
  const Place place{std::atoi(argv[2]), std::atoi(argv[3]), argv[4]};
  PLAIN_CUDA(cudaSetDevice(place.rank));
  scenario->second(place);
  std::puts("complete");
}
