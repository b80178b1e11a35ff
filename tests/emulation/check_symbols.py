#!/usr/bin/env python3
"""Compares what programs need of the CUDA runtime and of NCCL with what the emulation has.

check_symbols.py --emulated LIB... --real LIB... --programs FILE...
Each cuda* or nccl* symbol that a program leaves undefined is exported by an emulated library, under
the same version. What an emulated library exports of them the real one exports, too. The emulated
libraries need no sanitizer.
"""
import argparse
import pathlib
import re
import subprocess
import sys

API = re.compile(r"(__)?(cuda|p?nccl)[A-Za-z]")


def symbols(path, option):
    """Name -> version ("" for none) of the dynamic symbols."""
    lines = subprocess.run(["nm", "--dynamic", option, path], capture_output=True, text=True, check=True)
    found = {}
    for line in lines.stdout.splitlines():
        kind, name = line.split()[-2:]
        name, _, version = name.partition("@")
        found[name] = (kind, version.lstrip("@"))
    return found


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--emulated", nargs="+", required=True)
    parser.add_argument("--real", nargs="*", default=[])
    parser.add_argument("--programs", nargs="+", required=True)
    given = parser.parse_args()

    problems = [f"{path} is not built" for path in given.emulated + given.programs if not pathlib.Path(path).exists()]
    if problems:
        sys.exit("\n".join(problems))
    exports = {}
    for library in given.emulated:
        exports.update(symbols(library, "--defined-only"))
        for name, (kind, _) in symbols(library, "--undefined-only").items():
            if kind == "U" and re.match(r"__(tsan|asan|ubsan|sanitizer)", name):
                problems.append(f"{library} needs {name}: it is built with a sanitizer")

    real = {}
    for library in given.real:
        real.update(symbols(library, "--defined-only"))
    for name, (_, version) in sorted(exports.items()):
        if not API.match(name) or not real:
            continue
        if name not in real:
            problems.append(f"{name} is emulated, but the real libraries do not have it")
        elif real[name][1] != version:
            problems.append(f"{name} has version '{version}', in the real library '{real[name][1]}'")

    needed = 0
    for program in given.programs:
        for name, (_, version) in sorted(symbols(program, "--undefined-only").items()):
            if not API.match(name):
                continue
            needed += 1
            if name not in exports:
                problems.append(f"{pathlib.Path(program).name} needs {name}, which is not emulated")
            elif version and exports[name][1] != version:
                problems.append(f"{pathlib.Path(program).name} needs {name} of version {version}")
    if needed == 0:
        problems.append("no program needs any symbol: the check looks at the wrong files")

    print("\n".join(problems) if problems else f"{needed} needs of {len(given.programs)} programs are met")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
