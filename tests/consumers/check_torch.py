"""A consumer of the component `torch`, installed and from a subdirectory. Skipped where libtorch is not."""

import sys

from consuming import HERE, Workplace, in_order

SKIPPED = 4
PROBE = """cmake_minimum_required(VERSION 3.25)
project(probe LANGUAGES CXX)
find_package(Torch QUIET)
message(STATUS "libtorch: '${Torch_FOUND}'")
"""
FROM_SOURCE = """cmake_minimum_required(VERSION 3.25)
project(consumer LANGUAGES CXX)
add_executable(trainer torch.cpp)
add_subdirectory(shardwise)
include(shardwise/cmake/shardwise-torch.cmake)
target_link_libraries(trainer PRIVATE shardwise::torch)
"""
place = Workplace(__doc__)


def has_libtorch():
    (place.folder / "probe").mkdir()
    (place.folder / "probe/CMakeLists.txt").write_text(PROBE)
    return "libtorch: '1'" in place.configure(place.folder / "probe", "probe-build")


def installed():
    place.install()
    place.configure(HERE / "find_package", "installed", f"-DCMAKE_PREFIX_PATH={place.prefix}",
                    "-DCOMPONENTS=core;torch", "-DPROGRAM=torch.cpp", "-DTARGET=shardwise::torch",
                    says="component torch: TRUE")
    place.build_and_run("installed", "sum 105")


def subdirectory():
    """Made and linked; the program would be the same."""
    project = place.project("source")
    (project / "CMakeLists.txt").write_text(FROM_SOURCE)
    (project / "torch.cpp").symlink_to(HERE / "torch.cpp")
    place.configure(project, "subdirectory")


if __name__ == "__main__":
    if not has_libtorch():
        print("skipped: find_package(Torch) finds no libtorch")
        sys.exit(SKIPPED)
    sys.exit(1 if in_order(subdirectory, installed) else 0)
