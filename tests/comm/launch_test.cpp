#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <map>
#include <optional>
#include <shardwise/comm/launch.hpp>
#include <string>

namespace shardwise::test {
namespace {

using Catch::Matchers::ContainsSubstring;
using Variables = std::map<std::string, std::string>;

Launch launch_of(const Variables& variables) {
  return detect_launch([&](const char* name) -> std::optional<std::string> {
    const auto found = variables.find(name);
    if (found == variables.end()) return std::nullopt;
    return found->second;
  });
}

Variables with(Variables variables, const Variables& more) {
  for (const auto& [name, value] : more) variables[name] = value;
  return variables;
}

void check(const Variables& variables, const char* source, int rank, int size, int local_rank,
           int local_size) {
  const Launch launch = launch_of(variables);
  CHECK(launch.source == source);
  CHECK(launch.rank == rank);
  CHECK(launch.size == size);
  CHECK(launch.local_rank == local_rank);
  CHECK(launch.local_size == local_size);
}

const Variables torchrun = {{"RANK", "5"},
                            {"WORLD_SIZE", "8"},
                            {"LOCAL_RANK", "1"},
                            {"LOCAL_WORLD_SIZE", "4"},
                            {"MASTER_PORT", "7"},
                            {"TORCHELASTIC_RUN_ID", "a"},
                            {"TORCHELASTIC_RESTART_COUNT", "2"}};
const Variables exported = {{"RANK", "0"}, {"WORLD_SIZE", "1"}};
const Variables open_mpi = {{"OMPI_COMM_WORLD_RANK", "3"},
                            {"OMPI_COMM_WORLD_SIZE", "4"},
                            {"OMPI_COMM_WORLD_LOCAL_RANK", "1"},
                            {"OMPI_COMM_WORLD_LOCAL_SIZE", "2"},
                            {"PMIX_RANK", "3"},
                            {"PMIX_NAMESPACE", "space"}};
const Variables pmi = {
    {"PMI_RANK", "2"}, {"PMI_SIZE", "3"}, {"MPI_LOCALRANKID", "2"}, {"MPI_LOCALNRANKS", "3"}};
const Variables slurm_job = {{"SLURM_PROCID", "0"}, {"SLURM_NTASKS", "6"}, {"SLURM_JOB_ID", "9"}};
const Variables slurm = {{"SLURM_PROCID", "4"},
                         {"SLURM_NTASKS", "6"},
                         {"SLURM_LOCALID", "0"},
                         {"SLURM_JOB_ID", "9"},
                         {"SLURM_STEP_ID", "1"}};

TEST_CASE("each launcher's variables say rank, size and place on the machine") {
  check({}, "nothing", 0, 1, -1, -1);
  check(torchrun, "torchrun", 5, 8, 1, 4);
  check(open_mpi, "Open MPI", 3, 4, 1, 2);
  check(pmi, "PMI", 2, 3, 2, 3);
  check(slurm, "Slurm", 4, 6, 0, -1);
  check({{"SHARDWISE_RANK", "1"}, {"SHARDWISE_SIZE", "2"}}, "SHARDWISE_RANK", 1, 2, -1, -1);
  check({{"RANK", "1"}, {"WORLD_SIZE", "2"}}, "torchrun", 1, 2, -1, -1);
}

TEST_CASE("the job tells runs apart") {
  CHECK(launch_of(torchrun).job == "a-7-2");
  CHECK(launch_of(open_mpi).job == "space");
  CHECK(launch_of(slurm).job == "9-1");
  CHECK(launch_of(pmi).job.empty());
  CHECK(launch_of(with(slurm, {{"SLURM_STEP_ID", "2"}})).job == "9-2");
}

TEST_CASE("torchrun says where rank 0 can be met") {
  const Launch launch = launch_of(with(torchrun, {{"MASTER_ADDR", "node1"}}));
  CHECK(launch.master_address == "node1");
  CHECK(launch.master_port == 7);
  const Launch by_hand = launch_of(with(exported, {{"MASTER_PORT", "29500"}}));
  CHECK(by_hand.master_address.empty());
  CHECK(by_hand.master_port == 29500);
  CHECK(launch_of({}).master_port == -1);
  CHECK(launch_of(with(open_mpi, {{"MASTER_PORT", "x"}})).master_port == -1);  // not asked
  CHECK_THROWS_WITH(launch_of(with(exported, {{"MASTER_PORT", "65536"}})),
                    ContainsSubstring("MASTER_PORT=65536"));
  CHECK_THROWS_WITH(launch_of(with(exported, {{"MASTER_PORT", "x"}})),
                    ContainsSubstring("MASTER_PORT=\"x\""));
}

TEST_CASE("the inner launcher counts, and what is said by hand counts most") {
  check(with(slurm, torchrun), "torchrun", 5, 8, 1, 4);
  check(with(open_mpi, torchrun), "torchrun", 5, 8, 1, 4);
  check(with(slurm, open_mpi), "Open MPI", 3, 4, 1, 2);
  check(with(slurm, pmi), "PMI", 2, 3, 2, 3);
  check(with(slurm_job, exported), "torchrun", 0, 1, -1, -1);
  const Variables by_hand = {{"SHARDWISE_RANK", "0"},
                             {"SHARDWISE_SIZE", "9"},
                             {"SHARDWISE_LOCAL_RANK", "0"},
                             {"SHARDWISE_LOCAL_SIZE", "3"}};
  check(with(with(with(open_mpi, exported), slurm), by_hand), "SHARDWISE_RANK", 0, 9, 0, 3);
}

TEST_CASE("variables that contradict each other are refused with both") {
  CHECK_THROWS_WITH(launch_of(with(open_mpi, exported)),
                    ContainsSubstring("RANK=0 and WORLD_SIZE=1 (torchrun)") &&
                        ContainsSubstring("OMPI_COMM_WORLD_RANK=3 and OMPI_COMM_WORLD_SIZE=4 (Open "
                                          "MPI)") &&
                        ContainsSubstring("SHARDWISE_RANK"));
  CHECK_THROWS_WITH(launch_of(with(open_mpi, pmi)),
                    ContainsSubstring("OMPI_COMM_WORLD_RANK=3") && ContainsSubstring("PMI_RANK=2"));
  CHECK_THROWS_WITH(launch_of(with(slurm, exported)),
                    ContainsSubstring("WORLD_SIZE=1") && ContainsSubstring("SLURM_NTASKS=6"));
  // PMIX_RANK is set beside others' variables.
  CHECK_THROWS_WITH(
      launch_of(with(open_mpi, {{"PMIX_RANK", "1"}})),
      ContainsSubstring("PMIX_RANK=1") && ContainsSubstring("OMPI_COMM_WORLD_RANK=3"));
  CHECK_THROWS_WITH(launch_of(with(slurm, {{"PMIX_RANK", "1"}})),
                    ContainsSubstring("PMIX_RANK=1") && ContainsSubstring("SLURM_PROCID=4"));
  check(with(with(slurm, pmi), {{"PMIX_RANK", "4"}}), "PMI", 2, 3, 2, 3);
  check(with(slurm, {{"PMIX_RANK", "4"}}), "Slurm", 4, 6, 0, -1);
  CHECK_THROWS_AS(launch_of(with(pmi, exported)), ConfigError);
  CHECK_THROWS_AS(launch_of(with(open_mpi, pmi)), ConfigError);
  CHECK_THROWS_AS(launch_of(with(slurm, exported)), ConfigError);
  const Variables same = {{"RANK", "3"}, {"WORLD_SIZE", "4"}};
  check(with(open_mpi, same), "Open MPI", 3, 4, 1, 2);
}

TEST_CASE("malformed, missing and impossible values are named") {
  const auto refused = [](const Variables& variables, const char* text) {
    CHECK_THROWS_AS(launch_of(variables), ConfigError);
    CHECK_THROWS_WITH(launch_of(variables), ContainsSubstring(text));
  };
  for (const char* text : {"", "x", "1x", " 1", "-1", "99999999999", "0x1"}) {
    refused(with(torchrun, {{"RANK", text}}), "RANK=\"");
  }
  refused({{"RANK", "0"}}, "WORLD_SIZE is not");
  refused({{"OMPI_COMM_WORLD_SIZE", "2"}}, "OMPI_COMM_WORLD_RANK is not");
  refused(with(torchrun, {{"RANK", "8"}}), "ranks are 0 to 7");
  refused(with(torchrun, {{"WORLD_SIZE", "0"}}), "WORLD_SIZE=0");
  refused(with(torchrun, {{"LOCAL_RANK", "4"}}), "LOCAL_RANK=4");
  refused(with(torchrun, {{"LOCAL_WORLD_SIZE", "9"}}), "LOCAL_WORLD_SIZE=9");
  refused(with(torchrun, {{"LOCAL_WORLD_SIZE", "0"}}), "LOCAL_WORLD_SIZE=0");
  refused(with(slurm, {{"SLURM_LOCALID", "6"}}), "SLURM_LOCALID=6");
  refused({{"PMIX_RANK", "0"}}, "PMIX_RANK");
  refused(slurm_job, "srun");
  check(with(slurm_job, {{"SLURM_NTASKS", "1"}}), "nothing", 0, 1, -1, -1);
}

TEST_CASE("the process's own environment is read where nothing else is given") {
  CHECK(detail::environment_variable("SHARDWISE_THAT_NOBODY_SETS") == std::nullopt);
  CHECK(detail::environment_variable("PATH").has_value());
  CHECK(Launch::from_environment([](const char*) { return std::nullopt; }).size == 1);
  CHECK(machine_name() == machine_name());
  CHECK_FALSE(machine_name().empty());
}

}  // namespace
}  // namespace shardwise::test
