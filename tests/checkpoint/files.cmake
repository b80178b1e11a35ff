# Readers and writers of files that others make, or read.
shardwise_add_test(NAME safetensors SOURCES checkpoint/malformed_index_test.cpp
                   checkpoint/malformed_safetensors_test.cpp checkpoint/regular_file_test.cpp
                   checkpoint/safetensors_test.cpp support/heap.cpp LINK shardwise::checkpoint
                   LABELS quick full sanitize)
shardwise_add_test(NAME malformed_manifest SOURCES checkpoint/malformed_manifest_test.cpp
                   LINK shardwise::checkpoint LABELS quick full)
shardwise_add_test(NAME hugging_face SOURCES checkpoint/hugging_face_test.cpp
                   LINK shardwise::checkpoint LABELS quick full sanitize)
shardwise_add_test(NAME hugging_face_memory SOURCES checkpoint/hugging_face_memory_test.cpp support/heap.cpp
                   LINK shardwise::checkpoint LABELS full)
if(SHARDWISE_SANITIZE_ONLY)
  return()
endif()

# The safetensors package of PyPI, and numpy, are looked for in this Python.
set(SHARDWISE_SAFETENSORS_PYTHON "" CACHE FILEPATH "A Python that has safetensors and numpy; empty: the usual one")
add_executable(checkpoint_exchange checkpoint/exchange.cpp)
target_link_libraries(checkpoint_exchange PRIVATE shardwise_own shardwise::checkpoint)
add_test(NAME "checkpoint: files of the safetensors package, both ways"
         COMMAND $<IF:$<BOOL:${SHARDWISE_SAFETENSORS_PYTHON}>,${SHARDWISE_SAFETENSORS_PYTHON},Python3::Interpreter>
                 ${CMAKE_CURRENT_SOURCE_DIR}/checkpoint/check_exchange.py --program
                 $<TARGET_FILE:checkpoint_exchange> --work ${CMAKE_CURRENT_BINARY_DIR}/checkpoint_exchange_files)
set_tests_properties("checkpoint: files of the safetensors package, both ways"
                     PROPERTIES LABELS full TIMEOUT 120 SKIP_RETURN_CODE 4)

add_test(NAME "checkpoint: an export or import that the system refuses, at every call"
         COMMAND Python3::Interpreter ${CMAKE_CURRENT_SOURCE_DIR}/checkpoint/check_exchange_faults.py --program
                 $<TARGET_FILE:checkpoint_exchange> --work ${CMAKE_CURRENT_BINARY_DIR}/checkpoint_exchange_faults)
set_tests_properties("checkpoint: an export or import that the system refuses, at every call"
                     PROPERTIES LABELS full TIMEOUT 300 SKIP_RETURN_CODE 4)

# Fuzzing: a minute of each, and of one of them a little with every run.
find_program(SHARDWISE_FUZZ_COMPILER clang++-14)
function(shardwise_add_checkpoint_fuzz reader seconds label name)
  add_test(NAME "${name}"
           COMMAND Python3::Interpreter ${CMAKE_CURRENT_SOURCE_DIR}/checkpoint/fuzz/run_fuzz.py ${reader} --compiler
                   "$<$<BOOL:${SHARDWISE_FUZZ_COMPILER}>:${SHARDWISE_FUZZ_COMPILER}>"
                   --include=${PROJECT_SOURCE_DIR}/include
                   "--include=$<JOIN:$<TARGET_PROPERTY:nlohmann_json::nlohmann_json,INTERFACE_INCLUDE_DIRECTORIES>,;--include=>"
                   "--include=$<JOIN:$<TARGET_PROPERTY:xxHash::xxhash,INTERFACE_INCLUDE_DIRECTORIES>,;--include=>"
                   --library=$<TARGET_FILE:fmt::fmt> --library=$<TARGET_FILE:xxHash::xxhash> --work
                   ${CMAKE_CURRENT_BINARY_DIR}/fuzz_checkpoint_${reader}_${label} --seconds ${seconds}
           COMMAND_EXPAND_LISTS)
  set_tests_properties("${name}" PROPERTIES LABELS ${label} TIMEOUT 600 SKIP_RETURN_CODE 77)
endfunction()
foreach(reader header index manifest)
  shardwise_add_checkpoint_fuzz(${reader} 60 long "checkpoint: fuzzing the ${reader} finds nothing")
endforeach()
shardwise_add_checkpoint_fuzz(header 4 full "checkpoint: a little fuzzing of the header finds nothing")
