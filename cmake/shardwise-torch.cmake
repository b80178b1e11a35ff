# shardwise::torch: shardwise::shardwise and libtorch, for shardwise/adapters/torch.hpp; not made where
# find_package(Torch) finds none. The installed package includes this for its component `torch`. Who adds
# shardwise as a subdirectory includes it after that; libtorch's targets belong to the folder that does.
if(NOT TARGET shardwise::torch)
  find_package(Torch QUIET)
  if(Torch_FOUND)
    add_library(shardwise::torch INTERFACE IMPORTED)
    target_link_libraries(shardwise::torch INTERFACE shardwise::shardwise ${TORCH_LIBRARIES})
  endif()
endif()
