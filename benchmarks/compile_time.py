"""What including shardwise costs a compiler, against nlohmann/json, in one run of alternating calls.

Two rows: what a unit pays that only includes (-fsyntax-only), which must stay below the other's, and an
optimized object file of the same unit (-O2 -c). Then our headers by what each costs alone.
"""

import argparse
import os
import pathlib
import re
import resource
import statistics
import subprocess
import sys

OURS = "shardwise/shardwise.hpp"
THEIRS = "nlohmann/json.hpp"


def seconds(line, text):
    """Processor seconds of a compiler call: other work on the machine disturbs these less than the clock."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(line, input=text, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def compare(line, repeats):
    """The medians of both, measured in turn, and that of the ratios within a turn: a machine whose speed
    drifts changes both sides of a turn alike."""
    times = {OURS: [], THEIRS: []}
    for _ in range(repeats):
        for header, values in times.items():
            values.append(seconds(line, f"#include <{header}>\n"))
    ratios = [ours / theirs for ours, theirs in zip(times[OURS], times[THEIRS])]
    return (statistics.median(values) for values in (times[OURS], times[THEIRS], ratios))


def reached(line, text):
    """The files that a unit includes, however far down."""
    done = subprocess.run([*line, "-H"], input=text, text=True, stderr=subprocess.PIPE, check=True)
    return [pathlib.Path(path).resolve() for path in re.findall(r"^\.+ (\S+)$", done.stderr, re.MULTILINE)]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--compiler", default="g++")
    parser.add_argument("--include", type=pathlib.Path, required=True)
    parser.add_argument("--system", default="", help="further include directories, separated by ;")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--headers", type=int, default=10, help="how many headers to list; 0: none")
    options = parser.parse_args()
    options.include = options.include.resolve()
    base = [options.compiler, "-std=c++20", f"-I{options.include}"]
    for directory in options.system.split(";"):
        if directory and directory not in ("/usr/include", "/usr/local/include"):
            base += ["-isystem", directory]
    source = ["-x", "c++", "-"]

    print(f"{options.compiler}, processor seconds, median of {options.repeats} in turn")
    print(f"{'':24}{'shardwise':>12}{'nlohmann':>12}{'ratio':>8}")
    ratios = []
    for name, flags in (("-fsyntax-only", ["-fsyntax-only"]), ("-O2 -c", ["-O2", "-c", "-o", os.devnull])):
        ours, theirs, ratio = compare([*base, *flags, *source], options.repeats)
        ratios.append(ratio)
        print(f"{name:24}{ours:12.3f}{theirs:12.3f}{ratio:8.3f}", flush=True)

    if options.headers:
        syntax = [*base, "-fsyntax-only", *source]
        costs = []
        for path in reached(syntax, f"#include <{OURS}>\n"):
            if path.is_relative_to(options.include):
                name = path.relative_to(options.include).as_posix()
                costs.append((seconds(syntax, f"#include <{name}>\n"), name))
        empty = seconds(syntax, "\n")
        print(f"\nour headers by what each costs alone, with all that it includes (empty unit {empty:.3f} s)")
        for cost, name in sorted(costs, reverse=True)[: options.headers]:
            print(f"{cost:8.3f}  {name}")

    if ratios[0] >= 1:
        print(f"error: including shardwise costs {ratios[0]:.3f} times {THEIRS}; it must cost less")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
