include(CMakePackageConfigHelpers)

set(shardwise_config_dir ${CMAKE_INSTALL_LIBDIR}/cmake/shardwise)
install(DIRECTORY ${PROJECT_SOURCE_DIR}/include/shardwise TYPE INCLUDE)
install(FILES ${PROJECT_SOURCE_DIR}/LICENSE DESTINATION ${CMAKE_INSTALL_DOCDIR})
install(TARGETS shardwise EXPORT shardwise-targets)
install(EXPORT shardwise-targets NAMESPACE shardwise:: DESTINATION ${shardwise_config_dir})
configure_package_config_file(
  ${PROJECT_SOURCE_DIR}/cmake/shardwise-config.cmake.in ${PROJECT_BINARY_DIR}/shardwise-config.cmake
  INSTALL_DESTINATION ${shardwise_config_dir})
write_basic_package_version_file(${PROJECT_BINARY_DIR}/shardwise-config-version.cmake
                                 COMPATIBILITY SameMinorVersion ARCH_INDEPENDENT)
install(FILES ${PROJECT_BINARY_DIR}/shardwise-config.cmake
              ${PROJECT_BINARY_DIR}/shardwise-config-version.cmake
        DESTINATION ${shardwise_config_dir})
