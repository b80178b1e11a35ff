#pragma once

#include <array>
#include <chrono>
#include <cstddef>
#include <shardwise/comm/collectives.hpp>
#include <shardwise/comm/communicator.hpp>
#include <shardwise/comm/fingerprint.hpp>
#include <shardwise/device/host_stream.hpp>
#include <thread>
#include <vector>

#include "../support/contributions.hpp"

namespace shardwise::test {

/// One buffer of a collective under test.
struct ItemCase {
  DType dtype = DType::f32;
  std::size_t count = 8;
  DType output = DType::f32;
  bool in_place = false;
  bool accumulate = false;
  double scale = 1;
  bool weighted = false;

  [[nodiscard]] double weight(int rank) const { return weighted ? 0.5 + 0.3 * rank : 1; }
};

/// One collective under test. It fills its buffers from (rank, item) and says what they must hold
/// afterwards.
struct CollectiveCase {
  Operation operation = Operation::all_gather;
  std::vector<ItemCase> items;
  int root = 0;
};

/// The buffers of one rank, alive until the stream has run.
class RankCall {
 public:
  RankCall(const CollectiveCase& collective, int rank, int world)
      : collective_(collective), rank_(static_cast<std::size_t>(rank)) {
    const auto size = static_cast<std::size_t>(world);
    for (std::size_t i = 0; i < collective.items.size(); ++i) {
      const ItemCase& item = collective.items[i];
      send_.push_back(sent(collective, i, rank_, size));
      recv_.push_back(before(collective, i, rank_, size));
      const std::size_t part = item.count * size_of(item.dtype);
      void* send = send_[i].data();
      void* recv = recv_[i].data();
      ReduceSpec spec{item.output, item.scale, item.weight(rank), item.accumulate, item.weighted};
      spec.cold = rank % 2 == 1;  // a rank's own matter
      switch (collective.operation) {
        case Operation::all_gather:
          if (item.in_place) {
            send = recv_[i].data() + rank_ * part;
            std::copy(send_[i].begin(), send_[i].end(), static_cast<std::byte*>(send));
          }
          gather_.push_back({send, recv, item.count, item.dtype});
          break;
        case Operation::reduce_scatter:
          if (item.in_place) recv = send_[i].data() + rank_ * part;
          reduce_.push_back({send, recv, item.count, item.dtype, spec});
          break;
        case Operation::all_reduce:
          if (item.in_place) recv = send;
          reduce_.push_back({send, recv, item.count, item.dtype, spec});
          break;
        case Operation::broadcast:
          broadcast_.push_back({send, item.count, item.dtype});
          break;
        default:
          exchange_.push_back({send, recv, item.count, item.dtype});
      }
    }
  }

  void issue(Communicator& comm, StreamRef stream, const CallInfo& info = {"case"}) {
    switch (collective_.operation) {
      case Operation::all_gather:
        return comm.all_gather(gather_, info, stream);
      case Operation::reduce_scatter:
        return comm.reduce_scatter(reduce_, info, stream);
      case Operation::all_reduce:
        return comm.all_reduce(reduce_, info, stream);
      case Operation::broadcast:
        return comm.broadcast(broadcast_, collective_.root, info, stream);
      case Operation::all_to_all:
        return comm.all_to_all(exchange_, info, stream);
      default:
        return comm.barrier(info, stream);
    }
  }

  /// What this rank's buffers hold now.
  [[nodiscard]] std::vector<Bytes> results() const {
    std::vector<Bytes> all;
    for (std::size_t i = 0; i < collective_.items.size(); ++i) {
      const ItemCase& item = collective_.items[i];
      if (collective_.operation == Operation::broadcast) {
        all.push_back(send_[i]);
      } else if (item.in_place && collective_.operation == Operation::reduce_scatter) {
        const auto* from = static_cast<const std::byte*>(reduce_[i].recv);
        all.emplace_back(from, from + item.count * size_of(item.output));
      } else if (item.in_place && collective_.operation == Operation::all_reduce) {
        all.push_back(send_[i]);
      } else {
        all.push_back(recv_[i]);
      }
    }
    return all;
  }

  /// What they must hold after the collective.
  [[nodiscard]] static std::vector<Bytes> expected(const CollectiveCase& collective, int rank,
                                                   int world) {
    const auto own = static_cast<std::size_t>(rank);
    const auto size = static_cast<std::size_t>(world);
    std::vector<Bytes> all;
    for (std::size_t i = 0; i < collective.items.size(); ++i) {
      const ItemCase& item = collective.items[i];
      const std::size_t part = item.count * size_of(item.dtype);
      std::vector<Bytes> inputs;
      std::vector<double> weights;
      for (std::size_t r = 0; r < size; ++r) {
        inputs.push_back(sent(collective, i, r, size));
        weights.push_back(item.weight(static_cast<int>(r)));
      }
      const auto part_of = [&](std::size_t source, std::size_t index) {
        const auto begin = inputs[source].begin() + static_cast<std::ptrdiff_t>(index * part);
        return Bytes(begin, begin + static_cast<std::ptrdiff_t>(part));
      };
      Bytes result;
      const bool scatter = collective.operation == Operation::reduce_scatter;
      switch (collective.operation) {
        case Operation::all_gather:
        case Operation::all_to_all:
          for (std::size_t r = 0; r < size; ++r) {
            const Bytes piece = part_of(r, collective.operation == Operation::all_gather ? 0 : own);
            result.insert(result.end(), piece.begin(), piece.end());
          }
          break;
        case Operation::broadcast:
          result = inputs[static_cast<std::size_t>(collective.root)];
          break;
        default:
          result = reduced(inputs, weights, item.dtype, scatter ? own * item.count : 0, item.count,
                           before(collective, i, own, size),
                           {item.output, item.scale, 1, item.accumulate});
      }
      all.push_back(result);
    }
    return all;
  }

  /// What a rank gives, and what is in its result before.
  static Bytes sent(const CollectiveCase& collective, std::size_t index, std::size_t rank,
                    std::size_t world) {
    const ItemCase& item = collective.items[index];
    const bool whole = collective.operation == Operation::reduce_scatter ||
                       collective.operation == Operation::all_to_all;
    return contribution(item.dtype, rank, index, item.count * (whole ? world : 1));
  }

  // Old values of an all_reduce that accumulates are equal on all ranks, by its contract.
  static Bytes before(const CollectiveCase& collective, std::size_t index, std::size_t rank,
                      std::size_t world) {
    const ItemCase& item = collective.items[index];
    switch (collective.operation) {
      case Operation::all_reduce:
        return contribution(item.output, 77, index, item.count);
      case Operation::reduce_scatter:
        return contribution(item.output, 77 + rank, index, item.count);
      case Operation::broadcast:
        return {};
      default:
        return contribution(item.dtype, 77 + rank, index, item.count * world);
    }
  }

 private:
  CollectiveCase collective_;
  std::size_t rank_;
  std::vector<Bytes> send_;
  std::vector<Bytes> recv_;
  std::vector<GatherItem> gather_;
  std::vector<ReduceItem> reduce_;
  std::vector<BroadcastItem> broadcast_;
  std::vector<ExchangeItem> exchange_;
};

/// Every operation over types, counts, in place or not, weights, scale, accumulation, output types,
/// one item or several.
inline std::vector<CollectiveCase> all_collective_cases(int world) {
  constexpr std::size_t counts[] = {0, 1, 5, 64, 1000};
  std::vector<CollectiveCase> cases;
  for (const Operation operation :
       {Operation::all_gather, Operation::broadcast, Operation::all_to_all}) {
    std::vector<ItemCase> group;
    for (const DType dtype : all_dtypes) {
      for (const std::size_t count : counts) {
        for (const bool in_place : {false, true}) {
          if (in_place && operation != Operation::all_gather) continue;
          const ItemCase item{
              .dtype = dtype, .count = count, .output = dtype, .in_place = in_place};
          cases.push_back({operation, {item}, world - 1});
          if (count % 2 == 1) group.push_back(item);
        }
      }
    }
    cases.push_back({operation, group, world / 2});
  }
  for (const Operation operation : {Operation::reduce_scatter, Operation::all_reduce}) {
    std::vector<ItemCase> group;
    for (const DType dtype : all_dtypes) {
      for (const std::size_t count : counts) {
        for (const DType output : all_dtypes) {
          if (is_floating(dtype) ? !is_floating(output) : output != dtype) continue;
          for (const bool accumulate : {false, true}) {
            for (const bool weighted : {false, true}) {
              if (weighted && !is_floating(dtype)) continue;
              for (const bool in_place : {false, true}) {
                if (in_place && (accumulate || output != dtype)) continue;
                const ItemCase item{dtype,    count,      output,
                                    in_place, accumulate, weighted ? 1.0 / world : 1,
                                    weighted};
                cases.push_back({operation, {item}, 0});
                if (count == 5) group.push_back(item);
              }
            }
          }
        }
      }
    }
    cases.push_back({operation, group, 0});
    cases.push_back({operation, {}, 0});
  }
  cases.push_back({Operation::barrier, {}, 0});
  return cases;
}

/// What a rank saw of calls on two streams with workers and on its own thread, and what it must see
/// where they run in the order in which they were made.
struct OrderedCalls {
  std::vector<float> seen;
  std::vector<float> expected;
};

inline OrderedCalls call_on_several_streams(Communicator& comm) {
  HostStream slow(HostStream::Mode::worker);
  HostStream other(HostStream::Mode::worker);
  const int world = comm.size();
  std::vector<float> gathered(static_cast<std::size_t>(world));
  OrderedCalls result;
  for (int round = 0; round < 20; ++round) {
    const float mine = static_cast<float>(comm.rank() + round);
    const GatherItem item{&mine, gathered.data(), 1, DType::f32};
    // Which stream carries which call differs between ranks; the order does not.
    HostStream& first = (comm.rank() + round) % 2 == 0 ? slow : other;
    HostStream& second = (comm.rank() + round) % 3 == 0 ? slow : other;
    first.enqueue([] { std::this_thread::sleep_for(std::chrono::microseconds(300)); });
    comm.all_gather({&item, 1}, {.name = "first"}, first.ref());
    comm.barrier({.name = "second"}, second.ref());
    std::array<float, 1> total{mine};
    all_reduce(comm, total, Reduce::sum, {.name = "third"});  // inline, on this thread
    slow.synchronize();
    other.synchronize();
    result.seen.push_back(total[0]);
    result.seen.insert(result.seen.end(), gathered.begin(), gathered.end());
    const int sum = world * (world - 1) / 2 + world * round;
    result.expected.push_back(static_cast<float>(sum));
    for (int r = 0; r < world; ++r) result.expected.push_back(static_cast<float>(r + round));
  }
  return result;
}

}  // namespace shardwise::test
