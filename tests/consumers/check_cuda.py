"""A consumer of the component `cuda`, installed and from a subdirectory, compiled by nvcc and run on the
emulation of the device. Skipped where CUDA and NCCL are not."""

import os
import sys

from consuming import HERE, SKIPPED, Failed, Workplace, block_with, in_order, run

INSTALLED = """cmake_minimum_required(VERSION 3.25)
project(consumer LANGUAGES CXX)
set(CMAKE_CUDA_ARCHITECTURES 90)
add_executable(trainer cuda.cpp)
include(readme.cmake)
"""
FROM_SOURCE = """cmake_minimum_required(VERSION 3.25)
project(consumer LANGUAGES CXX)
set(CMAKE_CUDA_ARCHITECTURES 90)
enable_language(CUDA)
add_executable(trainer cuda.cpp)
add_subdirectory(shardwise)
include(shardwise/cmake/shardwise-cuda.cmake)
shardwise_add_cuda_kernels(kernels)
target_link_libraries(trainer PRIVATE shardwise::cuda kernels)
"""
place = Workplace(__doc__)
emulation = place.options.build / "tests/emulation/lib"


def project(name, text):
    folder = place.project(name)
    (folder / "CMakeLists.txt").write_text(text)
    (folder / "cuda.cpp").symlink_to(HERE / "cuda.cpp")
    (folder / "readme.cmake").write_text(block_with(place.readme, "shardwise_add_cuda_kernels", "cmake"))
    return folder


def installed():
    place.install()
    place.configure(project("stranger", INSTALLED), "installed", f"-DCMAKE_PREFIX_PATH={place.prefix}")
    run(place.options.cmake, "--build", place.folder / "installed")
    for library in ("libcudart.so", "libnccl.so"):
        if not any(path.name.startswith(library) for path in emulation.iterdir()):
            raise Failed(f"{emulation} has no {library}: build the tests first")
    run(place.folder / "installed/trainer", says="sum 105",
        env=dict(os.environ, LD_LIBRARY_PATH=str(emulation)))


def subdirectory():
    """Made and linked; the program would be the same."""
    place.configure(project("source", FROM_SOURCE), "subdirectory")


if __name__ == "__main__":
    if not emulation.is_dir():
        print("skipped: CUDA or NCCL is not installed")
        sys.exit(SKIPPED)
    sys.exit(1 if in_order(subdirectory, installed) else 0)
