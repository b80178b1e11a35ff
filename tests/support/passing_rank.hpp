#pragma once

#include <cstddef>
#include <memory>
#include <shardwise/comm/communicator.hpp>
#include <shardwise/comm/fingerprint.hpp>
#include <span>
#include <string_view>

namespace shardwise::test {

/// A host's own backend, which passes every call on and shares no memory.
class PassingRank : public Communicator {
 public:
  explicit PassingRank(Communicator& inner) : inner_(inner) {}

  [[nodiscard]] int rank() const noexcept override { return inner_.rank(); }
  [[nodiscard]] int size() const noexcept override { return inner_.size(); }
  [[nodiscard]] std::string_view backend() const noexcept override { return "passing"; }
  [[nodiscard]] bool accepts(MemoryKind memory) const noexcept override {
    return inner_.accepts(memory);
  }
  [[nodiscard]] std::size_t landing_bytes(const ReduceItem& item,
                                          bool scatter) const noexcept override {
    return inner_.landing_bytes(item, scatter);
  }
  void all_gather(std::span<const GatherItem> items, const CallInfo& info,
                  StreamRef stream) override {
    before(Operation::all_gather, stream);
    inner_.all_gather(items, info, stream);
  }
  void reduce_scatter(std::span<const ReduceItem> items, const CallInfo& info,
                      StreamRef stream) override {
    before(Operation::reduce_scatter, stream);
    inner_.reduce_scatter(items, info, stream);
  }
  void all_reduce(std::span<const ReduceItem> items, const CallInfo& info,
                  StreamRef stream) override {
    before(Operation::all_reduce, stream);
    inner_.all_reduce(items, info, stream);
  }
  void broadcast(std::span<const BroadcastItem> items, int root, const CallInfo& info,
                 StreamRef stream) override {
    before(Operation::broadcast, stream);
    inner_.broadcast(items, root, info, stream);
  }
  void all_to_all(std::span<const ExchangeItem> items, const CallInfo& info,
                  StreamRef stream) override {
    before(Operation::all_to_all, stream);
    inner_.all_to_all(items, info, stream);
  }
  void barrier(const CallInfo& info, StreamRef stream) override {
    before(Operation::barrier, stream);
    inner_.barrier(info, stream);
  }
  [[nodiscard]] std::unique_ptr<Communicator> split(int color, int key,
                                                    const CallInfo& info) override {
    return inner_.split(color, key, info);
  }
  void abort(std::string_view message, bool provisional) noexcept override {
    inner_.abort(message, provisional);
  }
  void check() override { inner_.check(); }

 protected:
  /// Called before a collective is passed on.
  virtual void before(Operation /*operation*/, StreamRef /*stream*/) {}

 private:
  Communicator& inner_;
};

}  // namespace shardwise::test
