# Targets for developers: format-check, tidy. Neither is needed to build.
find_program(SHARDWISE_CLANG_FORMAT NAMES clang-format-14 clang-format)
find_program(SHARDWISE_RUN_CLANG_TIDY NAMES run-clang-tidy-14 run-clang-tidy)
file(GLOB_RECURSE shardwise_own_sources CONFIGURE_DEPENDS include/*.hpp tests/*.hpp tests/*.cpp
     examples/*.hpp examples/*.cpp benchmarks/*.cpp)
find_package(Python3 3.9 COMPONENTS Interpreter)
if(SHARDWISE_CLANG_FORMAT AND Python3_FOUND)
  add_custom_target(
    format-check COMMAND Python3::Interpreter ${PROJECT_SOURCE_DIR}/cmake/check_format.py
                         ${SHARDWISE_CLANG_FORMAT} ${shardwise_own_sources}
    VERBATIM)
endif()
if(SHARDWISE_RUN_CLANG_TIDY)
  add_custom_target(
    tidy COMMAND ${SHARDWISE_RUN_CLANG_TIDY} -quiet -p ${PROJECT_BINARY_DIR}
                 "-header-filter=${PROJECT_SOURCE_DIR}/include/.*"
                 -extra-arg=-Wno-ignored-optimization-argument
                 "^(?!.*/(libtorch|adapters)/).*$" # clang does not take the headers of libtorch 1.13 as C++20
    VERBATIM USES_TERMINAL)
endif()
