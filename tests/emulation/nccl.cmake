# The fake NCCL: see CMakeLists.txt of this folder.
shardwise_add_emulated_library(
  emulated_nccl
  libnccl.so.2
  MAP
  ${CMAKE_CURRENT_SOURCE_DIR}/nccl.map
  SOURCES
  nccl_arithmetic.cpp
  nccl_call.cpp
  nccl_checks.cpp
  nccl_clique.cpp
  nccl_collectives.cpp
  nccl_communicator.cpp
  nccl_groups.cpp
  nccl_handles.cpp
  nccl_hub.cpp
  nccl_membership.cpp
  nccl_memory.cpp
  nccl_model.cpp
  nccl_queries.cpp
  nccl_remote.cpp
  nccl_wire.cpp)
target_link_libraries(emulated_nccl PRIVATE emulated_cudart)
# Reductions are the bulk of the work; frame pointers, so that LeakSanitizer names the caller.
target_compile_options(emulated_nccl PRIVATE -O2 -fno-omit-frame-pointer)
