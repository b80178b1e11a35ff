// The same collectives, f32 and out of place, between threads by the library and between processes
// by the calls of Open MPI and MPICH, where these were found when this was built. They take turns:
// round by round each measures every size, in its own processes while nobody else runs (ranks of
// MPI poll, and would take the cores of others). `times_better`: the better peer's time over ours.

#include <array>
#include <cstdio>
#include <map>
#include <memory>
#include <shardwise/comm/thread.hpp>
#include <sstream>

#include "collective.hpp"
#include "program.hpp"

namespace {

using namespace benchmarks;

struct Options {
  int ranks = 2;
  std::size_t min = 1024;
  std::size_t max = std::size_t{64} << 20;
  std::vector<std::string> ops = op_names;
  int rounds = 3;
  std::string openmpi = BENCH_OPENMPI;
  std::string mpich = BENCH_MPICH;
};

/// Microseconds of all samples, by operation and bytes.
using Times = std::map<std::pair<std::string, std::size_t>, Series>;

void measure_threads(const Options& options, const Sampling& sampling, Times& times) {
  const auto ranks = static_cast<std::size_t>(options.ranks);
  shardwise::run_ranks(options.ranks, [&](shardwise::Communicator& comm) {
    std::vector<std::byte> send(options.max);
    std::vector<std::byte> recv(options.max);
    Sampling how = sampling;
    how.barrier = [&] { shardwise::barrier(comm); };
    how.agree = [&](double here) { return shardwise::max(comm, here); };
    for (const std::string& op : options.ops) {
      for (const std::size_t size : sizes_between(options.min, options.max)) {
        const Collective call{op_named(op), shardwise::DType::f32, size / 4 / ranks, ranks};
        const auto found = in_turns(how, {[&] { call(comm, {send.data(), recv.data()}); }});
        if (comm.rank() != 0) continue;
        for (const double seconds : found[0].values) {
          times[{op, call.bytes()}].values.push_back(seconds * 1e6);
        }
      }
    }
  });
}

/// `command` starts the processes but for their number and the program's arguments.
void measure_peer(const Options& options, const Sampling& sampling, const std::string& command,
                  Times& times) {
  std::ostringstream line;
  std::string ops;
  for (const std::string& op : options.ops) ops += (ops.empty() ? "" : ",") + op;
  const std::size_t at = command.find("{ranks}");
  if (at == std::string::npos) throw std::runtime_error("no {ranks} in: " + command);
  line << command.substr(0, at) << options.ranks << command.substr(at + 7) << ' ' << ops << ' '
       << options.min << ' ' << options.max << ' ' << sampling.samples << ' ' << sampling.seconds;
  const std::unique_ptr<FILE, int (*)(FILE*)> pipe(popen(line.str().c_str(), "r"), pclose);
  if (!pipe) throw std::runtime_error("cannot start: " + line.str());
  std::array<char, 256> text{};
  std::size_t found = 0;
  while (std::fgets(text.data(), text.size(), pipe.get()) != nullptr) {
    std::istringstream words(text.data());
    std::string op;
    std::size_t bytes = 0;
    double microseconds = 0;
    if (!(words >> op >> bytes >> microseconds)) continue;
    times[{op, bytes}].values.push_back(microseconds);
    ++found;
  }
  if (found == 0) throw std::runtime_error("printed nothing: " + line.str());
}

void report(const Options& options, Program& program, const Times& ours,
            const std::map<std::string, Times>& peers) {
  for (const std::string& op : options.ops) {
    for (const auto& [key, series] : ours) {
      if (key.first != op) continue;
      Results::Json row{{"op", op},
                        {"dtype", "f32"},
                        {"bytes", key.second},
                        {"threads_us", series.middle()},
                        {"threads_us_min", series.least()},
                        {"threads_us_max", series.most()}};
      double best = 0;
      for (const auto& [name, times] : peers) {
        const Series& peer = times.at(key);
        row[name + "_us"] = peer.middle();
        row[name + "_us_min"] = peer.least();
        row[name + "_us_max"] = peer.most();
        best = best == 0 ? peer.middle() : std::min(best, peer.middle());
      }
      if (!peers.empty()) row["times_better"] = best / series.middle();
      program.results.add(std::move(row));
    }
  }
}

}  // namespace

int main(int count, char** arguments) {
  Options options;
  Program program("bench_peers",
                  "The collectives between threads beside those of raw Open MPI and MPICH");
  program.sampling.samples = 3;
  CLI::App& app = program.options;
  app.add_option("--ranks", options.ranks)->check(CLI::PositiveNumber);
  program.add_bytes("--min", options.min, "bytes of the whole buffer, as 1KiB");
  program.add_bytes("--max", options.max, "bytes of the whole buffer, as 256MiB");
  app.add_option("--op", options.ops)->delimiter(',')->check(CLI::IsMember(op_names));
  app.add_option("--rounds", options.rounds, "of all in turn; each takes so many --samples")
      ->check(CLI::PositiveNumber);
  app.add_option("--openmpi", options.openmpi, "starts {ranks} of peer_mpi; empty: left out");
  app.add_option("--mpich", options.mpich, "starts {ranks} of peer_mpi; empty: left out");
  return program.run(count, arguments, [&] {
    Times ours;
    std::map<std::string, Times> peers;
    for (int round = 0; round < options.rounds; ++round) {
      measure_threads(options, program.sampling, ours);
      for (const auto& [name, command] :
           {std::pair{"openmpi", options.openmpi}, {"mpich", options.mpich}}) {
        if (!command.empty()) measure_peer(options, program.sampling, command, peers[name]);
      }
    }
    program.results.describe("ranks", options.ranks);
    program.results.describe("samples", options.rounds * program.sampling.samples);
    if (peers.empty()) std::puts("neither Open MPI nor MPICH was found");
    report(options, program, ours, peers);
    return true;
  });
}
