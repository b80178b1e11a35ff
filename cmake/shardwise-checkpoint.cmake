# shardwise::checkpoint: shardwise::shardwise, nlohmann/json and xxHash, for shardwise/checkpoint.hpp; not made
# where one of them is not found. The installed package includes this for its component `checkpoint`; our own
# build does, too, and so may who adds shardwise as a subdirectory, after that.
if(NOT TARGET shardwise::checkpoint)
  if(NOT TARGET nlohmann_json::nlohmann_json)
    find_package(nlohmann_json 3.11 QUIET)
  endif()
  if(NOT TARGET xxHash::xxhash)
    find_path(SHARDWISE_XXHASH_INCLUDE_DIR xxhash.h)
    find_library(SHARDWISE_XXHASH_LIBRARY xxhash)
    if(SHARDWISE_XXHASH_INCLUDE_DIR AND SHARDWISE_XXHASH_LIBRARY)
      add_library(xxHash::xxhash UNKNOWN IMPORTED)
      set_target_properties(
        xxHash::xxhash PROPERTIES IMPORTED_LOCATION ${SHARDWISE_XXHASH_LIBRARY}
                                  INTERFACE_INCLUDE_DIRECTORIES ${SHARDWISE_XXHASH_INCLUDE_DIR})
    endif()
  endif()
  if(TARGET nlohmann_json::nlohmann_json AND TARGET xxHash::xxhash)
    add_library(shardwise::checkpoint INTERFACE IMPORTED)
    target_link_libraries(shardwise::checkpoint INTERFACE shardwise::shardwise
                                                          nlohmann_json::nlohmann_json xxHash::xxhash)
  endif()
endif()
