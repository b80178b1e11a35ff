#pragma once

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <random>
#include <shardwise/comm/communicator.hpp>
#include <shardwise/core/format.hpp>
#include <string>
#include <vector>

namespace shardwise::test {

/// A flat buffer of floats that lies in pieces, with gaps between them, in memory of its own.
struct Scattered {
  Scattered(std::size_t elements, unsigned seed) {
    std::mt19937 random(seed);
    std::size_t offset = elements > 3 ? random() % 3 : 0;
    while (offset < elements) {
      const std::size_t count = std::min<std::size_t>(random() % 9, elements - offset);
      memory.emplace_back(count + 1, -1.0f);  // one more, to see who writes past the end
      pieces.push_back({nullptr, offset, count});
      offset += count + random() % 4;
    }
    for (std::size_t i = 0; i < pieces.size(); ++i) {
      if (pieces[i].count > 0) pieces[i].data = reinterpret_cast<std::byte*>(memory[i].data());
    }
  }
  /// f(flat offset, element) for each element of a piece.
  template <class F>
  void each(F&& f) {
    for (std::size_t i = 0; i < pieces.size(); ++i) {
      for (std::size_t k = 0; k < pieces[i].count; ++k) f(pieces[i].offset + k, memory[i][k]);
    }
  }
  [[nodiscard]] bool ends_untouched() const {
    return std::all_of(memory.begin(), memory.end(), [](const auto& m) { return m.back() == -1; });
  }

  std::vector<std::vector<float>> memory;
  std::vector<Piece> pieces;
};

inline float value(std::size_t rank, std::size_t element) {
  return static_cast<float>(rank * 1000 + element);
}

/// What pieces give, against the same call on flat buffers; empty where all is equal.
inline std::string compare_pieces(Communicator& comm, unsigned seed, std::size_t part) {
  const auto world = static_cast<std::size_t>(comm.size());
  const auto rank = static_cast<std::size_t>(comm.rank());
  const std::size_t all = world * part;
  const CallInfo info{"pieces"};
  std::vector<float> flat(all), mine(part);
  for (std::size_t i = 0; i < part; ++i) mine[i] = value(rank, rank * part + i);

  for (const bool inside : {false, true}) {  // each rank's own part is in its pieces already
    Scattered target(all, seed);
    if (inside) {
      target.each([&](std::size_t at, float& element) {
        if (at / part == rank) element = value(rank, at);
      });
    }
    const GatherItem item{inside ? nullptr : mine.data(), nullptr, part, DType::f32, target.pieces};
    comm.all_gather({&item, 1}, info, {});
    bool good = target.ends_untouched();
    target.each(
        [&](std::size_t at, float& element) { good = good && element == value(at / part, at); });
    if (!good) return "all_gather";
  }

  for (const bool scatter : {true, false}) {
    for (const bool accumulate : {false, true}) {
      Scattered source(all, seed);
      std::fill(flat.begin(), flat.end(), 0.0f);
      source.each([&](std::size_t at, float& element) {
        element = 0.37f * value(rank, at);
        flat[at] = element;
      });
      const std::size_t count = scatter ? part : all;
      std::vector<float> expected(count, 5.0f), result(count, 5.0f);
      ReduceSpec spec{DType::f32, 0.25, 1.0 + static_cast<double>(rank), accumulate, true};
      ReduceItem of_flat{flat.data(), expected.data(), count, DType::f32, spec};
      ReduceItem of_pieces{nullptr, result.data(), count, DType::f32, spec};
      of_pieces.pieces = source.pieces;
      if (scatter) {
        comm.reduce_scatter({&of_flat, 1}, info, {});
        comm.reduce_scatter({&of_pieces, 1}, info, {});
      } else {
        comm.all_reduce({&of_flat, 1}, info, {});
        comm.all_reduce({&of_pieces, 1}, info, {});
      }
      if (std::memcmp(expected.data(), result.data(), count * sizeof(float)) != 0) {
        return shardwise::detail::format("{} accumulate {}",
                                         scatter ? "reduce_scatter" : "all_reduce", accumulate);
      }
    }
  }
  return {};
}

}  // namespace shardwise::test
