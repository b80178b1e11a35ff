"""Projects that use shardwise as strangers do: installed, as a subdirectory, and by plain compiler call."""

import argparse
import concurrent.futures
import pathlib
import shutil
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent


class Failed(Exception):
    pass


def run(*line, fails_with=None, says=None):
    """Runs a command; what it says must contain `says`, or `fails_with` where it is to fail."""
    line = [str(part) for part in line]
    done = subprocess.run(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    text = " ".join(done.stdout.split())  # CMake wraps its messages
    expected = fails_with or says or ""
    if (done.returncode != 0) != (fails_with is not None) or expected not in text:
        wanted = f"fail, saying '{fails_with}'" if fails_with else f"succeed, saying '{says or ''}'"
        raise Failed(f"{' '.join(line)}\nwas to {wanted}, ended with {done.returncode}:\n{done.stdout}")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", type=pathlib.Path, required=True, help="shardwise's repository")
    parser.add_argument("--build", type=pathlib.Path, required=True, help="a configured build of it")
    parser.add_argument("--work", type=pathlib.Path, required=True, help="a folder to empty and fill")
    parser.add_argument("--cmake", default="cmake")
    parser.add_argument("--generator", default="Ninja")
    parser.add_argument("--compiler", default="g++")
    parser.add_argument("--fmt", default="", help="where find_package finds fmt, if not by itself")
    parser.add_argument("--version", required=True)
    options = parser.parse_args()
    shutil.rmtree(options.work, ignore_errors=True)
    options.work.mkdir(parents=True)
    prefix = options.work / "prefix"

    def configure(kind, folder, *variables):
        return (options.cmake, "-S", HERE / kind, "-B", options.work / folder, "-G", options.generator,
                f"-DCMAKE_CXX_COMPILER={options.compiler}", f"-Dfmt_DIR={options.fmt}", *variables)

    def build_and_run(folder):
        run(options.cmake, "--build", options.work / folder)
        run(options.work / folder / "consumer", says="sum 105")

    def installed():
        run(options.cmake, "--install", options.build, "--prefix", prefix)
        run(*configure("find_package", "core", f"-DCMAKE_PREFIX_PATH={prefix}", "-DCOMPONENTS=core"),
            says="component core: TRUE")
        build_and_run("core")

    def moved():
        # An installed tree holds no path of the machine that made it.
        elsewhere = options.work / "elsewhere"
        prefix.rename(elsewhere)
        for path in elsewhere.rglob("*.cmake"):
            for origin in (options.source, options.build, prefix):
                if str(origin) in path.read_text():
                    raise Failed(f"{path} names {origin}")
        run(*configure("find_package", "moved", f"-DCMAKE_PREFIX_PATH={elsewhere}", "-DCOMPONENTS=core"))
        elsewhere.rename(prefix)

    def unknown_required():
        run(*configure("find_package", "required", f"-DCMAKE_PREFIX_PATH={prefix}", "-DCOMPONENTS=core;warp"),
            fails_with=f"shardwise {options.version} has no component 'warp'; it has: core")

    def unknown_optional():
        run(*configure("find_package", "optional", f"-DCMAKE_PREFIX_PATH={prefix}", "-DCOMPONENTS=core",
                       "-DOPTIONAL=warp"), says="component warp:")

    def subdirectory():
        run(*configure("add_subdirectory", "sub", f"-DSHARDWISE_SOURCE={options.source}"))
        build_and_run("sub")

    def plain():
        program = options.work / "plain"
        run(options.compiler, "-std=c++23", f"-I{options.source / 'include'}", HERE / "program.cpp", "-o",
            program, "-lfmt", "-pthread")
        run(program, says="sum 105")

    def in_order(*cases):
        failures = 0
        for case in cases:
            begin = time.monotonic()
            try:
                case()
                verdict = "passed"
            except Failed as reason:
                failures += 1
                verdict = f"FAILED\n{reason}"
            print(f"{case.__name__} ({time.monotonic() - begin:.1f} s): {verdict}", flush=True)
        return failures

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        from_source = pool.submit(in_order, subdirectory, plain)
        failures = in_order(installed, moved, unknown_required, unknown_optional) + from_source.result()
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
