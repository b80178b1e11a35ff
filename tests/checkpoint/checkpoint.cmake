# Saves of a training and what comes back of them.
shardwise_add_test(NAME checkpoint_crash SOURCES checkpoint/crash_test.cpp checkpoint/faults_test.cpp
                   LINK shardwise::checkpoint LABELS quick full)
shardwise_add_test(NAME checkpoint_resharding SOURCES checkpoint/resharding_test.cpp
                   LINK shardwise::checkpoint LABELS quick full)
shardwise_add_test(NAME checkpoint_folder SOURCES checkpoint/folder_test.cpp checkpoint/history_test.cpp
                   checkpoint/resume_test.cpp LINK shardwise::checkpoint LABELS quick full sanitize)
if(NOT SHARDWISE_SANITIZE_ONLY)
  shardwise_add_test(NAME checkpoint_kill SOURCES checkpoint/kill_test.cpp
                     LINK shardwise::checkpoint LABELS full TIMEOUT 900)
endif()
if(NOT SHARDWISE_SANITIZE_ONLY)
  shardwise_add_test(NAME checkpoint_throughput SOURCES checkpoint/throughput_test.cpp
                     LINK shardwise::checkpoint LABELS bench)
  get_target_property(catch2_include Catch2::Catch2 INTERFACE_INCLUDE_DIRECTORIES)
  add_test(NAME "checkpoint: no fsync, rename or agreement can be left out"
           COMMAND Python3::Interpreter ${CMAKE_CURRENT_SOURCE_DIR}/checkpoint/mutate.py --compiler
                   ${CMAKE_CXX_COMPILER} ${shardwise_check_arguments} --system "${catch2_include}" --project
                   ${PROJECT_SOURCE_DIR} --work ${CMAKE_CURRENT_BINARY_DIR}/mutants
                   --library=$<TARGET_FILE:Catch2::Catch2WithMain> --library=$<TARGET_FILE:Catch2::Catch2>
                   --library=$<TARGET_FILE:fmt::fmt> --library=$<TARGET_FILE:xxHash::xxhash>)
  set_tests_properties("checkpoint: no fsync, rename or agreement can be left out"
                       PROPERTIES LABELS long TIMEOUT 3600)
  add_test(NAME "checkpoint_kill: every call" COMMAND test_checkpoint_kill "[long]")
  set_tests_properties("checkpoint_kill: every call" PROPERTIES LABELS long TIMEOUT 1800)
  if(TARGET train_gpt)
    add_test(NAME "example: training that is stopped goes on"
             COMMAND Python3::Interpreter ${CMAKE_CURRENT_SOURCE_DIR}/checkpoint/check_programs.py --train-gpt
                     $<TARGET_FILE:train_gpt> --resume $<TARGET_FILE:resume> --inspect
                     $<TARGET_FILE:checkpoint_inspect> --work ${CMAKE_CURRENT_BINARY_DIR}/saving_programs)
    set_tests_properties("example: training that is stopped goes on" PROPERTIES LABELS full TIMEOUT 300)
  endif()
endif()
