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
