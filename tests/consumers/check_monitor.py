"""A consumer of the component `monitor`, installed and from a subdirectory."""

import sys

from consuming import HERE, Workplace, in_order

FROM_SOURCE = """cmake_minimum_required(VERSION 3.25)
project(consumer LANGUAGES CXX)
add_executable(trainer monitor.cpp)
add_subdirectory(shardwise)
include(shardwise/cmake/shardwise-monitor.cmake)
target_link_libraries(trainer PRIVATE shardwise::monitor)
"""
NO_JSON = "-DCMAKE_DISABLE_FIND_PACKAGE_nlohmann_json=ON"
place = Workplace(__doc__)


def installed():
    place.install()
    where = (f"-DCMAKE_PREFIX_PATH={place.prefix}", "-DCOMPONENTS=core;monitor")
    place.configure(HERE / "find_package", "installed", *where, "-DPROGRAM=monitor.cpp",
                    "-DTARGET=shardwise::monitor", says="component monitor: TRUE")
    place.build_and_run("installed", "sum 105")
    place.configure(HERE / "find_package", "none", *where, NO_JSON,
                    fails_with="component 'monitor' needs nlohmann/json")
    place.configure(HERE / "find_package", "optional", where[0], "-DCOMPONENTS=core", "-DOPTIONAL=monitor", NO_JSON,
                    says="component monitor: FALSE")


def subdirectory():
    """Made and linked; the program would be the same."""
    project = place.project("source")
    (project / "CMakeLists.txt").write_text(FROM_SOURCE)
    (project / "monitor.cpp").symlink_to(HERE / "monitor.cpp")
    place.configure(project, "subdirectory")


if __name__ == "__main__":
    sys.exit(1 if in_order(subdirectory, installed) else 0)
