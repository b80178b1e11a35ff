"""What including shardwise costs a compiler, against nlohmann/json, in one run of alternating calls.

Two rows: what a unit pays that only includes (-fsyntax-only), which must stay below the other's, and an
optimized object file of the same unit (-O2 -c). Then, as a table in Markdown, every public header by what it
costs alone, with all that it includes.
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


def public_headers(root):
    """Names of all headers below root/shardwise that hosts may include."""
    names = (path.relative_to(root).as_posix() for path in (root / "shardwise").rglob("*.hpp"))
    return sorted(name for name in names if not name.startswith("shardwise/detail/"))


def preprocessed_lines(line, text):
    """Lines that a unit has for the compiler proper, without empty ones and marks of the preprocessor."""
    done = subprocess.run([*line, "-E", "-P", "-x", "c++", "-"], input=text, text=True, capture_output=True,
                          check=True)
    return sum(bool(row.strip()) for row in done.stdout.splitlines())


def missing_header(line, text):
    """What a unit includes that is not installed, as backends and adapters may; else None."""
    done = subprocess.run([*line, "-M", "-x", "c++", "-"], input=text, text=True, capture_output=True)
    if done.returncode == 0:
        return None
    found = re.search(r"fatal error: '?([^\s':]+)'?(: No such file| file not found)", done.stderr)
    if not found or found.group(1).startswith("shardwise/"):
        sys.exit(done.stderr)
    return found.group(1)


def table(line, root, repeats):
    """Rows of Markdown, the costliest header first."""
    yield "| header, alone | seconds, -fsyntax-only | preprocessed lines |"
    yield "|---|---:|---:|"
    rows, skipped = [], []
    for name in public_headers(root):
        text = f"#include <{name}>\n"
        missing = missing_header(line, text)
        if missing:
            skipped.append(f"| {name} | needs {missing} | |")
            continue
        cost = statistics.median(seconds([*line, "-fsyntax-only", "-x", "c++", "-"], text) for _ in range(repeats))
        rows.append((cost, preprocessed_lines(line, text), name))
    for cost, lines, name in sorted(rows, reverse=True):
        yield f"| {name} | {cost:.3f} | {lines} |"
    yield from skipped


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--compiler", default="g++")
    parser.add_argument("--include", type=pathlib.Path, required=True)
    parser.add_argument("--system", default="", help="further include directories, separated by ;")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--header-repeats", type=int, default=3, help="for the table of headers; 0: no table")
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

    if options.header_repeats:
        empty = seconds([*base, "-fsyntax-only", *source], "\n")
        print(f"\nProcessor seconds, median of {options.header_repeats}; an empty unit takes {empty:.3f}\n",
              flush=True)
        for row in table(base, options.include, options.header_repeats):
            print(row)

    if ratios[0] >= 1:
        print(f"error: including shardwise costs {ratios[0]:.3f} times {THEIRS}; it must cost less")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
