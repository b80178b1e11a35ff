# shardwise::monitor: shardwise::shardwise and nlohmann/json, for shardwise/monitor/report.hpp; not made
# where find_package finds no json. The installed package includes this for its component `monitor`. Who adds
# shardwise as a subdirectory includes it after that.
if(NOT TARGET shardwise::monitor)
  if(NOT TARGET nlohmann_json::nlohmann_json)
    find_package(nlohmann_json 3.11 QUIET)
  endif()
  if(TARGET nlohmann_json::nlohmann_json)
    add_library(shardwise::monitor INTERFACE IMPORTED)
    target_link_libraries(shardwise::monitor INTERFACE shardwise::shardwise
                                                       nlohmann_json::nlohmann_json)
  endif()
endif()
