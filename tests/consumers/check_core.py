"""Projects that use shardwise's core as strangers do: installed, by pkg-config, as a subdirectory, fetched,
and by plain compiler call; with the very lines that README.md gives for it."""

import concurrent.futures
import os
import pathlib
import sys

from consuming import HERE, Failed, Workplace, block_with, in_order, run

place = Workplace(__doc__)
options = place.options

# A consumer of the core needs fmt and threads: with this, whatever else the machine has is hidden from it.
# Without, readme/CMakeLists.txt sees what is looked for; CMake does not tell of what is hidden.
ALONE = [f"-DCMAKE_DISABLE_FIND_PACKAGE_{name}=ON"
         for name in ("MPI", "CUDAToolkit", "NCCL", "nlohmann_json", "yaml-cpp", "xxHash", "Torch", "Catch2",
                      "rapidcheck", "Eigen3", "CLI11", "dlib", "Python3", "PkgConfig")]
# Nor is there a network.
ALONE += ["-DFETCHCONTENT_FULLY_DISCONNECTED=ON"]


def components(folder, prefix, required, optional="", *variables, **expected):
    place.configure(HERE / "find_package", folder, f"-DCMAKE_PREFIX_PATH={prefix}", f"-DCOMPONENTS={required}",
                    f"-DOPTIONAL={optional}", *variables, **expected)


def installed():
    place.install()
    project = place.cmake_of_readme("find_package(shardwise 0.1")
    where = f"-DCMAKE_PREFIX_PATH={place.prefix}"
    place.configure(project, "installed", where)
    place.build_and_run("installed", "sum 105, C++20")
    place.configure(project, "other", where, "-DCMAKE_CXX_STANDARD=23", *ALONE, compiler=options.other_compiler)
    place.build_and_run("other", "sum 105, C++23")


def component_sets():
    components("none", place.prefix, "")
    components("core", place.prefix, "core", says="component core: TRUE")
    components("unknown", place.prefix, "core", "warp", says="component warp: FALSE")
    components("required", place.prefix, "core;warp",
               fails_with=f"shardwise {options.version}: no component 'warp', only core, checkpoint, config, cuda, monitor, mpi and torch")
    components("no-torch", place.prefix, "core", "torch", *ALONE, says="component torch: FALSE")
    components("config", place.prefix, "core;config", "", *ALONE,
               fails_with=f"shardwise {options.version}: component 'config' needs yaml-cpp")
    components("torch", place.prefix, "core;torch", "", *ALONE,
               fails_with=f"shardwise {options.version}: component 'torch' needs libtorch")


def moved():
    """An installed tree holds no path of the machine that made it."""
    elsewhere = place.folder / "elsewhere"
    place.prefix.rename(elsewhere)
    for path in elsewhere.rglob("*"):
        for origin in (options.source, options.build, place.prefix):
            if path.suffix in (".cmake", ".pc") and str(origin) in path.read_text():
                raise Failed(f"{path} names {origin}")
    components("moved", elsewhere, "core")

    search = [elsewhere / "share/pkgconfig", pathlib.Path(options.fmt).parents[1] / "pkgconfig"]
    environment = {**os.environ, "PKG_CONFIG_PATH": os.pathsep.join(map(str, search))}
    run("pkg-config", "--modversion", "shardwise", says=options.version, env=environment)
    place.shell_of_readme("pkg-config", options.compiler, 23, env=environment)


def subdirectory():
    place.configure(place.cmake_of_readme("add_subdirectory(shardwise"), "subdirectory")
    place.build_and_run("subdirectory", "sum 105, C++20")


def fetched():
    place.configure(place.cmake_of_readme("FetchContent_Declare(shardwise"), "fetched", *ALONE,
                    f"-DFETCHCONTENT_SOURCE_DIR_SHARDWISE={options.source}", "-DCMAKE_CXX_STANDARD=20",
                    compiler=options.other_compiler)
    place.build_and_run("fetched", "sum 105, C++20")


def plain():
    place.shell_of_readme("-I shardwise/include", options.compiler, 20)


if __name__ == "__main__":
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        from_source = pool.submit(in_order, subdirectory, fetched, plain)
        failures = in_order(installed, component_sets, moved) + from_source.result()
    sys.exit(1 if failures else 0)
