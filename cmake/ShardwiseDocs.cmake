# Target docs: the API reference, by Doxygen, in docs/html of the build; any warning is an error.
find_program(SHARDWISE_DOXYGEN doxygen)
set(shardwise_docs_dir ${PROJECT_BINARY_DIR}/docs)
configure_file(${PROJECT_SOURCE_DIR}/cmake/Doxyfile.in ${PROJECT_BINARY_DIR}/Doxyfile @ONLY)
if(SHARDWISE_DOXYGEN)
  add_custom_target(docs COMMAND ${SHARDWISE_DOXYGEN} ${PROJECT_BINARY_DIR}/Doxyfile VERBATIM)
endif()
