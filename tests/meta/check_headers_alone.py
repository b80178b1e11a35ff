"""Every header compiles alone, with nothing included before it."""

import argparse
import concurrent.futures
import hashlib
import os
import pathlib
import re
import sys

import check_includes
import compiling


def closure_hash(headers, header, line):
    """Changes where the header, or one of ours that it reaches, or the command does."""
    names = {f"shardwise/{header}", *check_includes.reach(headers, header)}
    texts = [headers[name.removeprefix("shardwise/")][0] for name in sorted(names)
             if name.removeprefix("shardwise/") in headers]
    return hashlib.sha256("\0".join([*line, *texts]).encode()).hexdigest()


def check(options, root, stamps=None, without=None):
    """Returns (number of headers, [(header, what the compiler said)] of those that do not compile).

    Headers that compiled before, with the same text all the way down, are left out: `stamps` is the
    file that remembers them. `without`: a pattern of headers that are left alone.
    """
    line = compiling.command(options) + [f"-I{root}", "-fsyntax-only", "-x", "c++", "-"]
    _, version = compiling.run([options.compiler, "--version"])
    headers = check_includes.read(root)
    chosen = [header for header in headers if not (without and re.fullmatch(without, header))]
    known = set(stamps.read_text().split()) if stamps and stamps.exists() else set()
    hashes = {header: closure_hash(headers, header, [version, *line]) for header in chosen}

    def compile_alone(header):
        if hashes[header] in known:
            return True, ""
        return compiling.run(line, f"#include <shardwise/{header}>\n")

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        results = dict(zip(chosen, pool.map(compile_alone, chosen)))
    bad = [(header, text) for header, (good, text) in results.items() if not good]
    if stamps:
        good = [hashes[header] for header, (good, _) in results.items() if good]
        stamps.write_text("\n".join(good) + "\n")
    return len(chosen), bad


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    compiling.add_arguments(parser)
    parser.add_argument("--stamps", type=pathlib.Path, help="remembers what compiled")
    parser.add_argument("--without", help="pattern of headers whose dependencies are not there")
    parser.add_argument("root", help="the directory that holds shardwise/")
    options = parser.parse_args()
    count, bad = check(options, options.root, options.stamps, options.without)
    for header, text in bad:
        print(f"{header} does not compile alone:\n{text}")
    print(f"{count - len(bad)} of {count} headers compile alone with {options.compiler}")
    return 1 if bad or count == 0 else 0


if __name__ == "__main__":
    sys.exit(main())
