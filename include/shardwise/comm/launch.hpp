#pragma once

#include <unistd.h>

#include <array>
#include <charconv>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <system_error>
#include <vector>

#include "../core/error.hpp"

namespace shardwise::inline v0_1 {

/// How launch variables are read: the value, or nothing where the variable is not set.
using EnvironmentLookup = std::function<std::optional<std::string>(const char* name)>;

namespace detail {

[[nodiscard]] inline std::optional<std::string> environment_variable(const char* name) {
  const char* const value = std::getenv(name);
  if (value == nullptr) return std::nullopt;
  return value;
}

}  // namespace detail

/// This process's place among those that were started together.
struct Launch {
  /// What the launcher's variables say; see detect_launch.
  [[nodiscard]] static Launch from_environment(
      const EnvironmentLookup& lookup = detail::environment_variable);

  int rank = 0;
  int size = 1;
  int local_rank = -1;  ///< among the processes of this machine; -1: the launcher does not say
  int local_size = -1;  ///< how many there are on this machine; -1: the launcher does not say
  std::string source = "nothing";  ///< who said so: "torchrun", "Open MPI", "Slurm", ...
  /// Equal in all processes that were started together and different from others' on the machine,
  /// as far as the launcher says; empty where it says nothing.
  std::string job = {};
  /// Where rank 0 can be met, as torchrun says, for hosts that have a rendezvous of their own.
  std::string master_address = {};
  int master_port = -1;  ///< -1: the launcher does not say
};

namespace detail {

/// The variables in which one kind of launcher says where a process stands; null: it has none.
struct LauncherVariables {
  const char* name;
  const char* rank;
  const char* size;
  const char* local_rank;
  const char* local_size;
  std::array<const char*, 3> job;
};

inline constexpr LauncherVariables explicit_variables = {
    "SHARDWISE_RANK",       "SHARDWISE_RANK",       "SHARDWISE_SIZE",
    "SHARDWISE_LOCAL_RANK", "SHARDWISE_LOCAL_SIZE", {"SHARDWISE_JOB", nullptr, nullptr}};
inline constexpr LauncherVariables torchrun_variables = {
    "torchrun",         "RANK",
    "WORLD_SIZE",       "LOCAL_RANK",
    "LOCAL_WORLD_SIZE", {"TORCHELASTIC_RUN_ID", "MASTER_PORT", "TORCHELASTIC_RESTART_COUNT"}};
inline constexpr LauncherVariables open_mpi_variables = {"Open MPI",
                                                         "OMPI_COMM_WORLD_RANK",
                                                         "OMPI_COMM_WORLD_SIZE",
                                                         "OMPI_COMM_WORLD_LOCAL_RANK",
                                                         "OMPI_COMM_WORLD_LOCAL_SIZE",
                                                         {"PMIX_NAMESPACE", nullptr, nullptr}};
inline constexpr LauncherVariables pmi_variables = {"PMI",
                                                    "PMI_RANK",
                                                    "PMI_SIZE",
                                                    "MPI_LOCALRANKID",
                                                    "MPI_LOCALNRANKS",
                                                    {"PMI_JOBID", nullptr, nullptr}};
inline constexpr LauncherVariables slurm_variables = {
    "Slurm",         "SLURM_PROCID", "SLURM_NTASKS",
    "SLURM_LOCALID", nullptr,        {"SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT"}};

/// Reads launch variables and says what is wrong with them.
class LaunchReader {
 public:
  explicit LaunchReader(const EnvironmentLookup& lookup) : lookup_(lookup) {}

  [[nodiscard]] bool has(const char* name) const { return lookup_(name).has_value(); }

  /// What `launcher` says; nothing where neither rank nor size is set.
  [[nodiscard]] std::optional<Launch> read(const LauncherVariables& launcher) const {
    const std::optional<int> rank = number(launcher.rank);
    const std::optional<int> size = number(launcher.size);
    if (!rank && !size) return std::nullopt;
    if (!rank || !size) {
      raise<ConfigError>("{} is set and {} is not: a launcher sets both. {}",
                         rank ? launcher.rank : launcher.size, rank ? launcher.size : launcher.rank,
                         advice);
    }
    Launch result;
    result.rank = *rank;
    result.size = *size;
    result.local_rank = optional_number(launcher.local_rank);
    result.local_size = optional_number(launcher.local_size);
    result.source = launcher.name;
    check(result, launcher);
    for (const char* const part : launcher.job) {
      const auto value = part == nullptr ? std::nullopt : lookup_(part);
      if (value) result.job += (result.job.empty() ? "" : "-") + *value;
    }
    return result;
  }

  /// ConfigError where two launchers' variables, of which neither runs inside the other, differ.
  void agree(const std::optional<Launch>& a, const LauncherVariables& of_a,
             const std::optional<Launch>& b, const LauncherVariables& of_b) const {
    if (!a || !b || (a->rank == b->rank && a->size == b->size)) return;
    raise<ConfigError>("{} contradict {}. Unset those that were not meant for this run, or {}",
                       quote(*a, of_a), quote(*b, of_b), say_which);
  }

  /// ConfigError where PMIX_RANK, which several launchers set beside their own, differs from them.
  void agree_with_pmix(const Launch& launch, const LauncherVariables& variables) const {
    const std::optional<int> rank = number(pmix_rank);
    if (!rank || *rank == launch.rank) return;
    raise<ConfigError>("{}={} contradicts {}. Unset what was not meant for this run, or {}",
                       pmix_rank, *rank, quote(launch, variables), say_which);
  }

  /// Reads where rank 0 can be met.
  void read_master(Launch& launch) const {
    launch.master_address = lookup_("MASTER_ADDR").value_or("");
    const std::optional<int> port = number("MASTER_PORT");
    if (!port) return;
    if (*port > 65535) raise<ConfigError>("MASTER_PORT={} is no port: those are 0 to 65535", *port);
    launch.master_port = *port;
  }

  static constexpr const char* say_which =
      "say which are right by SHARDWISE_RANK and SHARDWISE_SIZE.";
  static constexpr const char* pmix_rank = "PMIX_RANK";
  static constexpr const char* advice =
      "Start the program by torchrun, mpirun or srun, or set SHARDWISE_RANK and SHARDWISE_SIZE.";

 private:
  [[nodiscard]] static std::string quote(const Launch& launch, const LauncherVariables& variables) {
    return format("{}={} and {}={} ({})", variables.rank, launch.rank, variables.size, launch.size,
                  variables.name);
  }

  [[nodiscard]] std::optional<int> number(const char* name) const {
    const auto text = name == nullptr ? std::nullopt : lookup_(name);
    if (!text) return std::nullopt;
    int value = -1;
    const char* const end = text->data() + text->size();
    const auto [stop, error] = std::from_chars(text->data(), end, value);
    if (error != std::errc() || stop != end || value < 0) {
      raise<ConfigError>("{}=\"{}\" is not a number from 0 to {}", name, *text, 2147483647);
    }
    return value;
  }

  [[nodiscard]] int optional_number(const char* name) const { return number(name).value_or(-1); }

  static void check(const Launch& launch, const LauncherVariables& launcher) {
    if (launch.size < 1) raise<ConfigError>("{}=0: a run has at least one process", launcher.size);
    if (launch.rank >= launch.size) {
      raise<ConfigError>("{}={} and {}={}: ranks are 0 to {}", launcher.rank, launch.rank,
                         launcher.size, launch.size, launch.size - 1);
    }
    if (launch.local_size == 0 || launch.local_size > launch.size) {
      raise<ConfigError>(
          "{}={} and {}={}: a machine runs at least one process of the run, and not "
          "more than all",
          launcher.local_size, launch.local_size, launcher.size, launch.size);
    }
    const int processes = launch.local_size < 0 ? launch.size : launch.local_size;
    if (launch.local_rank >= processes) {
      raise<ConfigError>("{}={}, but this machine runs {} processes: local ranks are 0 to {}",
                         launcher.local_rank, launch.local_rank, processes, processes - 1);
    }
  }

  const EnvironmentLookup& lookup_;
};

}  // namespace detail

/// Where this process stands, from the variables that its launcher set:
/// SHARDWISE_RANK, _SIZE, _LOCAL_RANK, _LOCAL_SIZE, _JOB (set by hand; they go before all others);
/// torchrun (RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR, MASTER_PORT); Open MPI,
/// PRRTE's mpirun of version 5 included (OMPI_COMM_WORLD_*); PMI (PMI_RANK, PMI_SIZE,
/// MPI_LOCALRANKID, MPI_LOCALNRANKS: MPICH, Intel MPI, srun --mpi=pmi2); Slurm (SLURM_PROCID,
/// SLURM_NTASKS, SLURM_LOCALID). Nothing set: one process alone.
///
/// torchrun and mpirun may run inside a Slurm job, torchrun inside mpirun: the inner one counts.
/// Others that differ are a ConfigError that names the variables of both, and so is a PMIX_RANK
/// that differs; so are values that are no numbers, out of range, or set by halves.
[[nodiscard]] inline Launch detect_launch(
    const EnvironmentLookup& lookup = detail::environment_variable) {
  using namespace detail;
  const LaunchReader reader(lookup);
  const auto torchrun_says = [&](Launch launch) {
    reader.read_master(launch);
    return launch;
  };
  if (auto own = reader.read(explicit_variables)) return *own;
  const auto torchrun = reader.read(torchrun_variables);
  if (torchrun && reader.has("TORCHELASTIC_RUN_ID")) return torchrun_says(*torchrun);
  const auto open_mpi = reader.read(open_mpi_variables);
  const auto pmi = reader.read(pmi_variables);
  // RANK and WORLD_SIZE may be left over in a shell: then every process would take itself for one.
  reader.agree(torchrun, torchrun_variables, open_mpi, open_mpi_variables);
  reader.agree(torchrun, torchrun_variables, pmi, pmi_variables);
  reader.agree(open_mpi, open_mpi_variables, pmi, pmi_variables);
  if (open_mpi) {
    reader.agree_with_pmix(*open_mpi, open_mpi_variables);
    return *open_mpi;
  }
  if (pmi) return *pmi;  // a PMIX_RANK may be that of the Slurm step around it
  // A batch script sees its job's variables, too, without being one of the tasks of a step.
  const bool in_step = reader.has("SLURM_STEP_ID");
  if (torchrun && !in_step) return torchrun_says(*torchrun);
  const auto slurm = reader.read(slurm_variables);
  if (in_step) {
    reader.agree(torchrun, torchrun_variables, slurm, slurm_variables);
    if (slurm) reader.agree_with_pmix(*slurm, slurm_variables);
  }
  if (torchrun) return torchrun_says(*torchrun);
  if (slurm && in_step) return *slurm;
  if (slurm && slurm->size > 1) {
    raise<ConfigError>(
        "this is the batch script of a Slurm job of {} tasks, not one of the tasks: start the "
        "program by srun, or say by SHARDWISE_RANK=0 and SHARDWISE_SIZE=1 that it runs alone",
        slurm->size);
  }
  if (reader.has(LaunchReader::pmix_rank)) {
    raise<ConfigError>("PMIX_RANK is set, but PMIx keeps the number of processes elsewhere. {}",
                       LaunchReader::advice);
  }
  return {};
}

inline Launch Launch::from_environment(const EnvironmentLookup& lookup) {
  return detect_launch(lookup);
}

/// What tells this machine from others: its name and, where there is one, its boot's identity.
[[nodiscard]] inline std::string machine_name() {
  std::array<char, 256> name{};
  if (gethostname(name.data(), name.size() - 1) != 0) name[0] = '?';
  std::string result = name.data();
  if (std::FILE* const file = std::fopen("/proc/sys/kernel/random/boot_id", "re")) {
    std::array<char, 64> boot{};
    const std::size_t length = std::fread(boot.data(), 1, boot.size(), file);
    std::fclose(file);
    result += ' ';
    result.append(boot.data(), length);
    while (!result.empty() && result.back() == '\n') result.pop_back();
  }
  return result;
}

}  // namespace shardwise::inline v0_1
