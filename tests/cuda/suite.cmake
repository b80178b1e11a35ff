# The tests of the sharded types, compiled once more for the CUDA device: one program, so that what all of
# them launch is compiled once.
set(suite ${PROJECT_SOURCE_DIR}/tests)
set(suite_sources
    ${suite}/allocation_test.cpp
    ${suite}/debug_mode_test.cpp
    ${suite}/host_buffer_test.cpp
    ${suite}/lease_test.cpp
    ${suite}/lifetime_test.cpp
    ${suite}/memory_test.cpp
    ${suite}/sharded_parameter_test.cpp
    ${suite}/training_test.cpp
    host_streams_test.cpp)

# Compiled once; by whom the kernels are compiled is all that differs between the programs.
add_library(cuda_suite OBJECT EXCLUDE_FROM_ALL ${suite_sources})
target_compile_definitions(cuda_suite PUBLIC SHARDWISE_TEST_CUDA)
target_include_directories(cuda_suite PRIVATE ${suite})
target_link_libraries(cuda_suite PRIVATE shardwise_own shardwise::cuda Catch2::Catch2)

add_library(cuda_suite_kernels_nvcc STATIC EXCLUDE_FROM_ALL test_kernels.cu)
target_link_libraries(cuda_suite_kernels_nvcc PRIVATE shardwise_own shardwise::cuda)
shardwise_use_cuda20(cuda_suite_kernels_nvcc)
set_target_properties(cuda_suite_kernels_nvcc PROPERTIES CUDA_RUNTIME_LIBRARY Shared)
shardwise_add_cuda_test(NAME sharded SOURCES $<TARGET_OBJECTS:cuda_suite> KERNELS nvcc
                        LINK cuda_suite_kernels_nvcc LABELS full sanitize TIMEOUT 600)
