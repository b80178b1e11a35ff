# The device and its kernels. Kernels compiled by nvcc and by the host's compiler run the same tests.
shardwise_add_cuda_test(NAME device SOURCES device_test.cpp KERNELS nvcc LABELS quick full sanitize)
shardwise_add_cuda_test(NAME kernels SOURCES kernels_test.cpp KERNELS nvcc LABELS quick full sanitize)
if(TARGET cuda_kernels_host)
  shardwise_add_cuda_test(NAME kernels_by_the_host SOURCES kernels_test.cpp KERNELS host
                          LABELS full sanitize)
endif()

if(NOT SHARDWISE_SANITIZE_ONLY)
  add_test(NAME "cuda: the check of nvcc's code refuses what it should"
           COMMAND Python3::Interpreter ${CMAKE_CURRENT_LIST_DIR}/check_codegen_test.py)
  set_tests_properties("cuda: the check of nvcc's code refuses what it should"
                       PROPERTIES LABELS "quick;full" TIMEOUT 60)
  # No device runs here: it says what is compiled, not how fast it is.
  add_test(NAME "cuda: what nvcc makes of the kernels"
           COMMAND Python3::Interpreter ${CMAKE_CURRENT_LIST_DIR}/check_codegen.py --nvcc
                   ${CMAKE_CUDA_COMPILER} --include ${PROJECT_SOURCE_DIR}/include --table
                   ${CMAKE_CURRENT_LIST_DIR}/registers.txt)
  set_tests_properties("cuda: what nvcc makes of the kernels" PROPERTIES LABELS full TIMEOUT 600
                                                                         SKIP_RETURN_CODE 77)
endif()
