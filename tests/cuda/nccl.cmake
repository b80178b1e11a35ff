# The communicator over NCCL, and the real libraries without a device.
shardwise_add_cuda_test(NAME nccl_backend SOURCES nccl_test.cpp nccl_pieces_test.cpp nccl_arena_test.cpp
                        KERNELS nvcc LABELS full sanitize)
shardwise_add_cuda_test(NAME nccl_backend_failures SOURCES nccl_failure_test.cpp KERNELS nvcc
                        LABELS full sanitize)
shardwise_add_cuda_test(NAME nccl_backend_survivors SOURCES nccl_survivors_test.cpp KERNELS nvcc
                        LABELS full sanitize)
shardwise_add_cuda_test(NAME nccl_backend_processes SOURCES nccl_process_test.cpp KERNELS nvcc LABELS full)
shardwise_add_cuda_test(NAME nccl_backend_ranges SOURCES nccl_range_test.cpp KERNELS nvcc LABELS full)
if(SHARDWISE_SANITIZE_ONLY)
  return()
endif()

# Every function that the backend calls is looked up when these start.
add_executable(real_libraries_test real_libraries_test.cpp)
add_executable(real_collective real_collective.cpp)
foreach(program real_libraries_test real_collective)
  target_link_libraries(${program} PRIVATE shardwise_own shardwise::cuda cuda_kernels_host ${CMAKE_DL_LIBS})
endforeach()
target_link_libraries(real_libraries_test PRIVATE Catch2::Catch2WithMain)
add_test(NAME "real libraries: what they say without a device" COMMAND real_libraries_test)
add_test(NAME "real libraries: a sum over all devices" COMMAND real_collective)
set_tests_properties("real libraries: what they say without a device" PROPERTIES SKIP_RETURN_CODE 4)
set_tests_properties("real libraries: a sum over all devices" PROPERTIES SKIP_RETURN_CODE 77)
set_tests_properties(
  "real libraries: what they say without a device" "real libraries: a sum over all devices"
  PROPERTIES LABELS full TIMEOUT 120 ENVIRONMENT LD_BIND_NOW=1)

set(SHARDWISE_NCCL_HEADERS "" CACHE STRING "Folders with nccl.h of other versions; see check_nccl_headers.py")
get_target_property(nccl_cuda_headers CUDA::cudart INTERFACE_INCLUDE_DIRECTORIES)
add_test(NAME "nccl: the backend compiles against other versions"
         COMMAND Python3::Interpreter ${CMAKE_CURRENT_SOURCE_DIR}/check_nccl_headers.py --compiler
                 ${CMAKE_CXX_COMPILER} ${shardwise_check_arguments} --cuda "${nccl_cuda_headers}" --work
                 ${CMAKE_CURRENT_BINARY_DIR}/nccl-headers ${SHARDWISE_NCCL_HEADERS})
set_tests_properties("nccl: the backend compiles against other versions"
                     PROPERTIES LABELS long TIMEOUT 600 SKIP_RETURN_CODE 77)
