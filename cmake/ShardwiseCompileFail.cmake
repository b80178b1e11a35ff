# shardwise_add_compile_fail_test(NAME n SOURCE f EXPECT regex): f must not compile with this build's
# compiler, which must say regex; with -DPOSITIVE_CONTROL it must compile. Labels quick, full.
find_package(Python3 3.9 REQUIRED COMPONENTS Interpreter)

# What checks that call a compiler by themselves need to find fmt.
set(shardwise_check_arguments
    --include ${PROJECT_SOURCE_DIR}/include --include ${PROJECT_SOURCE_DIR}/tests --system
    "$<TARGET_GENEX_EVAL:fmt::fmt,$<TARGET_PROPERTY:fmt::fmt,INTERFACE_INCLUDE_DIRECTORIES>>")

function(shardwise_add_compile_fail_test)
  cmake_parse_arguments(PARSE_ARGV 0 test "" "NAME;SOURCE;EXPECT" "")
  if(SHARDWISE_SANITIZE_ONLY)
    return()
  endif()
  cmake_path(ABSOLUTE_PATH test_SOURCE)
  add_test(NAME "compile fail: ${test_NAME}"
           COMMAND Python3::Interpreter ${PROJECT_SOURCE_DIR}/tests/meta/check_compile_fail.py
                   --compiler ${CMAKE_CXX_COMPILER} ${shardwise_check_arguments} --expect
                   ${test_EXPECT} ${test_SOURCE})
  set_tests_properties("compile fail: ${test_NAME}" PROPERTIES LABELS "quick;full" TIMEOUT 120)
endfunction()
