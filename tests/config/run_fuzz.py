"""Compiles the libFuzzer target of the configuration's readers with clang, and runs it for a while from the
files of the tests and the examples. Skipped where clang cannot build one."""

import pathlib
import sys

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "support"))
import fuzzing  # noqa: E402


def main():
    target = fuzzing.Target(fuzzing.parser(__doc__).parse_args(), HERE / "fuzz.cpp")
    files = [*(HERE / "fixtures").iterdir(), *(HERE.parents[1] / "examples/configs").iterdir()]
    for file in files:
        for choice in (0, 15):
            (target.seeds / f"{file.name}.{choice}").write_bytes(bytes([choice]) + file.read_bytes())
    words = sorted({word for header in (HERE.parents[1] / "include/shardwise/config").glob("*keys.hpp")
                    for text in header.read_text().split('"')[1::2] for word in text.split(".")
                    if word.replace("_", "").isalnum()})
    return target.run(words)


if __name__ == "__main__":
    sys.exit(main())
