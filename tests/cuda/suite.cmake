# The tests of the sharded types, compiled once more for the CUDA device. Two programs of the same
# objects: what the tests and the library launch was compiled by nvcc, or by the host's compiler.
set(suite ${PROJECT_SOURCE_DIR}/tests)
add_library(
  cuda_suite OBJECT EXCLUDE_FROM_ALL
  ${suite}/debug_mode_test.cpp
  ${suite}/host_buffer_test.cpp
  ${suite}/lease_test.cpp
  ${suite}/lifetime_test.cpp
  ${suite}/monitor/timeline_test.cpp
  ${suite}/sharded_parameter_test.cpp
  ${suite}/training_test.cpp)
# What counts bytes and allocations takes minutes under a sanitizer, which sees nothing in it that the others
# do not show.
if(NOT SHARDWISE_SANITIZE_ONLY)
  target_sources(cuda_suite PRIVATE ${suite}/allocation_test.cpp ${suite}/memory_test.cpp
                                    ${suite}/support/heap.cpp host_streams_test.cpp)
endif()
target_compile_definitions(cuda_suite PUBLIC SHARDWISE_TEST_CUDA)
target_include_directories(cuda_suite PRIVATE ${suite})
target_link_libraries(cuda_suite PRIVATE shardwise_own shardwise::cuda Catch2::Catch2)
shardwise_optimize_little(cuda_suite)
# Most of what a unit costs is the library's code, which is compiled once for sources that are compiled
# together: those which use no name for two things.
set_target_properties(cuda_suite PROPERTIES UNITY_BUILD ON UNITY_BUILD_BATCH_SIZE 5)
set_source_files_properties(
  ${suite}/host_buffer_test.cpp ${suite}/monitor/timeline_test.cpp ${suite}/sharded_parameter_test.cpp
  ${suite}/allocation_test.cpp ${suite}/memory_test.cpp ${suite}/support/heap.cpp
  PROPERTIES SKIP_UNITY_BUILD_INCLUSION ON)

add_library(cuda_suite_kernels_nvcc STATIC EXCLUDE_FROM_ALL test_kernels.cu)
shardwise_use_cuda20(cuda_suite_kernels_nvcc)
set_target_properties(cuda_suite_kernels_nvcc PROPERTIES CUDA_RUNTIME_LIBRARY Shared)
add_library(cuda_suite_kernels_host STATIC EXCLUDE_FROM_ALL test_kernels_host.cpp)
foreach(compiler nvcc host)
  target_link_libraries(cuda_suite_kernels_${compiler} PRIVATE shardwise_own shardwise::cuda)
endforeach()

# Residency in_place: small granules, so that tensors of a test have some inside.
shardwise_add_cuda_test(NAME in_place SOURCES ${suite}/in_place_test.cpp in_place_test.cpp KERNELS nvcc
                        LINK cuda_suite_kernels_nvcc LABELS full sanitize TIMEOUT 600
                        OPTIONS GRANULE_KB=16)
if(TARGET test_cuda_in_place)
  target_compile_definitions(test_cuda_in_place PRIVATE SHARDWISE_TEST_CUDA)
endif()

# Groups of ranks: parts of an NCCL communicator.
shardwise_add_cuda_test(NAME hybrid SOURCES ${suite}/hybrid/groups_test.cpp ${suite}/hybrid/secondary_test.cpp
                        ${suite}/hybrid/training_test.cpp KERNELS host LINK cuda_suite_kernels_host
                        LABELS full TIMEOUT 600)
if(TARGET test_cuda_hybrid)
  target_compile_definitions(test_cuda_hybrid PRIVATE SHARDWISE_TEST_CUDA)
endif()

shardwise_add_cuda_test(NAME sharded SOURCES $<TARGET_OBJECTS:cuda_suite> KERNELS nvcc
                        LINK cuda_suite_kernels_nvcc LABELS full sanitize TIMEOUT 600)
shardwise_add_cuda_test(NAME sharded_host_kernels SOURCES $<TARGET_OBJECTS:cuda_suite> KERNELS host
                        LINK cuda_suite_kernels_host LABELS full TIMEOUT 600)

# The same with ranks that are processes: some of it each time, all of it in slices of about a minute. What counts
# allocations would count those of the emulation's messages; a device that a rank has broken is broken for the process.
set(not_in_processes "~\"steady state*\"~\"leases end where the device has failed*\"")
find_package(Python3 3.9 REQUIRED COMPONENTS Interpreter)
set(in_processes Python3::Interpreter ${CMAKE_CURRENT_SOURCE_DIR}/check_suite_processes.py --program
                 $<TARGET_FILE:test_cuda_sharded> --emulation ${shardwise_emulation_dir})
add_test(NAME "emulated sharded: ranks that are processes"
         COMMAND ${in_processes} --ranks 3 -- "strategies give the same bits: bf16 leases,a reduction is the mean*")
set_tests_properties("emulated sharded: ranks that are processes" PROPERTIES LABELS "full;sanitize" TIMEOUT 300)
if(NOT SHARDWISE_SANITIZE_ONLY)
  set(slices 8)
  math(EXPR last "${slices} - 1")
  foreach(ranks 1 2 3 4 8)
    foreach(slice RANGE ${last})
      add_test(NAME "emulated sharded: ${ranks} processes, slice ${slice}"
               COMMAND ${in_processes} --ranks ${ranks} --seconds 580 -- "${not_in_processes}" --shard-count ${slices} --shard-index
                       ${slice})
      set_tests_properties("emulated sharded: ${ranks} processes, slice ${slice}" PROPERTIES LABELS long TIMEOUT 600)
    endforeach()
  endforeach()
endif()

# What a plan says without a device against what ranks on devices hold; files straight into and out of a
# device's shards; saves from its memory.
shardwise_add_cuda_test(NAME plan SOURCES ${suite}/plan/memory_test.cpp ${suite}/plan/registered_model_test.cpp
                        KERNELS host LABELS full OPTIONS GRANULE_KB=16)
shardwise_add_cuda_test(NAME hugging_face SOURCES ${suite}/checkpoint/hugging_face_test.cpp KERNELS host
                        LINK shardwise::checkpoint LABELS full)
shardwise_add_cuda_test(NAME checkpoint SOURCES ${suite}/checkpoint/device_test.cpp KERNELS host
                        LINK shardwise::checkpoint LABELS full)
foreach(name plan hugging_face checkpoint)
  if(TARGET test_cuda_${name})
    target_compile_definitions(test_cuda_${name} PRIVATE SHARDWISE_TEST_CUDA)
  endif()
endforeach()
