#pragma once

#include <mpi.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "../device/host_caches.hpp"
#include "../kernels/copy.hpp"
#include "../kernels/reduce.hpp"
#include "communicator.hpp"
#include "fingerprint.hpp"
#include "mpi_batch.hpp"
#include "mpi_handle.hpp"
#include "mpi_landing.hpp"
#include "mpi_options.hpp"
#include "mpi_shared_memory.hpp"
#include "mpi_shared_transfer.hpp"
#include "pieces.hpp"

namespace shardwise::inline v0_1::detail::mpi {

/// How one rank moves bytes: messages between each pair of ranks, posted in the order that all
/// ranks know, so that they meet without further words. `Wait` is a function that waits until a
/// batch is complete, or a condition is true, or throws.
class Transfer {
 public:
  Transfer(Handle& handle, const MpiOptions& options)
      : handle_(handle),
        options_(options),
        size_(static_cast<std::size_t>(handle.size())),
        rank_(static_cast<std::size_t>(handle.rank())),
        inputs_(size_) {
    for (std::size_t i = 0; i < window + 2; ++i) {
      batches_.emplace_back(handle.get(), options.largest_message);
    }
  }

  /// Of this call's messages: what is left over of a call that went wrong does not meet them.
  void begin(Operation operation, std::uint64_t sequence) noexcept {
    constexpr std::uint64_t numbers = 4096;  // every MPI has tags up to 32767
    tag_ = static_cast<int>(static_cast<std::uint64_t>(operation) * numbers + sequence % numbers);
  }

  /// All ranks are on one machine; known to all.
  void stay_on_one_machine() noexcept { one_machine_ = true; }

  /// Memory that all ranks have mapped, or null: what is in it moves without messages.
  void use(std::shared_ptr<SharedMemory> memory) {
    shared_.reset();
    memory_ = std::move(memory);
    if (memory_ != nullptr && memory_->is_shared()) shared_.emplace(*memory_, rank_, size_);
  }

  template <class Wait>
  void move(Operation, int, std::span<const GatherItem> items, const Wait& wait) {
    if (!shared_ || !shared_->all_gather(items, wait)) gather(items, wait);
  }

  template <class Wait>
  void move(Operation operation, int, std::span<const ReduceItem> items, const Wait& wait) {
    const bool scatter = operation == Operation::reduce_scatter;
    if (!scatter && is_small(items)) return sum_small(items, wait);
    if (shared_ && options_.order == MpiOrder::canonical && shared_->reduce(items, scatter, wait)) {
      if (!scatter) spread(items, wait);
      return;
    }
    find_landings(items, scatter);
    exchange_weights(items);
    start_sums_of_mpi(items, scatter);
    sum_parts(items, scatter, wait);
    wait(batches_[collectives]);
    finish_sums_of_mpi(items, scatter);
    if (!scatter) spread(items, wait);
  }

  template <class Wait>
  void move(Operation operation, int root, std::span<const BroadcastItem> items, const Wait& wait) {
    Batch& batch = batches_[0];
    {
      const auto lock = handle_.lock();
      if (operation == Operation::barrier) {
        batch.collective(
            [](MPI_Comm comm, MPI_Request* request) { return MPI_Ibarrier(comm, request); },
            "MPI_Ibarrier");
      } else {
        for (const BroadcastItem& item : items) post_broadcast(batch, item, root);
      }
    }
    wait(batch);
  }

  template <class Wait>
  void move(Operation, int, std::span<const ExchangeItem> items, const Wait& wait) {
    Batch& batch = batches_[0];
    {
      const auto lock = handle_.lock();
      for_pairs([&](std::size_t to, std::size_t from) {
        for (const ExchangeItem& item : items) {
          const std::size_t part = item.count * size_of(item.dtype);
          batch.receive(static_cast<std::byte*>(item.recv) + from * part, part, from, tag_);
          batch.send(static_cast<const std::byte*>(item.send) + to * part, part, to, tag_);
        }
      });
    }
    for (const ExchangeItem& item : items) {
      const std::size_t part = item.count * size_of(item.dtype);
      copy_own(static_cast<std::byte*>(item.recv) + rank_ * part,
               static_cast<const std::byte*>(item.send) + rank_ * part, part);
    }
    wait(batch);
  }

  /// Each rank's `bytes` bytes, side by side by rank.
  template <class Wait>
  [[nodiscard]] std::vector<std::byte> collect(const void* mine, std::size_t bytes,
                                               const Wait& wait) {
    std::vector<std::byte> all(bytes * size_);
    const GatherItem item{mine, all.data(), bytes, DType::u8};
    gather({&item, 1}, wait);
    return all;
  }

  /// After a failure; see Batch.
  void cancel() noexcept {
    const auto lock = handle_.lock();
    for (Batch& batch : batches_) batch.cancel();
  }

 private:
  static constexpr std::size_t weights = window;          // the batch of weights
  static constexpr std::size_t collectives = window + 1;  // and that of MPI's own sums
  /// An all_reduce of so few bytes goes whole to every rank.
  static constexpr std::size_t small_bytes = 1024;
  // A broadcast's root sends to everybody itself: to so many, or so little.
  static constexpr std::size_t few_ranks = 8;
  static constexpr std::size_t short_bytes = 8192;

  // Receives before sends, and every pair at another time, so that no rank is everybody's next.
  template <class Post>
  void for_pairs(const Post& post) const {
    for (std::size_t step = 1; step < size_; ++step) {
      const std::size_t to = rank_ + step;
      const std::size_t from = rank_ + size_ - step;
      post(to < size_ ? to : to - size_, from < size_ ? from : from - size_);
    }
  }

  template <class Wait>
  void gather(std::span<const GatherItem> items, const Wait& wait) {
    Batch& batch = batches_[0];
    {
      const auto lock = handle_.lock();
      for_pairs([&](std::size_t to, std::size_t from) {
        for (const GatherItem& item : items) post(batch, item, to, from);
      });
    }
    for (const GatherItem& item : items) {
      if (item.send == nullptr) continue;
      detail::fill_part(item, item, rank_ * item.count,
                        [&](void* to, const void* from, std::size_t n) { copy_own(to, from, n); });
    }
    wait(batch);
  }

  // A part of this rank's own, one of size_ in a buffer: past the caches where the buffers of all
  // ranks are larger.
  void copy_own(void* to, const void* from, std::size_t bytes) const noexcept {
    if (bytes == 0 || to == from) return;
    if (bytes * size_ * (size_ + 1) > cache_bytes_) return copy_bytes(to, from, bytes, true);
    detail::copy_by_memcpy(to, from, bytes);
  }

  void post(Batch& batch, const GatherItem& item, std::size_t to, std::size_t from) {
    const std::size_t size = size_of(item.dtype);
    for_each_place(static_cast<std::byte*>(item.recv), item.pieces, size, from * item.count,
                   (from + 1) * item.count, [&](std::byte* place, std::size_t, std::size_t count) {
                     batch.receive(place, count * size, from, tag_);
                   });
    const std::size_t begin = rank_ * item.count;
    for_each_place(static_cast<std::byte*>(item.recv), item.pieces, size, begin, begin + item.count,
                   [&](const std::byte* place, std::size_t first, std::size_t count) {
                     const std::byte* source = place;
                     if (item.send != nullptr) {
                       source = static_cast<const std::byte*>(item.send) + (first - begin) * size;
                     }
                     batch.send(source, count * size, to, tag_);
                   });
  }

  void post_broadcast(Batch& batch, const BroadcastItem& item, int root) {
    const std::size_t bytes = item.count * size_of(item.dtype);
    // Few ranks read from the root side by side; many are better served by MPI's trees.
    if (size_ <= few_ranks && (one_machine_ || bytes <= short_bytes)) {
      const auto from = static_cast<std::size_t>(root);
      if (rank_ != from) return batch.receive(item.buffer, bytes, from, tag_);
      for_pairs([&](std::size_t to, std::size_t) { batch.send(item.buffer, bytes, to, tag_); });
      return;
    }
    for (std::size_t done = 0; done < bytes;) {
      const std::size_t size = std::min(bytes - done, options_.largest_message);
      batch.collective(
          [&](MPI_Comm comm, MPI_Request* request) {
            return MPI_Ibcast(static_cast<std::byte*>(item.buffer) + done, static_cast<int>(size),
                              MPI_BYTE, root, comm, request);
          },
          "MPI_Ibcast");
      done += size;
    }
  }

  [[nodiscard]] bool is_small(std::span<const ReduceItem> items) const noexcept {
    std::size_t bytes = 0;
    for (const ReduceItem& item : items) {
      bytes += item.count * size_of(item.dtype) + sizeof(double);
      if (!item.pieces.empty() || bytes > small_bytes) return false;
    }
    return true;
  }

  // Everybody gets everything, weights included, and sums it.
  template <class Wait>
  void sum_small(std::span<const ReduceItem> items, const Wait& wait) {
    std::array<std::byte, small_bytes> mine;
    std::size_t bytes = 0;
    const auto put = [&](const void* from, std::size_t count) {
      if (count > 0) std::memcpy(mine.data() + bytes, from, count);
      bytes += count;
    };
    for (const ReduceItem& item : items) {
      put(&item.spec.weight, sizeof item.spec.weight);
      put(item.send, item.count * size_of(item.dtype));
    }
    scratch_.resize(std::max(scratch_.size(), bytes * size_));
    const GatherItem everything{mine.data(), scratch_.data(), bytes, DType::u8};
    gather({&everything, 1}, wait);
    std::size_t offset = 0;
    for (const ReduceItem& item : items) {
      const std::size_t size = item.count * size_of(item.dtype);
      small_.resize(std::max(small_.size(), rounded_up(size) * size_));
      weights_.assign(size_, 1.0);
      for (std::size_t r = 0; r < size_; ++r) {
        const std::byte* from = scratch_.data() + r * bytes + offset;
        std::memcpy(&weights_[r], from, sizeof(double));
        inputs_[r] = small_.data() + r * rounded_up(size);
        std::memcpy(small_.data() + r * rounded_up(size), from + sizeof(double), size);
      }
      canonical_reduce(inputs_, weights_, item.dtype, item.count, item.recv, item.spec);
      offset += sizeof(double) + size;
    }
  }

  // Weights travel before what they weigh, one number for each item and rank.
  void exchange_weights(std::span<const ReduceItem> items) {
    own_weights_.clear();
    for (const ReduceItem& item : items) {
      if (item.spec.weighted) own_weights_.push_back(item.spec.weight);
    }
    if (own_weights_.empty()) return;
    const std::size_t count = own_weights_.size();
    all_weights_.resize(count * size_);
    std::copy(own_weights_.begin(), own_weights_.end(),
              all_weights_.begin() + static_cast<std::ptrdiff_t>(rank_ * count));
    const auto lock = handle_.lock();
    for_pairs([&](std::size_t to, std::size_t from) {
      batches_[weights].receive(all_weights_.data() + from * count, count * sizeof(double), from,
                                tag_);
      batches_[weights].send(own_weights_.data(), count * sizeof(double), to, tag_);
    });
  }

  // Which chunk of which item.
  struct Step {
    std::size_t item = 0;
    std::size_t chunk = 0;
    std::size_t weighted = 0;  // items with weights before it
  };

  [[nodiscard]] Cut cut_of(const ReduceItem& item, bool scatter) const noexcept {
    return Cut(item, scatter, size_, chunk_bytes_of(options_));
  }

  // Goes to the first chunk from `step` on that is there; false at the end.
  [[nodiscard]] bool settle(Step& step, std::span<const ReduceItem> items, bool scatter) const {
    for (; step.item < items.size(); ++step.item, step.chunk = 0) {
      const ReduceItem& item = items[step.item];
      const bool here =
          !by_mpi(item, scatter, size_, options_) && step.chunk < cut_of(item, scatter).steps();
      if (here) return true;
      step.weighted += item.spec.weighted ? 1 : 0;
    }
    return false;
  }

  // Part q of every contribution goes to rank q, chunk by chunk; while later chunks travel, those
  // that are there are summed.
  template <class Wait>
  void sum_parts(std::span<const ReduceItem> items, bool scatter, const Wait& wait) {
    Step posted;
    Step summed;
    std::size_t on_their_way = 0;
    std::size_t next = 0;
    bool have_weights = false;
    while (settle(summed, items, scatter)) {
      {
        const auto lock = handle_.lock();
        while (on_their_way < window && settle(posted, items, scatter)) {
          post(batches_[(next + on_their_way) % window], items, posted, scatter);
          ++posted.chunk;
          ++on_their_way;
        }
      }
      if (!have_weights) wait(batches_[weights]);
      have_weights = true;
      wait(batches_[next % window]);
      sum(items, summed, scatter);
      ++summed.chunk;
      ++next;
      --on_their_way;
    }
    if (!have_weights) wait(batches_[weights]);
  }

  void post(Batch& batch, std::span<const ReduceItem> items, const Step& step, bool scatter) {
    const std::size_t index = step.item;
    const std::size_t chunk = step.chunk;
    const ReduceItem& item = items[index];
    const Cut cut = cut_of(item, scatter);
    const std::size_t size = size_of(item.dtype);
    const Part mine = cut.chunk_of(rank_, chunk);
    for_pairs([&](std::size_t to, std::size_t from) {
      std::byte* const slot = landing_of(index, cut, chunk, item.dtype, from);
      for_each_sent(item, mine, [&](const std::byte*, std::size_t first, std::size_t count) {
        batch.receive(slot + (first - mine.begin) * size, count * size, from, tag_);
      });
      for_each_sent(item, cut.chunk_of(to, chunk),
                    [&](const std::byte* place, std::size_t, std::size_t count) {
                      batch.send(place, count * size, to, tag_);
                    });
    });
  }

  void sum(std::span<const ReduceItem> items, const Step& step, bool scatter) {
    const ReduceItem& item = items[step.item];
    const Cut cut = cut_of(item, scatter);
    const Part part = cut.chunk_of(rank_, step.chunk);
    const std::size_t size = size_of(item.dtype);
    const std::size_t bytes = size_of(item.spec.output);
    auto* out = static_cast<std::byte*>(item.recv) +
                (part.begin - (scatter ? rank_ * item.count : 0)) * bytes;
    const std::span<const double> scales = weights_of(item, step.weighted);
    detail::for_each_stretch(item, part.begin, part.end, out,
                             [&](std::size_t first, std::size_t count, const auto& input) {
                               for (std::size_t r = 0; r < size_; ++r) {
                                 inputs_[r] = r == rank_ ? input(item)
                                                         : landing_of(step.item, cut, step.chunk,
                                                                      item.dtype, r) +
                                                               (first - part.begin) * size;
                               }
                               canonical_reduce(inputs_, scales, item.dtype, count,
                                                out + (first - part.begin) * bytes, item.spec);
                             });
  }

  template <class F>
  void for_each_sent(const ReduceItem& item, const Part& part, const F& f) const {
    for_each_place(static_cast<const std::byte*>(item.send), item.pieces, size_of(item.dtype),
                   part.begin, part.end, f);
  }

  // Where contributions land: in the caller's memory, or in ours where it gave none.
  void find_landings(std::span<const ReduceItem> items, bool scatter) {
    landings_.clear();
    std::size_t needed = 0;
    for (const ReduceItem& item : items) {
      if (item.landing == nullptr) needed += landing_bytes_of(item, scatter);
    }
    scratch_.resize(std::max(scratch_.size(), needed));
    std::byte* free = scratch_.data();
    for (const ReduceItem& item : items) {
      landings_.push_back(item.landing == nullptr ? free : static_cast<std::byte*>(item.landing));
      if (item.landing == nullptr) free += landing_bytes_of(item, scatter);
    }
  }

  [[nodiscard]] std::size_t landing_bytes_of(const ReduceItem& item, bool scatter) const noexcept {
    return landing_bytes(item, scatter, size_, options_);
  }

  [[nodiscard]] std::byte* landing_of(std::size_t item, const Cut& cut, std::size_t chunk,
                                      DType dtype, std::size_t peer) const noexcept {
    const std::size_t slot = (chunk % window) * (size_ - 1) + (peer < rank_ ? peer : peer - 1);
    return landings_[item] + slot * cut.slot_bytes(dtype);
  }

  [[nodiscard]] std::span<const double> weights_of(const ReduceItem& item, std::size_t index) {
    if (!item.spec.weighted) return {};
    const std::size_t count = own_weights_.size();
    weights_.resize(size_);
    for (std::size_t r = 0; r < size_; ++r) weights_[r] = all_weights_[r * count + index];
    return weights_;
  }

  // Every part of an all_reduce is where its rank has summed it.
  template <class Wait>
  void spread(std::span<const ReduceItem> items, const Wait& wait) {
    Batch& batch = batches_[0];
    {
      const auto lock = handle_.lock();
      for_pairs([&](std::size_t to, std::size_t from) {
        for (const ReduceItem& item : items) {
          if (by_mpi(item, false, size_, options_)) continue;
          const Cut cut = cut_of(item, false);
          const std::size_t bytes = size_of(item.spec.output);
          auto* const out = static_cast<std::byte*>(item.recv);
          const Part theirs = cut.part(from);
          const Part mine = cut.part(rank_);
          batch.receive(out + theirs.begin * bytes, theirs.count() * bytes, from, tag_);
          batch.send(out + mine.begin * bytes, mine.count() * bytes, to, tag_);
        }
      });
    }
    wait(batch);
  }

  [[nodiscard]] static MPI_Datatype type_of(DType dtype) noexcept {
    switch (dtype) {
      case DType::f64:
        return MPI_DOUBLE;
      case DType::i64:
        return MPI_INT64_T;
      case DType::i32:
        return MPI_INT32_T;
      default:
        return MPI_FLOAT;
    }
  }

  // Sums that MPI takes. A scattered one always lands first: MPI's form in place overwrites the
  // whole contribution.
  [[nodiscard]] static bool lands(const ReduceItem& item, bool scatter) noexcept {
    return scatter || item.spec.accumulate || item.spec.output != item.dtype;
  }

  void start_sums_of_mpi(std::span<const ReduceItem> items, bool scatter) {
    for (std::size_t i = 0; i < items.size(); ++i) {
      const ReduceItem& item = items[i];
      if (!by_mpi(item, scatter, size_, options_) || item.count == 0) continue;
      const auto count = static_cast<int>(item.count);
      MPI_Datatype type = type_of(item.dtype);
      const auto lock = handle_.lock();
      if (scatter) {
        batches_[collectives].collective(
            [&](MPI_Comm comm, MPI_Request* request) {
              return MPI_Ireduce_scatter_block(item.send, landings_[i], count, type, MPI_SUM, comm,
                                               request);
            },
            "MPI_Ireduce_scatter_block");
        continue;
      }
      void* const to = lands(item, scatter) ? landings_[i] : item.recv;
      batches_[collectives].collective(
          [&](MPI_Comm comm, MPI_Request* request) {
            return MPI_Iallreduce(to == item.send ? MPI_IN_PLACE : item.send, to, count, type,
                                  MPI_SUM, comm, request);
          },
          "MPI_Iallreduce");
    }
  }

  // MPI's sum becomes the result: scaled, added, converted.
  void finish_sums_of_mpi(std::span<const ReduceItem> items, bool scatter) {
    for (std::size_t i = 0; i < items.size(); ++i) {
      const ReduceItem& item = items[i];
      if (!by_mpi(item, scatter, size_, options_) || item.count == 0) continue;
      if (!lands(item, scatter) && item.spec.scale == 1) continue;
      const void* const sum = lands(item, scatter) ? landings_[i] : item.recv;
      canonical_reduce({&sum, 1}, {}, item.dtype, item.count, item.recv, item.spec);
    }
  }

  std::shared_ptr<SharedMemory> memory_;
  std::optional<SharedTransfer> shared_;
  Handle& handle_;
  const MpiOptions& options_;
  std::size_t cache_bytes_ = detail::HostCaches::of_this_machine().last / 4 * 3;
  std::size_t size_;
  std::size_t rank_;
  int tag_ = 0;
  bool one_machine_ = false;
  std::vector<Batch> batches_;
  std::vector<const void*> inputs_;
  std::vector<double> weights_;  // of one item, by rank
  std::vector<double> own_weights_;
  std::vector<double> all_weights_;
  std::vector<std::byte*> landings_;  // by item
  std::vector<std::byte> scratch_;
  std::vector<std::byte> small_;
};

}  // namespace shardwise::inline v0_1::detail::mpi
