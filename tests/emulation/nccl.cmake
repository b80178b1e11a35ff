# The fake NCCL: see CMakeLists.txt of this folder.
shardwise_add_emulated_library(
  emulated_nccl
  libnccl.so.2
  MAP
  ${CMAKE_CURRENT_SOURCE_DIR}/nccl.map
  SOURCES
  nccl_arithmetic.cpp
  nccl_call.cpp
  nccl_checks.cpp
  nccl_clique.cpp
  nccl_collectives.cpp
  nccl_communicator.cpp
  nccl_groups.cpp
  nccl_handles.cpp
  nccl_hub.cpp
  nccl_membership.cpp
  nccl_memory.cpp
  nccl_model.cpp
  nccl_queries.cpp
  nccl_remote.cpp
  nccl_wire.cpp)
target_link_libraries(emulated_nccl PRIVATE emulated_cudart)
# So that LeakSanitizer names the caller.
target_compile_options(emulated_nccl PRIVATE -fno-omit-frame-pointer)
# Reductions are the bulk of the work.
set_source_files_properties(nccl_arithmetic.cpp PROPERTIES COMPILE_OPTIONS "-O3;-fno-trapping-math")

shardwise_add_cuda_test(NAME nccl_collectives SOURCES nccl_conformance_test.cpp LABELS quick full sanitize)
shardwise_add_cuda_test(NAME nccl_communicators SOURCES nccl_communicators_test.cpp
                        LABELS quick full sanitize)

# The arithmetic alone needs neither a runtime nor a device.
shardwise_add_cuda_test(NAME nccl_arithmetic SOURCES nccl_arithmetic_test.cpp nccl_arithmetic.cpp
                        LABELS quick full)

add_executable(nccl_program nccl_program.cpp nccl_program_memory.cpp)
target_link_libraries(nccl_program PRIVATE shardwise_own shardwise::cuda ${CMAKE_DL_LIBS})
shardwise_add_cuda_test(NAME nccl_model SOURCES nccl_emulation_test.cpp LABELS quick full sanitize)
target_compile_definitions(test_cuda_nccl_model
                           PRIVATE SHARDWISE_NCCL_PROGRAM="$<TARGET_FILE:nccl_program>")
add_dependencies(test_cuda_nccl_model nccl_program)

add_executable(nccl_process nccl_process.cpp)
target_link_libraries(nccl_process PRIVATE shardwise_own shardwise::cuda ${CMAKE_DL_LIBS})
shardwise_add_cuda_test(NAME nccl_processes SOURCES nccl_processes_test.cpp LABELS full sanitize)
target_compile_definitions(test_cuda_nccl_processes
                           PRIVATE SHARDWISE_NCCL_PROCESS="$<TARGET_FILE:nccl_process>")
add_dependencies(test_cuda_nccl_processes nccl_process)

# Each injected bug against each instrument, whatever the preset: the sanitizers' runs are what the
# others are worth.
if(SHARDWISE_SANITIZE_ONLY)
  return()
endif()

# shardwise_add_nccl_program(SUFFIX flags...): nccl_program under a sanitizer.
function(shardwise_add_nccl_program suffix)
  add_executable(nccl_program_${suffix} nccl_program.cpp nccl_program_memory.cpp)
  target_link_libraries(nccl_program_${suffix} PRIVATE shardwise_own shardwise::cuda ${CMAKE_DL_LIBS})
  target_compile_options(nccl_program_${suffix} PRIVATE -O1 -g1 -fno-omit-frame-pointer ${ARGN})
  target_link_options(nccl_program_${suffix} PRIVATE ${ARGN})
endfunction()
shardwise_add_nccl_program(thread -fsanitize=thread)
shardwise_add_nccl_program(address -fsanitize=address,undefined -fno-sanitize-recover=all)
shardwise_add_cuda_test(NAME nccl_finds_bugs SOURCES nccl_negative_test.cpp LABELS full)
target_compile_definitions(
  test_cuda_nccl_finds_bugs
  PRIVATE SHARDWISE_NCCL_PROGRAM="$<TARGET_FILE:nccl_program>"
          SHARDWISE_NCCL_PROGRAM_THREAD="$<TARGET_FILE:nccl_program_thread>"
          SHARDWISE_NCCL_PROGRAM_ADDRESS="$<TARGET_FILE:nccl_program_address>")
add_dependencies(test_cuda_nccl_finds_bugs nccl_program nccl_program_thread nccl_program_address)
