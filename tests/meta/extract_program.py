"""Writes the program in README.md, its first block of C++ with a main, to a file."""

import pathlib
import re
import sys


def extract(text):
    for block in re.findall(r"^```cpp\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        if "int main()" in block:
            return block
    raise SystemExit("README.md has no program")


if __name__ == "__main__":
    source, target = map(pathlib.Path, sys.argv[1:])
    target.write_text(extract(source.read_text(encoding="utf-8")))
