# mpi_launch: the words that start a program of several processes, up to how many; mpi_kind: whose they are.
execute_process(COMMAND ${MPIEXEC_EXECUTABLE} --version OUTPUT_VARIABLE mpi_version ERROR_QUIET)
if(mpi_version MATCHES "Open MPI|OpenRTE")
  set(mpi_kind openmpi)
else()
  set(mpi_kind mpich)
endif()
set(mpi_launch --launcher ${MPIEXEC_EXECUTABLE} --kind ${mpi_kind})

# shardwise_add_mpi_test(NAME n COMMAND c... RANKS n... LABELS l... [TIMEOUT s]): one test for each number of
# ranks.
function(shardwise_add_mpi_test)
  cmake_parse_arguments(PARSE_ARGV 0 test "" "NAME;TIMEOUT" "COMMAND;RANKS;LABELS")
  if(NOT test_TIMEOUT)
    set(test_TIMEOUT 240)
  endif()
  foreach(ranks IN LISTS test_RANKS)
    set(name "${test_NAME}, ${ranks} ranks")
    add_test(NAME "${name}"
             COMMAND Python3::Interpreter ${PROJECT_SOURCE_DIR}/tests/mpi/run.py ${mpi_launch} --ranks ${ranks}
                     --seconds ${test_TIMEOUT} -- ${test_COMMAND})
    math(EXPR limit "${test_TIMEOUT} + 20")
    set_tests_properties("${name}" PROPERTIES LABELS "${test_LABELS}" TIMEOUT ${limit} PROCESSORS 2)
  endforeach()
endfunction()
