# examples/cuda_gpt on the emulation, with a stand-in for the part of cuBLAS that it uses.
if(NOT TARGET cuda_gpt_parts OR NOT COMMAND shardwise_add_emulated_library)
  return()
endif()

shardwise_add_emulated_library(
  emulated_cublas
  libcublas.so.13
  MAP
  ${PROJECT_SOURCE_DIR}/tests/emulation/cublas.map
  SOURCES
  ${PROJECT_SOURCE_DIR}/tests/emulation/cublas.cpp)
target_include_directories(emulated_cublas PRIVATE ${PROJECT_SOURCE_DIR}/tests/emulation)
target_link_libraries(emulated_cublas PRIVATE emulated_cudart)

shardwise_add_cuda_test(NAME cuda_gpt SOURCES gpt_model_test.cpp gpt_options_test.cpp gpt_plan_test.cpp
                        gpt_train_test.cpp LINK cuda_gpt_parts plan_parts LABELS full TIMEOUT 120
                        OPTIONS GRANULE_KB=4)
add_dependencies(test_cuda_cuda_gpt emulated_cublas)

add_test(NAME "emulated example: cuda_gpt in threads, in processes and without a device"
         COMMAND Python3::Interpreter ${CMAKE_CURRENT_SOURCE_DIR}/check_cuda_gpt.py --program
                 $<TARGET_FILE:cuda_gpt> --emulation ${shardwise_emulation_dir})
set_tests_properties("emulated example: cuda_gpt in threads, in processes and without a device"
                     PROPERTIES LABELS full TIMEOUT 120)
add_test(NAME "gpu: example cuda_gpt" COMMAND cuda_gpt --steps 20 --lease bf16 --sample 100)
set_tests_properties("gpu: example cuda_gpt" PROPERTIES LABELS gpu TIMEOUT 120 SKIP_RETURN_CODE 77)

# NCCL's identifier over MPI. With MPICH beside it, in one unit more: the rest has no MPI in it.
if(TARGET shardwise::mpi AND NOT SHARDWISE_SANITIZE_ONLY)
  include(${PROJECT_SOURCE_DIR}/tests/mpi/launching.cmake)
  add_executable(nccl_over_mpi nccl_over_mpi.cpp)
  target_include_directories(nccl_over_mpi PRIVATE ${PROJECT_SOURCE_DIR}/tests)
  target_link_libraries(nccl_over_mpi PRIVATE shardwise_own shardwise::cuda shardwise::mpi cuda_kernels_host
                                              ${CMAKE_DL_LIBS})
  add_dependencies(nccl_over_mpi emulated_cudart emulated_nccl)
  set(over_mpi Python3::Interpreter ${CMAKE_CURRENT_SOURCE_DIR}/check_cuda_gpt_mpi.py --emulation
               ${shardwise_emulation_dir})
  add_test(NAME "emulated example: cuda_gpt over MPI" COMMAND ${over_mpi} ${mpi_launch} --program
                                                              $<TARGET_FILE:cuda_gpt> --meeting
                                                              $<TARGET_FILE:nccl_over_mpi>)
  set_tests_properties("emulated example: cuda_gpt over MPI" PROPERTIES LABELS full TIMEOUT 300 PROCESSORS 2)

  find_program(SHARDWISE_MPICH_LAUNCHER mpirun.mpich)
  mark_as_advanced(SHARDWISE_MPICH_LAUNCHER)
  find_package(PkgConfig QUIET)
  if(mpi_kind STREQUAL openmpi AND SHARDWISE_MPICH_LAUNCHER AND PKG_CONFIG_FOUND)
    pkg_check_modules(mpich QUIET IMPORTED_TARGET mpich)
  endif()
  if(TARGET PkgConfig::mpich)
    add_executable(cuda_gpt_mpich ${PROJECT_SOURCE_DIR}/examples/cuda_gpt/main.cpp
                                  ${PROJECT_SOURCE_DIR}/examples/cuda_gpt/over_mpi.cpp)
    target_link_libraries(cuda_gpt_mpich PRIVATE cuda_gpt_parts PkgConfig::mpich)
    target_compile_definitions(cuda_gpt_mpich PRIVATE CUDA_GPT_WITH_MPI MPICH_SKIP_MPICXX)
    add_test(NAME "emulated example: cuda_gpt over MPICH"
             COMMAND ${over_mpi} --launcher ${SHARDWISE_MPICH_LAUNCHER} --kind mpich --program
                     $<TARGET_FILE:cuda_gpt_mpich>)
    set_tests_properties("emulated example: cuda_gpt over MPICH" PROPERTIES LABELS full TIMEOUT 300 PROCESSORS 2)
  endif()
endif()
