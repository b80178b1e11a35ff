#pragma once

#include <mpi.h>

#include <cstddef>
#include <functional>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "../core/error.hpp"
#include "mpi_communicator.hpp"
#include "mpi_error.hpp"
#include "mpi_family.hpp"
#include "mpi_handle.hpp"
#include "rendezvous.hpp"

namespace shardwise::inline v0_1 {

/// The rendezvous of processes that MPI has connected: it carries NCCL's identifier, and one rank's
/// failure to all.
///
///     shardwise::MpiSession mpi;
///     shardwise::MpiCommunicator processes(mpi);
///     shardwise::NcclCommunicator world(std::make_shared<shardwise::MpiRendezvous>(processes));
///
/// Made by all ranks of the communicator, at most one of it at a time; ranks are the
/// communicator's, and both fail together. It may outlive the communicator, but not the session.
class MpiRendezvous final : public Rendezvous {
 public:
  explicit MpiRendezvous(const MpiCommunicator& communicator)
      : family_(communicator.family_),
        handle_(communicator.handle_),
        world_ranks_(communicator.world_ranks_) {}
  /// Waits for nobody: messages that nobody has asked for stay with MPI.
  ~MpiRendezvous() override {
    if (handle_->is_usable()) {
      const auto lock = handle_->lock();
      forget_what_has_gone();
    }
    if (!sent_->empty()) static_cast<void>(sent_.release());  // MPI may read them still
  }

  [[nodiscard]] int rank() const noexcept override { return handle_->rank(); }
  [[nodiscard]] int size() const noexcept override { return handle_->size(); }

  void put(std::string_view key, std::string_view value) override {
    check_key(key);
    if (value.size() > most_bytes) {
      raise("rank {}: \"{}\" has {} bytes; an MpiRendezvous carries at most {}", rank(), key,
            value.size(), most_bytes);
    }
    const std::lock_guard guard(mutex_);
    if (!values_.emplace(key, value).second) {
      raise("rank {}: the rendezvous has \"{}\" already", rank(), key);
    }
    Sent& sent = sent_->emplace_back();
    sent.text = std::string(key) + '\n' + std::string(value);
    sent.requests.assign(static_cast<std::size_t>(size()), MPI_REQUEST_NULL);
    const auto lock = handle_->lock();
    for (int r = 0; r < size(); ++r) {
      if (r == rank()) continue;
      check(MPI_Isend(sent.text.data(), static_cast<int>(sent.text.size()), MPI_BYTE, r, tag,
                      handle_->get(), &sent.requests[static_cast<std::size_t>(r)]),
            "MPI_Isend");
    }
  }

  [[nodiscard]] std::optional<std::string> try_get(std::string_view key) override {
    check_key(key);
    const std::lock_guard guard(mutex_);
    receive();
    const auto found = values_.find(key);
    if (found == values_.end()) return std::nullopt;
    return found->second;
  }

  void fail(const RankFailure& failure) noexcept override {
    family_->fail(failure.message, failure.provisional);
  }

  [[nodiscard]] std::optional<RankFailure> failure() noexcept override {
    if (!family_->has_failed()) return std::nullopt;
    try {
      const ProcessFailure found = family_->failure();
      RankFailure result{found.rank,
                         found.died || found.left ? "it " + what_happened(found) : found.message,
                         found.provisional};
      for (std::size_t r = 0; r < world_ranks_.size(); ++r) {
        if (world_ranks_[r] == found.rank) result.rank = static_cast<int>(r);
      }
      result.mismatch = found.message.starts_with("ranks called different collectives");
      return result;
    } catch (...) {
      return RankFailure{rank(), "the reason of the failure could not be read"};
    }
  }

 private:
  /// A text on its way to all ranks.
  struct Sent {
    std::string text;
    std::vector<MPI_Request> requests;
  };

  static constexpr int tag = 0;  // calls have others
  // Of a value: what MPI sends at once, without waiting for who receives it.
  static constexpr std::size_t most_bytes = 2000;

  static void check(int code, const char* call) { detail::mpi::check(code, call, "MpiRendezvous"); }

  void forget_what_has_gone() noexcept {
    sent_->remove_if([](Sent& sent) {
      bool all = true;
      for (MPI_Request& request : sent.requests) {
        int done = 0;
        MPI_Test(&request, &done, MPI_STATUS_IGNORE);
        all = all && request == MPI_REQUEST_NULL;
      }
      return all;
    });
  }

  // All that has come.
  void receive() {
    const auto lock = handle_->lock();
    for (;;) {
      int there = 0;
      MPI_Message message = MPI_MESSAGE_NULL;
      MPI_Status status{};
      check(MPI_Improbe(MPI_ANY_SOURCE, tag, handle_->get(), &there, &message, &status),
            "MPI_Improbe");
      if (there == 0) break;
      int bytes = 0;
      check(MPI_Get_count(&status, MPI_BYTE, &bytes), "MPI_Get_count");
      std::string text(static_cast<std::size_t>(bytes), '\0');
      check(MPI_Mrecv(text.data(), bytes, MPI_BYTE, &message, &status), "MPI_Mrecv");
      const std::size_t end = text.find('\n');
      values_.emplace(text.substr(0, end), text.substr(end + 1));
    }
    forget_what_has_gone();
  }

  std::shared_ptr<detail::mpi::Family> family_;
  std::shared_ptr<detail::mpi::Handle> handle_;
  std::vector<int> world_ranks_;
  std::mutex mutex_;
  std::map<std::string, std::string, std::less<>> values_;
  std::unique_ptr<std::list<Sent>> sent_ = std::make_unique<std::list<Sent>>();
};

}  // namespace shardwise::inline v0_1
