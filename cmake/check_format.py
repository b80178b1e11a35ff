"""Compares files with what clang-format makes of them.

Its own --dry-run reports every `inline namespace`, though it would change nothing there (version 14).
"""

import concurrent.futures
import os
import pathlib
import subprocess
import sys


def formatted(tool, path):
    done = subprocess.run([tool, path], capture_output=True, check=True)
    return done.stdout == pathlib.Path(path).read_bytes()


def main():
    tool, *paths = sys.argv[1:]
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        good = list(pool.map(lambda path: formatted(tool, path), paths))
    bad = [path for path, is_good in zip(paths, good) if not is_good]
    for path in bad:
        print(f"{path} is not as clang-format leaves it")
    print(f"{len(paths) - len(bad)} of {len(paths)} files are as clang-format leaves them")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
