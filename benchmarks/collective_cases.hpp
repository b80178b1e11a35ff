#pragma once

#include <algorithm>
#include <cstddef>
#include <string>
#include <vector>

#include "collective.hpp"
#include "program.hpp"

namespace benchmarks {

/// Which collectives a program measures, by options of equal names on every backend.
struct CollectiveCases {
  std::size_t min = 1024;
  std::size_t max = std::size_t{256} << 20;
  std::vector<std::string> ops = op_names;
  std::vector<std::string> dtypes = dtype_names;

  void add_to(Program& program) {
    program.add_bytes("--min", min, "bytes of the whole buffer, as 1KiB");
    program.add_bytes("--max", max, "bytes of the whole buffer, as 256MiB");
    program.options.add_option("--op", ops)->delimiter(',')->check(CLI::IsMember(ops));
    program.options.add_option("--dtype", dtypes)->delimiter(',')->check(CLI::IsMember(dtypes));
  }

  /// before(type) once for each type, then measure(collective) of each operation and size; false
  /// where one was not good.
  template <class Before, class Measure>
  [[nodiscard]] bool for_each(std::size_t ranks, const Before& before,
                              const Measure& measure) const {
    bool good = true;
    for (const std::string& name : dtypes) {
      const shardwise::DType dtype = dtype_named(name);
      before(dtype);
      for (const std::string& op : ops) {
        for (const std::size_t size : sizes_between(min, max)) {
          const std::size_t part =
              std::max<std::size_t>(1, size / shardwise::size_of(dtype) / ranks);
          good = measure(Collective{op_named(op), dtype, part, ranks}) && good;
        }
      }
    }
    return good;
  }
};

/// What every backend says of a collective: its time beside the limit's, which took turns with it.
[[nodiscard]] inline Results::Json row_of(const Collective& call, const Series& time,
                                          const Series& limit, std::size_t errors) {
  const double seconds = time.middle();
  const auto bytes = static_cast<double>(call.bytes());
  return {{"op", call.name()},
          {"dtype", shardwise::name_of(call.dtype)},
          {"bytes", call.bytes()},
          {"time_us", seconds * 1e6},
          {"time_us_min", time.least() * 1e6},
          {"time_us_max", time.most() * 1e6},
          {"algbw_gbs", bytes / seconds * 1e-9},
          {"busbw_gbs", bytes / seconds * 1e-9 * call.bus_factor()},
          {"limit_us", limit.middle() * 1e6},
          {"limit_ratio", (limit / time).middle()},
          {"wrong", errors}};
}

}  // namespace benchmarks
