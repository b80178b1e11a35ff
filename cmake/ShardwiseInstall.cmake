include(CMakePackageConfigHelpers)

# Headers alone: nothing depends on the architecture, so that all of it goes below share.
set(shardwise_config_dir ${CMAKE_INSTALL_DATADIR}/cmake/shardwise)
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
              ${PROJECT_SOURCE_DIR}/cmake/shardwise-torch.cmake
              ${PROJECT_SOURCE_DIR}/cmake/shardwise-monitor.cmake
              ${PROJECT_SOURCE_DIR}/cmake/shardwise-cuda.cmake
              ${PROJECT_SOURCE_DIR}/cmake/shardwise-mpi.cmake
              ${PROJECT_SOURCE_DIR}/cmake/shardwise-checkpoint.cmake
              ${PROJECT_SOURCE_DIR}/cmake/shardwise-configuration.cmake
              ${PROJECT_SOURCE_DIR}/cmake/FindNCCL.cmake
        DESTINATION ${shardwise_config_dir})

# pkg-config knows where the file lies: headers are found from there, wherever the tree is moved to.
file(RELATIVE_PATH shardwise_pc_to_include ${CMAKE_INSTALL_FULL_DATADIR}/pkgconfig
     ${CMAKE_INSTALL_FULL_INCLUDEDIR})
configure_file(${PROJECT_SOURCE_DIR}/cmake/shardwise.pc.in ${PROJECT_BINARY_DIR}/shardwise.pc @ONLY)
install(FILES ${PROJECT_BINARY_DIR}/shardwise.pc DESTINATION ${CMAKE_INSTALL_DATADIR}/pkgconfig)
