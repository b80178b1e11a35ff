#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <shardwise/comm/collectives.hpp>
#include <span>
#include <string>
#include <vector>

#include "memory_work.hpp"
#include "op.hpp"

namespace benchmarks {

inline const std::vector<std::string> dtype_names{"f32", "bf16", "f16", "f64",
                                                  "i64", "i32",  "i8",  "u8"};

[[nodiscard]] inline shardwise::DType dtype_named(const std::string& name) {
  auto dtype = shardwise::DType::f64;
  while (shardwise::name_of(dtype) != name) {
    dtype = static_cast<shardwise::DType>(static_cast<int>(dtype) + 1);
  }
  return dtype;
}

/// One rank's buffers. Part r of `send` is what goes to, or belongs to, rank r.
struct Operands {
  std::byte* send;
  std::byte* recv;
};

/// A collective over `ranks` parts of `part` elements, out of place.
struct Collective {
  Op op;
  shardwise::DType dtype;
  std::size_t part;
  std::size_t ranks;

  [[nodiscard]] const std::string& name() const { return op_names[static_cast<std::size_t>(op)]; }
  [[nodiscard]] bool is_reduction() const {
    return op == Op::reduce_scatter || op == Op::all_reduce;
  }
  [[nodiscard]] std::size_t part_bytes() const { return part * shardwise::size_of(dtype); }
  /// Of the whole buffer: the size of nccl-tests.
  [[nodiscard]] std::size_t bytes() const { return part_bytes() * ranks; }

  /// Bytes that a ring moves over one link, in units of bytes().
  [[nodiscard]] double bus_factor() const {
    const auto n = static_cast<double>(ranks);
    return op == Op::broadcast ? 1 : (op == Op::all_reduce ? 2 : 1) * (n - 1) / n;
  }

  /// On a device: in the order of `stream`, with a `landing` where a reduction needs one.
  void operator()(shardwise::Communicator& comm, const Operands& b,
                  shardwise::StreamRef stream = {}, void* landing = nullptr) const {
    const shardwise::CallInfo info{.name = "bench"};
    const shardwise::ReduceSpec spec{.output = dtype};
    if (op == Op::all_gather) {
      const shardwise::GatherItem item{b.send, b.recv, part, dtype};
      comm.all_gather({&item, 1}, info, stream);
    } else if (op == Op::reduce_scatter) {
      const shardwise::ReduceItem item{b.send, b.recv, part, dtype, spec, landing};
      comm.reduce_scatter({&item, 1}, info, stream);
    } else if (op == Op::all_reduce) {
      const shardwise::ReduceItem item{b.send, b.recv, part * ranks, dtype, spec, landing};
      comm.all_reduce({&item, 1}, info, stream);
    } else if (op == Op::broadcast) {
      const shardwise::BroadcastItem item{comm.rank() == 0 ? b.send : b.recv, part * ranks, dtype};
      comm.broadcast({&item, 1}, 0, info, stream);
    } else {
      const shardwise::ExchangeItem item{b.send, b.recv, part, dtype};
      comm.all_to_all({&item, 1}, info, stream);
    }
  }

  /// Element `index` of a rank's send buffer: small whole numbers, whose sums are exact in every
  /// type.
  [[nodiscard]] static int value(std::size_t rank, std::size_t index) {
    return static_cast<int>((rank * 3 + index) % 5);
  }

  /// Element `index` of this rank's result.
  [[nodiscard]] int expected(std::size_t rank, std::size_t index) const {
    if (op == Op::all_gather) return value(index / part, index % part);
    if (op == Op::all_to_all) return value(index / part, rank * part + index % part);
    if (op == Op::broadcast) return value(0, index);
    int sum = 0;
    for (std::size_t r = 0; r < ranks; ++r) {
      sum += value(r, index + (op == Op::reduce_scatter ? rank * part : 0));
    }
    return sum;
  }
};

/// Gives a rank's send buffer the values that check() expects.
inline void fill(std::span<std::byte> send, shardwise::DType dtype, int rank) {
  shardwise::dispatch(dtype, [&]<class T>() {
    for (std::size_t i = 0; i < send.size() / sizeof(T); ++i) {
      const auto number =
          static_cast<T>(static_cast<float>(Collective::value(static_cast<std::size_t>(rank), i)));
      std::memcpy(send.data() + i * sizeof(T), &number, sizeof(T));
    }
  });
}

/// How many elements of this rank's `result` are wrong, of about 10,000.
[[nodiscard]] inline std::size_t count_wrong(const Collective& call, std::size_t rank,
                                             const std::byte* result) {
  const std::size_t count = call.part * (call.op == Op::reduce_scatter ? 1 : call.ranks);
  std::size_t errors = 0;
  shardwise::dispatch(call.dtype, [&]<class T>() {
    for (std::size_t i = 0; i < count; i += count / 10000 | 1) {
      T number;
      std::memcpy(&number, result + i * sizeof(T), sizeof(T));
      errors += static_cast<float>(number) != static_cast<float>(call.expected(rank, i));
    }
  });
  return errors;
}

/// Calls once; how many elements of all ranks' results are wrong, of about 10,000 on each.
[[nodiscard]] inline std::size_t wrong(const Collective& call, shardwise::Communicator& comm,
                                       const Operands& b) {
  const auto rank = static_cast<std::size_t>(comm.rank());
  const bool root = call.op == Op::broadcast && rank == 0;
  if (!root)
    std::memset(b.recv, 0xff, call.op == Op::reduce_scatter ? call.part_bytes() : call.bytes());
  call(comm, b);
  const std::size_t errors = count_wrong(call, rank, root ? b.send : b.recv);
  return static_cast<std::size_t>(shardwise::sum(comm, static_cast<std::int64_t>(errors)));
}

/// The least that one rank's memory must do for a collective: each part is read where it lies and
/// written where it goes, sums are made as they pass. Nobody waits for anybody.
class MemoryWork {
 public:
  /// `all`: every rank's buffers. Ranks that cannot read each other's give their own alone: as many
  /// bytes, nearer by.
  MemoryWork(const Collective& call, std::size_t rank, std::span<const Operands> all)
      : bytes_(call.part_bytes()), sums_(call.is_reduction()) {
    const auto buffers = [&](std::size_t r) { return all.size() > 1 ? all[r] : all[0]; };
    const auto own = [&](std::size_t r) { return (all.size() > 1 ? rank : r) * bytes_; };
    // Targets begin at lines: who streams would have to see to that.
    const auto target = [](std::byte* buffer, std::size_t at) { return buffer + at / 64 * 64; };
    if (call.op == Op::broadcast) {
      if (rank == 0) return;
      bytes_ = call.bytes();
      from_ = {all[0].send};
      to_ = {buffers(rank).recv};
      return;
    }
    for (std::size_t r = 0; r < call.ranks; ++r) {
      from_.push_back(buffers(r).send + (call.op == Op::all_gather ? 0 : own(r)));
      if (call.op == Op::all_reduce) to_.push_back(target(buffers(r).recv, own(r)));
      if (!sums_) to_.push_back(target(buffers(rank).recv, r * bytes_));
    }
    if (call.op == Op::reduce_scatter) to_.push_back(buffers(rank).recv);
  }

  void operator()(bool streaming) const {
    if (sums_) return (streaming ? sum_streaming : sum_cached)(to_, from_, bytes_);
    for (std::size_t i = 0; i < to_.size(); ++i) {
      (streaming ? copy_streaming : copy_cached)(to_[i], from_[i], bytes_);
    }
  }

 private:
  std::vector<const std::byte*> from_;
  std::vector<std::byte*> to_;
  std::size_t bytes_;
  bool sums_;
};

}  // namespace benchmarks
