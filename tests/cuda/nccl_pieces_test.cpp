#include <algorithm>
#include <catch2/catch_test_macros.hpp>
#include <cstddef>
#include <cstring>
#include <memory>
#include <random>
#include <shardwise/comm/nccl.hpp>
#include <string>
#include <vector>

#include "../support/ranks.hpp"
#include "../support/sanitized.hpp"
#include "nccl_ranks.hpp"

namespace shardwise::test {
namespace {

/// A flat buffer of floats that lies in pieces with gaps between them, each in device memory of its
/// own with one element more, to see who writes past the end.
class Scattered {
 public:
  Scattered(std::size_t elements, unsigned seed, CudaStream& stream) : stream_(stream) {
    std::mt19937 random(seed);
    std::size_t offset = elements > 3 ? random() % 3 : 0;
    while (offset < elements) {
      const std::size_t count = std::min<std::size_t>(random() % 9, elements - offset);
      pieces_.push_back({nullptr, offset, count});
      offset += count + random() % 4;
    }
  }

  /// Fills the pieces with value(flat offset).
  template <class Value>
  void fill(const Value& value) {
    memory_.clear();
    for (Piece& piece : pieces_) {
      Bytes bytes((piece.count + 1) * sizeof(float));
      for (std::size_t k = 0; k <= piece.count; ++k) {
        const float number = k < piece.count ? value(piece.offset + k) : -1.0f;
        std::memcpy(bytes.data() + k * sizeof(float), &number, sizeof number);
      }
      memory_.emplace_back(bytes, stream_);
      piece.data = piece.count > 0 ? memory_.back().data() : nullptr;
    }
  }

  /// Whether every element is value(flat offset), and the ends are untouched.
  template <class Value>
  [[nodiscard]] bool holds(const Value& value) const {
    bool good = true;
    for (std::size_t i = 0; i < pieces_.size(); ++i) {
      const Bytes bytes = memory_[i].read(stream_);
      for (std::size_t k = 0; k <= pieces_[i].count; ++k) {
        const float expected = k < pieces_[i].count ? value(pieces_[i].offset + k) : -1.0f;
        good = good && element<float>(bytes, k) == expected;
      }
    }
    return good;
  }

  [[nodiscard]] const std::vector<Piece>& pieces() const noexcept { return pieces_; }

 private:
  CudaStream& stream_;
  std::vector<DeviceBytes> memory_;
  std::vector<Piece> pieces_;
};

float value(std::size_t rank, std::size_t element) {
  return static_cast<float>(rank * 1000 + element);
}

Bytes floats(std::size_t count, float fill) {
  Bytes bytes(count * sizeof(float));
  for (std::size_t i = 0; i < count; ++i) {
    std::memcpy(bytes.data() + i * sizeof(float), &fill, sizeof fill);
  }
  return bytes;
}

std::string gathers(Communicator& comm, unsigned seed, std::size_t part) {
  CudaStream stream;
  const auto rank = static_cast<std::size_t>(comm.rank());
  const std::size_t all = static_cast<std::size_t>(comm.size()) * part;
  Bytes own = floats(part, 0);
  for (std::size_t i = 0; i < part; ++i) {
    const float number = value(rank, rank * part + i);
    std::memcpy(own.data() + i * sizeof(float), &number, sizeof number);
  }
  const DeviceBytes mine(own, stream);
  for (const bool inside : {false, true}) {  // each rank's own part is in its pieces already
    Scattered target(all, seed, stream);
    target.fill([&](std::size_t at) { return inside && at / part == rank ? value(rank, at) : -2; });
    const GatherItem item{inside ? nullptr : mine.data(), nullptr, part, DType::f32,
                          target.pieces()};
    comm.all_gather({&item, 1}, {"pieces"}, stream.ref());
    stream.synchronize();
    comm.check();
    if (!target.holds([&](std::size_t at) { return value(at / part, at); })) return "all_gather";
  }
  return {};
}

std::string reduces(Communicator& comm, unsigned seed, std::size_t part, bool weighted) {
  CudaStream stream;
  const auto rank = static_cast<std::size_t>(comm.rank());
  const std::size_t all = static_cast<std::size_t>(comm.size()) * part;
  Scattered source(all, seed, stream);
  source.fill([&](std::size_t at) { return 0.37f * value(rank, at); });
  Bytes flat = floats(all, 0);
  for (const Piece& piece : source.pieces()) {
    for (std::size_t at = piece.offset; at < piece.offset + piece.count; ++at) {
      const float number = 0.37f * value(rank, at);
      std::memcpy(flat.data() + at * sizeof(float), &number, sizeof number);
    }
  }
  const DeviceBytes flat_send(flat, stream);
  for (const bool scatter : {true, false}) {
    for (const bool accumulate : {false, true}) {
      const std::size_t count = scatter ? part : all;
      const DeviceBytes expected(floats(count, 5.0f), stream);
      const DeviceBytes result(floats(count, 5.0f), stream);
      const double weight = weighted ? 1.0 + static_cast<double>(rank) : 1.0;
      const ReduceSpec spec{DType::f32, 0.25, weight, accumulate, weighted};
      ReduceItem of_flat{flat_send.data(), expected.data(), count, DType::f32, spec};
      ReduceItem of_pieces{nullptr, result.data(), count, DType::f32, spec};
      of_pieces.pieces = source.pieces();
      const std::size_t bytes = comm.landing_bytes(of_flat, scatter);
      const DeviceBytes landing(Bytes(bytes, std::byte{0xff}), stream);
      const DeviceBytes other(Bytes(bytes, std::byte{0xff}), stream);
      of_flat.landing = landing.data();
      of_pieces.landing = other.data();
      for (const ReduceItem* const item : {&of_flat, &of_pieces}) {
        if (scatter) {
          comm.reduce_scatter({item, 1}, {"pieces"}, stream.ref());
        } else {
          comm.all_reduce({item, 1}, {"pieces"}, stream.ref());
        }
      }
      stream.synchronize();
      comm.check();
      if (expected.read(stream) != result.read(stream)) {
        return std::string(scatter ? "reduce_scatter" : "all_reduce") +
               (accumulate ? " accumulating" : "") + (weighted ? ", weighted" : "");
      }
    }
  }
  return {};
}

TEST_CASE("collectives over pieces give the bits of flat buffers, and zeros between pieces") {
  for (unsigned seed = 0; seed < (sanitized ? 2u : 4u); ++seed) {
    const std::size_t part = 1 + seed * 37 % 201;
    for (const int world : present_worlds()) {
      for (const NcclOrder order : {NcclOrder::canonical, NcclOrder::fast}) {
        const auto wrong = on_cuda_ranks(world,
                                         [&](Communicator& comm) {
                                           std::string text = gathers(comm, seed, part);
                                           // NCCL's own order depends on how a buffer is cut, its
                                           // sums of two do not.
                                           if (order == NcclOrder::canonical || world <= 2) {
                                             text += reduces(comm, seed, part, false);
                                           }
                                           return text + reduces(comm, seed, part, true);
                                         },
                                         {.order = order, .checked = seed % 2 == 0});
        INFO("world " << world << " seed " << seed << " order " << static_cast<int>(order));
        for (const auto& text : wrong) CHECK(text == "");
      }
    }
  }
}

TEST_CASE("ranks whose pieces differ are told so where calls are compared") {
  require_devices(2);
  const auto ends = on_cuda_ranks(2, [](Communicator& comm) {
    CudaStream stream;
    const DeviceBytes memory(floats(40, 0), stream);
    std::vector<Piece> pieces{{memory.data(), 0, 3}, {memory.data() + 40, 4, 2}};
    if (comm.rank() == 1) pieces[1].offset = 5;
    const GatherItem item{memory.data() + 80, nullptr, 4, DType::f32, pieces};
    try {
      comm.all_gather({&item, 1}, {"odd"}, stream.ref());
      stream.synchronize();
      return std::string("accepted");
    } catch (const CollectiveMismatch& error) {
      return std::string(error.what());
    }
  });
  for (const auto& text : ends) CHECK(text.find("\"odd\"") != std::string::npos);
}

}  // namespace
}  // namespace shardwise::test
