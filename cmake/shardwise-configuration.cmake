# shardwise::config: shardwise::shardwise and yaml-cpp, for shardwise/config.hpp; not made where
# find_package(yaml-cpp) finds none. The installed package includes this for its component `config`; our own
# build does, too, and so may who adds shardwise as a subdirectory, after that.
if(NOT TARGET shardwise::config)
  if(NOT TARGET yaml-cpp::yaml-cpp AND NOT TARGET yaml-cpp)
    find_package(yaml-cpp QUIET)
  endif()
  # Before its version 0.8 the target has no namespace.
  foreach(target yaml-cpp::yaml-cpp yaml-cpp)
    if(TARGET ${target} AND NOT TARGET shardwise::config)
      add_library(shardwise::config INTERFACE IMPORTED)
      target_link_libraries(shardwise::config INTERFACE shardwise::shardwise ${target})
    endif()
  endforeach()
endif()
