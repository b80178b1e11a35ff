# shardwise::cuda: shardwise::shardwise, the CUDA runtime and NCCL, for shardwise/device/cuda.hpp and
# shardwise/comm/nccl.hpp; not made where one of them is missing, and shardwise_cuda_problem says which.
# The installed package includes this for its component `cuda`; our own build does, too.
set(shardwise_cuda_problem "")
find_package(CUDAToolkit 12 QUIET)
if(NOT CUDAToolkit_FOUND OR NOT TARGET CUDA::cudart)
  set(shardwise_cuda_problem "the CUDA Toolkit (12 or newer) is not installed")
else()
  list(PREPEND CMAKE_MODULE_PATH ${CMAKE_CURRENT_LIST_DIR})
  find_package(NCCL 2.22 QUIET)
  list(POP_FRONT CMAKE_MODULE_PATH)
  if(NOT NCCL_FOUND)
    set(shardwise_cuda_problem "NCCL (2.22 or newer) is not installed")
  elseif(NOT TARGET shardwise::cuda)
    add_library(shardwise::cuda INTERFACE IMPORTED)
    target_link_libraries(shardwise::cuda INTERFACE shardwise::shardwise CUDA::cudart NCCL::NCCL)
  endif()
endif()

# shardwise_use_cuda20(TARGET): its units of CUDA are C++20. CMake 3.25 does not know nvcc's flag for it.
function(shardwise_use_cuda20 target)
  if(CMAKE_CUDA20_STANDARD_COMPILE_OPTION)
    set_target_properties(${target} PROPERTIES CUDA_STANDARD 20 CUDA_STANDARD_REQUIRED ON)
  else()
    target_compile_options(${target} PRIVATE $<$<COMPILE_LANGUAGE:CUDA>:-std=c++20>)
  endif()
endfunction()

# shardwise_add_cuda_kernels(NAME): a static library of the kernels that plain C++ units call; units of
# CUDA that include shardwise/device/cuda_launch.cuh need none. Needs the language CUDA. Without
# contraction to fused multiply-adds results are the host's to the bit.
function(shardwise_add_cuda_kernels name)
  find_file(SHARDWISE_CUDA_KERNELS shardwise/device/cuda_kernels.cu NO_DEFAULT_PATH REQUIRED
            PATHS ${CMAKE_CURRENT_FUNCTION_LIST_DIR}/../include
                  ${CMAKE_CURRENT_FUNCTION_LIST_DIR}/../../../include)
  mark_as_advanced(SHARDWISE_CUDA_KERNELS)
  add_library(${name} STATIC ${SHARDWISE_CUDA_KERNELS})
  target_compile_options(${name} PRIVATE $<$<COMPILE_LANGUAGE:CUDA>:-fmad=false>)
  shardwise_use_cuda20(${name})
  set_target_properties(${name} PROPERTIES CUDA_RUNTIME_LIBRARY Shared POSITION_INDEPENDENT_CODE ON)
  target_link_libraries(${name} PUBLIC shardwise::cuda)
endfunction()
