# Stands in for vcpkg, which runs a port as a CMake script: cmake -D... -P of this file.
#   PORT, CURRENT_PORT_DIR      the port
#   CURRENT_PACKAGES_DIR        where its files go
#   CURRENT_BUILDTREES_DIR      where it may build
#   GENERATOR, COMPILER, FMT    what to build with
# Each function does the part of vcpkg's own that a port of headers sees, and refuses what that refuses.
cmake_minimum_required(VERSION 3.25)
set(build ${CURRENT_BUILDTREES_DIR}/${PORT})

function(vcpkg_cmake_configure)
  cmake_parse_arguments(PARSE_ARGV 0 arg "" "SOURCE_PATH" "OPTIONS")
  if(arg_UNPARSED_ARGUMENTS OR NOT EXISTS "${arg_SOURCE_PATH}/CMakeLists.txt")
    message(FATAL_ERROR "vcpkg_cmake_configure: ${arg_UNPARSED_ARGUMENTS} ${arg_SOURCE_PATH}")
  endif()
  execute_process(
    COMMAND
      ${CMAKE_COMMAND} -S ${arg_SOURCE_PATH} -B ${build} -G ${GENERATOR} -DCMAKE_CXX_COMPILER=${COMPILER}
      -Dfmt_DIR=${FMT} -DCMAKE_INSTALL_PREFIX=${CURRENT_PACKAGES_DIR} ${arg_OPTIONS}
    OUTPUT_VARIABLE text ERROR_VARIABLE text COMMAND_ERROR_IS_FATAL ANY)
  if(text MATCHES "not used by the project")
    message(FATAL_ERROR "vcpkg_cmake_configure: ${text}")
  endif()
endfunction()

function(vcpkg_cmake_install)
  execute_process(COMMAND ${CMAKE_COMMAND} --install ${build} OUTPUT_QUIET COMMAND_ERROR_IS_FATAL ANY)
endfunction()

function(vcpkg_cmake_config_fixup)
  cmake_parse_arguments(PARSE_ARGV 0 arg "" "CONFIG_PATH" "")
  file(GLOB files "${CURRENT_PACKAGES_DIR}/${arg_CONFIG_PATH}/*.cmake")
  if(arg_UNPARSED_ARGUMENTS OR NOT files)
    message(FATAL_ERROR "vcpkg_cmake_config_fixup: ${arg_UNPARSED_ARGUMENTS} ${arg_CONFIG_PATH}: ${files}")
  endif()
  file(COPY ${files} DESTINATION ${CURRENT_PACKAGES_DIR}/share/${PORT})
  cmake_path(GET arg_CONFIG_PATH PARENT_PATH parent)
  file(REMOVE_RECURSE ${CURRENT_PACKAGES_DIR}/${parent})
endfunction()

function(vcpkg_fixup_pkgconfig)
  if(NOT EXISTS ${CURRENT_PACKAGES_DIR}/share/pkgconfig/${PORT}.pc)
    message(FATAL_ERROR "vcpkg_fixup_pkgconfig: no ${PORT}.pc")
  endif()
endfunction()

function(vcpkg_install_copyright)
  cmake_parse_arguments(PARSE_ARGV 0 arg "" "" "FILE_LIST")
  file(INSTALL ${arg_FILE_LIST} DESTINATION ${CURRENT_PACKAGES_DIR}/share/${PORT} RENAME copyright)
endfunction()

include(${CURRENT_PORT_DIR}/portfile.cmake)
