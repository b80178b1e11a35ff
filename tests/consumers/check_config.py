"""A consumer of the component `config`, installed and from a subdirectory. Skipped where yaml-cpp is no
package."""

import sys

from consuming import HERE, Workplace, in_order

SKIPPED = 4
PROBE = """cmake_minimum_required(VERSION 3.25)
project(probe LANGUAGES CXX)
find_package(yaml-cpp QUIET)
message(STATUS "yaml-cpp: '${yaml-cpp_FOUND}'")
"""
FROM_SOURCE = """cmake_minimum_required(VERSION 3.25)
project(consumer LANGUAGES CXX)
add_executable(trainer config.cpp)
add_subdirectory(shardwise)
include(shardwise/cmake/shardwise-configuration.cmake)
target_link_libraries(trainer PRIVATE shardwise::config)
"""
place = Workplace(__doc__)


def has_yaml_cpp():
    (place.folder / "probe").mkdir()
    (place.folder / "probe/CMakeLists.txt").write_text(PROBE)
    return "yaml-cpp: '1'" in place.configure(place.folder / "probe", "probe-build")


def installed():
    place.install()
    place.configure(HERE / "find_package", "installed", f"-DCMAKE_PREFIX_PATH={place.prefix}",
                    "-DCOMPONENTS=core;config", "-DPROGRAM=config.cpp", "-DTARGET=shardwise::config",
                    says="component config: TRUE")
    place.build_and_run("installed", "zero2, as it was")


def subdirectory():
    """Made and linked; the program would be the same."""
    project = place.project("source")
    (project / "CMakeLists.txt").write_text(FROM_SOURCE)
    (project / "config.cpp").symlink_to(HERE / "config.cpp")
    place.configure(project, "subdirectory")


if __name__ == "__main__":
    if not has_yaml_cpp():
        print("skipped: find_package(yaml-cpp) finds none")
        sys.exit(SKIPPED)
    sys.exit(1 if in_order(subdirectory, installed) else 0)
